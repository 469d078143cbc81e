"""Who may ask the server of `convert ui`, and what it may read and write."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import models
from support.browser import ask

from converter.cli.main import main
from converter.ui.gate import HEADERS, Gate
from converter.ui.roots import Outside, Roots
from converter.ui.routes import FILES, ROUTES, State
from converter.ui.server import MAX_BODY, Server, serving

KJV = models.FIXTURES / "kjv-llama"


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A folder to look at, one for outputs, and one that is nobody's business."""
    shutil.copytree(KJV, tmp_path / "models/kjv")
    (tmp_path / "out").mkdir()
    shutil.copytree(KJV, tmp_path / "private/kjv")
    return tmp_path


@pytest.fixture
def server(places: Path) -> Iterator[Server]:
    with serving(State(Roots.of(places / "models", places / "out"))) as running:
        yield running


def convert(places: Path, target: str = "new.gguf") -> dict[str, str]:
    return {"source": str(places / "models/kjv"), "target": target, "quant": "q8_0"}


def test_the_page_and_its_files_have_a_policy(server: Server) -> None:
    for name in FILES:
        reply = ask(server.address, name)
        assert reply.status == 200 and reply.text
        assert {key: reply.headers[key] for key in HEADERS} == HEADERS
        assert not [key for key in reply.headers if key.startswith("Access-Control")]
    page = ask(server.address).text
    assert "http://" not in page and "https://" not in page and "<script>" not in page and "style=" not in page
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_it_listens_on_loopback_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with (
        pytest.raises(OSError),
        socket.create_connection((socket.gethostbyname(socket.gethostname()), server.server_port), 2),
    ):
        if socket.gethostbyname(socket.gethostname()).startswith("127."):
            raise OSError("the name of this machine is loopback, too")


@pytest.mark.parametrize("token", ["", "wrong", "x" * 32, "..", "%2e%2e", "\N{LATIN SMALL LETTER E WITH ACUTE}"])
@pytest.mark.parametrize("name", ["", "about", "ui.js", "events"])
def test_without_the_token_nothing_is_told(server: Server, token: str, name: str) -> None:
    elsewhere = f"http://127.0.0.1:{server.server_port}/{token.encode('ascii', 'ignore').decode()}/"
    reply = ask(elsewhere, name)
    assert reply.status == 403 and str(server.state.roots.read) not in reply.text
    assert ask(elsewhere, "convert", {}).status == 403


def test_a_token_cannot_be_guessed() -> None:
    tokens = {Gate().token for _ in range(100)}
    assert len(tokens) == 100 and min(map(len, tokens)) >= 32
    gate = Gate()
    assert gate.inside(f"/{gate.token}/about") == "about" and gate.inside(f"/{gate.token}") is None
    assert gate.inside(f"/{gate.token[:-1]}/about") is None and gate.inside(f"//{gate.token}/") is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "169.254.1.1", "", "[::1"]
)
def test_another_name_for_this_machine_is_refused(server: Server, host: str) -> None:
    """A page whose name was made to lead here sends its own name, whatever token it has found."""
    assert ask(server.address, "about", headers={"Host": host}).status == 403


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:9000", "[::1]:9000", "LOCALHOST"])
def test_a_tunnel_has_another_port(server: Server, host: str) -> None:
    assert ask(server.address, "about", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ],
    ids=str,
)
def test_another_page_starts_nothing(server: Server, places: Path, headers: dict[str, str]) -> None:
    assert ask(server.address, "convert", convert(places), headers).status == 403
    assert server.state.jobs.all() == [] and not list((places / "out").iterdir())


def test_reading_from_another_page_is_refused(server: Server) -> None:
    assert ask(server.address, "about", headers={"Sec-Fetch-Site": "cross-site"}).status == 403
    assert ask(server.address, "about", headers={"Sec-Fetch-Site": "none"}).status == 200, "an address that was typed"


def test_only_posts_change_anything(server: Server) -> None:
    for method, name in ROUTES:
        if method == "POST":
            assert ask(server.address, name).status == 404
        else:
            assert ask(server.address, name, {}).status == 404


OUT = [
    "/etc/passwd", "../private/kjv", "../../../../etc/passwd", "{root}/private/kjv", "{root}/models/../private/kjv",
    "link", "kjv/../../private/kjv", "\0", "",
]  # fmt: skip


@pytest.mark.parametrize("path", OUT)
def test_nothing_outside_is_read(server: Server, places: Path, path: str) -> None:
    if sys.platform != "win32":
        os.symlink(places / "private", places / "models/link")
    named = path.format(root=places)
    for name in ("model", "files"):
        reply = ask(server.address, name, path=named)
        if name == "files" and not named:
            continue  # the folder that it was started on
        assert reply.status == 422 and "config.rope_theta" not in reply.text, (name, reply)
    inside = str(places / "models/kjv")
    for name, body in (
        ("plan", {"source": named, "target": "x.gguf"}),
        ("convert", {"source": named, "target": "x.gguf"}),
        ("compare", {"source": named}),
        ("verify", {"source": inside, "target": named}),
        ("diff", {"before": inside, "after": named}),
        ("plan", {"source": inside, "target": "x.gguf", "quant": "q4_k_m", "imatrix": named or "/"}),
    ):
        assert ask(server.address, name, body).status == 422, name
    assert server.state.jobs.all() == []


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_that_lead_out_are_not_listed(server: Server, places: Path) -> None:
    os.symlink(places / "private", places / "models/link")
    os.symlink(places / "private/kjv/model.safetensors", places / "models/w.safetensors")
    os.symlink("circle", places / "models/circle")
    found = ask(server.address, "files").json
    assert [entry["name"] for entry in found["entries"]] == ["kjv"] and found["up"] is None


@pytest.mark.parametrize("target", ["../private/x.gguf", "/tmp/x.gguf", "{root}/models/x.gguf", "", ".", "link/x.gguf"])
def test_nothing_outside_is_written(server: Server, places: Path, target: str) -> None:
    if sys.platform != "win32":
        os.symlink(places / "private", places / "out/link")
    before = sorted(places.rglob("*"))
    for name in ("plan", "convert"):
        reply = ask(server.address, name, convert(places, target.format(root=places)))
        assert reply.status == 422 and reply.json["error"]["kind"] == "Outside"
    assert sorted(places.rglob("*")) == before


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"a": NaN}', b"\xff", b"{}" + b" " * MAX_BODY, b'{"a": 1, "a": 2}', b"[" * 100_000],
    ids=["empty", "list", "cut", "no number", "no text", "large", "twice", "deep"],
)  # fmt: skip
def test_a_body_that_is_none(server: Server, body: bytes) -> None:
    try:
        assert ask(server.address, "plan", body).status == 400
    except (ConnectionError, BrokenPipeError):
        assert len(body) > MAX_BODY, "what is too large is not read"


def test_no_length(server: Server) -> None:
    for length in ("-1", "1e3", "\u0661"):
        with socket.create_connection(("127.0.0.1", server.server_port), 10) as raw:
            head = f"POST /{server.gate.token}/plan HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
            raw.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode())
            assert b" 400 " in raw.recv(100)


@pytest.mark.parametrize(
    "more",
    [
        {"quant": 7}, {"pure": "yes"}, {"tensor_types": "a"}, {"tensor_types": [["a"]]}, {"tensor_types": [["a", 1]]},
        {"tensor_types": [["(", "Q6_K"]]}, {"quant": "nonsense"}, {"target": 3}, {"target": None}, {"source": []},
        {"output_type": {"a": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_values_of_the_wrong_kind_are_an_error(server: Server, places: Path, more: dict[str, object]) -> None:
    reply = ask(server.address, "plan", convert(places) | more)
    assert reply.status == 422 and reply.json["error"]["message"], reply


def test_roots(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.gguf").write_bytes(b"")
    roots = Roots.of(tmp_path / "a/x.gguf", tmp_path)
    assert (roots.read, roots.start) == ((tmp_path / "a").resolve(), (tmp_path / "a/x.gguf").resolve())
    assert roots.writable("new/") == str(tmp_path.resolve() / "new") + "/"
    for text in (None, 7, "\0", "../../x"):
        with pytest.raises(Outside):
            roots.readable(text)


def test_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", str(tmp_path / "absent")]) == 50
    assert main(["ui", str(tmp_path), "--out", str(tmp_path / "absent")]) == 50
    assert main(["ui", str(tmp_path), "--port", "70000"]) == 2
    assert main(["ui", "--idle", "soon"]) == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["ui", str(tmp_path), "--port", port]) == 50
    assert f"port {port}" in capsys.readouterr().err
