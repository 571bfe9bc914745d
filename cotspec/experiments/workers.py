"""Run jobs one after the other, or several at a time in processes of their own.

Enters: jobs and the function that does one. Leaves: the errors of those that failed;
the others are finished whatever happens to one of them, be it killed for its memory.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait

import torch
from tqdm import tqdm

from cotspec.experiments.jobs import Job

Work = Callable[[Job], None]


def run_jobs(jobs: Sequence[Job], work: Work, *, num_workers: int) -> dict[str, str]:
    """Do all parts of all jobs; return the tracebacks of those that failed, by name.

    All trainings come before what is decoded, so that no process is left alone with
    the last one for long.

    Parameters
    ----------
    jobs : sequence of Job
        Begun in this order.
    work : callable
        Importable by name, or a partial of such a function.
    num_workers : int
        1: in this process, with all of torch's threads. More: so many processes, each
        with one thread; what they compute does not depend on how many there are. One
        that dies fails the job it had, and another takes its place.
    """
    waiting = [part for job in jobs for part in job.parts()]
    waiting.sort(key=lambda part: part.step is not None)  # stable
    run = (
        _in_turn if num_workers == 1 else functools.partial(_side_by_side, num_workers)
    )
    failed = {}
    with tqdm(total=len(waiting), desc="cells", unit="part", disable=not jobs) as bar:
        for part, error in run(waiting, work):
            bar.update()
            if error:
                failed[str(part)] = error
                bar.write(f"failed: {part}: {error.strip().splitlines()[-1]}")
                continue
            more = part.parts() if part.is_trained() else []
            waiting += more
            bar.total += len(more)
            bar.refresh()
    return failed


def _in_turn(waiting: list[Job], work: Work) -> Iterator[tuple[Job, str | None]]:
    while waiting:
        job = waiting.pop(0)
        yield job, _error_of(work, job)


def _error_of(work: Work, job: Job) -> str | None:
    try:
        work(job)
    except Exception:
        return traceback.format_exc()
    return None


def _side_by_side(
    num_workers: int, waiting: list[Job], work: Work
) -> Iterator[tuple[Job, str | None]]:
    # A server that has imported everything once forks the workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "cotspec.experiments.jobs"])
    with contextlib.ExitStack() as stack:
        idle: list[_Worker] = []
        running: dict[Connection, tuple[Job, _Worker]] = {}
        while waiting or running:
            while waiting and len(running) < num_workers:
                idle = [worker for worker in idle if worker.is_alive()]
                if not idle:
                    idle.append(_Worker(context, work))
                    stack.callback(idle[-1].end)
                job, worker = waiting.pop(0), idle.pop()
                worker.begin(job)
                running[worker.connection] = job, worker
            for connection in wait(list(running)):
                job, worker = running.pop(connection)
                try:
                    error = connection.recv()
                    idle.append(worker)
                except (EOFError, OSError):  # OSError: it died while it sent
                    error = f"the process ended with {worker.exit_status()}"
                yield job, error


class _Worker:
    """A process that does one job after the other: it starts and reads inputs once."""

    def __init__(self, context: multiprocessing.context.ForkServerContext, work: Work):
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work))
        self._process.start()
        theirs.close()

    def begin(self, job: Job) -> None:
        """Send a job; its error or None can be received from `connection`."""
        with contextlib.suppress(BrokenPipeError):  # who receives sees that it died
            self.connection.send(job)

    def is_alive(self) -> bool:
        """Whether it can take a job."""
        return self._process.is_alive()

    def exit_status(self) -> int | None:
        """Wait for the end of a process that closed its side."""
        self._process.join()
        return self._process.exitcode

    def end(self) -> None:
        """Leave no process behind, idle or interrupted."""
        self.connection.close()
        self._process.kill()
        self._process.join()


def _serve(connection: Connection, work: Work) -> None:
    """Do what is sent, and send back the error of each job or None."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    # Bars of several processes would write over each other, the parent has one for
    # all. Warnings are still shown.
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stderr = nowhere
        while True:
            connection.send(_error_of(work, connection.recv()))


def _end_with_parent() -> None:
    """Stop when the parent was killed: nobody is left to use the result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
