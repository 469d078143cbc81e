"""Hosts on loopback that behave as the Hugging Face Hub, its CDN, a web server and an S3 store do, and misbehave.

`Host(files)` serves a folder: as models of the Hub (`/api/models/ORG/NAME/...`, `/ORG/NAME/resolve/COMMIT/FILE`, which
leads to `/cdn/...` as the Hub leads to its CDN), as plain files (`/files/...`) and as a bucket of S3 or Google's
(`/BUCKET/KEY`, `/BUCKET?list-type=2`), into which uploads go, in parts or at once, as those of Azure do. Every byte
that it sends of a file, or takes for one, is counted. `faults` is asked for each request of a file what goes wrong.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

TOKEN = "hf_ThisIsNobodysToken"
GOOGLE_TOKEN = "ya29.ThisIsNobodysToken"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIGNATURE = "NobodysSignature"
QUOTE = '"'
LARGE = 64 << 10  # larger files are in LFS

#: What may go wrong with an answer and be otherwise a moment later; see `_Handler._file`.
FAULTS = ("drop", "short", "429", "500", "slow", "range", "more")  # and "flip": a byte that arrives as another one
#: What may go wrong with what is sent; "flip" is a byte that arrives as another one,
#: "lost" an answer that does not. And "stuck": nothing comes for a minute.
PUT_FAULTS = ("drop", "429", "500", "503", "slow", "lost", "403", "flip")


@dataclass
class Host:
    """What a server has and what it was asked.

    Attributes:
        root: `ORG/NAME/FILE` of models, `BUCKET/KEY` of objects.
        token: what the Hub wants to see; None for a public model.
        faults: path, number of the request for it -> one of FAULTS, or None.
        tag: path -> what its ETag is made of, beside the path; a test changes it.
        headers: path -> what else it says with a file.
        ranges: whether it knows ranges; one that does not sends all of a file.
        cdn: the URL that files of LFS are at; its own by default.
        says: what the Hub says of a model, changed by a test.
        sent: bytes of files, by path.
        asked: requests for files, by path.
        requests: (path, headers), of everything.
        put_faults: path, number of the part (0: the object at once, -1: its completion), number of the request
            for it -> one of PUT_FAULTS, or None.
        uploads: what was begun and neither completed nor aborted: its id -> its parts by number; of Azure
            "blocks of PATH" -> blocks by name.
        begun: id of an upload -> its path, and when it began.
        lists: whether whoever asks may see uploads and their parts; else the status of the answer.
        taken: bytes that came for a path, those of parts that were sent again included; "cut": of what broke off.
        head: the commit that the Hub takes another one after.
        commits: what was committed.
        large: by its hash what LFS has.
        gives_tokens: whether credentials for Google are good for one.
        encrypts: whether ETags of uploads are no checksums, as where the store's own keys encrypt.
    """

    root: Path
    token: str | None = None
    faults: Callable[[str, int], str | None] = lambda path, number: None
    tag: Callable[[str], str] = lambda path: ""
    headers: Callable[[str], dict[str, str]] = lambda path: {}
    ranges: bool = True
    cdn: str = ""
    says: Callable[[dict[str, Any]], Any] = lambda body: body
    sent: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    put_faults: Callable[[str, int, int], str | None] = lambda path, part, number: None
    uploads: dict[str, dict[Any, bytes]] = field(default_factory=dict)
    begun: dict[str, tuple[str, str]] = field(default_factory=dict)
    lists: int = 200
    taken: dict[str, int] = field(default_factory=dict)
    tried: dict[tuple[str, int], int] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    head: str = COMMIT
    commits: list[list[dict[str, Any]]] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)
    encrypts: bool = False
    gives_tokens: bool = True
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def total(self) -> int:
        return sum(self.sent.values())

    def tag_of(self, path: str) -> str:
        if path in self.tags:
            return self.tags[path]
        return f'"{hashlib.md5((path + self.tag(path)).encode(), usedforsecurity=False).hexdigest()}"'


_TAG = re.compile(rb'<ETag>(?:"|&quot;)?([^<>"&]+)(?:"|&quot;)?</ETag>')
_HUB_WRITES = re.compile(r"(?:api/models/)?([^/]+/[^/]+?)(?:\.git/info/lfs/objects|)/(preupload|batch|commit)(?:/.*)?")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    lost = False
    host: Host

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        path = unquote(split.path)
        with self.host.lock:
            self.host.requests.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path):
            self._model(match[1])
        elif match := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", path):
            self._resolve(match[1], match[2])
        elif path.startswith("/cdn/"):
            self._signed(path.removeprefix("/cdn/"), split.query)
        elif path.startswith("/files/"):
            self._file(path.removeprefix("/files/"))
        elif "uploads" in (query := parse_qs(split.query, keep_blank_values=True)):
            self._list_uploads(path.strip("/"), query)
        elif "uploadId" in query:
            self._list_parts(path.strip("/"), query)
        elif "list-type=2" in split.query:
            self._list(path.strip("/"), parse_qs(split.query))
        elif "comp=blocklist" in split.query:
            self._list_blocks(path.strip("/"))
        elif "comp=list" in split.query:
            self._list_blobs(path.strip("/"), parse_qs(split.query))
        else:
            self._file(path.strip("/"))

    def do_POST(self) -> None:
        self._change()

    def do_PUT(self) -> None:
        self._change()

    def do_DELETE(self) -> None:
        self._change()

    def _change(self) -> None:
        """Uploads as S3 (and Google's XML interface) and Azure take them."""
        split = urlsplit(self.path)
        path, query = unquote(split.path).strip("/"), parse_qs(split.query, keep_blank_values=True)
        with self.host.lock:
            self.host.requests.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
        body = self._body()
        if match := _HUB_WRITES.fullmatch(path):
            self._hub(match[1], match[2], body)
            return
        if path == "token":  # of Google's, for credentials
            said = {"access_token": GOOGLE_TOKEN, "expires_in": 3600, "token_type": "Bearer"}
            status = 200 if self.host.gives_tokens else 400
            self._answer(status, json.dumps(said if status == 200 else {"error": "invalid_grant"}).encode())
            return
        if path.startswith("lfs/"):
            self._large(path.removeprefix("lfs/"), body)
            return
        upload = query.get("uploadId", [""])[0]
        if self.command == "DELETE":
            if upload:
                self.host.uploads.pop(upload, None)
            else:
                (self.host.root / path).unlink(missing_ok=True)
            self._answer(204)
        elif "delete" in query:
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for key in keys:
                (self.host.root / path / key).unlink(missing_ok=True)
            rows = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            self._answer(200, f"<DeleteResult>{rows}</DeleteResult>".encode(), Content_Type="application/xml")
        elif "uploads" in query:
            with self.host.lock:
                upload = f"upload{len(self.host.tried)}-{len(self.host.requests)}"
                self.host.uploads[upload] = {}
                self.host.begun[upload] = (path, time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()))
            names = f"<Bucket>b</Bucket><Key>{escape(path)}</Key><UploadId>{upload}</UploadId>"
            self._answer(200, f"<InitiateMultipartUploadResult>{names}</InitiateMultipartUploadResult>".encode())
        elif upload:
            if "partNumber" not in query:
                named = re.findall(rb"<PartNumber>(\d+)</PartNumber>", body), _TAG.findall(body)
                self._part(
                    path, upload, -1, body, {int(number): tag.decode() for number, tag in zip(*named, strict=True)}
                )
            else:
                self._part(path, upload, int(query["partNumber"][0]), body)
        elif query.get("comp") == ["block"]:
            self._block(path, query["blockid"][0], body)
        elif query.get("comp") == ["blocklist"]:
            self._commit(path, re.findall(r">([^<>]+)</(?:Latest|Uncommitted)>", body.decode()), body)
        else:
            self._object(path, body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            size = int(self.headers.get("Content-Length", "0"))
            if len(data := self.rfile.read(size)) < size:  # who sent it is gone; nobody keeps a half
                with self.host.lock:
                    self.host.taken["cut"] = self.host.taken.get("cut", 0) + len(data)
                raise ConnectionAbortedError
            return data
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _hub(self, name: str, what: str, body: bytes) -> None:
        """The Hub's way of writing: which files are large, where they go, and the commit of all."""
        if not self._welcome():
            return
        said: dict[str, Any]
        if what == "preupload":
            files = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["size"] > LARGE else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(body)["files"]
            ]
            said = {"files": files}
        elif what == "batch":
            place = f"{self.host.url}/lfs/"
            said = {"transfer": "basic", "objects": [
                {"oid": each["oid"], "size": each["size"]} | ({} if each["oid"] in self.host.large else {"actions": {
                    "upload": {"href": f"{place}{each['oid']}?X-Amz-Signature={SIGNATURE}"},
                    "verify": {"href": f"{place}{each['oid']}/verify"},
                }}) for each in json.loads(body)["objects"]
            ]}  # fmt: skip
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            if lines[0]["value"].get("parentCommit") != self.host.head:
                self._answer(412, b'{"error":"A commit has happened since."}')
                return
            self.host.commits.append([line["value"] for line in lines])
            for line in lines[1:]:
                value, file = line["value"], self.host.root / name / line["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                data = b64decode(value["content"]) if line["key"] == "file" else self.host.large[value["oid"]]
                file.write_bytes(data)
            said = {"commitUrl": f"{self.host.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
        self._answer(200, json.dumps(said).encode(), Content_Type="application/json")

    def _large(self, path: str, body: bytes) -> None:
        oid, _, verify = path.partition("/")
        if verify:
            self._answer(200 if oid in self.host.large else 404, b"{}")
        elif (got := self._failed("lfs", 0, body)) is not None:
            self.host.large[oid] = got
            self._answer(200)

    def _failed(self, path: str, part: int, body: bytes) -> bytes | None:
        """What arrives of a body; None where nothing does, and that is answered."""
        with self.host.lock:
            number = self.host.tried[path, part] = self.host.tried.get((path, part), 0) + 1
            self.host.taken[path] = self.host.taken.get(path, 0) + (len(body) if part >= 0 else 0)
        fault = self.host.put_faults(path, part, number)
        if fault == "drop":
            self.close_connection = True
            return None
        if fault is not None and fault.isdecimal():
            self._answer(int(fault), b"<Error><Code>SlowDown</Code></Error>")
            return None
        if fault in ("slow", "stuck"):
            time.sleep(0.3 if fault == "slow" else 60)
        self.close_connection = self.lost = fault == "lost"
        return bytes([body[0] ^ 1]) + body[1:] if fault == "flip" else body

    def _part(self, path: str, upload: str, number: int, body: bytes, named: dict[int, str] | None = None) -> None:
        if (got := self._failed(path, number, body)) is None:
            return
        if number >= 0:
            with self.host.lock:
                if (parts := self.host.uploads.get(upload)) is not None:
                    parts[number] = got
            if parts is None:
                self._answer(404, b"<Error><Code>NoSuchUpload</Code></Error>")
                return
            self._answer(200, ETag=f'"{self._tag(got)}"')
            return
        with self.host.lock:
            found = self.host.uploads.get(upload)
            # As Ceph: every part that is there is named, and as it is now.
            if named and found is not None and named != {at: self._tag(part) for at, part in found.items()}:
                self._answer(400, b"<Error><Code>InvalidPart</Code></Error>")
                return
            self.host.uploads.pop(upload, None)
        if found is None:
            self._answer(404, b"<Error><Code>NoSuchUpload</Code></Error>")
            return
        parts = [part for _, part in sorted(found.items())]
        digest = _md5(b"".join(map(_md5, parts))).hex()
        tag = self._stored(path, b"".join(parts), f"{digest}-{len(parts)}")
        names = f"<Location>l</Location><Bucket>b</Bucket><Key>{escape(path)}</Key><ETag>{escape(tag)}</ETag>"
        done = f"<CompleteMultipartUploadResult>{names}</CompleteMultipartUploadResult>"
        self._answer(200, done.encode(), ETag=tag)

    def _block(self, path: str, name: str, body: bytes) -> None:
        """A block of Azure's; the number of a fault is that in the name of one of ours."""
        number = re.search(rb"-(\d{5})-", b64decode(name))
        if (got := self._failed(path, int(number[1]) if number else 0, body)) is None:
            return
        if (sum := self.headers.get("Content-MD5")) is not None and b64decode(sum) != _md5(got):
            self._refused(400, "Md5Mismatch")
            return
        with self.host.lock:
            self.host.uploads.setdefault(f"blocks of {path}", {})[name] = got
        self._answer(201)

    def _commit(self, path: str, names: list[str], body: bytes) -> None:
        """As Azure: what is not named is gone with it."""
        if self._failed(path, -1, body) is None:
            return
        with self.host.lock:
            blocks = self.host.uploads.get(f"blocks of {path}", {})
            exists = self.headers.get("If-None-Match") == "*" and (self.host.root / path).exists()
            if whole := set(names) <= blocks.keys() and not exists:
                self.host.uploads.pop(f"blocks of {path}", None)
        if exists:
            self._refused(409, "BlobAlreadyExists")
        elif not whole:
            self._refused(400, "InvalidBlockList")
        else:
            data = b"".join(blocks[name] for name in names)
            self._answer(201, ETag=self._stored(path, data, _md5(data).hex()))

    def _refused(self, status: int, code: str) -> None:
        """As Azure says it."""
        self._answer(status, f"<Error><Code>{code}</Code></Error>".encode(), x_ms_error_code=code)

    def _list_blocks(self, path: str) -> None:
        with self.host.lock:
            blocks = dict(self.host.uploads.get(f"blocks of {path}", {}))
        if self.host.lists != 200:
            self._refused(self.host.lists, "AuthorizationFailure")
        elif not blocks and not (self.host.root / path).exists():
            self._refused(404, "BlobNotFound")
        else:
            rows = (f"<Block><Name>{name}</Name><Size>{len(data)}</Size></Block>" for name, data in blocks.items())
            said = f"<BlockList><UncommittedBlocks>{''.join(rows)}</UncommittedBlocks></BlockList>"
            self._answer(200, said.encode(), Content_Type="application/xml")

    def _tag(self, part: bytes) -> str:
        """Of a part: its MD5, but where the store's keys encrypt."""
        return _md5(part + b"encrypted" * self.host.encrypts).hex()

    def _list_uploads(self, bucket: str, query: dict[str, list[str]]) -> None:
        """As S3, two to a page."""
        prefix, key, upload = (query.get(name, [""])[0] for name in ("prefix", "key-marker", "upload-id-marker"))
        with self.host.lock:
            begun = [(path.removeprefix(f"{bucket}/"), each) for each, (path, _) in self.host.begun.items()]
            left = sorted(each for each in begun if each[1] in self.host.uploads and each > (key, upload))
        left = [each for each in left if each[0].startswith(prefix)]
        rows = [
            f"<Upload><Key>{escape(key)}</Key><UploadId>{upload}</UploadId>"
            f"<Initiated>{self.host.begun[upload][1]}</Initiated></Upload>"
            for key, upload in left[:2]
        ]
        marks = [
            f"<NextKeyMarker>{escape(k)}</NextKeyMarker><NextUploadIdMarker>{u}</NextUploadIdMarker>" for k, u in left
        ]
        self._page("ListMultipartUploadsResult", rows, marks)

    def _list_parts(self, path: str, query: dict[str, list[str]]) -> None:
        """As S3, five to a page."""
        upload, after = query["uploadId"][0], int(query.get("part-number-marker", ["0"])[0])
        with self.host.lock:
            parts = dict(self.host.uploads[upload]) if upload in self.host.uploads else None
        if parts is None:
            self._answer(404, b"<Error><Code>NoSuchUpload</Code></Error>")
            return
        left = [number for number in sorted(parts) if number > after]
        rows = [
            f"<Part><PartNumber>{number}</PartNumber><LastModified>{self.host.begun[upload][1]}</LastModified>"
            f'<ETag>"{self._tag(parts[number])}"</ETag><Size>{len(parts[number])}</Size></Part>'
            for number in left[:5]
        ]
        self._page("ListPartsResult", rows, [f"<NextPartNumberMarker>{n}</NextPartNumberMarker>" for n in left])

    def _page(self, kind: str, rows: list[str], marks: list[str]) -> None:
        """Rows of a listing, and where the next page begins, where there are more marks than rows."""
        if self.host.lists != 200:
            self._answer(self.host.lists, b"<Error><Code>AccessDenied</Code></Error>")
            return
        more = len(marks) > len(rows)
        said = f"<IsTruncated>{str(more).lower()}</IsTruncated>{marks[len(rows) - 1] if more else ''}{''.join(rows)}"
        self._answer(200, f"<{kind}>{said}</{kind}>".encode(), Content_Type="application/xml")

    def _object(self, path: str, body: bytes) -> None:
        if self.headers.get("If-None-Match") == "*" and (self.host.root / path).exists():
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        elif (got := self._failed(path, 0, body)) is not None:
            self._answer(
                201 if "x-ms-blob-type" in self.headers else 200, ETag=self._stored(path, got, _md5(got).hex())
            )

    def _stored(self, path: str, data: bytes, digest: str) -> str:
        file = self.host.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        part = self.host.root / f".{threading.get_ident()}.part"  # nobody sees a half of an object
        part.write_bytes(data)
        part.replace(file)
        tag = f'"{_md5(digest.encode()).hex() + digest[32:] if self.host.encrypts else digest}"'
        self.host.tags[path] = tag
        return tag

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        if self.lost:
            return
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _welcome(self) -> bool:
        wanted = self.host.token
        if wanted is None or self.headers.get("Authorization") == f"Bearer {wanted}":
            return True
        self._answer(401, b"Invalid username or password.", X_Error_Code="GatedRepo")
        return False

    def _model(self, name: str) -> None:
        folder = self.host.root / name
        if not self._welcome():
            return
        if not folder.is_dir():
            self._answer(404, b'{"error":"Repository not found"}', X_Error_Code="RepoNotFound")
            return
        siblings = [_sibling(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
        body = self.host.says({"id": name, "sha": COMMIT, "siblings": siblings})
        self._answer(200, json.dumps(body).encode(), Content_Type="application/json")

    def _resolve(self, name: str, file: str) -> None:
        if not self._welcome():
            return
        path = f"{name}/{file}"
        if (self.host.root / path).is_file() and (self.host.root / path).stat().st_size > LARGE:
            location = f"{self.host.cdn or self.host.url}/cdn/{quote(path)}?X-Amz-Signature={SIGNATURE}"
            self._answer(302, Location=location, X_Repo_Commit=COMMIT)
        else:
            self._file(path)

    def _signed(self, path: str, query: str) -> None:
        if SIGNATURE in query:
            self._file(path)
        else:
            self._answer(403)

    def _file(self, path: str) -> None:
        file = self.host.root / path
        with self.host.lock:
            number = self.host.asked[path] = self.host.asked.get(path, 0) + 1
        if not file.is_file():
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        fault = self.host.faults(path, number) if self.command == "GET" else None
        if fault == "403":
            self._answer(403, b"Request has expired")
            return
        size, tag = file.stat().st_size, self.host.tag_of(path)
        if fault == "429":
            self._answer(429, b"slow down", Retry_After="0")
            return
        if fault == "500":
            self._answer(500, b"<Error><Code>InternalError</Code></Error>")
            return
        if (match := self.headers.get("If-Match")) is not None and match != tag:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        start, stop, status = 0, size, 200
        if self.host.ranges and (wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
            start, stop, status = int(wanted[1]), min(size, int(wanted[2]) + 1), 206
            if start >= size:
                self._answer(416, Content_Range=f"bytes */{size}")
                return
        if fault == "more":
            stop = min(stop + 100, size)
        if fault == "range":
            start, stop = (start + 1, min(stop + 1, size)) if stop < size else (max(0, start - 1), stop - 1)
        self._send(file, status, start, stop, size, tag, fault)

    def _send(self, file: Path, status: int, start: int, stop: int, size: int, tag: str, fault: str | None) -> None:
        self.send_response(status)
        self.send_header("ETag", tag)
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("Accept-Ranges", "bytes")
        key = str(file.relative_to(self.host.root))
        for name, text in self.host.headers(key).items():
            self.send_header(name, text)
        if self.host.encrypts:
            self.send_header("x-amz-server-side-encryption", "aws:kms")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        promised = stop - start
        given = promised // 2 if fault in ("drop", "short") else promised
        self.send_header("Content-Length", str(given if fault == "short" else promised))
        self.end_headers()
        if self.command == "HEAD":
            return
        with file.open("rb") as data:
            data.seek(start)
            while given > 0:
                piece = data.read(min(given, 1 << 18))
                with self.host.lock:
                    self.host.sent[key] = self.host.sent.get(key, 0) + len(piece)
                if fault == "slow":
                    time.sleep(0.3)
                if fault == "flip":
                    piece = piece[:-1] + bytes([piece[-1] ^ 1])
                self.wfile.write(piece)
                given -= len(piece)
        if fault == "drop":
            self.close_connection = True

    def _keys(self, bucket: str, prefix: str) -> list[str]:
        folder = self.host.root / bucket
        keys = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return [key for key in keys if key.startswith(prefix)]

    def _list_blobs(self, bucket: str, query: dict[str, list[str]]) -> None:
        """As Azure lists."""
        prefix = query.get("prefix", [""])[0]
        sizes = {key: (self.host.root / bucket / key).stat().st_size for key in self._keys(bucket, prefix)}
        if "uncommittedblobs" in query.get("include", [""])[0]:
            if self.host.lists != 200:
                self._refused(self.host.lists, "AuthorizationFailure")
                return
            begun = (each.removeprefix(f"blocks of {bucket}/") for each in self.host.uploads)
            sizes |= {key: 0 for key in begun if key.startswith(prefix) and key not in sizes}
        rows = "".join(
            f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>Thu, 01 Jan 2026 00:00:00 GMT</Last-Modified>"
            f"<Content-Length>{sizes[key]}</Content-Length>"
            f"<Content-Type>text/plain</Content-Type><Etag>{self.host.tag_of(f'{bucket}/{key}').strip(QUOTE)}</Etag>"
            "<BlobType>BlockBlob</BlobType><ResourceType>file</ResourceType></Properties></Blob>"
            for key in sorted(sizes)
        )
        body = f"<EnumerationResults><Blobs>{rows}</Blobs><NextMarker/></EnumerationResults>"
        self._answer(200, body.encode(), Content_Type="application/xml")

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        """As S3 and Google list."""
        folder, prefix = self.host.root / bucket, query.get("prefix", [""])[0]
        keys = self._keys(bucket, prefix)
        limit = int(query.get("max-keys", ["1000"])[0])
        start = int(query.get("continuation-token", ["0"])[0])
        shown = keys[start : start + limit]
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(self.host.tag_of(f'{bucket}/{key}'))}</ETag><Size>{(folder / key).stat().st_size}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for key in shown
        )
        more = start + limit < len(keys)
        token = f"<NextContinuationToken>{start + limit}</NextContinuationToken>" if more else ""
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>{bucket}</Name>'
            f"<Prefix>{escape(prefix)}</Prefix><KeyCount>{len(shown)}</KeyCount><MaxKeys>{limit}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>"
        )
        self._answer(200, body.encode(), Content_Type="application/xml")


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _sibling(folder: Path, path: Path) -> dict[str, Any]:
    name, size = path.relative_to(folder).as_posix(), path.stat().st_size
    if size > LARGE:  # sparse files may be too long to hash; only what is fetched whole is compared
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if size < 64 << 20 else "0" * 64
        return {"rfilename": name, "size": size, "blobId": "0" * 40, "lfs": {"sha256": digest, "size": size}}
    data = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return {"rfilename": name, "size": size, "blobId": blob}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client may go away."""


@contextmanager
def serving(host: Host) -> Iterator[Host]:
    """The host, as long as it serves."""
    handler = type("Handler", (_Handler,), {"host": host})
    server = _Server(("127.0.0.1", 0), handler)
    host.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment leads to the host."""
    monkeypatch.setenv("HF_ENDPOINT", host.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", host.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODYSKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nobodysSecretKey")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host.url)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", host.url)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "nobody")
    monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "true")
