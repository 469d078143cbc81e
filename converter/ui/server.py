"""HTTP on loopback: a request goes through the gate to a row of the table, its answer is JSON."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from converter.errors import ConverterError, OutputError
from converter.reports.json import failure
from converter.storage.json import finite, parse
from converter.ui.gate import HEADERS, Gate
from converter.ui.routes import FILES, ROUTES, State

ADDRESS = "127.0.0.1"
MAX_BODY = 1 << 20
SILENCE = 10.0  # seconds between signs of life to a page that watches
EVENTS = "events"


class Server(ThreadingHTTPServer):
    """One server; `address` is what to open in a browser.

    Raises:
        OutputError: the port is taken, or there is none to be had.
    """

    daemon_threads = True
    block_on_close = False  # a page that watches would hold the end up

    def __init__(self, state: State, port: int = 0) -> None:
        self.state, self.gate = state, Gate()
        self.asked = time.monotonic()
        self.watching = 0
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            raise OutputError(
                f"port {port}: {getattr(error, 'strerror', None) or error}; --port chooses one"
            ) from error

    @property
    def address(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/{self.gate.token}/"

    @property
    def idle(self) -> float:
        """Seconds since somebody asked for something, or a job ended."""
        if self.watching or self.state.jobs.running is not None:
            self.asked = time.monotonic()
        return time.monotonic() - self.asked

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a page that went away is no fault."""


@contextmanager
def serving(state: State, port: int = 0) -> Iterator[Server]:
    """A server that answers, in threads of its own, until the end of the block; then jobs are cancelled."""
    with Server(state, port) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.1), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            state.jobs.close()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "converter", ""
    timeout = 60

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed; the token would be in it."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        self.server.asked = time.monotonic()
        address = urlsplit(self.path)
        name = self.server.gate.inside(address.path)
        if (refusal := self.server.gate.refusal(method, self.headers)) is not None or name is None:
            self.close_connection = True  # what else it sends is not read
            return self._say(403, {"error": {"message": refusal or "open the address that `convert ui` shows"}})
        asked = dict(parse_qsl(address.query))
        if method == "GET" and name in FILES:
            return self._file(name)
        if method == "GET" and name == EVENTS:
            return self._failing(partial(self._events, asked))
        if (method, name) not in ROUTES:
            self.close_connection = True
            return self._say(404, {"error": {"message": "nothing is here"}})
        self._failing(partial(self._route, method, name, asked))

    def _failing(self, work: Any) -> None:
        """Errors as answers."""
        try:
            work()
        except ConverterError as error:
            self._say(422, failure(type(error).__name__, error.exit_code, str(error)))
        except (BrokenPipeError, ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:  # a fault of ours ends an answer, not the server
            self._say(500, failure("InternalError", 70, f"internal error: {type(error).__name__}: {error}"))

    def _route(self, method: str, name: str, asked: dict[str, Any]) -> None:
        if method == "POST":
            body = self._body()
            if body is None:
                self.close_connection = True
                return self._say(400, {"error": {"message": "a request is a JSON object of less than a megabyte"}})
            asked = body
        self._say(200, ROUTES[method, name](self.server.state, asked))

    def _body(self) -> dict[str, Any] | None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or int(length) > MAX_BODY:
            return None
        try:
            found = parse(self.rfile.read(int(length)).decode("utf-8"))
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _file(self, name: str) -> None:
        package, file, kind = FILES[name]
        self._send(200, kind, resources.files(package).joinpath(file).read_bytes())

    def _say(self, status: int, answer: dict[str, Any]) -> None:
        text = json.dumps(finite(answer), allow_nan=False)
        self._send(status, "application/json", text.encode("utf-8", "backslashreplace"))

    def _send(self, status: int, kind: str, content: bytes) -> None:
        with suppress(ConnectionError, TimeoutError):
            self._head(status, kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def _head(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in HEADERS.items():
            self.send_header(name, value)

    def _events(self, asked: dict[str, Any]) -> None:
        """The objects of `--progress json` of a job, as server-sent events, and at last one called `end`."""
        job = self.server.state.jobs.get(asked.get("number"))
        self.close_connection = True
        self._head(200, "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.server.watching += 1
        try:
            for said in job.watch(SILENCE):
                self.wfile.write(f"data: {json.dumps(said)}\n\n".encode() if said else b": still there\n\n")
                self.wfile.flush()
            self.wfile.write(f"event: end\ndata: {json.dumps(job.state)}\n\n".encode())
        finally:
            self.server.watching -= 1
