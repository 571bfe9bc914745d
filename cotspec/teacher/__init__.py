"""Teacher sampling: problems in, traces out, from any of five backends.

Enters: problems and a backend: a local Hugging Face model (`huggingface`), an
OpenAI-compatible server (`openai`), recorded traces (`recorded`), the authors' released
files (`release`) or the solutions that the problems come with (`dataset`). Leaves:
traces with the columns of `traces.FEATURES`, the same for all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, product
from pathlib import Path

from datasets import Dataset
from tqdm import tqdm

from cotspec import prompts
from cotspec.profiles import TeacherConfig
from cotspec.teacher.store import MemoryStore, SampleStore, kept_traces, write_traces
from cotspec.teacher.traces import (
    FEATURES,
    PROBLEM_COLUMNS,
    Backend,
    Request,
    SamplingOptions,
    ServerError,
    as_dataset,
    as_row,
    sample_keys,
    write_parquet,
)

OPENAI_URL = "https://api.openai.com/v1"  # where no base URL is configured
RELEASE_FILE = "codex_traces.parquet"  # what the authors' folder is turned into

logger = logging.getLogger(__name__)


def load_backend(config: TeacherConfig) -> Backend:
    """Return the backend that ``teacher.backend`` names.

    Raises
    ------
    ValueError
        Unknown backend, or a model, file or server that is not there.
    """
    if config.backend == "huggingface":
        from cotspec.teacher import huggingface

        return huggingface.load(config)
    limits = {"max_new_tokens": config.max_new_tokens, "top_k": config.top_k}
    if config.backend == "openai":
        from cotspec.teacher.openai import OpenAIBackend

        return OpenAIBackend(
            config.model,
            config.base_urls or (OPENAI_URL,),
            api=config.api,
            max_in_flight=config.max_in_flight,
            samples_per_request=config.samples_per_request,
            max_total_tokens=config.max_total_tokens,
            **limits,
        )
    if config.backend in ("recorded", "release"):
        from cotspec.teacher.release import RecordedBackend

        return RecordedBackend(_traces_path(config), **limits)
    if config.backend == "dataset":
        from cotspec.teacher.release import WrittenBackend

        return WrittenBackend(**limits)
    raise ValueError(
        f"teacher.backend: {config.backend!r}. "
        "Allowed: huggingface, openai, recorded, release, dataset"
    )


def _traces_path(config: TeacherConfig) -> Path:
    """Return the file with traces; the authors' release is imported once."""
    if not config.path or not Path(config.path).exists():
        raise ValueError(
            f"teacher.path: {config.path!r} does not exist. Allowed: a file of traces "
            "(backend recorded) or the authors' folder (backend release)"
        )
    path = Path(config.path)
    if config.backend == "recorded":
        return path
    from cotspec.teacher.release import import_release

    target = path / RELEASE_FILE
    if not target.exists():
        traces, repairs = import_release(path)
        write_parquet(traces, target)
        logger.info("%s: repaired %s", path, dict(repairs))
    return target


def sample(
    problems: Dataset,
    backend: Backend,
    *,
    num_samples: int,
    temperature: float,
    seed: int,
    demonstrations: Sequence[prompts.Demonstration] = (),
    store: Path | str | None = None,
) -> Dataset:
    """Sample solutions of every problem.

    Parameters
    ----------
    problems : Dataset with ``problem_id, task, question, answer``
    num_samples : int, solutions per problem
    temperature : float; 0 is greedy
    seed : int; each sample's generator depends on it, its problem and its index alone
    demonstrations : sequence of `prompts.Demonstration`, shown before every question
    store : folder, optional
        Samples are appended there as they come; a later call draws what is missing.
        The result is a table in it, mapped into memory, and written only where the
        samples or problems differ from its own.

    Returns
    -------
    Dataset of traces in the order of `problems`, then of ``sample_id``

    Raises
    ------
    ValueError
        Problem ids that are not unique, or an option out of range.
    """
    options = SamplingOptions(
        num_samples, temperature, seed, backend.max_new_tokens, backend.top_k
    )
    requests = build_requests(problems, demonstrations)
    sample_ids = range(num_samples)
    names = (sample_keys(backend.model, r, options, sample_ids) for r in requests)
    places = product(range(len(requests)), sample_ids)
    keys = dict(zip(places, chain.from_iterable(names), strict=True))
    identity = _identity(problems, keys.values())
    if store and (kept := kept_traces(Path(store), identity=identity)) is not None:
        logger.info("all %d solutions are in %s", len(kept), store)
        return kept
    with SampleStore(store) if store else MemoryStore() as samples:
        _draw(backend, requests, options, keys, samples)
        there = {place: key for place, key in keys.items() if key in samples}
        rows = (as_row(problems[i], s, samples[key]) for (i, s), key in there.items())
        if not store:
            return as_dataset(rows)
        identity = _identity(problems, there.values())
        return write_traces(rows, Path(store), identity=identity)


def _identity(problems: Dataset, keys: Iterable[str]) -> str:
    """Return a SHA-256 of all that a file of traces is made from."""
    columns = [problems[name][:] for name in PROBLEM_COLUMNS]
    content = json.dumps([str(FEATURES), columns, list(keys)])
    return hashlib.sha256(content.encode()).hexdigest()


def _draw(
    backend: Backend,
    requests: Sequence[Request],
    options: SamplingOptions,
    keys: Mapping[tuple[int, int], str],
    samples: SampleStore | MemoryStore,
) -> None:
    """Let the backend fill what `samples` lacks; show its rate and the time left."""
    missing: dict[int, set[int]] = {i: set() for i in range(len(requests))}
    for (i, sample_id), key in keys.items():
        if key not in samples:
            missing[i].add(sample_id)
    wanted = sum(map(len, missing.values()))
    started = time.monotonic()
    with tqdm(
        total=len(keys), initial=len(keys) - wanted, unit="solution", desc="sampling"
    ) as bar:
        batches = backend.complete(requests, options, missing)
        for batch in batches if wanted else ():
            samples.append((keys[i, sample_id], done) for i, sample_id, done in batch)
            bar.update(len(batch))
    logger.info(
        "sampled %d of %d solutions in %.1f s with %s",
        wanted,
        len(keys),
        time.monotonic() - started,
        backend.model,
    )


def build_requests(
    problems: Dataset, demonstrations: Sequence[prompts.Demonstration] = ()
) -> list[Request]:
    """Return each problem's prompt: the demonstrations, then the question.

    Raises
    ------
    ValueError
        If two problems share a ``problem_id``.
    """
    ids, questions = problems["problem_id"][:], problems["question"][:]
    repeated = [problem_id for problem_id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(f"problem_id: {repeated[0]!r} occurs more than once")
    solutions = [""] * len(ids)
    if "rationale" in problems.column_names:
        written = zip(problems["rationale"][:], problems["answer"][:], strict=True)
        solutions = [r and prompts.solution(r, answer) for r, answer in written]
    return [
        Request(i, question, prompts.teacher_prompt(question, demonstrations), solution)
        for i, question, solution in zip(ids, questions, solutions, strict=True)
    ]


__all__ = [
    "Backend",
    "Request",
    "SampleStore",
    "SamplingOptions",
    "ServerError",
    "build_requests",
    "load_backend",
    "sample",
]
