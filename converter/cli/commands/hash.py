"""`convert hash FILE`: SHA-256 of every tensor, and one root over all."""

from __future__ import annotations

import argparse
from typing import Any

from converter.cli.arguments import file_name, file_path, source_path, threads_argument
from converter.cli.progress import showing
from converter.cli.verbs import Outcome, Verb
from converter.errors import FidelityError
from converter.text import counted, printable

VERB = Verb(
    name="hash",
    group="prove what was made",
    arguments="FILE",
    help="SHA-256 of every tensor and a root over all, the same for a file and its shards",
    description=(
        "SHA-256 of every tensor's stored bytes, and the root of a Merkle tree over all of them that is the same "
        "however they are cut into files, and in whatever order they lie there; another root is that of the metadata. "
        "Exit code 41 where --check finds a difference. --manifest writes hashes of the files themselves as OpenSSF "
        "model signing has them, for other tools to sign."
    ),
    examples=(
        ("convert hash model.gguf", "a line for every tensor, the root at the end"),
        ("convert hash model-00001-of-00003.gguf --check hashes.json", "is it what it was?"),
        ("convert hash model/ --manifest model.json", "its files, as a statement to be signed"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to hash, and what to compare it with."""
    add = parser.add_argument
    add("source", metavar="FILE", type=source_path, help="file, set of shards or folder of any format")
    add("--from", dest="source_type", metavar="FORMAT", help="format, where the content does not tell")
    add(
        "--check",
        type=file_name,
        metavar="FILE",
        help="what an earlier run printed with --json, or a root of 64 digits",
    )
    add("--manifest", type=file_path, metavar="JSON", help="write the files as a manifest of OpenSSF model signing")
    add("-f", "--force", action="store_true", help="replace an existing manifest")
    threads_argument(add)


def run(args: argparse.Namespace) -> Outcome:
    """Hash, and compare where that is wanted; exit code 0, or 41 where something differs."""
    from converter.certify import manifest
    from converter.housekeeping.hashes import differences, hashes
    from converter.request import Source

    if args.manifest is not None:
        manifest.check_writable(args.source, args.manifest, args.force)
    with showing(args, VERB.name) as progress:
        made = hashes(Source(args.source, args.source_type), threads=args.threads, progress=progress)
    found = [] if args.check is None else differences(made, args.check)
    if args.manifest is not None:
        manifest.write(args.source, args.manifest, threads=args.threads)

    def data() -> dict[str, Any]:
        checked = {"equal": not found, "differences": [each.as_dict() for each in found]}
        own = made.as_dict() | ({} if args.check is None else {"check": args.check} | checked)
        return own | ({} if args.manifest is None else {"manifest": str(args.manifest)})

    def show() -> None:
        for each in found:
            print(f"{each.kind}: {printable(each.name)}")
        if args.check is None:
            for tensor in made.tensors:
                shape = "x".join(map(str, tensor.shape)) or "scalar"
                print(f"{tensor.sha256}  {printable(tensor.name)}  {tensor.dtype}  {shape}")
            print(f"{made.metadata_root}  (metadata)")
            print(f"{made.root}  (root of {counted(len(made.tensors), 'tensor')})")
        elif not args.quiet:
            print(f"{counted(len(found), 'difference')} from {printable(args.check)}" if found else "nothing differs")
        if args.manifest is not None and not args.quiet:
            print(f"{printable(str(args.manifest))}: to be signed")

    return Outcome(data, show, FidelityError.exit_code if found else 0)
