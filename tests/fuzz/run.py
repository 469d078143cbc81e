"""Runs one fuzz target: `python tests/fuzz/run.py TARGET WORK [libFuzzer's flags]`; without one, lists them.

Inputs are taken from WORK/TARGET and kept there (`seeds.py` collects the first); what is found is WORK/TARGET-found-*.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from importlib.util import module_from_spec
from pathlib import Path

# One input may take this long (seconds), and the process this much memory (MB), before it counts as found.
LIMITS = ("-timeout=10", "-rss_limit_mb=1024", "-max_len=65536", "-print_final_stats=1")


def _past_redirection() -> None:
    """Let imports go to the source tree by path: what the hook of an editable install finds is not instrumented.

    The extension lies elsewhere, and is taken from there.
    """
    for finder in [each for each in sys.meta_path if type(each).__name__ == "ScikitBuildRedirectingFinder"]:
        spec = finder.find_spec("converter._native")
        sys.meta_path.remove(finder)
        if spec is not None and spec.loader is not None:
            sys.modules["converter._native"] = module = module_from_spec(spec)
            spec.loader.exec_module(module)


def main(arguments: list[str]) -> None:
    import atheris

    _past_redirection()
    with atheris.instrument_imports(include=["converter"]):
        import converter

        for module in pkgutil.walk_packages(converter.__path__, "converter."):
            if module.name not in ("converter.__main__", "converter._native"):
                importlib.import_module(module.name)
    import targets

    if not arguments:
        print(*targets.TARGETS)
        return
    name, work, *flags = arguments
    target = targets.TARGETS[name]
    targets.ignore_checksums()
    corpus = Path(work) / name
    corpus.mkdir(parents=True, exist_ok=True)
    found = corpus.with_name(f"{name}-found-")

    def one(data: bytes) -> None:
        targets.run(target, data)

    atheris.Setup([sys.argv[0], str(corpus), f"-artifact_prefix={found}", *LIMITS, *flags], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
