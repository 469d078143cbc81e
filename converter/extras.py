"""Packages that only some work needs: asked for in one way, and where one is not there, how to get it.

Which extra of `pyproject.toml` brings each is a table, and a test compares the two.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from converter.errors import MissingDependency

#: Module -> the extra that brings it, and its name for pip where that is another. One of a namespace that several
#: distributions share has its whole name.
EXTRAS = {
    "jinja2": "verify", "yaml": "batch",
    "torch": "runtimes", "transformers": "runtimes", "llama_cpp": "runtimes", "onnxruntime": "runtimes",
    "onnxscript": "runtimes",
    "tokenizers": "text",
    "ray": "ray", "distributed": "dask",
    "huggingface_hub": "remote", "obstore": "remote", "botocore": "remote", "urllib3": "remote",
    "google": "remote", "azure.storage.blob": "remote", "azure.identity": "remote",
}  # fmt: skip
DISTRIBUTIONS = {
    "llama_cpp": "llama-cpp-python", "yaml": "PyYAML",
    "google": "google-auth", "azure.storage.blob": "azure-storage-blob", "azure.identity": "azure-identity",
}  # fmt: skip


def brought(module: str) -> str:
    """The module of the table that a module is, or is in; else its top one."""
    return next((each for each in EXTRAS if f"{module}.".startswith(f"{each}.")), module.partition(".")[0])


def package(module: str, work: str) -> Any:
    """Import `module`, of a package in the table, for the sake of `work`.

    Raises:
        MissingDependency: it is not installed; the message says what needs it and how it is installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        top = brought(module)
        # By its own name: pip would look for ours on the index, where it may be somebody else's.
        alone = DISTRIBUTIONS.get(top, top)
        ours = f"pip install '.[{EXTRAS[top]}]'"
        raise MissingDependency(
            f"{work} needs {top}: pip install {alone}\nor, where this was installed from: {ours}"
        ) from error
