"""Runs spread over worker processes: progress, failures kept apart, clean interruption."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import multiprocessing
from tqdm import tqdm


class Job(NamedTuple):
    """One run: a norm and a seed.

    Example:
        >>> str(Job("SelfNorm", 1))
        'SelfNorm, seed 1'
    """

    norm: str
    seed: int

    def __str__(self) -> str:
        """Readable form."""
        return f"{self.norm}, seed {self.seed}"


class Outcome(NamedTuple):
    """What became of a job: its results, or a message and a traceback.

    Example:
        >>> Outcome({}, "ArithmeticError: the training loss is nan", None).message
        'ArithmeticError: the training loss is nan'
    """

    results: dict[str, Any]
    message: str | None
    trace: str | None


Execute = Callable[[Any, str, int, Any, "Callable[[float, str], object] | None"], dict[str, Any]]
Finish = Callable[[Job, Outcome], object]


def run_jobs(
    execute: Execute,
    recipe: Any,
    data: Any,
    jobs: Sequence[Job],
    finish: Finish,
    *,
    workers: int,
    say: Callable[[str], object] = print,
) -> None:
    """Run jobs, in this process or in worker processes, and report each as it ends.

    An exception in a job, or the death of its process, fails that job only. Any other way out, such as Ctrl-C, kills
    the workers; what they were doing is lost, what was passed to `finish` is not.

    Example:
        >>> def execute(recipe, norm, seed, data, on_progress):
        ...     return {"value": recipe + seed}
        >>> outcomes = []
        >>> jobs = [Job("BatchNorm", 1), Job("BatchNorm", 2)]
        >>> run_jobs(execute, 10, None, jobs, lambda job, o: outcomes.append(o), workers=0, say=lambda line: None)
        >>> [outcome.results["value"] for outcome in outcomes]
        [11, 12]

    Args:
        execute: called as ``execute(recipe, norm, seed, data, on_progress)``; importable by name where workers > 0.
        recipe: passed on; has a field ``threads`` where workers > 0.
        data: passed on; written once to a temporary file that the workers map into memory.
        jobs: what to run.
        finish: gets every job with its outcome, in the order of ending, in this process.
        workers: number of processes; 0 runs the jobs here, one after the other, with ``on_progress`` None.
        say: gets a line per finished job.
    """
    if not jobs:
        return
    if workers == 0:
        for number, job in enumerate(jobs, 1):
            say(f"[{number}/{len(jobs)}] {job}")
            outcome = _attempt(execute, recipe, job, data, None)
            finish(job, outcome)
            if outcome.message:
                say(f"{job} failed: {outcome.message}")
        return
    with tempfile.TemporaryDirectory(prefix="shiftnorm-") as folder:
        # A mapped file, as shared memory is small (64 MB) in many containers.
        path = Path(folder) / "data.pt"
        torch.save(data, path)
        _run_in_processes(execute, recipe, path, jobs, finish, min(workers, len(jobs)), say)


def _attempt(execute: Execute, recipe: Any, job: Job, data: Any, on_progress: Any) -> Outcome:
    try:
        return Outcome(execute(recipe, job.norm, job.seed, data, on_progress), None, None)
    except Exception as fault:  # any: it is recorded, and the other runs go on
        message = " ".join(f"{type(fault).__name__}: {fault}".split())
        return Outcome({}, message[:500], traceback.format_exc())


def _serve(connection: Connection, execute: Execute, recipe: Any, path: Path) -> None:
    """Main function of a worker: take jobs until the other end closes."""
    torch.set_num_threads(recipe.threads)
    data = torch.load(path, mmap=True, weights_only=False)
    try:
        while True:
            job = connection.recv()
            outcome = _attempt(execute, recipe, job, data, lambda part, text: connection.send((part, text)))
            connection.send(outcome)
    except (EOFError, BrokenPipeError):
        return


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    # Ctrl-C reaches every process of a terminal; only the parent acts on it, and kills the workers. They inherit this
    # from their first moment on, so that an early Ctrl-C does not end in their tracebacks.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Worker:
    def __init__(self, execute: Execute, recipe: Any, path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, execute, recipe, path), daemon=True)
        with _deaf_to_interrupts():
            self.process.start()
        # Closed here, so that the death of the worker ends the stream.
        theirs.close()
        self.job: Job | None = None

    def start(self, job: Job) -> None:
        self.job = job
        self.connection.send(job)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _run_in_processes(
    execute: Execute,
    recipe: Any,
    path: Path,
    jobs: Sequence[Job],
    finish: Finish,
    workers: int,
    say: Callable[[str], object],
) -> None:
    waiting = list(jobs)
    pool: list[_Worker] = []
    display = _Display(len(jobs), workers, say)
    try:
        for _ in range(workers):
            pool.append(_Worker(execute, recipe, path))
            pool[-1].start(waiting.pop(0))
        while busy := {worker.connection for worker in pool if worker.job is not None}:
            ready = wait(busy)
            for slot, worker in enumerate(pool):
                job = worker.job
                if job is None or worker.connection not in ready:
                    continue
                try:
                    message = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    message = Outcome({}, _describe_death(worker.process.exitcode), None)
                    if waiting:
                        worker.stop()
                        worker = pool[slot] = _Worker(execute, recipe, path)
                if not isinstance(message, Outcome):
                    display.progress(slot, job, *message)
                    continue
                worker.job = None
                finish(job, message)
                display.finished(slot, job, message)
                if waiting:
                    worker.start(waiting.pop(0))
    finally:
        display.close()
        for worker in pool:
            worker.stop()


def _describe_death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        advice = "; was the memory full? Try fewer workers" if name == "SIGKILL" else ""
        return f"the worker process was ended by {name}{advice}."
    return f"the worker process ended with exit code {code}."


class _Display:
    """One bar for all runs and one per worker on a terminal; a line per finished run elsewhere."""

    def __init__(self, jobs: int, workers: int, say: Callable[[str], object]) -> None:
        self.jobs, self.done, self.say = jobs, 0, say
        self.began = time.monotonic()
        self.parts = [0.0] * workers
        plain = not sys.stderr.isatty()
        self.bars = [
            tqdm(
                total=100,
                position=slot + 1,
                leave=False,
                disable=plain,
                bar_format="{desc:<44} {percentage:3.0f}%|{bar:24}|",
            )
            for slot in range(workers)
        ]
        self.overall = tqdm(
            total=jobs,
            position=0,
            leave=False,
            disable=plain,
            desc="All runs",
            bar_format="{desc:<44} {percentage:3.0f}%|{bar:24}| {elapsed}<{remaining}",
        )

    def progress(self, slot: int, job: Job, part: float, text: str) -> None:
        self.parts[slot] = part
        bar = self.bars[slot]
        bar.set_description_str(f"{job}: {text}", refresh=False)
        bar.n = round(100 * part)
        bar.refresh()
        self.overall.n = min(self.jobs, self.done + sum(self.parts))
        self.overall.refresh()

    def finished(self, slot: int, job: Job, outcome: Outcome) -> None:
        self.done += 1
        self.parts[slot] = 0.0
        if outcome.message:
            text = f"failed: {outcome.message}"
        else:
            text = f"clean error {outcome.results['clean_error']:.1f} %" if "clean_error" in outcome.results else "done"
        elapsed = time.monotonic() - self.began
        line = f"[{self.done}/{self.jobs}] {job}: {text} ({elapsed:.0f} s)"
        if self.overall.disable:
            self.say(line)
        else:
            with tqdm.external_write_mode(file=sys.stderr):
                self.say(line)
        self.overall.n = self.done
        self.overall.refresh()

    def close(self) -> None:
        for bar in (*self.bars, self.overall):
            bar.close()
