"""The order of the house (who may import whom) and what no module may do, read from the source itself."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support.packages import HEAVY

import converter
from converter.extras import DISTRIBUTIONS, EXTRAS, brought

PACKAGE = Path(converter.__file__).parent

# From the ground up; a tier may use those below it and itself, never one above.
TIERS = (
    (
        "address",
        "errors",
        "workers",
        "child",
        "events",
        "extras",
        "findings",
        "mixture",
        "plugins",
        "request",
        "text",
        "metadata",
    ),
    ("interrupts", "telemetry"),
    ("tensors",),
    ("storage", "remote", "checkpoint", "architectures"),
    ("formats", "tokenizers"),
    ("runtimes", "tracing", "chat"),
    ("quant",),
    ("mapping", "adapters", "inspection"),
    ("graphs",),
    ("planning", "pipeline", "calibration"),
    ("extract", "verify", "check", "diff", "compare", "mixing", "housekeeping", "certify"),
    ("engines",),
    ("batch",),
    ("reports",),
    ("ui",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, tier in enumerate(TIERS) for name in tier}
# What a part of the house may use of its neighbours on the same floor; parts that are not listed may use any.
NEIGHBOURS: dict[str, set[str]] = {
    "formats": set(),
    "architectures": set(),
    "tokenizers": set(),
}
ARCHITECTURES_MAY_USE = {"architectures", "tensors", "metadata", "plugins"}
# Facts of an architecture are passed to these; they may know what such facts look like, not which there are.
TAKE_TRAITS = {"tokenizers", "quant"}
TRAITS = "converter.architectures.traits"

MAY_PRINT = {"cli", "__main__"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load",
    "os.system", "marshal.loads", "shelve.open", "yaml.load",
}  # fmt: skip
# Their last bits depend on the processor and the version. What reaches a file uses converter.tensors.elementary;
# what is told to people (measurements, bounds, reports) may use them.
MACHINE_DEPENDENT = {
    f"{module}.{function}"
    for module in ("np", "numpy", "math", "cmath", "torch")
    for function in (
        "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "logaddexp", "logaddexp2", "power", "float_power",
        "pow", "sin", "cos", "tan", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan", "arctan2", "asin", "acos",
        "atan", "atan2", "arcsinh", "arccosh", "arctanh", "asinh", "acosh", "atanh", "sinc", "cbrt", "hypot", "erf",
        "erfc", "gamma", "lgamma", "i0",
    )
}  # fmt: skip
MAY_USE_THEM = {
    "converter.calibration.statistics": "entropy",
    "converter.runtimes.behaviour": "perplexity and divergence",
    "converter.verify.bounds": "the error to expect",
    "converter.verify.results": "decibels",
    "converter.reports.numbers": "digits of an error",
    "converter.reports.plots": "axes",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The part of the house: a top-level module or package, "" for the package's own __init__."""
    relative = path.relative_to(PACKAGE)
    return "" if relative.name == "__init__.py" and len(relative.parts) == 1 else relative.parts[0].removesuffix(".py")


def name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(node: ast.AST) -> Iterator[str]:
    """Full names of the modules that the import statements under `node` may load."""
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            yield from (alias.name for alias in each.names)
        elif isinstance(each, ast.ImportFrom):
            assert each.level == 0, "imports are absolute here"
            yield each.module or ""
            yield from (f"{each.module}.{alias.name}" for alias in each.names)


def own_imports(path: Path) -> set[str]:
    known = {name(module) for module in modules()} - {"converter"}
    return {found for found in imports(tree(path)) if found in known and found != name(path)}


def at_module_level(path: Path) -> Iterator[str]:
    """Imports that run when the module is imported: those of no function, and not for the type checker alone."""
    pending: list[ast.AST] = [tree(path)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)
        pending += ast.iter_child_nodes(node)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def path_id(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


every_module = pytest.mark.parametrize("path", modules(), ids=path_id)


def test_every_module_has_its_place() -> None:
    assert {part(path) for path in modules()} - {""} <= RANK.keys(), "a new module goes into TIERS"


@every_module
def test_imports_go_down(path: Path) -> None:
    mine = part(path)
    for found in own_imports(path):
        other = found.split(".")[1]
        if mine == "" or other == mine:
            continue
        assert RANK[other] <= RANK[mine], f"{mine} may not use {other}, which is above it"
        if RANK[other] == RANK[mine]:
            assert other in NEIGHBOURS.get(mine, RANK.keys()), f"{mine} may not use its neighbour {other}"
        if other == "architectures" and RANK[mine] <= RANK["formats"]:
            assert mine in TAKE_TRAITS and found == TRAITS, f"{mine} may not use {found}: its caller passes facts"
        if mine == "architectures":
            assert other in ARCHITECTURES_MAY_USE, f"architectures are data, they may not use {other}"


def test_no_import_circles() -> None:
    graph = {name(path): own_imports(path) for path in modules()}
    for path in modules():  # a package's __init__ runs before its modules; it may import them
        package = name(path).rpartition(".")[0]
        graph[name(path)].discard(package)
    list(graphlib.TopologicalSorter(graph).static_order())


@every_module
def test_heavy_packages_are_imported_where_they_are_needed(path: Path) -> None:
    assert {found.split(".")[0] for found in at_module_level(path)} & HEAVY == set()


@every_module
def test_only_the_command_line_prints_and_exits(path: Path) -> None:
    if part(path) in MAY_PRINT:
        return
    found = [called for called, _ in calls(path) if called in ("print", "sys.exit", "exit", "quit", "os._exit")]
    assert found == []
    raised = [ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Raise)]
    assert not [text for text in raised if "SystemExit" in text]


@every_module
def test_input_is_never_executed(path: Path) -> None:
    for called, node in calls(path):
        assert called not in FORBIDDEN_CALLS, f"line {node.lineno}"
        for keyword in node.keywords:
            if keyword.arg in ("allow_pickle", "trust_remote_code", "shell"):
                assert isinstance(keyword.value, ast.Constant) and keyword.value.value is False, f"line {node.lineno}"
    assert not {"pickle", "marshal", "shelve"} & {found.split(".")[0] for found in imports(tree(path))}


@every_module
def test_values_on_the_way_to_a_file_depend_on_no_machine(path: Path) -> None:
    used = {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)} & MACHINE_DEPENDENT
    assert bool(used) == (name(path) in MAY_USE_THEM), f"converter.tensors.elementary instead of {sorted(used)}"
    named = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert not named & MACHINE_DEPENDENT, "by its module's name, so that this test sees it"


def test_powers_on_the_way_to_a_file_are_squares_or_constants() -> None:
    """`**` of anything else asks the same functions."""
    found = {
        (name(path), ast.unparse(node))
        for path in modules()
        if name(path) not in MAY_USE_THEM
        for node in ast.walk(tree(path))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)
        if not _whole(node.right) or not (isinstance(node.left, ast.Constant) or ast.unparse(node.right) == "2")
    }
    assert not found


def _whole(node: ast.expr) -> bool:
    inner = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(inner, ast.Constant) and isinstance(inner.value, int)


@every_module
def test_public_functions_say_what_they_do(path: Path) -> None:
    """A module, and every public function and class in it, has a docstring; trivial overrides inherit theirs."""
    assert ast.get_docstring(tree(path))
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            short = isinstance(node, ast.FunctionDef) and len(node.body) <= 2
            assert ast.get_docstring(node) or short, f"line {node.lineno}: {node.name}"


def test_help_and_import_load_nothing_big() -> None:
    """`import converter` and `convert --help` leave numpy and every extra alone."""
    code = (
        "import sys, converter\n"
        "assert 'numpy' not in sys.modules\n"
        "from converter.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(result.stdout.splitlines()[-1]))
    assert loaded & (HEAVY | {"numpy", "ml_dtypes", "regex"}) == set()


# ------------------------------------------------------------------------------------------------ the tests' own house

TESTS = Path(__file__).parent


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_module_is_imported(path: Path) -> None:
    """What two tests need is in tests/support/, so that every test file can be read, moved and run by itself."""
    parts = {part for module in imports(tree(path)) for part in module.split(".")}
    assert not {part for part in parts if part.startswith("test_") or part == "conftest"}


def test_the_path_of_the_tests_is_one_folder() -> None:
    settings = tomllib.loads((TESTS.parent / "pyproject.toml").read_text("utf-8"))
    assert settings["tool"]["pytest"]["ini_options"]["pythonpath"] == ["tests"]


# -------------------------------------------------------------------------------------------------- what it needs

PROJECT = tomllib.loads((TESTS.parent / "pyproject.toml").read_text("utf-8"))["project"]
MODULE_OF = {
    "PyYAML": "yaml", "llama-cpp-python": "llama_cpp",
    "google-auth": "google", "azure-storage-blob": "azure.storage.blob", "azure-identity": "azure.identity",
}  # fmt: skip
BY_TRANSFORMERS = {"sentencepiece"}  # it imports this one itself, for the tokenizers of Llama and its like


def requirements(lines: list[str]) -> set[str]:
    """The modules that these requirements bring, but for those of our own other extras."""
    found = {re.split(r"[<>=\[; ]", line)[0] for line in lines}
    return {MODULE_OF.get(name, name) for name in found - {PROJECT["name"]}}


def used() -> set[str]:
    """Everything that some line of the package imports, at whatever time."""
    named = set()
    for path in modules():
        constants = {
            ast.unparse(node.targets[0]): node.value for node in tree(path).body if isinstance(node, ast.Assign)
        }
        arguments = [node.args[0] for called, node in calls(path) if called.endswith("package") and node.args]
        asked = (ast.literal_eval(constants.get(ast.unparse(argument), argument)) for argument in arguments)
        named |= {brought(module) for module in asked}
    return named | {found.split(".")[0] for path in modules() for found in imports(tree(path))}


CLUSTERS = {"ray", "dask"}  # who has one has its package


def test_what_is_installed_is_what_is_imported() -> None:
    extras = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name not in ("all", "dev")}
    assert requirements(PROJECT["dependencies"]) <= used()
    for name, lines in extras.items():
        assert requirements(lines) - BY_TRANSFORMERS <= used(), f"no line imports all of the extra {name}"
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert set(everything.partition("[")[2].rstrip("]").split(",")) == extras.keys() - CLUSTERS


def test_extras_are_said_to_bring_what_they_bring() -> None:
    for name, lines in PROJECT["optional-dependencies"].items():
        if name not in ("all", "dev"):
            own = {module for module, extra in EXTRAS.items() if extra == name}
            assert own == requirements(lines) - BY_TRANSFORMERS
    assert {pip: module for module, pip in DISTRIBUTIONS.items()} == MODULE_OF


def test_nothing_tells_to_install_what_the_index_knows_by_our_name() -> None:
    """pip would fetch somebody else's package; and how to get an extra is said in one place."""
    said = [path for path in modules() if "pip install" in path.read_text("utf-8")]
    assert said == [PACKAGE / "extras.py"]
    assert "model-converter[" not in said[0].read_text("utf-8")


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest knows a test file by its name alone; of two it would run one."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(set(names)) == len(names)
