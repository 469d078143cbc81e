"""What a program around us gets: records of `logging`, spans of OpenTelemetry, its own signals and threads."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import models
from support.paths import ROOT

import converter
from converter import Cancelled, Progress, Request
from converter.housekeeping.shards import split
from converter.verify import verify

STORIES = models.FIXTURES / "stories260K"

# ------------------------------------------------------------------------------------------------------ logging


def test_what_users_are_told_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "converter"):
        plan = converter.convert(STORIES, tmp_path / "o.gguf", Request(quant="q8_0"))
    said = {str(event): event for event in plan.report.events}
    assert {record.message: record.__dict__["event"] for record in caplog.records} == said
    for record in caplog.records:
        assert record.levelno == (logging.WARNING if said[record.message].loss else logging.INFO)
        assert record.name == "converter"
    assert any(record.levelno == logging.WARNING for record in caplog.records), "a fallback is a loss"


def test_what_is_found_while_writing_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import numpy as np
    import safetensors.numpy

    safetensors.numpy.save_file({"w": np.full((4, 32), 1e30, np.float32)}, tmp_path / "in.safetensors")
    with caplog.at_level(logging.INFO, "converter"):
        converter.convert(tmp_path / "in.safetensors", tmp_path / "o.safetensors", Request(dtype="f16"))
    (record,) = caplog.records
    assert "w: 128 values" in record.message and record.levelno == logging.WARNING


def test_housekeeping_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    converter.convert(STORIES, tmp_path / "o.gguf")
    caplog.clear()
    with caplog.at_level(logging.INFO, "converter"):
        made = split(tmp_path / "o.gguf", tmp_path / "part", max_tensors=20)
    assert {record.message for record in caplog.records} == {str(event) for event in made.events}


QUIET = """
import sys, converter
converter.convert(sys.argv[1], sys.argv[2], converter.Request(quant="q8_0"))
assert not {name for name in sys.modules if name.startswith("opentelemetry")}
"""


def test_a_program_that_sets_up_nothing_hears_nothing(tmp_path: Path) -> None:
    """No record on stderr by Python's last resort, and nothing of OpenTelemetry is imported."""
    command = [sys.executable, "-c", QUIET, STORIES, tmp_path / "o.gguf"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# -------------------------------------------------------------------------------------------------------- spans


@pytest.fixture
def spans() -> Iterator[Any]:
    """Finished spans, as the SDK of OpenTelemetry exports them."""
    pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):  # a process can set it once
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield exporter
    exporter.shutdown()


def test_spans(tmp_path: Path, spans: Any) -> None:
    plan = converter.convert(STORIES, tmp_path / "o.gguf", Request(quant="q8_0"))
    found = {each.name.removeprefix("converter."): each for each in spans.get_finished_spans()}
    assert list(found) == ["open", "plan", "write", "convert"], "in the order of their ends"
    whole = found["convert"]
    assert all(each.parent == whole.context for name, each in found.items() if name != "convert")
    facts = {"converter.format": "gguf", "converter.quant": "q8_0", "converter.bytes": plan.total_bytes}
    assert [dict(found[name].attributes) == facts for name in ("plan", "write", "convert")] == [True] * 3
    assert dict(found["open"].attributes) == {"converter.format": "hf"}
    assert whole.instrumentation_scope.name == "converter"
    spans.clear()
    assert verify(STORIES, tmp_path / "o.gguf").passed
    (proof,) = [each for each in spans.get_finished_spans() if each.name == "converter.verify"]
    assert proof.attributes["converter.format"] == "gguf" and 0 < proof.attributes["converter.bytes"] < plan.total_bytes


def test_an_error_is_the_span_s_status(tmp_path: Path, spans: Any) -> None:
    with pytest.raises(converter.ConverterError):
        converter.convert(tmp_path / "absent", tmp_path / "o.gguf")
    *_, whole = spans.get_finished_spans()
    assert (whole.name, whole.status.is_ok) == ("converter.convert", False)
    assert whole.events[0].attributes["exception.type"].startswith("converter.errors.")


# ------------------------------------------------------------------------------------- cancelling, threads, signals


def test_a_token_cancels(tmp_path: Path) -> None:
    """From another thread; what was there stays, nothing else is left."""
    target, token, seen = tmp_path / "o.gguf", threading.Event(), list[Progress]()
    target.write_text("old")

    def progress(now: Progress) -> None:
        seen.append(now)
        thread = threading.Thread(target=token.set)
        thread.start()
        thread.join()

    with pytest.raises(Cancelled, match="cancelled; nothing was written") as caught:
        converter.convert(
            STORIES, target, Request(quant="q4_0"), force=True, threads=1, progress=progress, cancel=token
        )
    assert caught.value.exit_code == 130 and len(seen) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["o.gguf"] and target.read_text() == "old"


def test_a_token_that_is_set_before(tmp_path: Path) -> None:
    token = threading.Event()
    token.set()
    planned: list[converter.Plan] = []
    with pytest.raises(Cancelled):
        converter.convert(tmp_path / "absent", tmp_path / "o.gguf", cancel=token, on_plan=planned.append)
    assert not planned and not list(tmp_path.iterdir())
    plan = converter.plan(STORIES, tmp_path / "o.gguf")
    with plan.checkpoint, pytest.raises(Cancelled):
        converter.run(plan, cancel=token)
    assert not list(tmp_path.iterdir())


def test_until_cancels_whatever_takes_a_callback(tmp_path: Path) -> None:
    converter.convert(STORIES, tmp_path / "o.gguf")
    token, seen = threading.Event(), list[Progress]()
    assert converter.until(None) is None and converter.until(None, seen.append) == seen.append
    assert verify(STORIES, tmp_path / "o.gguf", progress=converter.until(token, seen.append)).passed and seen
    assert converter.until(token, lambda now: False)(seen[0]) is False
    token.set()
    with pytest.raises(Cancelled):
        verify(STORIES, tmp_path / "o.gguf", progress=converter.until(token))


def test_asyncio(tmp_path: Path) -> None:
    """The loop runs on meanwhile; a task that is cancelled ends the conversion by its token."""

    async def convert(target: Path, token: Any, patient: bool) -> str:
        ticks, begun = 0, threading.Event()

        def progress(now: Progress) -> None:
            begun.set()
            if not patient:
                time.sleep(0.01)

        work = asyncio.create_task(
            asyncio.to_thread(converter.convert, STORIES, target, threads=1, progress=progress, cancel=token)
        )
        while not work.done():
            ticks += 1
            await asyncio.sleep(0.002)
            if begun.is_set() and not patient:
                token.set()
        try:
            return f"{(await work).total_bytes} after {bool(ticks)}"
        except Cancelled:
            return "cancelled"

    async def both() -> list[str]:
        return await asyncio.gather(
            convert(tmp_path / "a.gguf", asyncio.Event(), True), convert(tmp_path / "b.gguf", threading.Event(), False)
        )

    found = asyncio.run(both())
    size = (tmp_path / "a.gguf").stat().st_size
    assert found == [f"{size} after True", "cancelled"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


HANDLERS = """
import signal, sys, threading
numbers = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
before = {number: signal.getsignal(number) for number in numbers}
set_signal, calls = signal.signal, []
signal.signal = lambda *given: calls.append(given)
import converter
from converter.verify import verify
def work(target):
    converter.convert(sys.argv[1], target, converter.Request(quant="q8_0", split_max_tensors=20), force=True)
work(sys.argv[2])
work(sys.argv[2])  # a set that takes the place of another
thread = threading.Thread(target=work, args=(sys.argv[2] + "t.gguf",))
thread.start()
thread.join()
assert {number: signal.getsignal(number) for number in numbers} == before and not calls
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_signals_are_the_program_s_own(tmp_path: Path) -> None:
    """Neither importing nor converting sets a handler, not even for a moment, in the main thread or another."""
    subprocess.run([sys.executable, "-c", HANDLERS, STORIES, tmp_path / "o.gguf"], check=True, timeout=60)
    assert len(list(tmp_path.glob("o.gguft-*.gguf"))) == len(list(tmp_path.glob("o-*.gguf"))) > 1


def test_the_documented_way_out_of_a_task(tmp_path: Path) -> None:
    """Of docs/api.md: a task that is cancelled ends the conversion, too."""
    text = (ROOT / "docs/api.md").read_text("utf-8")
    names: dict[str, Any] = {"asyncio": asyncio, "threading": threading}
    begun, left = threading.Event(), threading.Event()

    class Told:
        @staticmethod
        def convert(source: Path, target: Path, *, cancel: Any) -> None:
            def progress(now: Progress) -> None:
                begun.set()
                time.sleep(0.01)

            try:
                converter.convert(source, target, threads=1, progress=progress, cancel=cancel)
            except Cancelled:
                left.set()

    names["converter"] = Told
    exec("async def" + text.split("async def")[1].split("```")[0], names)

    async def main() -> None:
        task = asyncio.create_task(names["convert"](STORIES, tmp_path / "o.gguf"))
        while not begun.is_set():
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert left.is_set() and not list(tmp_path.iterdir())
