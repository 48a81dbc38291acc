"""Several processes that denoise: each with its own model and its share of the threads.

Only this process hears of results, in one place. Each worker has a pipe of its own, so that one that
is killed takes nothing with it but the images in its hands: those are given out again one at a time,
and the one that kills a second worker is reported as failed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from segaware.errors import InputError, ModelError, SegawareError
from segaware.inference.bench import Bench, Facts, Order
from segaware.inference.files import Job, Outcome

__all__ = ["Pool", "cores", "suitable"]

_PATIENCE = 10.0  # seconds for a worker to put half a file away before it is killed
_DEATHS = 3  # workers in a row, each time all of them, that end without a result

Unit = tuple[Job, ...]


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def suitable(device: str) -> int:
    """How many processes fill the machine: one a GPU where that is what computes, else one a core."""
    if device != "cpu":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.device_count() if device in ("auto", "cuda") else 1
        if device == "mps":
            return 1
    return cores()


def _threads(processes: int) -> int:
    share = max(1, cores() // processes)
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(told)) if told.isdecimal() and int(told) > 0 else share


class _Worker:
    """A process, the pipe to it, and what it has in its hands."""

    def __init__(self, order: Order, number: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, order, number, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False
        self.unit: list[Job] | None = None

    def give(self, unit: Unit) -> None:
        """Hand over work; a worker that is gone already is noticed when its pipe is read."""
        self.unit = list(unit)
        with contextlib.suppress(OSError):
            self.pipe.send(unit)


class Pool:
    """Workers for one order. A context manager: at the end of the block no process is left.

    Args:
        order: what to do with every image.
        processes: how many.
        first: number of the first worker on this machine (several pools share its GPUs).

    Raises:
        SegawareError: whatever :class:`segaware.inference.bench.Bench` raises in the workers.
    """

    def __init__(self, order: Order, processes: int, first: int = 0) -> None:
        self._order, self._count, self._first, self._per = order, processes, first, _threads(processes)
        self._workers: list[_Worker] = []
        self._again: deque[Unit] = deque()
        self._suspects: set[Path] = set()
        self._deaths = 0
        self._report: Callable[[Outcome], None] = lambda outcome: None

    def __enter__(self) -> Pool:
        try:
            self._workers = [_Worker(self._order, self._first + number, self._per) for number in range(self._count)]
            self.facts: Facts = self._await_facts()
        except BaseException:
            self.stop()
            raise
        return self

    def _await_facts(self) -> Facts:
        worker = self._workers[0]
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._lost(worker) from error
        return self._started(worker, kind, value)

    def _started(self, worker: _Worker, kind: str, value: Any) -> Facts:
        if kind == "broken":
            raise value
        assert kind == "ready", kind
        worker.ready = True
        return value  # type: ignore[no-any-return]

    def run(self, units: Iterable[Unit], report: Callable[[Outcome], None]) -> None:
        """Work through the units; ``report`` hears of each image as soon as it is done.

        Raises:
            ModelError: workers end again and again.
        """
        self._report = report
        source = iter(units)
        upcoming = self._next(source)
        while True:
            for worker in self._workers:
                if worker.ready and worker.unit is None and upcoming is not None:
                    worker.give(upcoming)
                    upcoming = self._next(source)  # looked up while they work
            if upcoming is None and all(worker.unit is None for worker in self._workers):
                upcoming = self._next(source)
                if upcoming is None:
                    return
                continue
            for pipe in wait([worker.pipe for worker in self._workers]):
                worker = next(worker for worker in self._workers if worker.pipe is pipe)
                self._hear(worker)
            if upcoming is None:
                upcoming = self._next(source)  # what a dead worker left

    def _next(self, source: Iterator[Unit]) -> Unit | None:
        return self._again.popleft() if self._again else next(source, None)

    def _hear(self, worker: _Worker) -> None:
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        if kind == "file":
            assert worker.unit is not None
            worker.unit = [job for job in worker.unit if job.source != value.job.source]
            self._deaths = 0
            self._report(value)
        elif kind == "next":
            worker.unit = None
        else:
            self._started(worker, kind, value)

    def _replace(self, worker: _Worker) -> None:
        """A worker has ended by itself: another takes its place, and its work is given out again or given up."""
        self._deaths += 1
        error = self._lost(worker)
        if not worker.ready or self._deaths > _DEATHS * self._count:
            raise error
        left = worker.unit or []
        if len(left) == 1 and left[0].source in self._suspects:
            self._report(Outcome(left[0], "failed", f"{left[0].source}: {error}"))
        else:
            self._again.extend((job,) for job in left)
            self._suspects.update(job.source for job in left if len(left) == 1)
        worker.pipe.close()
        self._workers[self._workers.index(worker)] = _Worker(self._order, worker.number, self._per)

    def _lost(self, worker: _Worker) -> SegawareError:
        worker.process.join(_PATIENCE)
        code = worker.process.exitcode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        return ModelError(f"a worker process {how}; where memory is short use fewer --processes or a smaller --tile, and run again")

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all workers, and report what they had done by then; idle ones are let go, others interrupted."""
        with _uninterrupted():
            for worker in self._workers:
                if worker.ready and worker.unit is None:
                    with contextlib.suppress(OSError):
                        worker.pipe.send(None)
                else:
                    worker.process.terminate()
            for worker in self._workers:
                worker.process.join(_PATIENCE)
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()
                self._drain(worker.pipe)
            self._workers = []

    def _drain(self, pipe: Connection) -> None:
        try:
            while pipe.poll():
                kind, value = pipe.recv()
                if kind == "file":
                    self._report(value)
        except (EOFError, OSError):
            pass
        finally:
            pipe.close()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Within: a second Ctrl-C does not leave processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(pipe: Connection, order: Order, number: int, threads: int) -> None:
    """A worker's life: make ready, then work until there is none, or nobody to work for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides, and says so by SIGTERM
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    import torch

    torch.set_num_threads(threads)
    try:
        try:
            bench = Bench(order, number)
        except SegawareError as error:
            pipe.send(("broken", type(error)(str(error))))
            return
        except Exception as error:
            pipe.send(("broken", InputError(f"{type(error).__name__}: {error}")))
            return
        with bench:
            pipe.send(("ready", bench.facts))
            while (unit := pipe.recv()) is not None:
                for outcome in bench.do(unit):
                    pipe.send(("file", outcome))
                pipe.send(("next", None))
    except (EOFError, OSError):  # the first process is gone
        return
