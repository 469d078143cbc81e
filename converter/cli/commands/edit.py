"""`convert edit FILE`: metadata changed, tensors as they are."""

from __future__ import annotations

import argparse
from pathlib import Path

from converter.cli.arguments import file_name, file_path, rewrite_arguments
from converter.cli.console import print_table
from converter.cli.progress import showing
from converter.cli.verbs import Outcome, Verb
from converter.errors import UsageError
from converter.text import human_bytes, printable

VERB = Verb(
    name="edit",
    group="change what is there",
    arguments="FILE [OUT]",
    help="set, rename and remove metadata of GGUF and safetensors",
    description=(
        "Change the metadata of a GGUF or safetensors file, its tensors as they are. Without OUT the file itself is "
        "changed: in place where one small write does it, else by a new file that takes its place when it is complete. "
        "A key keeps its type unless another is given."
    ),
    examples=(
        ("convert edit model.gguf --set general.name=Tiny", "a text, in place where it is as long"),
        ("convert edit model.gguf --set tokenizer.chat_template=@template.jinja --dry-run", "from a file; only shown"),
        ("convert edit model.gguf new.gguf --set my.key:u32=7 --remove general.url", "a new key, and one less"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to change."""
    add = parser.add_argument
    add("source", metavar="FILE", type=file_path, help="GGUF or safetensors file; of a split GGUF the first shard")
    add("target", metavar="OUT", type=file_name, nargs="?", help="file to write (default: FILE itself)")
    add(
        "--set", action="append", default=[], metavar="KEY[:TYPE]=VALUE",
        help="TYPE: str, bool, u32, f32, ... or str[], a list in JSON; @FILE takes a text from a file; may be repeated",
    )  # fmt: skip
    add("--rename", action="append", default=[], metavar="OLD=NEW", help="call a key otherwise; may be repeated")
    add("--remove", action="append", default=[], metavar="KEY", help="leave a key out; may be repeated")
    add("--dry-run", action="store_true", help="show what would change, and change nothing")
    rewrite_arguments(add)


def run(args: argparse.Namespace) -> Outcome:
    """Change the file, or write another."""
    from converter.housekeeping.edit import Set, edit

    def setting(text: str) -> Set:
        left, value = _pair("--set", text)
        key, colon, kind = left.rpartition(":")
        return Set(key, _content(value), kind) if colon else Set(left, _content(value))

    if not (args.set or args.rename or args.remove):
        raise UsageError("nothing to change: say --set, --rename or --remove")
    with showing(args, VERB.name) as progress:
        made = edit(
            args.source,
            args.target,
            set=[setting(text) for text in args.set],
            rename=[_pair("--rename", text) for text in args.rename],
            remove=args.remove,
            dry_run=args.dry_run,
            force=args.force,
            threads=args.threads,
            progress=progress,
        )

    def show() -> None:
        if args.quiet:
            return
        changes = [change.as_dict() for change in made.changes]
        rows = ([each["key"], each["type"], each["before"] or "-", each["after"] or "-"] for each in changes)
        print_table(["key", "type", "before", "after"], rows)
        done = "would be " if made.dry_run and made.how != "nothing to do" else ""
        done += "changed in place" if made.how == "in place" else made.how
        print(f"\n{printable(str(made.path))}: {done}, {human_bytes(made.nbytes)} to write")

    return Outcome(made.as_dict, show)


def _pair(option: str, text: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not left or not equals:
        raise UsageError(f"{option} {text}: is not {'OLD=NEW' if option == '--rename' else 'KEY=VALUE'}")
    return left, right


def _content(text: str) -> str:
    """A value, or with an @ in front the text of a file; @@ is an @."""
    if not text.startswith("@") or text.startswith("@@"):
        return text.removeprefix("@") if text.startswith("@@") else text
    try:
        return Path(text[1:]).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{text[1:]}: is not UTF-8 text") from error
