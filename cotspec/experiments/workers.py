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
        1: in this process, with all of torch's threads. More: one process a job, so
        many at a time, each with one thread; what they compute does not depend on how
        many there are.
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
    # A server that has imported everything once forks a process for every job.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "cotspec.experiments.jobs"])
    running: dict[Connection, tuple[Job, multiprocessing.Process]] = {}
    with _killed_at_the_end(running):
        while waiting or running:
            while waiting and len(running) < num_workers:
                job = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_serve, args=(sender, work, job))
                process.start()
                sender.close()
                running[receiver] = job, process
            for receiver in wait(list(running)):
                job, process = running.pop(receiver)
                yield job, _outcome(receiver, process)


@contextlib.contextmanager
def _killed_at_the_end(running: dict) -> Iterator[None]:
    """Leave no process behind when the caller is interrupted."""
    try:
        yield
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


def _outcome(receiver: Connection, process: multiprocessing.Process) -> str | None:
    with receiver:
        try:
            error = receiver.recv()
        except EOFError:
            error = "died"
        process.join()
    return f"the process ended with {process.exitcode}" if error == "died" else error


def _serve(sender: Connection, work: Work, job: Job) -> None:
    """Do one job in a process of its own, and send its error or None."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    # Bars of several processes would write over each other, the parent has one for
    # all. Warnings are still shown.
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stderr = nowhere
        sender.send(_error_of(work, job))
    sender.close()


def _end_with_parent() -> None:
    """Stop when the parent was killed: nobody is left to use the result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
