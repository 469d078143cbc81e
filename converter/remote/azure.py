"""Uploads in parts to Azure: block blobs, by `azure-storage-blob`.

A blob has one list of blocks that were put and not committed, and of each the list says its name and its size, no more.
So what has to be known of a block is in its name: the upload that it is of, when it was put, its number, and the MD5 of
its bytes. To commit some is to have Azure forget all others; nothing else makes it forget any for a week.

Sources: Azure's "Put Block" (names of up to 64 bytes, all of a blob as long as each other; uncommitted ones stay a
week), "Put Block List", "Get Block List", "List Blobs" (blobs without a committed block have no bytes there).
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from converter.errors import OutputError, OutputExists
from converter.extras import package
from converter.remote.attempts import Result, Transient
from converter.remote.objects import REFUSES, StoredObject
from converter.remote.parts import Begun, Ended, Part, is_below
from converter.remote.stores import endpoint, named, says
from converter.remote.web import CONNECT, READ

WORK = "an upload to Azure"
KEPT = timedelta(days=7)
_BLOCK = re.compile(r"mc-([0-9a-f]{12})-([0-9a-f]{8})-(\d{5})-([0-9a-f]{32})")  # 63 bytes
# What obstore calls them in the environment, the first that is there.
_KEYS = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY")
_SIGNATURES = ("AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN")
_BUSY = (408, 429)
_EXISTS = ("BlobAlreadyExists", "ConditionNotMet")
_AGAIN = ("Md5Mismatch", "OperationTimedOut", "ServerBusy")


class Blocks:
    """A `Store` (parts.py) of block blobs."""

    def begun(self, object: StoredObject, *, below: bool) -> list[Begun]:
        def ask() -> list[Begun]:
            keys = {object.key} - {""} | (set(_uncommitted(object)) if below else set())
            top = object.name.removesuffix(object.key)
            objects = (StoredObject(f"{top}{key}", object.scheme, object.bucket, key) for key in sorted(keys))
            return [upload for each in objects for upload in _uploads(each)]

        return answered(object.name, ask, "refuses to list it")

    def begin(self, object: StoredObject) -> str:
        return secrets.token_hex(6)

    def send(self, object: StoredObject, upload: str, number: int, data: bytes, md5: str) -> str:
        block = f"mc-{upload}-{int(time.time()):08x}-{number:05d}-{md5}"
        headers = {"Content-MD5": b64encode(bytes.fromhex(md5)).decode()}
        answered(object.name, lambda: _blob(object).stage_block(block, data, headers=headers))
        return block

    def complete(self, object: StoredObject, upload: str, parts: Mapping[int, str], *, replace: bool) -> str | None:
        kinds, core = package("azure.storage.blob", WORK), package("azure.core", WORK)
        blocks = [kinds.BlobBlock(parts[number], kinds.BlockState.UNCOMMITTED) for number in sorted(parts)]
        condition = {} if replace else {"match_condition": core.MatchConditions.IfMissing}
        said = answered(object.name, lambda: _blob(object).commit_block_list(blocks, **condition))
        tag: str | None = said.get("etag")
        return tag

    def abort(self, object: StoredObject, upload: str) -> None:
        """Nothing: Azure has no way, but to commit something else, which everybody would see."""


def _uncommitted(object: StoredObject) -> Iterator[str]:
    """Names below an object's that no block was committed to."""
    prefix = f"{object.key}/" if object.key else None
    container = service().get_container_client(object.bucket)
    for each in container.list_blobs(name_starts_with=prefix, include=["uncommittedblobs"]):
        if not each.size and is_below(each.name, object.key):
            yield each.name


def _uploads(object: StoredObject) -> list[Begun]:
    """What the names of an object's uncommitted blocks say; those of other programs' are no uploads of ours."""
    try:
        _, blocks = _blob(object).get_block_list("uncommitted")
    except package("azure.core.exceptions", WORK).ResourceNotFoundError:
        return []
    ours = [(said, block) for block in blocks if (said := _BLOCK.fullmatch(block.id)) is not None]
    found: dict[str, dict[int, Part]] = {}
    last: dict[str, int] = {}
    for said, block in sorted(ours, key=lambda each: each[0][2]):  # of two with one number, the later one
        upload, put, number, md5 = said.groups()
        found.setdefault(upload, {})[int(number)] = Part(block.size, md5, block.id)
        last[upload] = int(put, 16)
    times = {upload: datetime.fromtimestamp(seconds, UTC) for upload, seconds in last.items()}
    return [Begun(object, each, parts, times[each], times[each] + KEPT) for each, parts in found.items()]


def answered(name: str, ask: Callable[[], Result], refuses: str = REFUSES) -> Result:
    """What Azure answers, its errors as ours; theirs have addresses in them.

    Raises:
        Ended: blocks that were put are not there any more.
        OutputExists: an object came there.
        Transient, OutputError: as they say.
    """
    package("azure.storage.blob", WORK)  # which brings the other one
    kinds = package("azure.core.exceptions", WORK)
    try:
        return ask()
    except kinds.HttpResponseError as error:
        raise _refused(name, error, refuses) from None
    except kinds.AzureError as error:
        raise Transient(f"the store does not answer as it should ({type(error).__name__})") from None
    except (OSError, ValueError) as error:
        raise OutputError(f"{name}: the store cannot be asked ({type(error).__name__})") from None


def _refused(name: str, error: Any, refuses: str) -> Exception:
    status, code = error.status_code, getattr(error, "error_code", None) or ""
    code = str(getattr(code, "value", code))  # of the ones that the package knows it is an enum
    if status is None:  # of credentials, before anything is sent
        return OutputError(
            f"{name}: no credentials for Azure were found ({type(error).__name__})\n"
            "set AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or say `az login`"
        )
    if status >= 500 or status in _BUSY or code in _AGAIN:
        after = error.response.headers.get("Retry-After", "")
        says = f"the store does not answer as it should ({code or status})"
        return Transient(says, float(after) if after.isdigit() else None)
    if code in _EXISTS:
        return OutputExists(f"{name}: came there while this ran; --force replaces it")
    if code == "InvalidBlockList":
        return Ended.of(name)
    if code == "InvalidBlobOrBlock":
        return OutputError(
            f"{name}: another program began an upload to it, with which ours does not go together; Azure forgets it\n"
            "a week after its last block, or when that program completes it: choose another name, or wait"
        )
    if status in (401, 403):
        return OutputError(f"{name}: the store {refuses} ({code})")
    return OutputError(f"{name}: the store answers {status} ({code})")


def _blob(object: StoredObject) -> Any:
    return service().get_blob_client(object.bucket, object.key)


@cache
def service() -> Any:
    """Azure's client for the account that the environment names. Its own ways to try again are off.

    Raises:
        OutputError: the environment names none.
        MissingDependency: azure-storage-blob, or azure-identity where it is needed, is not installed.
    """
    storage = package("azure.storage.blob", WORK)
    logging.getLogger("azure").addHandler(logging.NullHandler())  # its warnings go to who wants them, not to stderr
    account = named("AZURE_STORAGE_ACCOUNT_NAME")
    where = endpoint("az") or (account and f"https://{account}.blob.core.windows.net")
    if not where:
        raise OutputError("az://: AZURE_STORAGE_ACCOUNT_NAME does not say whose store it is")
    return storage.BlobServiceClient(
        where, _credential(account), retry_total=0, permit_redirects=False, user_agent="model-converter",
        connection_timeout=CONNECT, read_timeout=READ,
    )  # fmt: skip


def _credential(account: str) -> Any:
    """The first that is there of a key, a signature, and what azure-identity finds."""
    if says("AZURE_SKIP_SIGNATURE"):
        return None
    kinds = package("azure.core.credentials", WORK)
    if key := named(*_KEYS):
        return kinds.AzureNamedKeyCredential(account, key)
    if signature := named(*_SIGNATURES):
        return kinds.AzureSasCredential(signature)
    return package("azure.identity", WORK).DefaultAzureCredential()


STORE = Blocks()
