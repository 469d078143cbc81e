"""What obstore does not name of S3: uploads in parts that were begun, and the parts that are there. By `botocore`.

Endpoint, region and the like are those that obstore finds in the environment; keys are found by botocore where the AWS
tools keep them, which is where obstore finds them, too.

Sources: Amazon S3's "Uploading and copying objects using multipart upload".
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from converter.errors import OutputError
from converter.extras import package
from converter.remote.attempts import Transient
from converter.remote.objects import REFUSES, StoredObject, plain
from converter.remote.parts import Begun, Ended, Part, is_below
from converter.remote.stores import endpoint, region, says
from converter.remote.web import CONNECT, READ

WORK = "an upload in parts"
_CONNECTIONS = 256
_BUSY = (408, 425, 429)
_AGAIN = ("RequestTimeout", "BadDigest")  # answers of 400 that mean what came on the way
_WITH_KEY = ("create_multipart_upload", "upload_part", "complete_multipart_upload", "list_parts")


class ByParts:
    """A `Store` (parts.py) that speaks S3's protocol.

    Args:
        client: botocore's client for a bucket.
        settings: what every operation is given, by its name.
    """

    def __init__(self, client: Callable[[str], Any], settings: Callable[[str], dict[str, Any]]) -> None:
        self._client, self._settings = client, settings

    def begun(self, object: StoredObject, *, below: bool) -> list[Begun]:
        top = object.name.removesuffix(object.key)
        return [
            self._begun(StoredObject(f"{top}{each['Key']}", object.scheme, object.bucket, each["Key"]), each)
            for each in self._pages(object, "list_multipart_uploads", "Uploads", Prefix=object.key)
            if each["Key"] == object.key or (below and is_below(each["Key"], object.key))
        ]

    def _begun(self, object: StoredObject, said: Mapping[str, Any]) -> Begun:
        found: list[dict[str, Any]] = []
        with suppress(Ended):  # meanwhile
            found = self._pages(object, "list_parts", "Parts", Key=object.key, UploadId=said["UploadId"])
        parts = {each["PartNumber"]: Part(each["Size"], plain(each["ETag"]), each["ETag"]) for each in found}
        return Begun(
            object, said["UploadId"], parts, max([said["Initiated"], *(each["LastModified"] for each in found)])
        )

    def _pages(self, object: StoredObject, what: str, rows: str, **given: Any) -> list[dict[str, Any]]:
        """The rows of all pages of a listing."""

        def ask() -> list[dict[str, Any]]:
            paginator = self._client(object.bucket).get_paginator(what)
            pages = paginator.paginate(Bucket=object.bucket, **given, **self._settings(what))
            return [row for page in pages for row in page.get(rows, ())]

        found: list[dict[str, Any]] = answered(object.name, ask, "refuses to list it")
        return found

    def begin(self, object: StoredObject) -> str:
        return str(self._asked(object, "create_multipart_upload")["UploadId"])

    def send(self, object: StoredObject, upload: str, number: int, data: bytes, md5: str) -> str:
        sum = b64encode(bytes.fromhex(md5)).decode()
        said = self._asked(object, "upload_part", UploadId=upload, PartNumber=number, Body=data, ContentMD5=sum)
        return str(said["ETag"])

    def complete(self, object: StoredObject, upload: str, parts: Mapping[int, str], *, replace: bool) -> str | None:
        named = {"Parts": [{"PartNumber": number, "ETag": parts[number]} for number in sorted(parts)]}
        said = self._asked(object, "complete_multipart_upload", UploadId=upload, MultipartUpload=named)
        tag: str | None = said.get("ETag")
        return tag

    def abort(self, object: StoredObject, upload: str) -> None:
        self._asked(object, "abort_multipart_upload", UploadId=upload)

    def _asked(self, object: StoredObject, what: str, **given: Any) -> Any:
        """What the store answers to an operation on an object."""

        def ask() -> Any:
            client, settings = self._client(object.bucket), self._settings(what)
            return getattr(client, what)(Bucket=object.bucket, Key=object.key, **given, **settings)

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
    if status >= 500 or status in _BUSY or code in _AGAIN:
        after = said["ResponseMetadata"].get("HTTPHeaders", {}).get("retry-after", "")
        return Transient(f"the store does not answer as it should ({code})", float(after) if after.isdigit() else None)
    if code == "NoSuchUpload":
        return Ended.of(name)
    if status in (401, 403):
        return OutputError(f"{name}: the store {refuses} ({code})")
    return OutputError(f"{name}: the store answers {status} ({code})")


@cache
def client(bucket: str) -> Any:
    """botocore's client for a bucket of S3.

    Raises:
        OutputError: what the environment says of it cannot be meant.
        MissingDependency: botocore is not installed.
    """
    virtual, where = says("AWS_VIRTUAL_HOSTED_STYLE_REQUEST"), endpoint("s3")
    if virtual:  # obstore wants the bucket in the endpoint then, botocore adds it
        where = where.replace(f"://{bucket}.", "://", 1)
    unsigned = {"signature_version": package("botocore", WORK).UNSIGNED} if says("AWS_SKIP_SIGNATURE") else {}
    # The store compares every part with its SHA-256, which is in the signature; others know no other sums.
    style = {"addressing_style": "virtual" if virtual else "path", "payload_signing_enabled": True}
    return connected(f"s3://{bucket}", region(), where, s3=style, **unsigned)


def connected(name: str, region: str, endpoint: str, read: float = READ, **settings: Any) -> Any:
    """A client of botocore for a bucket, which waits `read` seconds for an answer.

    Its own ways to try again are off: that is done as for every other host.

    Raises:
        OutputError: what the environment says of it cannot be meant.
        MissingDependency: botocore is not installed.
    """
    package("botocore", WORK)
    config, session = package("botocore.config", WORK), package("botocore.session", WORK)
    made = config.Config(
        connect_timeout=CONNECT, read_timeout=read, max_pool_connections=_CONNECTIONS,
        retries={"total_max_attempts": 1}, ignore_configured_endpoint_urls=True, user_agent_appid="model-converter",
        request_checksum_calculation="when_required", response_checksum_validation="when_required", **settings,
    )  # fmt: skip
    given = {"region_name": region, "endpoint_url": endpoint or None, "config": made}
    return answered(name, lambda: session.get_session().create_client("s3", **given))


def _settings(what: str) -> dict[str, Any]:
    """What the environment says of an operation: who pays, and whose keys encrypt."""
    given: dict[str, Any] = {"RequestPayer": "requester"} if says("AWS_REQUEST_PAYER") else {}
    kind = os.environ.get("AWS_SERVER_SIDE_ENCRYPTION", "")
    if kind == "sse-c":
        key = b64decode(os.environ.get("AWS_SSE_CUSTOMER_KEY_BASE64", ""))
        return given | ({"SSECustomerAlgorithm": "AES256", "SSECustomerKey": key} if what in _WITH_KEY else {})
    if kind and what == "create_multipart_upload":
        given["ServerSideEncryption"] = kind
        if named := os.environ.get("AWS_SSE_KMS_KEY_ID"):
            given["SSEKMSKeyId"] = named
        if says("AWS_SSE_BUCKET_KEY_ENABLED"):
            given["BucketKeyEnabled"] = True
    return given


STORE = ByParts(client, _settings)
