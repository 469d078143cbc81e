"""Runs jobs: all are planned before anything is written; then each is done, skipped, or fails without ending others."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from converter import pipeline, workers
from converter.address import is_address, is_elsewhere, shown
from converter.batch.ledger import Ledger, write_sums
from converter.batch.manifest import Job
from converter.errors import ConverterError, FidelityError, Interrupted, OutputError, UsageError
from converter.planning.plan import BASE_MEMORY, Plan
from converter.remote.mirror import hold
from converter.remote.settings import settings, using
from converter.request import Source
from converter.storage.checksums import sha256
from converter.storage.json import finite
from converter.storage.slabs import Progress, ProgressCallback
from converter.verify.verifier import verify

Status = Literal["planned", "done", "skipped", "failed", "stopped"]
PAUSE = 1.0  # seconds before the second try, and twice as many before each further one


@dataclass(frozen=True)
class Made:
    """An output: its path and bytes, and where they were asked for its SHA-256 and its error against the source."""

    path: Path
    quant: str
    bytes: int
    bits_per_weight: float
    sha256: str = ""
    sqnr_db: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON; an infinite SQNR (an exact copy) is null."""
        sums = {"sha256": self.sha256 or None, "sqnr_db": finite(self.sqnr_db)}
        told = {"path": shown(str(self.path)), "quant": self.quant, "bytes": self.bytes}
        return {**told, "bits_per_weight": round(self.bits_per_weight, 4), **sums}


@dataclass(frozen=True)
class Result:
    """What became of a job; `events` are what its plans had to say."""

    job: Job
    status: Status
    seconds: float = 0.0
    made: tuple[Made, ...] = ()
    error: ConverterError | None = None
    events: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        error = self.error
        wrong = (
            None
            if error is None
            else {"kind": type(error).__name__, "exit_code": error.exit_code, "message": str(error)}
        )
        return {
            "name": self.job.name, "source": shown(str(self.job.source.path)), "place": self.job.place,
            "status": self.status, "seconds": round(self.seconds, 3),
            "outputs": [each.as_dict() for each in self.made], "error": wrong, "events": list(self.events),
        }  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """What became of all."""

    results: tuple[Result, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        return all(each.error is None and each.status != "stopped" for each in self.results)

    @property
    def exit_code(self) -> int:
        """That of the first error; of none 0."""
        errors = [each.error for each in self.results if each.error is not None]
        return errors[0].exit_code if errors else 0 if self.passed else Interrupted.exit_code

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        results = [each.as_dict() for each in self.results]
        return {"jobs": results, "passed": self.passed, "seconds": round(self.seconds, 3)}


@dataclass(frozen=True)
class Wishes:
    """How jobs are run.

    Attributes:
        parallel: how many at a time, which share `threads`.
        memory: bytes that they may take together; one that needs more runs alone.
        retries: how often one is tried again where reading or writing failed.
        force: outputs are made anew, and replace what is there.
        fail_fast: the first error ends all.
        sums: SHA256SUMS in every folder of outputs.
        resume, engine: as for `convert`.
    """

    parallel: int = 1
    threads: int | None = None
    memory: int | None = None
    retries: int = 0
    force: bool = False
    fail_fast: bool = False
    sums: bool = False
    resume: bool = False
    engine: pipeline.Engine | None = None


@dataclass
class _Task:
    """A job that was planned; `size` is bytes of its outputs' tensors."""

    job: Job
    key: str
    memory: int
    size: int
    made: tuple[Made, ...]
    now: Progress = field(default=Progress(0, 0, ""))

    @property
    def folder(self) -> Path:
        """Where is remembered what was done."""
        return self.job.folder if is_elsewhere(self.made[0].path) else self.made[0].path.parent

    def name(self, path: Path) -> str:
        """What the ledger there calls a file."""
        return shown(str(path)) if is_elsewhere(path) else path.relative_to(self.folder).as_posix()


def plan(jobs: Sequence[Job], wishes: Wishes | None = None) -> Batch:
    """What would be done: every job planned, nothing written.

    Raises:
        UsageError: what cannot be meant, all of it.
    """
    started = time.monotonic()
    run = _Run(wishes or Wishes(), None, lambda _: None)
    with run:
        found = run.planned(jobs)
    results = [each if isinstance(each, Result) else Result(each.job, "planned", 0.0, each.made) for each in found]
    return Batch(tuple(results), time.monotonic() - started)


def run(
    jobs: Sequence[Job],
    wishes: Wishes | None = None,
    *,
    progress: ProgressCallback | None = None,
    told: Callable[[Result], None] = lambda _: None,
) -> Batch:
    """Do all jobs; `told` is called as each comes to its end, from any thread, `progress` with all bytes of all.

    Raises:
        UsageError: what cannot be meant; nothing was done.
    """
    started = time.monotonic()
    with _Run(wishes or Wishes(), progress, told) as run:
        results = run.all(jobs)
    return Batch(tuple(results), time.monotonic() - started)


class _Run:
    def __init__(self, wishes: Wishes, progress: ProgressCallback | None, told: Callable[[Result], None]) -> None:
        self.wishes, self.progress, self.told = wishes, progress, told
        self.threads = max(1, (wishes.threads or workers.default_threads()) // max(1, wishes.parallel))
        self.stopped = threading.Event()
        self.ledgers: dict[Path, Ledger] = {}
        self._lock, self._room = threading.Lock(), threading.Condition()
        self._taken, self._running, self._total = 0, 0, 0
        self._tasks: list[_Task] = []
        self._settings = settings()  # threads have none of their own
        self._held = ExitStack()  # sources that lie elsewhere, so that each is looked for once

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    # ------------------------------------------------------------------------------------------- planning

    def planned(self, jobs: Sequence[Job]) -> list[_Task | Result]:
        """Each job's task, or its error where its model is to blame.

        Raises:
            UsageError: what cannot be meant, all of it; nothing is left of it.
        """
        found: list[_Task | Result] = []
        wrong: list[str] = []
        for job in jobs:
            try:
                found.append(self._planned(job))
            except UsageError as error:
                wrong.append(f"{job.place or job.source.path}: {error}")
            except ConverterError as error:
                found.append(Result(job, "failed", error=error))
        owners: dict[Path, Job] = {}
        for task in found:
            for each in task.made:
                other = owners.setdefault(each.path, task.job)
                if other is not task.job:
                    wrong.append(f"{task.job.place or task.job.name}: {each.path} is an output of {other.name}, too")
        if wrong:
            raise UsageError("\n".join(wrong))
        return found

    def _planned(self, job: Job) -> _Task:
        self._refuse_sums(job)
        for path in job.source.paths:
            self._held.callback(hold(path))
        plans = pipeline.plan_several(job.source, job.target, job.requests)
        with plans[0].checkpoint:
            key = hashlib.sha256(" ".join(plan.key() for plan in plans).encode()).hexdigest()
            memory = max(plan.memory(self.threads) for plan in plans) - BASE_MEMORY
            made = tuple(_made(plan) for plan in plans)
            slots = (slot for plan in plans for file in plan.layout.files for slot in file.slots)
            return _Task(job, key, memory, sum(slot.tensor.info.nbytes for slot in slots), made)

    def _refuse_sums(self, job: Job) -> None:
        if self.wishes.sums and is_address(job.target):
            raise UsageError(f"{job.target}: SHA256SUMS are written beside files of this machine; leave --sums out")

    # ------------------------------------------------------------------------------------------- running

    def all(self, jobs: Sequence[Job]) -> list[Result]:
        found = self.planned(jobs)
        self._tasks = [each for each in found if isinstance(each, _Task)]
        self._total = sum(task.size for task in self._tasks)
        for each in found:
            if isinstance(each, Result):
                self.told(each)
        results = {id(each): each for each in found if isinstance(each, Result)}
        if results and self.wishes.fail_fast:
            self.stopped.set()
        for task, result in zip(self._tasks, self._each(self._tasks), strict=True):
            results[id(task)] = result
        return [results[id(each)] for each in found]

    def _each(self, tasks: Sequence[_Task]) -> list[Result]:
        if self.wishes.parallel <= 1:
            return [self._one(task) for task in tasks]
        with ThreadPoolExecutor(self.wishes.parallel) as pool:
            futures = [pool.submit(self._one, task) for task in tasks]
            left = set(futures)
            while left:
                try:
                    _, left = wait(left, timeout=0.2, return_when=FIRST_COMPLETED)
                except KeyboardInterrupt:
                    self.stopped.set()
            return [future.result() for future in futures]

    def _one(self, task: _Task) -> Result:
        started = time.monotonic()
        result = Result(task.job, "stopped")
        if not self.stopped.is_set():
            with self._room:
                self._room.wait_for(lambda: self._fits(task))
                self._taken, self._running = self._taken + task.memory, self._running + 1
            try:
                with using(self._settings):
                    result = self._tried(task)
            finally:
                with self._room:
                    self._taken, self._running = self._taken - task.memory, self._running - 1
                    self._room.notify_all()
        if result.error is not None and (self.wishes.fail_fast or isinstance(result.error, Interrupted)):
            self.stopped.set()
        result = replace(result, seconds=time.monotonic() - started)
        self.told(result)
        return result

    def _fits(self, task: _Task) -> bool:
        return not self._running or self.wishes.memory is None or self._taken + task.memory <= self.wishes.memory

    def _tried(self, task: _Task) -> Result:
        for attempt in range(self.wishes.retries + 1):
            try:
                return self._done(task)
            except Interrupted as error:
                self.stopped.set()
                return Result(task.job, "stopped", error=error)
            except ConverterError as error:
                # Reading or writing failed; what is full, or there already, is so the next time.
                if type(error) is not OutputError or attempt == self.wishes.retries or self.stopped.is_set():
                    return Result(task.job, "failed", error=error)
            self.stopped.wait(PAUSE * (1 << attempt))
        raise AssertionError

    def _done(self, task: _Task) -> Result:
        job, wishes, ledger = task.job, self.wishes, self._ledger(task.folder)
        known = None if wishes.force else ledger.has(task.key)
        if known is not None:
            self._progress(task, Progress(task.size, task.size, "", resumed=task.size))
            made = tuple(replace(each, sha256=known.get(task.name(each.path), "")) for each in task.made)
            return Result(job, "skipped", made=self._summed(task.folder, made))
        plans = pipeline.convert_several(
            job.source,
            job.target,
            job.requests,
            force=wishes.force or ledger.owns(task.name(each.path) for each in task.made),
            threads=self.threads,
            progress=lambda now: self._progress(task, now),
            resume=wishes.resume,
            engine=wishes.engine,
        )
        events = tuple(dict.fromkeys(str(event) for plan in plans for event in plan.report.events))
        made = tuple(_made(plan) for plan in plans)
        if job.verify:
            made, error = self._verified(job, plans, made)
            if error is not None:
                return Result(job, "failed", made=made, error=error, events=events)
        made = self._summed(task.folder, made)
        self._remember(task, plans, made)
        return Result(job, "done", made=made, events=events)

    def _verified(
        self, job: Job, plans: Sequence[Plan], made: Sequence[Made]
    ) -> tuple[tuple[Made, ...], FidelityError | None]:
        """Outputs with their errors, and what is wrong with one."""
        proofs = [verify(job.source, Source(plan.written), plan.request, threads=self.threads) for plan in plans]
        measured = [replace(each, sqnr_db=proof.summary()["sqnr_db"]) for each, proof in zip(made, proofs, strict=True)]
        bad = next((each.path for each, proof in zip(made, proofs, strict=True) if not proof.passed), None)
        if bad is None:
            return tuple(measured), None
        words = f"{bad}: is not what a correct conversion makes; `convert verify` says where"
        return tuple(measured), FidelityError(words)

    def _remember(self, task: _Task, plans: Sequence[Plan], made: Sequence[Made]) -> None:
        """What need not be done again; files that lie below the folder of the outputs go with theirs."""
        sums = {each.path: each.sha256 for each in made}
        files = [file.path for plan in plans for file in plan.layout.files]
        silent = (OSError, ConverterError) if is_address(task.job.target) else ()
        with suppress(*silent):  # it is done, also where its host does not say what it has
            self._ledger(task.folder).add(task.key, {task.name(path): sums.get(path, "") for path in files})

    def _ledger(self, folder: Path) -> Ledger:
        with self._lock:
            return self.ledgers.setdefault(folder, Ledger(folder))

    def _summed(self, folder: Path, made: Sequence[Made]) -> tuple[Made, ...]:
        """With SHA-256 where it is asked for, and in the folder's list of them."""
        if not self.wishes.sums:
            return tuple(made)
        found = tuple(
            each if each.sha256 or not each.path.is_file() else replace(each, sha256=sha256(each.path)) for each in made
        )
        with self._lock:
            write_sums(folder, {each.path.name: each.sha256 for each in found if each.sha256})
        return found

    def _progress(self, task: _Task, now: Progress) -> bool:
        with self._lock:
            task.now = now
            done, resumed = (sum(getattr(each.now, name) for each in self._tasks) for name in ("done", "resumed"))
            now = replace(now, done=done, total=self._total, resumed=resumed, job=task.job.name)
            if self.progress is not None and self.progress(now) is False:
                self.stopped.set()
        return not self.stopped.is_set()


def _made(plan: Plan) -> Made:
    return Made(plan.written, plan.request.types.quant or "", plan.total_bytes, plan.bits_per_weight)
