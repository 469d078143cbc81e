"""Ranges of a file by HTTP, with what is asked of every answer.

Sources: RFC 9110 (status codes, Range and Content-Range, ETag, Retry-After).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from converter import __version__
from converter.address import is_loopback
from converter.errors import CorruptFile, MissingPart, OutputError, UnsupportedFeature
from converter.extras import package
from converter.remote.attempts import Transient, changed
from converter.remote.digests import Digest, said

CONNECT, READ = 10.0, 30.0  # seconds without a sign of the host
SLOWEST = 10_000  # bytes a second; what is slower is asked for again
PIECE = 256 << 10
MAX_REDIRECTS = 5
MAX_JSON = 64 << 20
CONNECTIONS = 32
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)


class Answer(NamedTuple):
    """What a host answers: its last status and headers, the body to be read, and where redirects led."""

    status: int
    headers: Mapping[str, str]
    body: Any
    url: str


@cache
def _pool(proxy: str | None) -> Any:
    urllib3 = package("urllib3", "reading from a host")
    options = {
        "num_pools": 16,
        "maxsize": CONNECTIONS,
        "timeout": urllib3.Timeout(connect=CONNECT, read=READ),
        "retries": False,
    }
    return urllib3.PoolManager(**options) if proxy is None else urllib3.ProxyManager(proxy, **options)


def pool_for(url: str) -> Any:
    """Connections to a host, by the proxy that the environment names for it; no request is repeated or redirected.

    Raises:
        MissingDependency: urllib3 is not installed.
    """
    return _pool(_proxy(urlsplit(url)))


def _proxy(url: SplitResult) -> str | None:
    """The proxy that the environment names for a host."""
    from urllib.request import getproxies, proxy_bypass

    host = url.hostname or ""
    return None if is_loopback(host) or proxy_bypass(host) else getproxies().get(url.scheme)


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port


def _may_follow(name: str, old: SplitResult, new: SplitResult) -> None:
    """Refuse a redirect to what nobody named and nothing protects, a service of this machine above all.

    Raises:
        OutputError: as said.
    """
    here, there = is_loopback(old.hostname or ""), is_loopback(new.hostname or "")
    plain = new.scheme == old.scheme == "http" and (new.hostname == old.hostname or (here and there))
    if not plain and (new.scheme != "https" or (there and not here)):
        raise OutputError(f"{name}: its host leads to another address than an https one, which is not followed")


@contextmanager
def asked(name: str, url: str, headers: Mapping[str, str], secret: Mapping[str, str]) -> Iterator[Answer]:
    """The answer to a GET, redirects followed; `secret` headers are for the first host alone.

    Raises:
        Transient: no connection, or one that broke; the host is busy.
        OutputError: the host leads where nobody may go.
    """
    urllib3 = package("urllib3", "reading from a host")
    sent = {"User-Agent": f"model-converter/{__version__}", "Accept-Encoding": "identity", **headers}
    first = at = urlsplit(url)
    for _ in range(MAX_REDIRECTS + 1):
        own = secret if _origin(at) == _origin(first) else {}
        try:
            body = _pool(_proxy(at)).request(
                "GET", at.geturl(), headers={**sent, **own}, redirect=False, preload_content=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise Transient(_words(error)) from None  # whose text has the address with its query
        found = {key.lower(): value for key, value in body.headers.items()}
        try:
            if body.status in _REDIRECTS and "location" in found:
                new = urlsplit(urljoin(at.geturl(), found["location"]))
                _may_follow(name, at, new)
                at = new
                continue
            if body.status in _AGAIN:
                raise Transient(f"the host answers {body.status}", _seconds(found.get("retry-after", "")))
            yield Answer(body.status, found, body, at.geturl())
            return
        finally:
            _leave(body)
    raise OutputError(f"{name}: its host leads from one address to the next without an end")


def _leave(body: Any) -> None:
    """Let go of an answer: the connection is used again where nothing of it is left, or little."""
    left = body.length_remaining
    if left is not None and left <= PIECE:
        body.drain_conn()
        body.release_conn()
    body.close()


def _words(error: Exception) -> str:
    """What an error of a connection is, in words of ours."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if "SSLError" in kinds:
        return "the host's certificate is not trusted, or the connection cannot be made secure"
    if "NameResolutionError" in kinds:
        return "the host's name is not known"
    if "TimeoutError" in kinds:
        return "the host does not answer in time"
    return "the connection cannot be made, or broke"


def _seconds(text: str) -> float | None:
    """The seconds of a Retry-After, a number or a date."""
    if text.strip().isdecimal():
        return float(text)
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(text).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return None


def pieces(answer: Answer) -> Iterator[bytes]:
    """The body as it arrives.

    Raises:
        Transient: the connection broke, or is too slow.
    """
    urllib3 = package("urllib3", "reading from a host")
    started, read = time.monotonic(), 0
    while True:
        try:
            piece: bytes = answer.body.read1(PIECE)
        except urllib3.exceptions.HTTPError as error:
            raise Transient(_words(error)) from None
        if not piece:
            return
        read += len(piece)
        yield piece
        if time.monotonic() - started > READ + read / SLOWEST:
            raise Transient("the host is too slow")


def refuse(name: str, status: int, hint: str = "") -> None:
    """What an answer that is none comes to.

    Raises:
        ConverterError: the status is no success.
    """
    if status in (401, 403):
        raise OutputError(f"{name}: its host refuses to give it ({status}){hint}")
    if status in (404, 410):
        raise MissingPart(f"{name}: its host has no such file ({status}){hint}")
    if status == 416:
        raise changed(name)
    if not 200 <= status < 300:
        raise OutputError(f"{name}: its host answers {status}")


def read_json(name: str, url: str, secret: Mapping[str, str], hint: str = "") -> tuple[Any, Mapping[str, str]]:
    """A JSON document of bounded size, and the headers that came with it.

    Raises:
        Transient, ConverterError: as `asked` and `refuse`; it is no JSON.
    """
    with asked(name, url, {"Accept": "application/json"}, secret) as answer:
        refuse(name, answer.status, hint)
        data = bytearray()
        for piece in pieces(answer):
            data += piece
            if len(data) > MAX_JSON:
                raise CorruptFile(f"{name}: its host says more than {MAX_JSON >> 20} MiB about it")
        if len(data) < int(answer.headers.get("content-length", "0")):
            raise Transient("the answer was shorter than it should be")
    try:
        return json.loads(data), answer.headers
    except (ValueError, RecursionError):
        raise CorruptFile(f"{name}: its host's answer is not the JSON that it should be") from None


class WebFile:
    """A file behind an URL, read by ranges.

    Attributes:
        name: the address for people.
        size: bytes; None before the first answer.
        tag: what tells it from the same file after it was changed (ETag, or else the time); None where nothing does.
        identity: a strong ETag (RFC 9110, 8.8.1), which no other file of this address has.
        digest: what the first answer says of the whole file.
    """

    def __init__(
        self, name: str, url: str, *, size: int | None = None, secret: Mapping[str, str] = {}, hint: str = ""
    ) -> None:
        self.name, self.size = name, size
        self.tag: str | None = None
        self.identity: str | None = None
        self.digest: Digest | None = None
        self._url, self._secret, self._hint = url, dict(secret), hint
        self._lasts: str | None = None  # where redirects led; its signature lasts for a while

    def stream(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop) as they arrive, fewer where the connection ends too early.

        Raises:
            Transient: as `asked` and `pieces`; the host gave another range.
            ConverterError: there is no such file, it may not be read or was changed, or the host knows no ranges.
        """
        with self._asked(start, stop) as answer:
            left = stop - start if self._checked(answer, start, stop) else 0
            for piece in pieces(answer) if left else ():
                yield piece[:left]
                left -= len(piece)
                if left <= 0:
                    return

    @contextmanager
    def _asked(self, start: int, stop: int) -> Iterator[Answer]:
        headers, last = {"Range": f"bytes={start}-{stop - 1}"}, self._lasts
        self._lasts = None  # until it has answered again
        if last is not None:
            with asked(self.name, last, headers, self._secret_for(last)) as answer:
                if answer.status not in (401, 403, 404, 410):
                    yield answer
                    self._lasts = last
                    return
        with asked(self.name, self._url, headers, self._secret) as answer:
            self._lasts = answer.url if answer.url != self._url else None
            yield answer

    def _secret_for(self, url: str) -> Mapping[str, str]:
        return self._secret if _origin(urlsplit(url)) == _origin(urlsplit(self._url)) else {}

    def _checked(self, answer: Answer, start: int, stop: int) -> bool:
        """Compare the answer with what was asked for, and the file with what it was; False where it has no bytes."""
        if answer.status == 416 and self.size is None:
            self.size = 0
            return False
        refuse(self.name, answer.status, self._hint)
        if answer.status == 206:
            match = _RANGE.fullmatch(answer.headers.get("content-range", "").strip())
            if match is None or int(match[1]) != start or int(match[2]) >= max(stop, start + 1):
                raise Transient("the host gives another range than was asked for")
            size = int(match[3])
        elif start == 0 and answer.headers.get("content-length", "").isdecimal():
            size = int(answer.headers["content-length"])
        else:
            raise UnsupportedFeature(f"{self.name}: its host gives no parts of files; download it first")
        etag = answer.headers.get("etag")
        tag = answer.headers.get("last-modified") if etag is None else etag.removeprefix("W/")
        if self.size is None:
            self.size, self.tag = size, tag
            self.identity = etag if etag is not None and etag.startswith('"') else None
            self.digest = said(answer.headers, answer.status == 200)
        self.tag = self.tag or tag
        if (size, tag or self.tag) != (self.size, self.tag):
            raise changed(self.name)
        return size > 0
