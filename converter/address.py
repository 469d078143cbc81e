"""Addresses of models that lie elsewhere, and the paths by which they go through the program.

An address becomes a path in a folder of this process's own, in which nothing lies before somebody reaches for it
(`converter.remote`). So it has a name, a parent and neighbours like every other path, and what an address may hold
besides, a signature in its query, is in no path and no message. `shown` turns such paths in texts into addresses again.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

_SCHEME = re.compile(r"(hf|https?|s3|gs|az)://", re.IGNORECASE)
STORES = ("s3", "gs", "az")
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_REVISION = re.compile(r"@(refs/(?:pr/\d+|convert/\w+)|[^/]+)")
_IN_HUB_PAGE = re.compile(r"/(?:blob|resolve|tree|raw)/(refs/(?:pr/\d+|convert/\w+)|[^/]+)")
_QUERY = re.compile(r"(\w+://[^\s?'\"]*)\?[^\s'\"]*")
_USER = re.compile(r"(\w+://)[^\s/?'\"@]*@(?=[^\s/?'\"]+)")
#: What no file system of those we run on has in a name.
_NO_NAME = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')


class Address(NamedTuple):  # a dataclass would cost `--help` 10 ms
    """Where a file or a folder lies.

    Attributes:
        scheme: "hf", "https", "http", "s3", "gs" or "az".
        where: the model on the Hub (`org/name`), the host with its port, the bucket or container.
        parts: names of folders and of the file below it; none for all that is there.
        revision: of a model on the Hub; None for its main branch.
        folder: whether it ends in a slash.
        secret: the address as it was given, with what is to be told to nobody but its host.
    """

    scheme: str
    where: str
    parts: tuple[str, ...]
    revision: str | None = None
    folder: bool = False
    secret: str = ""

    def __repr__(self) -> str:
        return f"Address({self.shown!r})"

    @property
    def top(self) -> str:
        """What all its paths begin with, as people write it."""
        return f"{self.scheme}://{self.where}" + (f"@{self.revision}" if self.revision else "")

    @property
    def shown(self) -> str:
        """The address for people: without a query."""
        return "/".join((self.top, *self.parts))


def is_address(text: str | os.PathLike[str]) -> bool:
    """Whether a path as it was given is an address."""
    return isinstance(text, str) and _SCHEME.match(text) is not None


def parse(text: str) -> Address:
    """The parts of an address.

    Raises:
        ValueError: it cannot be meant; the message has no secret in it.
    """
    from urllib.parse import unquote, urlsplit

    try:
        split = urlsplit(text)
        host, port = split.hostname or "", split.port
    except ValueError:
        raise ValueError(f"{without_secrets(text)}: is no address") from None
    scheme, told = split.scheme.lower(), without_secrets(text)
    if "@" in split.netloc and scheme != "hf":
        raise ValueError(f"{told}: an address with a user's name or password is refused")
    if not split.netloc or not text.isprintable() or any(each.isspace() for each in text):
        raise ValueError(f"{told}: is no address")
    if scheme == "http" and not is_loopback(host):
        raise ValueError(f"{told}: only https is read; http is for this machine alone")
    if scheme == "hf":
        return _hub(text, told, _raw(text))
    if scheme in ("http", "https"):
        if host in _HUB_HOSTS and port is None:
            return _hub_page(text, told, unquote(split.path))
        where = f"[{host}]" if ":" in host else host
        names = unquote(split.path)
        return _address(told, scheme, where if port is None else f"{where}:{port}", names, secret=text)
    if split.query or split.fragment:
        raise ValueError(f"{told}: an object's address has no ? and no #")
    return _address(told, scheme, split.netloc, _raw(text).partition("/")[2], secret=text)


def _raw(text: str) -> str:
    """What follows the scheme."""
    return _SCHEME.sub("", text, count=1)


def _address(told: str, scheme: str, where: str, names: str, **given: str | None) -> Address:
    parts = [*filter(None, [names.strip("/")])] and names.strip("/").split("/")
    if any(part in ("", ".", "..") or _NO_NAME.search(part) or not part.isprintable() for part in parts):
        raise ValueError(f"{told}: has a name in it that no file may have here")
    revision, secret = given.get("revision"), given.get("secret") or ""
    return Address(scheme, where, tuple(parts), revision, names.endswith("/") or not parts, secret)


def _hub(text: str, told: str, rest: str) -> Address:
    match = re.match(r"([\w.-]+/[\w.-]+)(.*)", rest)
    if match is None or match[1].startswith(("datasets/", "spaces/", "buckets/")):
        raise ValueError(f"{told}: a model on the Hub is hf://ORG/NAME, with @REVISION and /FILE where wanted")
    repo, rest = match.groups()
    revision = _REVISION.match(rest)
    names = rest[revision.end() :] if revision else rest
    if names and not names.startswith("/"):
        raise ValueError(f"{told}: a model on the Hub is hf://ORG/NAME, with @REVISION and /FILE where wanted")
    named = revision[1].replace("%2F", "/").replace("%2f", "/") if revision else None
    return _address(told, "hf", repo, names, revision=named, secret=text)


def _hub_page(text: str, told: str, path: str) -> Address:
    """A page of the Hub, or its address of a file: the model that it is about."""
    match = re.match(r"/([\w.-]+/[\w.-]+)(.*)", path)
    page = _IN_HUB_PAGE.match(match[2]) if match else None
    if match is None or (page is None and match[2].strip("/")):
        raise ValueError(f"{told}: is no model's page; one on the Hub is hf://ORG/NAME")
    revision, rest = (page[1], match[2][page.end() :]) if page else (None, "")
    tail = "" if revision in (None, "main") else f"@{revision}"
    return _hub(text, told, match[1] + tail + rest)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name."""
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


# ------------------------------------------------------------------------------------------------------ as paths

#: Folder of an address's top -> the address; what was said in this process.
_tops: dict[str, Address] = {}


#: What the names of folders begin with that paths of addresses are in, of all processes.
BASES = ".model-converter-"


@cache
def base() -> Path:
    """The folder of this process that paths of addresses are in; nobody makes it before something is fetched.

    It has the name of what is temporary, so that what a process that was killed leaves is found (storage/leftovers.py).
    """
    import secrets
    import tempfile

    name = f"{BASES}{secrets.token_hex(8)}.{secrets.token_hex(4)}.part"
    return Path(tempfile.gettempdir()).resolve() / name


def place(path: str | os.PathLike[str]) -> Path:
    """The path by which a file goes through the program: that of an address, every other as it is.

    The same address has the same path.

    Raises:
        ValueError: as `parse`.
    """
    if not isinstance(path, str) or not is_address(path):
        return Path(path)
    import hashlib

    address = parse(path)
    digest = hashlib.sha256(path.encode()).hexdigest()[:16]
    top = base() / digest / address.where.replace(":", "_")
    _tops[str(top)] = address
    return top.joinpath(*address.parts)


def placed() -> bool:
    """Whether there is a path of an address."""
    return bool(_tops)


def address_of(path: Path) -> tuple[Address, Path] | None:
    """The address that a path belongs to, and the folder of all its paths; None for a path of this machine."""
    if not _tops or not path.is_relative_to(base()):
        return None
    tops = (each for each in (path, *path.parents) if str(each) in _tops)
    return next(((_tops[str(top)], top) for top in tops), None)


def own(path: Path) -> Path:
    """A path of an address by the address that leads to it alone; others as they are.

    Raises:
        ValueError: no address leads to it.
    """
    return place(shown(str(path))) if is_elsewhere(path) else path


def is_elsewhere(path: Path) -> bool:
    """Whether a path stands for something that lies elsewhere, or was fetched from there."""
    return bool(_tops) and path.is_relative_to(base())


def shown(text: str) -> str:
    """A text for people and for files: paths that stand for addresses become these."""
    if not _tops or str(base()) not in text:
        return text
    for top in sorted(_tops, key=len, reverse=True):
        text = text.replace(top, _tops[top].top)
    return text


def without_secrets(text: str) -> str:
    """A text that somebody gave, less users, passwords and queries of the addresses in it."""
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text)) if "://" in text else text
