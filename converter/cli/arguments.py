"""Arguments that several verbs share: types of single values, groups of options, and the request they make.

Everything heavy is imported inside the functions that need it, so that `convert --help` is instant.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from converter import __version__
from converter.address import is_address, parse, place, without_secrets
from converter.cli.progress import KINDS
from converter.errors import OutputExists, UsageError

if TYPE_CHECKING:
    from converter.mixing.goals import Goal
    from converter.mixing.results import Found
    from converter.request import Request, Source


MAX_ARGUMENTS = 5000  # argparse takes their square
HELP_ALL = "--help-all"


#: What short help shows of a command that has many options.
BASIC = frozenset(
    "quant quants recipe tensor_type imatrix dtype config arch lora target_type source_type force verify threads "
    "report strict split_max_size runtime fit target_size fit_memory gate out jobs dry_run json quiet help".split()
)
MANY = 16  # options from which on help is short


class Parser(argparse.ArgumentParser):
    """argparse with our error type, and without abbreviations: a later option must not change an old script.

    Help is short, unless --help-all asks for it; `front` is a page that short help is in the place of all else.
    """

    def __init__(self, front: Callable[[], str] | None = None, **options: Any) -> None:
        super().__init__(allow_abbrev=False, add_help=False, **options)
        self.front = front

    def format_help(self, full: bool = False) -> str:
        if self.front is not None and not full:
            return self.front()
        left = 0 if full else sum(not self._is_basic(action) for action in self._actions)
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_arguments([each for each in group._group_actions if full or self._is_basic(each)])
            formatter.end_section()
        more = f"`convert help {self.prog.split()[-1]}` has {left} more options" if left else ""
        formatter.add_text("\n\n".join(filter(None, (self.epilog, more))))
        return formatter.format_help()

    def _is_basic(self, action: argparse.Action) -> bool:
        return len(self._actions) < MANY or not action.option_strings or action.dest in BASIC

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if args is not None and len(args) > MAX_ARGUMENTS:
            self.error(f"{len(args)} arguments are refused, {MAX_ARGUMENTS} are allowed")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{without_secrets(message)}\n`{self.prog} --help` explains")


UNITS = {
    "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4,
    "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40,
}  # fmt: skip


def size(text: str) -> int:
    """`2G`, `1.5GB`, `500M` count in thousands, as llama.cpp and Hugging Face do, `8GiB` in 1024, `512B` bytes.

    A bare number is bytes, too, but for small ones: who writes 8 means something else.
    """
    match = re.fullmatch(r"(\d{1,15})(\.\d{1,6})?(?:([KMGT])(I?)B?|(B?))", text.strip().upper())
    if match is None or (match[2] and not match[3]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 2G, 1.5GiB, 500M or 64K")
    if not match[3]:
        if 0 < int(match[1]) < 1000 and not match[5]:
            raise argparse.ArgumentTypeError(f"{text!r} is a few bytes; say {match[1]}G, {match[1]}M or {match[1]}B")
        return int(match[1])
    return int(Fraction(match[1] + (match[2] or "")) * UNITS[match[3] + match[4]])


def source_path(text: str) -> Path:
    """A file or a folder that is read; one that lies elsewhere by its address."""
    try:
        return place(text) if text else file_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def file_path(text: str) -> Path:
    """A file or a folder of this machine."""
    return Path(file_name(text))


def file_name(text: str) -> str:
    """A path of this machine as it was written: a slash at its end says that it is a folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name is no file; write . for this folder")
    if is_address(text):
        raise argparse.ArgumentTypeError(f"{without_secrets(text)}: this must be a file or a folder of this machine")
    return text


def source_name(text: str) -> str:
    """A file, a folder or a pattern of them that is read, as it was given; one that lies elsewhere by its address."""
    if not is_address(text):
        return file_name(text)
    try:
        parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def target_name(text: str) -> str:
    """A file or a folder that is written, as it was given; one that lies elsewhere by its address."""
    if not is_address(text):
        return file_name(text)
    from converter.remote.outlet import refuse_unwritable

    try:
        refuse_unwritable(parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def pattern(text: str) -> tuple[str, str]:
    """`PATTERN=TYPE` in its two parts."""
    pattern, equals, wanted = text.rpartition("=")
    if not equals or not pattern or not wanted:
        raise argparse.ArgumentTypeError(f"{text!r} is not PATTERN=TYPE")
    return pattern, wanted


def adapter(text: str) -> tuple[Path, float]:
    """`DIR` or `DIR:STRENGTH` in its two parts."""
    folder, colon, strength = text.rpartition(":")
    if not colon or Path(text).exists():
        return source_path(text), 1.0
    try:
        number = float(strength)
    except ValueError:  # of Windows, C:\\folder
        return source_path(text), 1.0
    return source_path(folder), number


def calibration(text: str) -> str | Path:
    """`own` and `random`, or a file of this machine."""
    from converter.request import TEXTS

    return text if text in TEXTS else file_path(text)


def folders(text: str) -> list[Path]:
    """`DIR,DIR` as folders of this machine; one that is there may have commas in its name."""
    return [file_path(each) for each in ([text] if Path(text).is_dir() else text.split(","))]


def positive(text: str) -> int:
    """A number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


PRECISIONS = ("source", "f16", "bf16", "f32")


def share(text: str) -> float:
    """`0.05` or `5%`."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no share such as 0.05 or 5%")
    return value


def quant_arguments(group: argparse._ArgumentGroup, quant: bool = True, via: bool = True) -> None:
    """What decides the types of the output; --quant, --effort and --via only where the verb has none of its own."""
    add = group.add_argument
    if quant:
        add("-q", "--quant", metavar="TYPE", help="q4_k_m, Q8_0, f16, ... (`convert quants`); several as a,b,c")
        add("--recipe", type=file_path, metavar="FILE", help="types by the rules of a file (docs/recipes.md)")
    add(
        "--tensor-type",
        type=pattern,
        action="append",
        default=[],
        metavar="PATTERN=TYPE",
        help="type for tensors whose GGUF name matches the regular expression; may be repeated, the first match wins",
    )
    add("--output-type", metavar="TYPE", help="type of the output (lm_head) tensor")
    add("--embedding-type", metavar="TYPE", help="type of the token embedding")
    add("--leave-output", action="store_true", help="keep the output tensor in its source type")
    add("--pure", action="store_true", help="one type for all tensors, no mixture")
    add("--no-fallback", action="store_true", help="fail where a row does not fit the wanted type")
    add("--allow-requantize", action="store_true", help="encode tensors that are already quantized again")
    add("--imatrix", type=source_path, metavar="FILE", help="importance matrix of llama-imatrix (GGUF or .dat)")
    if quant:
        add(
            "--effort",
            type=int,
            choices=(0, 1, 2, 3),
            default=0,
            help="0: the bytes of the reference; 1: its codes with scales of the right length; 2: scales searched for; "
            "3: and searched for widely; all of the same size (docs/quantization.md has what they buy)",
        )
    add(
        "--include-weights",
        action="append",
        default=[],
        metavar="PART",
        help="use the importance matrix only for tensors with PART in their names; may be repeated",
    )
    add(
        "--exclude-weights",
        action="append",
        default=[],
        metavar="PART",
        help="do not use it for tensors with PART in their names; may be repeated",
    )
    if via:
        add(
            "--via",
            choices=PRECISIONS,
            default="source",
            help="precision of the implied intermediate (default: the source's own, nothing is rounded twice)",
        )
    add("--dtype", metavar="TYPE", help="f16, bf16 or f32 for plain outputs; decodes quantized tensors")
    add(
        "--scheme",
        metavar="NAME",
        help="codes for a folder's weights: fp8, w4a16, nvfp4, mlx-4 ... (docs/quantized-sources.md)",
    )
    add(
        "--calibration", type=file_path, metavar="TEXT",
        help="text that finds the ranges of activations for --quant int8-static (ONNX); for a GGUF see --calibrate",
    )  # fmt: skip
    add(
        "--calibrate", type=calibration, metavar="own|random|FILE",
        help="encode a GGUF's blocks with error feedback, calibrated by a text that the model writes itself, by tokens "
        "by lot, by the text in FILE, or by a .calibration.safetensors that is there (docs/calibration.md)",
    )  # fmt: skip
    add("--exact", action="store_true", help="ONNX: matrices of codes meet activations as they are, not in 8 bits")
    add(
        "--profile",
        choices=("standard", "opset18", "genai"),
        help="ONNX: operators of today (standard, the default), of set 18, or what onnxruntime-genai wants",
    )
    add(
        "--scale",
        choices=("nearest", "mse"),
        default="nearest",
        help="of a group for --scheme: from its largest number, or by the least squared error (slower)",
    )
    add(
        "--keep-codes",
        choices=("never", "exact", "near"),
        help="codes of a source that arrives quantized, as a type of ggml: those that are exact (default without "
        "--quant), also those that lose a little, or never",
    )


def goal_arguments(group: argparse._ArgumentGroup) -> None:
    """How large a mixture of types may be that is measured for the model."""
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--target-size", type=size, metavar="SIZE",
        help="the mixture of types that loses least in a file of this size, measured (docs/recipes.md)",
    )  # fmt: skip
    which.add_argument("--target-bpw", type=number, metavar="BITS", help="the same, of so many bits per weight")
    which.add_argument("--fit-memory", type=size, metavar="SIZE", help="the same, that a machine of this memory runs")
    add = group.add_argument
    add("--context", type=tokens, metavar="N", help="tokens that --fit-memory is for (4096; 8k is 8192)")
    add("--reserve", type=size, metavar="SIZE", help="of --fit-memory, what stays free (a fifth, at most 2 GB)")
    add("--text", type=file_path, metavar="FILE", help="text to measure with (default: what the model writes itself)")
    add("--no-runtime", action="store_true", help="run nothing: a quant, and what it leaves over for single tensors")


def number(text: str) -> Fraction:
    """A number such as 4.5, exactly."""
    if not re.fullmatch(r"\d{1,4}(\.\d{1,6})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 4.5")
    return Fraction(text)


def tokens(text: str) -> int:
    """`8k` is 8192."""
    kilo = text.lower().endswith("k")
    return positive(text[:-1] if kilo else text) << (10 if kilo else 0)


def goal_of(args: argparse.Namespace) -> Goal | None:
    """The goal that was given, None for none.

    Raises:
        UsageError: what says more of a goal, and there is none.
    """
    from converter.mixing.goals import CONTEXT, Goal

    size, bits, memory = args.target_size, args.target_bpw, args.fit_memory
    any_of, given = "--target-size, --target-bpw or --fit-memory", size or bits or memory
    needs = (("context", memory, "--fit-memory"), ("reserve", memory, "--fit-memory"),
             ("text", given, any_of), ("no_runtime", given, any_of))  # fmt: skip
    for name, needed, which in needs:
        if getattr(args, name) and not needed:
            raise UsageError(f"--{name.replace('_', '-')}: says more of {which}, which is not given")
    if size is None and bits is None and memory is None:
        return None
    return Goal(size, bits, memory, args.context or CONTEXT, args.reserve)


def found_mixture(args: argparse.Namespace, verb: str, written: str | Path | None = None) -> Found | None:
    """The mixture that reaches the goal which was given, measured; None where none was. `written` is what the verb
    writes then.

    Raises:
        UsageError: a quant or a recipe beside it.
        ConverterError: as `mixing.search.mixture_to_size`.
    """
    goal = goal_of(args)
    if goal is None:
        return None
    if getattr(args, "quant", None) or getattr(args, "recipe", None):
        raise UsageError("--target-size and its like choose types themselves; leave --quant and --recipe out")
    from converter.cli.colour import say
    from converter.cli.progress import showing
    from converter.mixing.results import Costs
    from converter.mixing.search import mixture_to_size
    from converter.text import human_bytes

    _refuse_early(args, written)

    def before(costs: Costs) -> None:
        if not (args.quiet or args.json):
            say(f"note: {costs.probes} probes; {human_bytes(costs.nbytes)} of a temporary folder meanwhile", sys.stderr)

    with showing(args, verb, "probe") as progress:
        return mixture_to_size(
            source_of(args), goal, request_of(args), text=args.text, probe=not args.no_runtime, threads=args.threads,
            progress=progress, before=before,
        )  # fmt: skip


def _refuse_early(args: argparse.Namespace, written: str | Path | None) -> None:
    """What would end the run when the mixture is found, before minutes of probes.

    Raises:
        OutputExists: the output is there.
        ConverterError: what makes a quant of this source and to this target impossible.
    """
    from converter import pipeline

    if written is not None and not is_address(str(written)) and Path(written).is_file() and not args.force:
        raise OutputExists(f"{written}: exists already; --force replaces it")
    if "target" in args:
        usual = request_of(args).replace(quant="Q8_0")
        for plan in pipeline.plan_several(source_of(args), args.target or "mixture.gguf", [usual]):
            plan.checkpoint.close()


def model_arguments(group: argparse._ArgumentGroup) -> None:
    """What decides how the input is read."""
    add = group.add_argument
    add("--config", type=source_path, metavar="DIR", help="folder to take config.json and tokenizer from")
    add(
        "--lora", type=adapter, action="append", default=[], metavar="DIR[:STRENGTH]",
        help="merge an adapter (PEFT's LoRA, DoRA, IA3, LoHa, LoKr; MLX's LoRA) while converting; may be repeated",
    )  # fmt: skip
    add(
        "--base",
        type=source_path,
        metavar="DIR",
        help="the model that IN is for: makes a GGUF adapter of an adapter; a draft model takes its tokenizer",
    )
    which = group.add_mutually_exclusive_group()
    which.add_argument("--arch", metavar="NAME", help="architecture, where config.json does not tell")
    which.add_argument(
        "--arch-file", dest="arch", metavar="FILE", type=architecture_file,
        help="one that you describe yourself (docs/adding-an-architecture.md)",
    )  # fmt: skip
    add("--pre", metavar="NAME", help="pre-tokenizer, where the tokenizer does not tell")
    add("--name", help="general.name of the output")
    add("--key", metavar="PATH", help="part of a checkpoint that holds several (optimizer.state); `.` takes all")
    add(
        "--mmproj", nargs="?", const=True, default=False, type=projector_file, metavar="FILE",
        help="write a multimodal model's vision tower and projector, not its text; "
        "from GGUF, the file that has them, for a folder of the whole model",
    )  # fmt: skip
    add("--no-tokenizer", action="store_true", help="write no tokenizer")
    add("--no-nextn", action="store_true", help="leave out the blocks that predict further tokens (MTP)")
    add("--no-head", action="store_true", help="leave out a classifier: embeddings only")
    add("--dense-modules", action="store_true", help="keep the dense layers after the pooling (sentence-transformers)")
    add("--tensors-only", action="store_true", help="keep tensor names as they are, map no architecture")
    add("--from", dest="source_type", metavar="FORMAT", help="format of IN, where its content does not tell")
    add("--to", dest="target_type", metavar="FORMAT", help="format of OUT, where its extension does not tell")


def projector_file(text: str) -> Path:
    """The file of a projector.

    Raises:
        ArgumentTypeError: no file; a folder after it would be taken for one.
    """
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text}: no such file; to write a projector, say --mmproj last")
    return Path(text)


def architecture_file(text: str) -> str:
    """The name of a file that describes an architecture.

    Raises:
        ArgumentTypeError: no .toml, or no such file.
    """
    if not text.endswith(".toml") or not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text}: no such .toml file")
    return text


def threads_argument(add: Callable[..., object]) -> None:
    """How many workers; `add` is `add_argument` of a parser or a group."""
    add("-j", "--threads", type=positive, metavar="N", help="workers (default: all processors)")


def engine_argument(add: Callable[..., argparse.Action]) -> None:
    """Who does the work."""
    add(
        "--engine", default="local", metavar="NAME[:ADDRESS]",
        help="who does the work: threads of this process (local), or workers of ray or dask (docs/engines.md)",
    )  # fmt: skip


def rewrite_arguments(add: Callable[..., object]) -> None:
    """What every verb takes that writes a checkpoint again; `add` is `add_argument` of a parser or a group."""
    add("-f", "--force", action="store_true", help="replace an existing output")
    threads_argument(add)


def report_argument(add: Callable[..., object], extensions: str) -> None:
    """Reports as files; `add` is `add_argument` of a parser or a group, `extensions` are those of `reports.files`."""
    help = f"write {extensions}; - is Markdown on stdout; may be repeated"
    add("--report", type=file_path, action="append", default=[], metavar="FILE", help=help)


def behaviour_arguments(group: argparse._ArgumentGroup, help: str) -> None:
    """Whether models are run on a text, and how much of it."""
    add = group.add_argument
    add("--runtime", action="store_true", help=help)
    add("--text", type=file_path, metavar="FILE", help="the text (default: a small built-in one)")
    add("--tokens", type=positive, default=512, metavar="N", help="tokens to read at most (512)")
    add("--context", type=positive, default=512, metavar="N", help="tokens of a window (512)")


def text_of(path: Path | None) -> str | None:
    """The text of a file, None for none.

    Raises:
        UsageError: it is not UTF-8.
    """
    try:
        return None if path is None else path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text") from error


class _HelpAll(argparse.Action):
    """Help with every option."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        assert isinstance(parser, Parser)
        parser._print_message(parser.format_help(full=True), sys.stdout)
        parser.exit()


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command has."""
    add = parser.add_argument_group("every command").add_argument
    add("-h", "--help", action="help", help="show this help and exit")
    add(HELP_ALL, action=_HelpAll, help="show help with every option and exit")
    add("--json", action="store_true", help="print the result as JSON on stdout")
    add("--quiet", action="store_true", help="no progress, no notes")
    add(
        "--progress", choices=KINDS, default="auto",
        help="on stderr: a bar (default on a terminal), a line every half minute (elsewhere), JSON lines, none",
    )  # fmt: skip
    add("--offline", action="store_true", help="ask no host; an address is an error, but for --cache")
    add("--cache", type=file_path, metavar="DIR", help="keep there what is read of addresses, for other runs")
    add("--debug", action="store_true", help="show a traceback on errors")
    add("--version", action="version", version=f"model-converter {__version__}")


def source_of(args: argparse.Namespace) -> Source:
    """The source that the arguments of a command name."""
    from converter.request import Source

    return Source(args.source, args.source_type, args.config, args.key, args.lora, args.base)


def target_of(args: argparse.Namespace, found: Found | None = None) -> str:
    """Where the output goes: as it was named, or where the user stands, a GGUF (or what --to says) called by the source
    and the type, `llama-Q4_K_M.gguf`.

    Raises:
        UsageError: what writes files at any place in them is no stream.
    """
    if args.target == "-":
        raise UsageError("OUT -: a model cannot go to a pipe, its parts are written in any order; name a file")
    if args.target is not None:
        return str(args.target)
    from converter.formats.hub import shard_of
    from converter.formats.registry import readers, writer

    path, form = args.source.absolute(), writer(args.target_type or "gguf")
    shard = shard_of(path)
    stem = shard[0] if shard is not None else path.name
    if path.suffix.lower() in {extension for each in readers() for extension in each.extensions}:
        stem = stem.removesuffix(path.suffix)
    quants = [request.types.quant for request in requests_of(args, found) if request.types.quant]
    kind = "{quant}" if len(quants) > 1 else quants[0].upper() if quants else form.name if form.folder else ""
    return f"{stem}-{kind}".rstrip("-") + ("/" if form.folder else form.extensions[0])


def request_of(args: argparse.Namespace) -> Request:
    """The request that the arguments of a command make; what the command does not ask for has its default."""
    from converter.request import FIELDS, Request

    if isinstance(getattr(args, "calibrate", None), str):
        raise UsageError(
            f"--calibrate {args.calibrate}: makes a calibration, which `convert` does; name the file that it kept"
        )
    given = vars(args) | {"tensor_types": args.tensor_type, "format": args.target_type}
    if isinstance(path := given.get("recipe"), Path):
        from converter.quant.recipe_files import read_recipe

        given["recipe"] = read_recipe(path)
    return Request(**{name: given[name] for name in FIELDS if name in given}).settled()


def requests_of(args: argparse.Namespace, found: Found | None = None) -> list[Request]:
    """A request for each quant that the arguments name; one where they name none, or a mixture was found.

    Raises:
        UsageError: commas without names between.
    """
    if found is not None:
        return [found.settled(request_of(args)).settled()]
    if args.quant is None:
        return [request_of(args)]
    names = [name.strip() for name in args.quant.split(",")]
    if len(names) > 1 and not all(names):
        raise UsageError(f"--quant {args.quant}: a name is missing between commas")
    return [request_of(args).replace(quant=name) for name in dict.fromkeys(names)]
