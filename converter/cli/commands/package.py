"""`convert package FILE OUT`: a model as runtimes and registries keep it on disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from converter.cli.arguments import file_name, file_path, rewrite_arguments, source_path, text_of
from converter.cli.console import print_events, print_table
from converter.cli.progress import showing
from converter.cli.verbs import Outcome, Verb
from converter.text import human_bytes, printable

VERB = Verb(
    name="package",
    group="change what is there",
    arguments="FILE OUT",
    help="Ollama's model store or an OCI image layout of a model, without a registry",
    description=(
        "Put a model with its projector, template, licence and more where a runtime finds it: in Ollama's model store "
        "(GGUF), or in an OCI image layout by the CNCF ModelPack specification (GGUF, Hugging Face folders), for any "
        "client of registries to push. Blobs share their bytes with the source where the file system can."
    ),
    examples=(
        ("convert package model.gguf ~/.ollama/models --as ollama --name tiny:q4", "ollama run tiny:q4"),
        (
            "convert package model.gguf artefact/ --as oci --licence LICENSE",
            "oras cp --from-oci-layout artefact:latest",
        ),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to pack, and as what."""
    add = parser.add_argument
    add("source", metavar="FILE", type=source_path, help="GGUF; for oci also shards or a Hugging Face folder")
    add("target", metavar="OUT", type=file_name, help="folder to write; Ollama's store may hold other models")
    add("--as", dest="kind", required=True, choices=("ollama", "oci"), help="Ollama's store, or ModelPack")
    add("--name", metavar="NAME[:TAG]", help="what it is called there (default: as the file, latest)")
    add("--mmproj", type=file_path, metavar="FILE", help="projector of a multimodal model, a GGUF")
    add("--template", type=file_path, metavar="FILE", help="chat template; for Ollama in its own language")
    add("--system", type=file_path, metavar="FILE", help="system text (Ollama)")
    add("--params", type=file_path, metavar="FILE", help="parameters, a JSON object (Ollama)")
    add("--licence", type=file_path, action="append", default=[], metavar="FILE", help="licence; may be repeated")
    rewrite_arguments(add)


def run(args: argparse.Namespace) -> Outcome:
    """Write the package."""
    from converter.housekeeping.package import Beside, pack

    beside = Beside(args.mmproj, args.template, text_of(args.system), args.params, tuple(map(Path, args.licence)))
    with showing(args, VERB.name) as progress:
        made = pack(
            args.source,
            args.target,
            args.kind,
            name=args.name,
            beside=beside,
            force=args.force,
            threads=args.threads,
            progress=progress,
        )

    def show() -> None:
        if args.quiet:
            return
        print_events(made.events)
        rows = (
            [blob.part.name, blob.part.media_type.rpartition(".image.")[2], human_bytes(blob.size), blob.sha256[:12]]
            for blob in made.layers
        )
        print_table(["file", "layer", "size", "sha256"], rows)
        print(f"\n{printable(str(made.manifest))}: {printable(made.name)}, {human_bytes(made.nbytes)} written")

    return Outcome(made.as_dict, show)
