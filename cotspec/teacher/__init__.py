"""Teacher sampling: problems in, traces out, from any of five backends.

Enters: problems and a backend: a local Hugging Face model (`huggingface`), an
OpenAI-compatible server (`openai`), recorded traces (`recorded`), the authors' released
files (`release`) or the solutions that the problems come with (`dataset`). Leaves:
traces with the columns of `traces.FEATURES`, the same for all.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets
from tqdm import tqdm

from cotspec import artifacts, prompts
from cotspec.profiles import FilterConfig, TeacherConfig
from cotspec.teacher import traces
from cotspec.teacher.filtering import filter_traces
from cotspec.teacher.store import SampleStore, kept_traces, write_traces
from cotspec.teacher.traces import Backend, Completion, Request, SamplingOptions

logger = logging.getLogger(__name__)


def load_backend(config: TeacherConfig) -> Backend:
    """Return the backend that ``teacher.backend`` names.

    Raises
    ------
    ValueError
        A model, file or server that is not there.
    """
    if config.backend == "huggingface":
        from cotspec.teacher import huggingface

        return huggingface.load(config)
    if config.backend == "openai":
        from cotspec.teacher import openai

        return openai.OpenAIBackend(config)
    from cotspec.teacher import release

    return release.load(config)


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
        Problem ids that are not unique.
    """
    options = SamplingOptions(num_samples, temperature, seed)
    requests = build_requests(problems, demonstrations)
    keys = {
        (i, sample_id): key
        for i, request in enumerate(requests)
        for sample_id, key in enumerate(traces.sample_keys(backend, request, options))
    }
    identity = _identity(problems, keys.values())
    if store and (kept := kept_traces(Path(store), identity=identity)) is not None:
        logger.info("all %d solutions are in %s", len(kept), store)
        return kept
    with SampleStore(store) if store else nullcontext({}) as samples:
        _draw(backend, requests, options, keys, samples)
        done = {place: key for place, key in keys.items() if key in samples}
        rows = (traces.as_row(problems[i], s, samples[k]) for (i, s), k in done.items())
        if not store:
            return traces.as_dataset(rows)
        identity = _identity(problems, done.values())
        return write_traces(rows, Path(store), identity=identity)


def _identity(problems: Dataset, keys: Iterable[str]) -> str:
    """Return a SHA-256 of all that a file of traces is made from."""
    columns = [problems[name][:] for name in traces.PROBLEM_COLUMNS]
    return artifacts.digest_of([str(traces.FEATURES), columns, list(keys)])


def _draw(
    backend: Backend,
    requests: Sequence[Request],
    options: SamplingOptions,
    keys: Mapping[tuple[int, int], str],
    samples: SampleStore | dict[str, Completion],
) -> None:
    """Let the backend fill what `samples` lacks; show its rate and the time left."""
    missing: dict[int, set[int]] = {i: set() for i in range(len(requests))}
    for (i, sample_id), key in keys.items():
        if key not in samples:
            missing[i].add(sample_id)
    wanted = sum(map(len, missing.values()))
    with tqdm(total=len(keys), initial=len(keys) - wanted, unit="solution") as bar:
        for batch in backend.complete(requests, options, missing) if wanted else ():
            samples.update((keys[i, sample_id], done) for i, sample_id, done in batch)
            bar.update(len(batch))
    if lacking := sum(key not in samples for key in keys.values()):
        said = "%s: %d of %d solutions are missing: it has none, or they were malformed"
        logger.warning(said, backend.model, lacking, len(keys))


def build_requests(
    problems: Dataset, demonstrations: Sequence[prompts.Demonstration] = ()
) -> list[Request]:
    """Return each problem's prompt: the demonstrations, then the question.

    Raises
    ------
    ValueError
        If two problems share a ``problem_id``.
    """
    requests = {}
    for row in problems:
        problem_id, question = row["problem_id"], row["question"]
        if problem_id in requests:
            raise ValueError(f"problem_id: {problem_id!r} occurs more than once")
        written = row.get("rationale") or ""
        written = written and prompts.solution(written, row["answer"])
        prompt = prompts.teacher_prompt(question, demonstrations)
        requests[problem_id] = Request(problem_id, question, prompt, written)
    return list(requests.values())


def sample_study(
    problems: Dataset, backend: Backend, config: TeacherConfig, **options: object
) -> Dataset:
    """Sample `study_questions` questions, spread over all, at each temperature.

    Recorded solutions have one temperature, ``teacher.temperature``.

    Parameters
    ----------
    options : ``seed, demonstrations, store`` of `sample`

    Returns
    -------
    Dataset
        Filtered traces (all rows, see `filter_traces`) with ``temperature``, for
        `studies.compare_temperatures`.
    """
    is_asked = config.backend in ("huggingface", "openai")
    temperatures = config.study_temperatures if is_asked else (config.temperature,)
    count = min(config.study_questions, len(problems))
    chosen = problems.select(np.arange(count) * len(problems) // count)
    parts = []
    for temperature in temperatures:
        options |= {"num_samples": config.study_samples, "temperature": temperature}
        marked = filter_traces(sample(chosen, backend, **options), FilterConfig())
        parts.append(marked.add_column("temperature", [temperature] * len(marked)))
    return concatenate_datasets(parts)
