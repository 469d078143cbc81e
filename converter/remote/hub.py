"""Models on the Hugging Face Hub: what a revision holds, and where its files are.

Sources: the Hub's API (`/api/models/{repo}/revision/{revision}`), and `huggingface_hub` for whose token is sent where.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import quote

from converter.address import Address
from converter.errors import CorruptFile, OutputError
from converter.extras import package
from converter.remote.attempts import tried
from converter.remote.digests import Digest
from converter.remote.listing import Entry, checked
from converter.remote.web import WebFile, read_json

MAIN, WORK = "main", "the Hugging Face Hub"
_HINT = "\nis the name right? a private or gated model needs a token: HF_TOKEN, or `hf auth login`"


def listing(address: Address) -> list[Entry]:
    """Every file of a model at its revision, which a branch's name is settled to once; raises as `held`."""
    return held(address, address.revision or MAIN)[1]


def held(address: Address, revision: str) -> tuple[str, list[Entry]]:
    """The commit that a revision of a model is, and its files.

    Raises:
        ConverterError: there is none, or the Hub does not tell.
        MissingDependency: huggingface_hub is not installed.
    """
    name, host, secret = address.top, endpoint(), _secret(address.top)
    url = f"{host}/api/models/{address.where}/revision/{quote(revision, safe='')}?blobs=true"
    said, _ = tried(name, lambda: read_json(name, url, secret, _HINT))
    commit, siblings = (str(said.get("sha", "")), said.get("siblings")) if isinstance(said, dict) else ("", None)
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit) or not isinstance(siblings, list):
        raise CorruptFile(f"{name}: the Hub does not say what it holds")

    def entry(each: dict[str, Any]) -> Entry:
        lfs = each.get("lfs") or {}
        file, size = each["rfilename"], int(lfs.get("size", each["size"]))
        at = f"{host}/{address.where}/resolve/{commit}/{quote(file)}"
        stored = WebFile(f"{name}/{file}", at, size=size, secret=secret, hint=_HINT)
        return Entry(file, size, stored, _digest(each, lfs))

    try:
        return commit, checked(name, map(entry, siblings))
    except (TypeError, KeyError, ValueError, AttributeError):
        raise CorruptFile(f"{name}: the Hub does not say how large its files are") from None


def endpoint() -> str:
    """The Hub, or the one that the environment names."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _secret(name: str) -> dict[str, str]:
    """The header with the token of whoever is logged in, as the Hub's own tools find it."""
    hub = package("huggingface_hub", WORK)
    try:
        token = hub.get_token()
    except Exception as error:  # a login that cannot be renewed
        raise OutputError(f"{name}: the token for the Hub cannot be had ({type(error).__name__})") from None
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _digest(each: dict[str, Any], lfs: dict[str, Any]) -> Digest | None:
    if isinstance(lfs.get("sha256"), str):
        return Digest("sha256", lfs["sha256"])
    return Digest("git", each["blobId"]) if not lfs and isinstance(each.get("blobId"), str) else None
