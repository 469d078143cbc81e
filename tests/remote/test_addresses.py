"""Addresses: what they say, the paths that stand for them, and what is told of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.address import parse, place, shown, without_secrets
from converter.cli.main import main
from converter.errors import OutputError, UsageError
from converter.request import Request, Source

GOOD = {
    "hf://org/model": ("hf", "org/model", None, (), "hf://org/model"),
    "HF://org/model/": ("hf", "org/model", None, (), "hf://org/model"),
    "hf://org/model@v1.0/sub/x.gguf": ("hf", "org/model", "v1.0", ("sub", "x.gguf"), "hf://org/model@v1.0/sub/x.gguf"),
    "hf://org/model@refs/pr/7/x": ("hf", "org/model", "refs/pr/7", ("x",), "hf://org/model@refs/pr/7/x"),
    "hf://org/model@refs%2Fpr%2F7/x": ("hf", "org/model", "refs/pr/7", ("x",), "hf://org/model@refs/pr/7/x"),
    "https://huggingface.co/org/model": ("hf", "org/model", None, (), "hf://org/model"),
    "https://huggingface.co/org/model/tree/main": ("hf", "org/model", None, (), "hf://org/model"),
    "https://hf.co/org/m/resolve/v2/a%20b?download=true": ("hf", "org/m", "v2", ("a b",), "hf://org/m@v2/a b"),
    "https://host.test:843/a/b.c?sig=x": ("https", "host.test:843", None, ("a", "b.c"), "https://host.test:843/a/b.c"),
    "http://127.0.0.1:80/x": ("http", "127.0.0.1:80", None, ("x",), "http://127.0.0.1:80/x"),
    "http://[::1]:80/x": ("http", "[::1]:80", None, ("x",), "http://[::1]:80/x"),
    "s3://bucket/a/b%20c": ("s3", "bucket", None, ("a", "b%20c"), "s3://bucket/a/b%20c"),
    "gs://bucket": ("gs", "bucket", None, (), "gs://bucket"),
    "az://box/x/": ("az", "box", None, ("x",), "az://box/x"),
}  # fmt: skip
BAD = [
    "hf://model", "hf://org/model@", "hf://datasets/org/data", "hf://org/model/../x", "https://huggingface.co/docs/hub/x",
    "http://host.example/x", "http://10.0.0.1/x", "http://127.0.0.1.example/x", "https:///x", "https://host:port/x",
    "https://host.example/a/../../b", "https://host.example/a%2F..%2Fb", "https://host.example/%00", "s3://", "s3://b/a//c",
    "s3://b/a?versionId=1", "s3://b/a\\b", "https://ho st/x",
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_what_an_address_says(text: str) -> None:
    found = parse(text)
    assert (found.scheme, found.where, found.revision, found.parts, found.shown) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)
    with pytest.raises(UsageError):
        Source(text)


@pytest.mark.parametrize("text", ["https://me:secret@host.example/x", "s3://key:secret@bucket/x"])
def test_a_password_is_refused_and_not_repeated(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="password") as caught:
        parse(text)
    assert "secret" not in str(caught.value) and "me" not in str(caught.value).split(":")[1]
    assert main(["inspect", text]) == 2
    assert "secret" not in capsys.readouterr().err


def test_a_path_stands_for_an_address() -> None:
    text = "https://host.example/models/x.gguf?sig=nobodys"
    path = place(text)
    assert path == place(text) != place("https://host.example/models/x.gguf")
    assert (path.name, path.parent.name, path.parent.parent.name) == ("x.gguf", "models", "host.example")
    assert not path.parents[2].exists(), "nothing is made before something is fetched"
    assert shown(f"{path}: no") == "https://host.example/models/x.gguf: no"
    assert str(OutputError(f"{path}: no")) == "https://host.example/models/x.gguf: no"
    assert place("models/x.gguf") == Path("models/x.gguf") and place(path) == path


def test_sources_and_requests_have_them() -> None:
    source = Source("hf://org/model@v1", config="s3://b/c", adapters=[("hf://org/lora", 0.5)], base="hf://org/base")
    assert source == Source("hf://org/model@v1", None, "s3://b/c", None, [("hf://org/lora", 0.5)], "hf://org/base")
    said = source.as_dict()
    assert (said["path"], said["config"], said["base"]) == ("hf://org/model@v1", "s3://b/c", "hf://org/base")
    assert Source.from_dict(said).path == source.path
    assert Request(imatrix="hf://org/model/imatrix.gguf").as_dict()["types"]["imatrix"] == "hf://org/model/imatrix.gguf"
    assert Source("https://host.example/x?sig=nobodys").as_dict()["path"] == "https://host.example/x"
    assert "nobodys" not in repr(parse("https://host.example/x?sig=nobodys"))


def test_texts_lose_what_is_secret() -> None:
    text = "see https://me:word@host.example/x?sig=nobodys and hf://org/model"
    assert without_secrets(text) == "see https://host.example/x and hf://org/model"


@pytest.mark.parametrize(
    "argv",
    [
        ["inspect", "https://host.example/x?sig=nobodys", "--unknown"],
        ["inspect", "hf://org/model", "https://host.example/x?sig=nobodys"],
        ["model.gguf", "https://host.example/x?sig=nobodys"],
        ["inspect", "http://host.example/x?sig=nobodys"],
    ],
)
def test_the_command_line_does_not_repeat_them(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("convert: ") and "nobodys" not in said


def test_what_may_not_lie_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "x.gguf"), "--report", "s3://bucket/out.html"]) == 2
    assert "this must be a file or a folder of this machine" in capsys.readouterr().err
    for target in ("https://host.example/out.gguf", "http://127.0.0.1/out.gguf"):
        assert main([str(tmp_path / "x.gguf"), target]) == 2
        assert "https is only read" in capsys.readouterr().err
