"""Outputs that are commits on the Hub: all files in one, and nothing where that fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hosts import COMMIT, SIGNATURE, TOKEN, Host, serving

from converter import convert
from converter.cli.main import main
from converter.errors import Cancelled, CorruptFile, MissingPart, OutputError, OutputExists
from converter.request import Request

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    """A Hub with a model that has a card, for whoever has the token."""
    (tmp_path / "stored/org/model").mkdir(parents=True)
    (tmp_path / "stored/org/model/NOTES.md").write_text("notes")
    with serving(Host(tmp_path / "stored", token=TOKEN)) as host:
        monkeypatch.setenv("HF_ENDPOINT", host.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield host


def stored(host: Host) -> dict[str, bytes]:
    folder = host.root / "org/model"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


NOTES = {"NOTES.md": b"notes"}
MAIN = "import sys; from converter.cli.main import main; raise SystemExit(main(sys.argv[1:]))"


def test_a_folder_is_one_commit(host: Host, model: Path, tmp_path: Path) -> None:
    request = Request(split_max_size=4_000_000)
    convert(model, f"{tmp_path}/here/", request)
    convert(model, "hf://org/model", request)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert stored(host) == expected | NOTES
    assert len(host.commits) == 1
    assert host.taken["lfs"] == sum(len(data) for data in host.large.values()), "every byte once"


def test_a_file_of_a_folder(host: Host, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(model), "hf://org/model/quants/m-q8.gguf", "-q", "q8_0", "--verify", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["target"] == "hf://org/model/quants/m-q8.gguf"
    assert set(stored(host)) == {"NOTES.md", "quants/m-q8.gguf"}
    assert TOKEN not in out + err and SIGNATURE not in out + err
    assert all(TOKEN.encode() not in data for data in stored(host).values())


def test_what_is_there_stays_without_force(host: Host, model: Path) -> None:
    (host.root / "org/model/model.gguf").write_bytes(b"good")
    with pytest.raises(OutputExists, match=r"hf://org/model/model\.gguf: exists already"):
        convert(model, "hf://org/model/model.gguf")
    assert stored(host)["model.gguf"] == b"good"
    convert(model, "hf://org/model/model.gguf", force=True)
    assert stored(host)["model.gguf"][:4] == b"GGUF"


def test_what_fails_is_no_commit(host: Host, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Cancelled):
        convert(model, "hf://org/model/model.gguf", progress=lambda now: False)
    host.put_faults = lambda path, part, number: "403"
    assert main([str(model), "hf://org/model/model.gguf", "--debug"]) == OutputError.exit_code
    told = "".join(capfd.readouterr())
    assert "the Hub" in told and SIGNATURE not in told and TOKEN not in told
    assert not host.commits and stored(host) == NOTES


def test_somebody_else_commits_meanwhile(host: Host, model: Path) -> None:
    host.head = "f" * 40
    with pytest.raises(OutputError, match=r"somebody wrote there meanwhile \(412\)"):
        convert(model, "hf://org/model/model.gguf")
    assert not host.commits and stored(host) == NOTES


def test_another_file_than_was_written(host: Host, model: Path) -> None:
    host.put_faults = lambda path, part, number: "flip"
    with pytest.raises(CorruptFile, match="holds another file than was written"):
        convert(model, "hf://org/model/model.gguf")


def test_a_model_that_is_not_there(host: Host, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingPart, match="hf repo create"):
        convert(model, "hf://org/other/model.gguf")
    monkeypatch.setenv("HF_TOKEN", "hf_Other")
    with pytest.raises(OutputError, match="refuses") as error:
        convert(model, "hf://org/model/model.gguf")
    assert "hf_Other" not in str(error.value)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no such signal")
@pytest.mark.parametrize("by", ["clean", "run"])
def test_what_a_killed_run_leaves_is_found(
    by: str,
    host: Host,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its files lie in the folder for temporary ones until the next run, or `convert clean`."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.chdir(tmp_path)
    host.put_faults = lambda path, part, number: "stuck"
    process = subprocess.Popen([sys.executable, "-c", MAIN, str(model), "hf://org/model/model.gguf", "--quiet"])
    deadline = time.monotonic() + 60
    while not host.taken and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    (left,) = (path for path in (tmp_path / "tmp").iterdir() if path.is_dir())
    assert sum(path.stat().st_size for path in left.rglob("*") if path.is_file()) > 1_000_000
    argv = ["clean", "--json"] if by == "clean" else ["inspect", "hf://org/model/NOTES.md"]

    def run() -> str:
        return subprocess.run([sys.executable, "-c", MAIN, *argv], capture_output=True, text=True).stdout

    said = run()
    assert left.exists(), "it is at work"
    process.kill()
    process.wait()
    assert stored(host) == NOTES and not host.commits
    assert left.exists()
    if by == "clean":
        assert [each["running"] for each in json.loads(said)["left"]] == [True]
        assert [each["running"] for each in json.loads(run())["left"]] == [False]
    else:
        run()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no such signal")
def test_a_killed_upload_goes_on(host: Host, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a set of files, those that were there when the run was killed are not sent by the next one."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    host.put_faults = lambda path, part, number: "stuck" if number > 2 else None
    words = [str(model), "hf://org/model/model.gguf", "-q", "f16", "--split-max-size", "3M", "--quiet"]
    process = subprocess.Popen([sys.executable, "-c", MAIN, *words])
    deadline = time.monotonic() + 60
    while (len(host.large) < 2 or host.tried["lfs", 0] < 3) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert stored(host) == NOTES and not host.commits and len(host.large) == 2
    there, before = sum(map(len, host.large.values())), host.taken["lfs"]
    host.put_faults = lambda path, part, number: None
    assert main(words) == 0
    files = {name: data for name, data in stored(host).items() if name.endswith(".gguf")}
    whole = sum(map(len, files.values()))
    assert len(files) >= 3 and len(host.commits) == 1
    assert host.taken["lfs"] - before == whole - there > 0, "what was there is not sent again"


def test_a_large_file_that_is_there_is_not_sent_again(host: Host, model: Path) -> None:
    """So a run after one that was killed, or refused, makes its files anew, and sends what is missing."""
    host.head = "f" * 40
    with pytest.raises(OutputError, match="somebody wrote there meanwhile"):
        convert(model, "hf://org/model/model.gguf")
    sent = host.taken["lfs"]
    assert sent == sum(map(len, host.large.values())) > 1_000_000
    host.head = COMMIT
    convert(model, "hf://org/model/model.gguf")
    assert host.taken["lfs"] == sent and stored(host)["model.gguf"][:4] == b"GGUF"
