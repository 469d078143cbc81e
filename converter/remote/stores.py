"""Object stores: Amazon S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage.

By `obstore`, which finds endpoints, regions and credentials in the environment as the stores' own tools name them; what
the AWS tools keep in files is found here.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from converter.address import Address
from converter.errors import ConverterError, MissingPart, OutputError
from converter.extras import package
from converter.remote import attempts
from converter.remote.attempts import Transient, changed, tried
from converter.remote.digests import Digest
from converter.remote.listing import MAX_FILES, Entry, checked
from converter.remote.web import CONNECT, PIECE, READ

WORK = "an object store"
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_TRUE = ("1", "on", "yes", "true", "y")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"\b(?:status code:? |HTTP status \w+ error \(|error )(\d{3})\b")
# Where a store is another than its maker's: what the environment calls it, the first that is there, and obstore.
_ENDPOINTS = {
    "s3": (("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"), "endpoint"),
    "gs": (("STORAGE_EMULATOR_HOST",), "base_url"),
    "az": (("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"), "endpoint"),
}


def listing(address: Address) -> list[Entry]:
    """The files below a prefix; of an object's address, the object and its neighbours.

    Raises:
        ConverterError: there are none, or they may not be seen.
        MissingDependency: obstore is not installed.
    """
    store, key = store_of(address.scheme, address.where), "/".join(address.parts)
    one = None if address.folder else _object(address, store, key)
    folder = key if one is None else key.rpartition("/")[0]
    try:
        found = checked(address.top, _below(address, store, folder, one is None))
    except OutputError:
        if one is None:
            raise
        found = [one]  # who may read an object need not see its neighbours
    if one is not None and all(each.name != one.name for each in found):
        found.append(one)
    if not found:
        raise MissingPart(f"{address.shown}: there is no such object, and none whose name begins with it and a slash")
    return found


def _object(address: Address, store: Any, key: str) -> Entry | None:
    """An object by its full name."""
    obstore = package("obstore", WORK)
    try:
        meta = tried(address.shown, lambda: answered(address.shown, lambda: obstore.head(store, key)))
    except MissingPart:
        return None
    return _entry(address, store, meta)


def _below(address: Address, store: Any, folder: str, deep: bool) -> Iterator[Entry]:
    """Objects whose names begin with a folder's; `deep` those of its folders, too."""
    obstore = package("obstore", WORK)

    def pages() -> list[Any]:
        found: list[Any] = []
        for page in obstore.list(store, f"{folder}/" if folder else None, chunk_size=1000):
            found += [meta for meta in page if deep or "/" not in meta["path"].removeprefix(f"{folder}/")]
            if len(found) > MAX_FILES:
                break
        return found

    for meta in tried(address.shown, lambda: answered(address.shown, pages)):
        yield _entry(address, store, meta)


def _entry(address: Address, store: Any, meta: Any) -> Entry:
    path, size = meta["path"], meta["size"]
    tag = meta.get("e_tag")
    if tag is not None and not tag.endswith('"'):  # Azure's listing has none of the quotes that its objects come with
        tag = f'"{tag}"'
    stored = ObjectFile(f"{address.top}/{path}", store, path, size, tag)
    # Of an object that was put at once it is the MD5, as a rule: "Checking object integrity" of Amazon S3.
    sum = _MD5.fullmatch(tag or "") if address.scheme == "s3" else None
    return Entry(path, size, stored, None if sum is None else Digest("md5", sum[1], sure=False))


class ObjectFile:
    """An object, read by ranges.

    Attributes:
        name: its address, for people.
        size: bytes.
        tag: its ETag; every answer must have it.
    """

    def __init__(self, name: str, store: Any, key: str, size: int, tag: str | None) -> None:
        self.name, self.tag = name, tag
        self.size: int | None = size
        self._store, self._key = store, key

    @property
    def identity(self) -> str | None:
        return None if self.tag is None or self.tag.startswith("W/") else self.tag

    def stream(self, start: int, stop: int) -> Iterator[memoryview]:
        """Bytes [start, stop) as they arrive.

        Raises:
            Transient: the connection broke, the store is busy or gave another range.
            ConverterError: there is no such object, it may not be read, or it was changed.
        """
        obstore = package("obstore", WORK)
        options: dict[str, Any] = {"range": (start, stop)} | ({} if self.tag is None else {"if_match": self.tag})
        got = answered(self.name, lambda: obstore.get(self._store, self._key, options=options))
        if got.meta["size"] != self.size or (self.tag is not None and got.meta["e_tag"] not in (self.tag, None)):
            raise changed(self.name)
        if got.range[0] != start or got.range[1] > stop:
            raise Transient("the store gives another range than was asked for")
        arriving = iter(got.stream(min_chunk_size=PIECE))
        while (piece := answered(self.name, lambda: next(arriving, None))) is not None:
            yield memoryview(piece)


def answered(name: str, ask: Callable[[], Any], refuses: str = "refuses to give it") -> Any:
    """What a store answers, its errors as ours; theirs have addresses and names of keys in them.

    Raises:
        Transient, ConverterError: as said.
    """
    kinds = package("obstore", WORK).exceptions
    try:
        return ask()
    except (kinds.PreconditionError, kinds.NotModifiedError):
        raise changed(name) from None
    except (kinds.NotFoundError, FileNotFoundError):
        raise MissingPart(f"{name}: the store has no such object") from None
    except (kinds.PermissionDeniedError, kinds.UnauthenticatedError) as error:
        raise OutputError(f"{name}: the store {refuses}{_said(error)}") from None
    except kinds.BaseError as error:
        status = _STATUS.search(str(error))
        if status is not None and status[1].startswith("4") and status[1] not in ("408", "425", "429"):
            raise OutputError(f"{name}: the store answers {status[1]}{_said(error)}") from None
        raise Transient(f"the store does not answer as it should{_said(error)}") from None
    except ConverterError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise OutputError(f"{name}: the store cannot be asked ({type(error).__name__})") from None


def _said(error: Exception) -> str:
    code = _CODE.search(str(error))
    return "" if code is None else f" ({code[1]})"


def named(*names: str) -> str:
    """What the environment says by the first of some names that it has; else ""."""
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def says(name: str) -> bool:
    """Whether the environment says yes, as obstore reads it."""
    return os.environ.get(name, "").lower() in _TRUE


def endpoint(scheme: str) -> str:
    """The store that the environment names; "" for its maker's."""
    return named(*_ENDPOINTS[scheme][0])


def region() -> str:
    """The region that the environment names, or the files of the AWS tools."""
    return named("AWS_REGION", "AWS_DEFAULT_REGION") or str(_aws().get("region", ""))


@cache
def store_of(scheme: str, bucket: str, retries: int = 0) -> Any:
    """A bucket or a container.

    Attempts to read are counted by who reads, for every host in the same way, so they are not repeated here; what is
    sent in parts can be sent again only by who has them.

    Raises:
        OutputError: what the environment says of it cannot be meant.
        MissingDependency: obstore is not installed.
    """
    package("obstore", WORK)
    store = package("obstore.store", WORK)
    client: dict[str, Any] = {"connect_timeout": timedelta(seconds=CONNECT), "timeout": timedelta(seconds=10 * READ)}
    given: dict[str, Any] = {}
    config = _aws() if scheme == "s3" else {}
    if another := endpoint(scheme):
        config[_ENDPOINTS[scheme][1]] = another
        client["allow_http"] = another.startswith("http:")
        if scheme == "gs":  # an emulator knows nobody
            given["credential_provider"] = lambda: {"token": "nobody", "expires_at": None}
    first, longest = timedelta(seconds=attempts.FIRST), timedelta(seconds=attempts.LONGEST)
    again = {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=READ * max(1, retries)),
        "backoff": {"init_backoff": first, "max_backoff": longest, "base": 2},
    }
    try:
        return store.from_url(
            f"{scheme}://{bucket}", config=config or None, client_options=client, retry_config=again, **given
        )
    except Exception as error:
        raise OutputError(f"{scheme}://{bucket}: the store cannot be asked ({type(error).__name__})") from None


def _aws() -> dict[str, Any]:
    """What the AWS tools keep in files: the keys and the region of a profile, where the environment has none."""
    profile, config = os.environ.get("AWS_PROFILE", "default"), dict[str, Any]()
    home = Path.home() / ".aws"
    files = {
        "AWS_SHARED_CREDENTIALS_FILE": (home / "credentials", profile),
        "AWS_CONFIG_FILE": (home / "config", profile if profile == "default" else f"profile {profile}"),
    }
    values: dict[str, str] = {}
    for variable, (usual, section) in files.items():
        parser = configparser.RawConfigParser()
        with suppress(configparser.Error, OSError, UnicodeDecodeError):
            parser.read(os.environ.get(variable, usual), encoding="utf-8")
            if parser.has_section(section):
                values = {**parser[section], **values}
    if "AWS_ACCESS_KEY_ID" not in os.environ and "aws_access_key_id" in values:
        for key in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token"):
            if key in values:
                config[key.removeprefix("aws_")] = values[key]
    if not {"AWS_REGION", "AWS_DEFAULT_REGION"} & os.environ.keys():
        config["region"] = values.get("region", "us-east-1")
    return config
