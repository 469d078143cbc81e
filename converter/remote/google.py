"""What obstore does not name of Google Cloud Storage: uploads in parts that were begun, and the parts that are there.

Google's XML API speaks S3's protocol for them, so the requests are botocore's (s3.py), with a token of `google-auth` in
place of a signature. An object that was made of parts has no MD5, but every part has.

Sources: Google's "XML API multipart uploads" and the pages of its requests, "Authentication" of the XML API (OAuth 2.0
tokens), "How Application Default Credentials works".
"""

from __future__ import annotations

import logging
import warnings
from functools import cache
from typing import Any

from converter.errors import OutputError
from converter.extras import package
from converter.remote.attempts import Transient
from converter.remote.s3 import ByParts, connected
from converter.remote.stores import endpoint, named, says
from converter.remote.web import pool_for

WORK = "an upload to Google"
ENDPOINT = "https://storage.googleapis.com"
COMPLETES = 300.0  # seconds that an answer may take: to complete an upload takes "several minutes", without a sign
SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
_ACCOUNTS = ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH")  # which obstore knows beside the usual place


@cache
def client(bucket: str) -> Any:
    """botocore's client for a bucket, whose requests go with a token.

    Raises:
        OutputError: what the environment says of it cannot be meant.
        MissingDependency: botocore or google-auth is not installed.
    """
    name, another = f"gs://{bucket}", endpoint("gs")
    where = (another or ENDPOINT).rstrip("/")
    unsigned = package("botocore", WORK).UNSIGNED
    settings = {"signature_version": unsigned, "s3": {"addressing_style": "path"}}
    made = connected(name, "auto", where, COMPLETES, **settings)
    package("google.auth", WORK)

    def authorized(request: Any, **_: Any) -> None:
        """Put the token on a request that is about to go there: after botocore has logged what it sends."""
        if request.url.startswith(f"{where}/"):
            # An emulator knows nobody.
            for key, value in ({"Authorization": "Bearer nobody"} if another else _token(name, request)).items():
                request.headers[key] = value

    made.meta.events.register("before-send.s3", authorized)
    return made


def _token(name: str, request: Any) -> dict[str, str]:
    """The headers of a request that say who asks, and who pays where the credentials name a project."""
    kinds = package("google.auth.exceptions", WORK)
    headers: dict[str, str] = {}
    try:
        credentials().before_request(_transport(), request.method, request.url, headers)
    except kinds.DefaultCredentialsError:
        raise OutputError(
            f"{name}: no credentials for Google were found\n"
            "GOOGLE_APPLICATION_CREDENTIALS names their file; `gcloud auth application-default login` makes one"
        ) from None
    except kinds.GoogleAuthError as error:  # their texts have what the host answered in them
        if getattr(error, "retryable", False) or isinstance(error, kinds.TransportError):
            raise Transient(f"no token comes from Google ({type(error).__name__})") from None
        raise OutputError(f"{name}: Google gives no token for these credentials ({type(error).__name__})") from None
    except (OSError, ValueError) as error:
        raise OutputError(f"{name}: the credentials for Google cannot be read ({type(error).__name__})") from None
    return headers


@cache
def credentials() -> Any:
    """Those of the file that the environment names, of gcloud, or of the machine."""
    accounts, auth = package("google.oauth2.service_account", WORK), package("google.auth", WORK)
    if says("GOOGLE_SKIP_SIGNATURE"):
        return package("google.auth.credentials", WORK).AnonymousCredentials()
    if account := named(*_ACCOUNTS):
        return accounts.Credentials.from_service_account_file(account, scopes=SCOPES)
    logging.getLogger("google.auth").addHandler(logging.NullHandler())  # that no project is named matters to nobody
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, _ = auth.default(scopes=SCOPES, request=_transport())
    return found


def _transport() -> Any:
    return package("google.auth.transport.urllib3", WORK).Request(_Hosts())


class _Hosts:
    """What google-auth asks for tokens by: as every other host is asked, which is without redirects."""

    def request(self, method: str, url: str, **given: Any) -> Any:
        return pool_for(url).request(method, url, **given)


STORE = ByParts(client, lambda what: {})
