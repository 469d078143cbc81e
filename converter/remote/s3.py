"""What obstore does not name of S3: uploads in parts that were begun, and the parts that are there. By `botocore`.

Endpoint, region and the like are those that obstore finds in the environment; keys are found by botocore where the AWS
tools keep them, which is where obstore finds them, too.

Sources: Amazon S3's "Uploading and copying objects using multipart upload".
"""

from __future__ import annotations

import os
from base64 import b64decode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from converter.address import Address
from converter.errors import OutputError
from converter.extras import package
from converter.remote.attempts import Transient, tried
from converter.remote.objects import REFUSES, StoredObject, plain
from converter.remote.settings import online
from converter.remote.stores import endpoint, region
from converter.remote.web import CONNECT, READ

WORK = "an upload to S3"
AT_WORK = timedelta(days=1)  # an upload that got nothing for so long is nobody's any more
_CONNECTIONS = 256
_TRUE = ("1", "on", "yes", "true", "y")
_BUSY = (408, 425, 429)
_WITH_KEY = ("create_multipart_upload", "upload_part", "complete_multipart_upload", "list_parts")


@dataclass(frozen=True)
class Part:
    """A part that is there: bytes, and its ETag, which is their MD5 where the store's keys do not encrypt."""

    nbytes: int
    tag: str


@dataclass(frozen=True)
class Begun:
    """An upload that was begun, and neither completed nor aborted.

    Attributes:
        object: what it would become.
        id: what the store calls it.
        parts: what is there of it, by number.
        last: when something came of it last.
    """

    object: StoredObject
    id: str
    parts: Mapping[int, Part]
    last: datetime

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    @property
    def name(self) -> str:
        return self.object.name

    @property
    def stays(self) -> bool:
        """Whether its run may be at work still."""
        return datetime.now(UTC) - self.last < AT_WORK

    @property
    def why(self) -> str:
        """Why it stays."""
        return "may be at work: it got something within a day"

    def as_dict(self) -> dict[str, Any]:
        """As JSON, as that of a `Leftover` (storage/leftovers.py)."""
        return {"path": self.name, "bytes": self.nbytes, "running": self.stays, "unlinked_from": None}

    def abort(self) -> None:
        """Have the store forget it.

        Raises:
            OutputError: the store refuses.
        """
        with suppress(Ended):
            tried(self.object.name, lambda: asked(self.object, "abort_multipart_upload", UploadId=self.id), "removed")


class Ended(OutputError):
    """An upload is no more: completed or aborted."""


def begun(address: Address) -> list[Begun]:
    """The uploads that were begun to an address: to the object of this name, and to those of the folder of this name.

    Raises:
        OutputError: the store does not say.
        MissingDependency: botocore is not installed.
    """
    online(address.shown, "nothing can be said of it")
    top = StoredObject(address.shown, address.scheme, address.where, "/".join(address.parts))
    pages = _pages(top, "list_multipart_uploads", "Uploads", Prefix=top.key)
    return [
        _begun(StoredObject(f"{address.top}/{each['Key']}", top.scheme, top.bucket, each["Key"]), each)
        for each in pages
        if not address.parts or each["Key"] == top.key or each["Key"].startswith(f"{top.key}/")
    ]


def begun_of(object: StoredObject) -> list[Begun]:
    """The uploads that were begun to one object; raises as `begun`."""
    pages = _pages(object, "list_multipart_uploads", "Uploads", Prefix=object.key)
    return [_begun(object, each) for each in pages if each["Key"] == object.key]


def _begun(object: StoredObject, said: Mapping[str, Any]) -> Begun:
    found: list[dict[str, Any]] = []
    with suppress(Ended):  # meanwhile
        found = _pages(object, "list_parts", "Parts", Key=object.key, UploadId=said["UploadId"])
    parts = {each["PartNumber"]: Part(each["Size"], plain(each["ETag"])) for each in found}
    return Begun(object, said["UploadId"], parts, max([said["Initiated"], *(each["LastModified"] for each in found)]))


def _pages(object: StoredObject, what: str, rows: str, **given: Any) -> list[dict[str, Any]]:
    """The rows of all pages of a listing."""

    def ask() -> list[dict[str, Any]]:
        pages = client(object.bucket).get_paginator(what).paginate(Bucket=object.bucket, **given, **_settings(what))
        return [row for page in pages for row in page.get(rows, ())]

    found: list[dict[str, Any]] = tried(object.name, lambda: answered(object.name, ask, "refuses to list it"))
    return found


def asked(object: StoredObject, what: str, **given: Any) -> Any:
    """What the store answers, once asked, to an operation on an object.

    Raises:
        Transient, OutputError: as `answered`.
    """

    def ask() -> Any:
        return getattr(client(object.bucket), what)(Bucket=object.bucket, Key=object.key, **given, **_settings(what))

    return answered(object.name, ask)


def answered(name: str, ask: Any, refuses: str = REFUSES) -> Any:
    """What botocore answers, its errors as ours; theirs have addresses and names of keys in them.

    Raises:
        Ended: there is no such upload any more.
        Transient, OutputError: as they say.
    """
    kinds = package("botocore.exceptions", WORK)
    parsing = package("botocore.parsers", WORK).ResponseParserError
    try:
        return ask()
    except kinds.ClientError as error:
        raise _refused(name, error.response, refuses) from None
    except (kinds.ConnectionError, kinds.HTTPClientError, kinds.IncompleteReadError, parsing) as error:
        raise Transient(f"the store does not answer as it should ({type(error).__name__})") from None
    except (kinds.BotoCoreError, ValueError) as error:
        raise OutputError(f"{name}: the store cannot be asked ({type(error).__name__})") from None


def _refused(name: str, said: Mapping[str, Any], refuses: str) -> Exception:
    status, code = said["ResponseMetadata"]["HTTPStatusCode"], said["Error"]["Code"]
    if status >= 500 or status in _BUSY or code == "RequestTimeout":
        after = said["ResponseMetadata"].get("HTTPHeaders", {}).get("retry-after", "")
        return Transient(f"the store does not answer as it should ({code})", float(after) if after.isdigit() else None)
    if code == "NoSuchUpload":
        return Ended(f"{name}: somebody else completed or aborted the upload; nothing was written, run again")
    if status in (401, 403):
        return OutputError(f"{name}: the store {refuses} ({code})")
    return OutputError(f"{name}: the store answers {status} ({code})")


@cache
def client(bucket: str) -> Any:
    """botocore's client for a bucket. Its own ways to try again are off: that is done as for every other host.

    Raises:
        OutputError: what the environment says of it cannot be meant.
        MissingDependency: botocore is not installed.
    """
    package("botocore", WORK)
    config, session = package("botocore.config", WORK), package("botocore.session", WORK)
    virtual, where = _says("AWS_VIRTUAL_HOSTED_STYLE_REQUEST"), endpoint("s3")
    if virtual:  # obstore wants the bucket in the endpoint then, botocore adds it
        where = where.replace(f"://{bucket}.", "://", 1)
    settings = config.Config(
        connect_timeout=CONNECT, read_timeout=READ, max_pool_connections=_CONNECTIONS,
        retries={"total_max_attempts": 1}, ignore_configured_endpoint_urls=True, user_agent_appid="model-converter",
        # The store compares every part with its SHA-256, which is in the signature; others know no other sums.
        s3={"addressing_style": "virtual" if virtual else "path", "payload_signing_enabled": True},
        request_checksum_calculation="when_required", response_checksum_validation="when_required",
        **({"signature_version": package("botocore", WORK).UNSIGNED} if _says("AWS_SKIP_SIGNATURE") else {}),
    )  # fmt: skip
    given = {"region_name": region(), "endpoint_url": where or None, "config": settings}
    return answered(f"s3://{bucket}", lambda: session.get_session().create_client("s3", **given))


def _says(name: str) -> bool:
    return os.environ.get(name, "").lower() in _TRUE


def _settings(what: str) -> dict[str, Any]:
    """What the environment says of an operation: who pays, and whose keys encrypt."""
    given: dict[str, Any] = {"RequestPayer": "requester"} if _says("AWS_REQUEST_PAYER") else {}
    kind = os.environ.get("AWS_SERVER_SIDE_ENCRYPTION", "")
    if kind == "sse-c":
        key = b64decode(os.environ.get("AWS_SSE_CUSTOMER_KEY_BASE64", ""))
        return given | ({"SSECustomerAlgorithm": "AES256", "SSECustomerKey": key} if what in _WITH_KEY else {})
    if kind and what == "create_multipart_upload":
        given["ServerSideEncryption"] = kind
        if named := os.environ.get("AWS_SSE_KMS_KEY_ID"):
            given["SSEKMSKeyId"] = named
        if _says("AWS_SSE_BUCKET_KEY_ENABLED"):
            given["BucketKeyEnabled"] = True
    return given
