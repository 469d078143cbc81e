"""`convert modelfile FILE`: what Ollama wants to know of a GGUF."""

from __future__ import annotations

import argparse

from converter.cli.arguments import file_path, positive, source_path, text_of
from converter.cli.console import print_events, print_text
from converter.cli.verbs import Outcome, Verb
from converter.text import printable

VERB = Verb(
    name="modelfile",
    group="change what is there",
    arguments="FILE [OUT]",
    help="Ollama's Modelfile of a GGUF: template, stop tokens, parameters, licence",
    description=(
        "Write the Modelfile with which `ollama create` takes a GGUF, or print it where no OUT is given. The template "
        "is that of the family whose prompts are the same as those of the GGUF's own chat template (to see that needs "
        "the package jinja2); where there is none, no template is written and that is told."
    ),
    examples=(
        ("convert modelfile model.gguf Modelfile", "then: ollama create NAME -f Modelfile"),
        ("convert modelfile vision.gguf Modelfile --mmproj mmproj.gguf", "with its projector"),
        ("convert modelfile base.gguf Modelfile --adapter lora.gguf", "with a LoRA adapter"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and what is said of it beside what it says itself."""
    add = parser.add_argument
    add("source", metavar="FILE", type=source_path, help="GGUF, or one of its shards")
    add("target", metavar="OUT", nargs="?", type=file_path, help="file to write (default: print it)")
    add("--mmproj", type=file_path, metavar="FILE", help="projector of a multimodal model, a GGUF")
    add("--adapter", type=file_path, metavar="FILE", help="LoRA adapter of the model, a GGUF")
    add("--template", type=file_path, metavar="FILE", help="template in Ollama's language, in the place of ours")
    add("--system", type=file_path, metavar="FILE", help="system text")
    add("--licence", type=file_path, action="append", default=[], metavar="FILE", help="licence; may be repeated")
    add("--num-ctx", type=positive, metavar="N", help="tokens of context (default: the model's own, at most 8192)")
    add("-f", "--force", action="store_true", help="replace an existing output")


def run(args: argparse.Namespace) -> Outcome:
    """Make it; without OUT, paths in it are relative to this folder."""
    from converter.housekeeping.modelfile import Extras, modelfile

    licences = tuple(text for path in args.licence if (text := text_of(path)) is not None)
    extras = Extras(args.mmproj, args.adapter, text_of(args.template), text_of(args.system), licences, args.num_ctx)
    made = modelfile(args.source, args.target, extras, force=args.force)

    def show() -> None:
        if not args.quiet:
            print_events(made.events)
        if made.path is None:
            print_text(made.text)
        elif not args.quiet:
            print(f"{printable(str(made.path))}: {len(made.instructions)} instructions")

    return Outcome(made.as_dict, show)
