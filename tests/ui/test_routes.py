"""What the page asks, over HTTP: every answer is that of the command line."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from support import models
from support.browser import ask, wait

import converter
from converter.cli import verbs
from converter.cli.main import main
from converter.storage import slabs
from converter.tensors import kernels
from converter.ui.command import OPTIONS
from converter.ui.jobs import Jobs
from converter.ui.roots import Roots
from converter.ui.routes import State
from converter.ui.server import Server, serving

KJV = models.FIXTURES / "kjv-llama"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(State(Roots.of(KJV, tmp_path))) as running:
        yield running


def got(server: Server, route: str, **values: str) -> Any:
    reply = ask(server.address, route, **values)
    assert reply.status == 200, reply.text
    return reply.json


def sent(server: Server, route: str, **body: Any) -> Any:
    reply = ask(server.address, route, body)
    assert reply.status == 200, reply.text
    return reply.json


def ended(server: Server, job: dict[str, Any]) -> Any:
    """A job when it has come to its end."""

    def look() -> Any:
        now = got(server, "job", number=str(job["number"]))
        return now if now["state"] != "running" else None

    return wait(look)


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    main([*argv, "--json"])
    return json.loads(capsys.readouterr().out)


# ------------------------------------------------------------------------------------------------ looking


def test_a_model_is_what_inspect_says(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    found, said = got(server, "model", path=str(KJV)), printed(capsys, "inspect", str(KJV), "--tree")
    assert [row[:4] for row in found["tensors"]] == [
        [each["name"], each["shape"], each["type"], each["bytes"]] for each in said["tensors"]
    ]
    assert (found["parameters"], found["bytes"]) == (said["parameters"], said["tensor_bytes"])
    leaves = json.dumps(found["tree"])
    assert json.dumps(said["tree"])[:200] in leaves or found["tree"]["bytes"] == said["tree"]["bytes"]
    assert "QLoRA, rank 16" in [row[0] for row in found["tuning"]["table"][1]]


@pytest.mark.parametrize("name", ["model.layers.3.mlp.up_proj.weight", "model.norm.weight"])
def test_a_tensor_looks_like_its_values(server: Server, name: str) -> None:
    found = got(server, "tensor", path=str(KJV), name=name)
    with converter.open_checkpoint(KJV) as model:
        values = model.tensors[name].array().astype(np.float32)
    sample = found["sample"]
    assert sample["first"] == [float(value) for value in values.reshape(-1)[:16]]
    start, stop = sample["rows"]
    seen = values.reshape(-1, values.shape[-1])[start:stop].astype(np.float64)
    assert sum(sample["counts"]) == sample["looked_at"] == seen.size
    assert sample["mean"] == pytest.approx(seen.mean()) and sample["max"] == seen.max()
    assert found["source"].startswith(str(KJV)) and found["share"] == pytest.approx(found["bytes"] / 11_540_992)


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "odd.npz", x=np.array([1, np.nan, np.inf, 0], np.float32), none=np.zeros((0, 4), np.float32),
        all=np.full(8, np.nan, np.float32), words=np.array([1 + 2j]),
    )  # fmt: skip
    with serving(State(Roots.of(tmp_path, tmp_path))) as server:
        path = str(tmp_path / "odd.npz")
        sample = got(server, "tensor", path=path, name="x")["sample"]
        assert (sample["nonfinite"], sample["zeros"], sample["max"], sample["first"]) == (2, 1, 1, [1, None, None, 0])
        assert got(server, "tensor", path=path, name="all")["sample"]["nonfinite"] == 8
        assert got(server, "tensor", path=path, name="none")["sample"]["reason"] == "no elements"
        assert "cannot become F32" in got(server, "tensor", path=path, name="words")["sample"]["reason"]
        assert ask(server.address, "tensor", path=path, name="absent").status == 422


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "models/inner").mkdir(parents=True)
    (tmp_path / "models/a.gguf").write_bytes(b"x")
    (tmp_path / "models/notes.md").write_text("x")
    (tmp_path / "models/.hidden.gguf").write_bytes(b"x")
    with serving(State(Roots.of(tmp_path / "models", tmp_path))) as server:
        found = got(server, "files")
        assert [(each["name"], each["folder"], each["model"]) for each in found["entries"]] == [
            ("a.gguf", False, True), ("inner", True, False)
        ]  # fmt: skip
        assert got(server, "files", path=str(tmp_path / "models/inner"))["up"] == str((tmp_path / "models").resolve())
        assert not got(server, "about")["model"]
        broken = ask(server.address, "model", path="a.gguf")
        assert broken.status == 422 and broken.json["error"]["kind"] == "UnknownFormat"


# ------------------------------------------------------------------------------------------------ planning


@pytest.mark.skipif(sys.platform == "win32", reason="lines are for another shell there")
def test_a_plan_is_that_of_the_command_that_is_told(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {
        "source": str(KJV), "target": "it's new.gguf", "quant": "q4_k_m", "tensor_types": [["ffn_down", "q6_k"]],
        "output_type": "q8_0", "embedding_type": "q5_k",
    }  # fmt: skip
    found = sent(server, "plan", **asked)
    said = printed(capsys, *shlex.split(found["plan_command"])[1:])
    assert [[row[0], row[3], row[4], row[5]] for row in found["steps"]] == [
        [each["name"], each["type"], each["bytes"], each["rule"]] for each in said["tensors"]
    ]
    assert (found["bytes"], round(found["bits_per_weight"], 4)) == (said["total_bytes"], said["bits_per_weight"])
    assert {row[3] for row in found["steps"] if "ffn_down" in row[0]} == {"Q6_K"}
    assert found["running"][0]["total"] > found["bytes"] and found["costs"]["fits"]
    assert {tuple(row[6:]) for row in found["steps"]} >= {
        (0, "attn_q.weight"),
        (5, "ffn_up.weight"),
        (None, "output.weight"),
    }
    assert not list(tmp_path.iterdir())


def test_every_option_that_the_page_sets_is_one() -> None:
    options = {action.dest: action.option_strings for action in verbs.parser("convert")._actions}
    assert all(option in options[name] for name, option in OPTIONS.items())
    assert set(OPTIONS) <= set(converter.Request().as_dict()["types"])


def test_an_importance_matrix_that_is_missing_is_foreseen(server: Server) -> None:
    found = sent(server, "plan", source=str(KJV), target="x.gguf", quant="iq2_xxs")
    assert "importance" in json.dumps(found["events"]) and {row[3] for row in found["steps"]} >= {"IQ2_XXS"}
    failed = ended(server, sent(server, "convert", source=str(KJV), target="x.gguf", quant="iq2_xxs"))
    assert failed["result"]["error"]["kind"] == "MissingImportance"


def test_what_cannot_be_planned_says_why(server: Server) -> None:
    reply = ask(
        server.address,
        "plan",
        {"source": str(KJV), "target": "x.gguf", "quant": "q4_k_m", "tensor_types": [["nothing", "q6_k"]]},
    )
    assert reply.status == 422 and "nothing" in reply.json["error"]["message"]


# ------------------------------------------------------------------------------------------------ jobs


def events(server: Server, number: int) -> list[tuple[str, Any]]:
    """All server-sent events of a job."""
    with urlopen(f"{server.address}events?number={number}", timeout=60) as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        text = stream.read().decode()
    found = []
    for block in filter(None, text.split("\n\n")):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields.get("event", "message"), json.loads(fields["data"])))
    return found


def test_a_conversion_writes_what_the_command_writes(server: Server, tmp_path: Path) -> None:
    job = sent(server, "convert", source=str(KJV), target="new.gguf", quant="q4_k_m")
    told = events(server, job["number"])
    *said, (last, state) = told
    assert (last, state) == ("end", "done") and {kind for kind, _ in said} == {"message"}
    assert said[-1][1]["event"] == "end" and said[-1][1]["done"] == said[-1][1]["total"] > 0
    fields = {
        "schema",
        "event",
        "verb",
        "stage",
        "done",
        "total",
        "resumed",
        "unit",
        "rate",
        "left",
        "elapsed",
        "tensor",
        "file",
        "job",
    }
    assert all(each.keys() - {"ok"} == fields for _, each in said), "those of --progress json"
    converter.convert(KJV, tmp_path / "other.gguf", converter.Request(quant="q4_k_m"))
    result = ended(server, job)["result"]
    assert Path(result["path"]) == tmp_path.resolve() / "new.gguf" and result["tensors"] == 57
    assert (tmp_path / "new.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()
    again = ended(server, sent(server, "convert", source=str(KJV), target="new.gguf", quant="q8_0"))
    assert again["state"] == "failed" and again["result"]["error"]["kind"] == "OutputExists"
    forced = sent(server, "convert", source=str(KJV), target="new.gguf", quant="q8_0", force=True)
    assert ended(server, forced)["state"] == "done"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Conversions wait in their first slab until the event is set, or a second at a time."""
    go, run = threading.Event(), slabs.run
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 4096)

    def waiting(jobs: Any, threads: Any = None, progress: Any = None, **more: Any) -> None:
        def told(now: slabs.Progress) -> Any:
            go.wait(0.05)
            return progress(now) if progress else None

        run(jobs, threads, told, **more)

    monkeypatch.setattr(slabs, "run", waiting)
    return go


def test_a_page_that_is_closed_stops_nothing_and_cancel_does(
    server: Server, tmp_path: Path, slow: threading.Event
) -> None:
    job = sent(server, "convert", source=str(KJV), target="new.gguf", quant="q8_0")
    stream = urlopen(f"{server.address}events?number={job['number']}", timeout=60)
    stream.readline()
    stream.close()
    assert server.state.jobs.running is not None
    other = ask(server.address, "compare", {"source": str(KJV)})
    assert other.status == 422 and "convert is at work" in other.json["error"]["message"]
    assert got(server, "about")["jobs"][0]["state"] == "running"
    sent(server, "cancel", number=job["number"])
    assert ended(server, job)["state"] == "cancelled" and not list(tmp_path.iterdir())
    slow.set()


def test_a_server_that_ends_leaves_nothing(tmp_path: Path, slow: threading.Event) -> None:
    with serving(State(Roots.of(KJV, tmp_path))) as server:
        sent(server, "convert", source=str(KJV), target="new.gguf", quant="q8_0")
    assert server.state.jobs.all()[0].state == "cancelled" and not list(tmp_path.iterdir())


def test_comparison_proof_and_difference(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new.gguf"
    converter.convert(KJV, target, converter.Request(quant="q4_k_m"))
    compared = ended(server, sent(server, "compare", source=str(KJV), quants=["q8_0", "q4_k_m"]))["result"]
    said = printed(capsys, "compare", str(KJV), "-q", "q8_0,q4_k_m")
    assert [each["nmse"] for each in compared["quants"]] == [each["nmse"] for each in said["quants"]]
    proof = ended(server, sent(server, "verify", source=str(KJV), target=str(target)))["result"]
    assert proof["passed"] and proof["summary"]["reproduced"] == 57 and len(proof["tensors"]) == 57
    errors = [each["nmse"] for each in proof["tensors"]]
    assert errors == sorted(errors, reverse=True)
    job = sent(server, "diff", before=str(KJV), after=str(target))
    found = ended(server, job)["result"]
    assert job["command"] == shlex.join(["convert", "diff", str(KJV), str(target)])
    gaps = {row[0]: row[6] for row in found["tensors"]}
    assert (
        len(gaps) == 57
        and gaps["blk.0.attn_norm.weight"] is None
        and 0.01 < gaps["blk.0.ffn_down.weight"]["relative"] < 0.2
    )
    assert found["tree"]["bytes"] > 0 and not found["equal"]


def test_a_fault_of_ours_ends_a_job_and_not_the_server(server: Server) -> None:
    def broken(progress: Any, stop: Any) -> dict[str, Any]:
        raise ZeroDivisionError("by zero")

    job = server.state.jobs.start("convert", {}, broken)
    assert ended(server, job.as_dict())["result"]["error"]["kind"] == "InternalError"
    assert got(server, "about")["jobs"][0]["state"] == "failed"


def test_old_jobs_are_forgotten() -> None:
    jobs = Jobs()
    for _ in range(30):
        jobs.start("x", {}, lambda progress, stop: {})
        wait(lambda: jobs.running is None)
    assert len(jobs.all()) == 20 and jobs.all()[-1].number == 30
    jobs.close()


# ------------------------------------------------------------------------------------------------ the command


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process there")
def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "converter", "ui", str(KJV), "--out", str(tmp_path), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr and running.stdout
        address = running.stderr.readline().split()[0]
        assert ask(address, "about").status == 200
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (0, "")
    found = json.loads(out)
    assert (found["verb"], found["read"], found["jobs"]) == ("ui", str(KJV.resolve()), [])


def test_nobody_asks_any_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert main(["ui", str(KJV), "--out", str(tmp_path), "--idle", "0.3", "--no-browser"]) == 0
    assert 0.3 <= time.monotonic() - started < 30
    assert capsys.readouterr().err.startswith("http://127.0.0.1:")
