"""The cache by choice: what was fetched once is not fetched again, and is never another file's or a damaged one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.hosts import SIGNATURE, TOKEN, Host, named, serving
from support.paths import FIXTURES

from converter import Source, convert, open_checkpoint
from converter.cli.main import main
from converter.errors import OutputError
from converter.remote import blocks, kept
from converter.remote.kept import BLOCK, Kept
from converter.remote.settings import Settings, using
from converter.request import Request

pytest.importorskip("obstore")
MODEL = FIXTURES / "stories260K"
EVERYWHERE = [
    "hf://org/stories",
    *(f"{each}://bucket/stories/model.safetensors" for each in ("s3", "gs", "az")),
    "{host}/files/org/stories/model.safetensors",
]
SECRETS = (TOKEN, SIGNATURE, "AKIANOBODYSKEY", "nobodysSecretKey", "nobodysQuery")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    """A model on the Hub, in a bucket and behind https; what is behind its token."""
    for name in ("org/stories", "bucket/stories"):
        shutil.copytree(MODEL, tmp_path / "hosted" / name)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(Host(tmp_path / "hosted", token=TOKEN)) as served:
        named(served, monkeypatch)
        yield served


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """An empty one, that is in use."""
    with using(Settings(cache=tmp_path / "cache")):
        yield tmp_path / "cache"


def made(host: Host, given: str, tmp_path: Path) -> bytes:
    """What a conversion writes."""
    source = Source(given.format(host=host.url), config=MODEL)
    convert(source, tmp_path / "x.gguf", Request(quant="q8_0", name="s"), force=True)
    return (tmp_path / "x.gguf").read_bytes()


def fetched(host: Host) -> int:
    """Bytes of weights that were fetched since this was last asked."""
    total = sum(size for path, size in host.sent.items() if path.endswith(".safetensors"))
    host.sent.clear()
    return total


@pytest.mark.parametrize("given", EVERYWHERE)
def test_what_was_fetched_is_not_fetched_again(host: Host, cache: Path, tmp_path: Path, given: str) -> None:
    first = made(host, given, tmp_path)
    assert fetched(host) > 1_000_000
    assert made(host, given, tmp_path) == first
    assert host.total <= 1, "but for a byte that says how large a file behind https is"
    asked = len(host.requests)
    with using(Settings(offline=True, cache=cache)):
        assert made(host, given, tmp_path) == first
    assert len(host.requests) == asked


def test_what_is_there_in_part_is_used_as_far_as_it_goes(
    host: Host, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SMALL", "AHEAD"):  # nothing is still on its way when it is counted
        monkeypatch.setattr(blocks, name, 0)
    with open_checkpoint(Source("s3://bucket/stories/model.safetensors", config=MODEL)) as checkpoint:
        tensor = checkpoint.tensors["model.layers.0.mlp.up_proj.weight"]
        tensor.rows(0, tensor.info.n_rows)
    some, whole = fetched(host), (MODEL / "model.safetensors").stat().st_size
    assert 0 < some < whole
    made(host, EVERYWHERE[1], tmp_path)
    assert fetched(host) == whole - some


def test_a_damaged_block_is_fetched_again(host: Host, cache: Path, tmp_path: Path) -> None:
    first = made(host, EVERYWHERE[1], tmp_path)
    fetched(host)
    (data,) = [path for path in cache.glob("*.data") if path.stat().st_size > 1_000_000]
    content = bytearray(data.read_bytes())
    content[5 * BLOCK + 7] ^= 1
    data.write_bytes(content)
    assert made(host, EVERYWHERE[1], tmp_path) == first
    assert fetched(host) == BLOCK
    with data.open("r+b") as file:  # what a power cut may leave: sums without their bytes
        file.truncate(100)
    assert made(host, EVERYWHERE[1], tmp_path) == first and fetched(host) > 1_000_000
    data.with_suffix(".sums").unlink()
    assert made(host, EVERYWHERE[1], tmp_path) == first and fetched(host) > 1_000_000


def test_a_file_that_was_changed_is_another(host: Host, cache: Path, tmp_path: Path) -> None:
    first = made(host, EVERYWHERE[1], tmp_path)
    path = host.root / "bucket/stories/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-400:] = bytes(each ^ 0x3F for each in content[-400:])
    path.write_bytes(content)
    host.tag = lambda path: "new"
    fetched(host)
    second = made(host, EVERYWHERE[1], tmp_path)
    assert second != first and fetched(host) == len(content)
    host.tag = lambda path: ""
    assert made(host, EVERYWHERE[1], tmp_path) == first and fetched(host) == 0


def test_what_nothing_tells_from_another_is_not_kept(host: Host, cache: Path, tmp_path: Path) -> None:
    """A weak ETag may be that of other bytes."""
    host.tags["org/stories/model.safetensors"] = 'W/"weak"'
    made(host, EVERYWHERE[-1], tmp_path)
    fetched(host)
    made(host, EVERYWHERE[-1], tmp_path)
    assert fetched(host) > 1_000_000 and not list(cache.glob("*.data"))


def test_without_the_cache_nothing_is_kept(host: Host, tmp_path: Path) -> None:
    made(host, EVERYWHERE[1], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"hosted", "x.gguf"}


def test_of_the_command_line_and_the_environment(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["inspect", "hf://org/stories"]
    assert main([*asked, "--cache", str(tmp_path / "new/cache")]) == 0
    assert main([*asked, "--cache", str(tmp_path / "new/cache"), "--offline"]) == 0
    assert main([*asked, "--offline"]) == OutputError.exit_code
    monkeypatch.setenv("CONVERTER_CACHE", str(tmp_path / "new/cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(asked) == 0
    assert main(["hf://org/stories", str(tmp_path / "x.gguf")]) == OutputError.exit_code
    said = capsys.readouterr().err
    assert "hf://org/stories/model.safetensors: bytes" in said and "not in the cache" in said
    assert main(["inspect", "s3://bucket/stories"]) == OutputError.exit_code
    assert "no host is asked" in capsys.readouterr().err
    monkeypatch.setenv("CONVERTER_CACHE", str(FIXTURES / "README.md/x"))
    assert main(asked) == OutputError.exit_code
    assert "the cache cannot be made" in capsys.readouterr().err


def test_no_secret_is_in_it(host: Host, cache: Path, tmp_path: Path) -> None:
    url = f"{host.url}/files/org/stories/model.safetensors?X-Signature=nobodysQuery"
    for given in (*EVERYWHERE, url):
        made(host, given, tmp_path)
    told = [path.name + path.read_bytes().decode("latin-1") for path in cache.iterdir()]
    assert not [secret for secret in SECRETS for text in told if secret in text]
    fetched(host)
    made(host, url.replace("nobodysQuery", "another"), tmp_path)
    assert fetched(host) <= 1, "another signature of the same file"
    with using(Settings(offline=True, cache=cache)), pytest.raises(OutputError, match="no host is asked"):
        made(host, url, tmp_path)


def test_a_listing_that_is_damaged_counts_as_none(host: Host, cache: Path, tmp_path: Path) -> None:
    made(host, EVERYWHERE[0], tmp_path)
    for path in cache.glob("*.json"):
        text = path.read_text("utf-8")
        for damaged in (
            text[:50],
            text.replace('"size": ', '"size": -'),
            "[]",
            text.replace('"name": "', '"name": 7, "'),
        ):
            path.write_text(damaged)
            with using(Settings(offline=True, cache=cache)), pytest.raises(OutputError, match="no host is asked"):
                made(host, EVERYWHERE[0], tmp_path)


def test_a_disk_that_is_full(
    host: Host, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    expected = made(host, EVERYWHERE[2], tmp_path)

    def full(path: Path, offset: int, data: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(kept, "write", full)
    assert made(host, EVERYWHERE[1], tmp_path) == expected
    assert [str(each.message) for each in recwarn] == [f"{cache}: the cache takes no more (No space left on device)"]


def test_two_processes_at_once(host: Host, tmp_path: Path) -> None:
    code = "from converter.cli.main import main; import sys; raise SystemExit(main(sys.argv[1:]))"
    common = ["--cache", str(tmp_path / "cache"), "--quiet", "--name", "s", "-q", "q8_0"]
    runs = [
        subprocess.Popen([sys.executable, "-c", code, "hf://org/stories", str(tmp_path / f"{number}.gguf"), *common])
        for number in range(3)
    ]
    assert [run.wait(120) for run in runs] == [0, 0, 0]
    made_of = {(tmp_path / f"{number}.gguf").read_bytes() for number in range(3)}
    fetched(host)
    assert main(["hf://org/stories", str(tmp_path / "x.gguf"), *common]) == 0
    assert made_of == {(tmp_path / "x.gguf").read_bytes()} and fetched(host) == 0


def test_blocks_in_any_order_by_many_threads(tmp_path: Path) -> None:
    """Every answer is that of the host, whoever wrote what meanwhile; in the end it is asked for nothing."""
    size = 40 * BLOCK + 123
    content = np.random.default_rng(3).integers(0, 256, size, np.uint8)
    asked: list[tuple[int, int]] = []

    def fetch(start: int, stop: int) -> NDArray[np.uint8]:
        asked.append((start, stop))
        return content[start:stop]

    def read(seed: int) -> None:
        chosen, file = np.random.default_rng(seed), Kept(tmp_path / "file", size)
        for _ in range(60):
            first, last = sorted(chosen.integers(0, 42, 2).tolist())
            start, stop = min(first, 40) * BLOCK, min(size, (last + 1) * BLOCK)
            if not np.array_equal(file.filled(start, stop, fetch), content[start:stop]):
                wrong.append((start, stop))

    wrong: list[tuple[int, int]] = []
    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and asked
    Kept(tmp_path / "file", size).filled(0, size, fetch)
    asked.clear()
    Kept(tmp_path / "file", size).filled(0, size, fetch)
    assert asked == []
    cut = Kept(tmp_path / "cut", size)
    assert np.array_equal(cut.filled(0, BLOCK + 5, fetch), content[: BLOCK + 5])
    asked.clear()
    cut.filled(0, 3 * BLOCK, fetch)
    assert asked == [(BLOCK, 3 * BLOCK)], "a block that was cut off is not there"
