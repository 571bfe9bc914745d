"""Solutions that are there already: recorded, the authors' release, or the data's own.

Enters: a Parquet or JSON-lines file with the columns of `traces.FEATURES`, or the
authors' folder with ``codex_questions.pkl``, ``codex_answers.pkl``,
``codex_predictions.pkl`` and ``codex_per_step_probs.pkl`` (or the same as ``.json``).
Leaves: completions of the questions asked, matched by the question's text; of the
release, traces and a count of every fault that was repaired. Nothing in a pickle is
executed: only containers, strings, numbers and OrderedDict are built.

Source: github.com/FranxYao/FlanT5-CoT-Specialization, as PAPER's "Released files" has
them. Probabilities are rounded to four decimals there.
"""

from __future__ import annotations

import collections
import json
import logging
import math
import pickle
import pickletools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from datasets import Dataset

from cotspec import artifacts
from cotspec.alignment.records import token_bytes
from cotspec.teacher.store import with_bytes
from cotspec.teacher.traces import (
    FEATURES,
    NO_ID,
    WRITTEN,
    Completion,
    Request,
    Sample,
    SamplingOptions,
    as_dataset,
    as_row,
)

logger = logging.getLogger(__name__)

HALF_UNIT = 5e-5  # a sampled token rounded to probability 0 had less than this
_ALLOWED = {("collections", "OrderedDict"): collections.OrderedDict}
_NUMBERED = re.compile(r"\A(?:Question|Model output) \d+:\s*")

Step = Sequence[tuple[str, float]]  # the sampled token, then the top five


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return _ALLOWED[module, name]


def load_restricted(path: Path | str) -> object:
    """Load a pickle of lists, tuples, dicts, strings, numbers and OrderedDict.

    Raises
    ------
    ValueError
        If it holds anything else, or is damaged; nothing of it has run.
    """
    with Path(path).open("rb") as file:
        try:
            _check_memo(file)
            return _Unpickler(file).load()
        except Exception as error:  # damaged bytes may raise any
            raise ValueError(
                f"{path}: {str(error) or type(error).__name__}. Allowed: lists, "
                "tuples, strings, numbers, OrderedDict"
            ) from None


def _check_memo(file) -> None:
    """Refuse a small pickle that asks for a large memo: ten bytes could take 4 GiB."""
    size = file.seek(0, 2)
    file.seek(0)
    if size < 2**26:  # a larger one cannot ask for much more than it is
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "LONG_BINPUT" and argument > size:
                raise ValueError(f"asks for {argument:,} places in {size:,} bytes")
        file.seek(0)


def import_release(folder: Path | str) -> tuple[Iterator[dict], Counter]:
    """Read the release.

    Returns
    -------
    traces : iterator of rows with the columns of `traces.FEATURES`
    repairs : Counter of repaired faults, complete once `traces` is exhausted

    Raises
    ------
    ValueError
        A missing file, a pickle with code in it, or lists that do not fit together.
    """
    folder, repairs = Path(folder), Counter()
    questions = _without_repeats(_read(folder, "codex_questions"), repairs)
    answers = [_final_answer(a) for a in _read(folder, "codex_answers")]
    per_step = _read(folder, "codex_per_step_probs")
    predictions = _read(folder, "codex_predictions")
    lengths = [len(questions), len(answers), len(predictions), len(per_step)]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"{folder}: {lengths} questions, answers, predictions and probabilities; "
            "they must be as many"
        )
    return _rows(questions, answers, predictions, per_step, repairs), repairs


def _rows(questions, answers, predictions, per_step, repairs) -> Iterator[dict]:
    for number, question in enumerate(questions):
        problem = {
            "problem_id": f"gsm8k/release/{number:04d}",
            "task": "gsm8k",
            "question": question,
            "answer": answers[number],
        }
        texts, seen = predictions[number], set()
        for sample_id, steps in enumerate(per_step[number]):
            try:
                completion = read_solution(steps, repairs)
            except (TypeError, LookupError, AttributeError) as error:
                raise ValueError(
                    f"codex_per_step_probs: question {number}, solution {sample_id} is "
                    f"no list of steps [(token, probability) x 6] ({error})"
                ) from None
            if completion is None:
                repairs["solution with impossible probabilities (left out)"] += 1
                continue
            written = texts[sample_id] if sample_id < len(texts) else ""
            differs = _unnumbered(written) != completion.text.strip()
            repairs["text differs from codex_predictions"] += differs
            repairs["duplicate solutions (kept)"] += completion.text in seen
            seen.add(completion.text)
            yield as_row(problem, sample_id, completion)


def read_solution(steps: Sequence[Step], repairs: Counter) -> Completion | None:
    """Return one solution; count in `repairs` what was mended.

    The leading ``' step'`` and newlines belong to the prompt, the trailing newlines to
    the stop string. Of the six entries the first is the sampled token. None for a
    solution with a probability that is none.
    """
    kept = _trimmed(steps, repairs)
    if not all(0 <= p <= 1 + 1e-3 for step in kept for _, p in step):  # NaN is not
        return None
    pieces = [token_bytes(step[0][0]) for step in kept]
    tops = [_alternatives(step, repairs) for step in kept]
    # Where no newline follows, the limit of new tokens cut the solution off.
    has_ended = bool(steps) and not steps[-1][0][0].strip("\n")
    return Completion(
        text=_decoded(pieces, repairs),
        token_ids=[NO_ID] * len(pieces),
        token_bytes=pieces,
        token_logprobs=[math.log(max(step[0][1], HALF_UNIT)) for step in kept],
        topk_ids=[[NO_ID] * len(top) for top in tops],
        topk_bytes=[[piece for piece, _ in top] for top in tops],
        topk_logprobs=[[math.log(p) for _, p in top] for top in tops],
        finish_reason="stop" if has_ended else "length",
    )


def _trimmed(steps: Sequence[Step], repairs: Counter) -> list[Step]:
    start, end = 0, len(steps)
    if steps and steps[0][0][0] == " step":
        repairs["leading ' step'"] += 1
        start = 1
    while start < end and not steps[start][0][0].strip():
        repairs["leading newlines"] += 1
        start += 1
    while end > start and not steps[end - 1][0][0].strip("\n"):
        repairs["trailing newlines"] += 1
        end -= 1
    return list(steps[start:end])


def _alternatives(step: Step, repairs: Counter) -> list[tuple[bytes, float]]:
    """Return the top five, the most probable first, each once and none at zero."""
    top: dict[bytes, float] = {}
    for token, probability in step[1:]:
        piece = token_bytes(token)
        if probability <= 0:
            repairs["alternatives rounded to probability 0 (left out)"] += 1
        elif piece in top:
            repairs["alternatives named twice"] += 1
        else:
            top[piece] = probability
    repairs["sampled token outside the top five"] += token_bytes(step[0][0]) not in top
    return sorted(top.items(), key=lambda item: -item[1])


def _decoded(pieces: Sequence[bytes], repairs: Counter) -> str:
    joined = b"".join(pieces)
    try:
        return joined.decode()
    except UnicodeDecodeError:
        repairs["not UTF-8 (will count as unaligned)"] += 1
        return joined.decode(errors="replace")


def _without_repeats(numbered: Sequence[str], repairs: Counter) -> list[str]:
    """Return the questions; one that comes again under its number is dropped."""
    once = list(dict.fromkeys(numbered))
    repairs["question listed twice"] += len(numbered) - len(once)
    return [_unnumbered(question) for question in once]


def _read(folder: Path, name: str) -> list:
    pickled, plain = folder / f"{name}.pkl", folder / f"{name}.json"
    if pickled.exists():
        return load_restricted(pickled)
    if plain.exists():
        return json.loads(plain.read_text())
    raise ValueError(f"{pickled}: not there. Needed: the authors' released files")


def _unnumbered(text: str) -> str:
    return _NUMBERED.sub("", text).strip()


def _final_answer(text: str) -> str:
    """Return the number behind ``####``."""
    return text.rpartition("####")[2].strip()


# --- recorded traces ------------------------------------------------------------------

_LISTS = ("token_ids", "token_bytes", "token_logprobs")
_TOPS = ("topk_ids", "topk_bytes", "topk_logprobs")


@dataclass(frozen=True)
class RecordedBackend:
    """Recorded traces as a backend; what is not in the file is left out and counted."""

    path: Path
    max_new_tokens: int = 256
    top_k: int = 5

    @cached_property
    def model(self) -> str:
        """The file's name and contents."""
        return f"recorded {self.path.name} {artifacts.checksum(self.path)[:16]}"

    @cached_property
    def traces(self) -> Dataset:
        """The file's traces."""
        return read_traces(self.path)

    def complete(
        self,
        requests: Sequence[Request],
        options: SamplingOptions,
        missing: Mapping[int, set[int]],
    ) -> Iterator[list[Sample]]:
        """Yield what the file has of each request, see `Backend`."""
        places = places_by_question(self.traces)
        num_absent = 0
        for index, wanted in missing.items():
            found = places.get(fold(requests[index].question), {})
            num_absent += len(wanted - found.keys())
            rows = [(s, self.traces[found[s]]) for s in sorted(wanted & found.keys())]
            yield [(index, s, as_completion(row, options.top_k)) for s, row in rows]
        if num_absent:
            logger.warning("%s: %d samples are not in it", self.path, num_absent)


def read_traces(path: Path | str) -> Dataset:
    """Read traces from ``.parquet`` or ``.jsonl`` (bytes as Latin-1 text).

    Raises
    ------
    ValueError
        Another kind of file, or a missing column.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        table = Dataset.from_parquet(str(path), keep_in_memory=False)
        _check_columns(path, table.column_names)
        return table.select_columns(list(FEATURES)).cast(FEATURES)
    if path.suffix != ".jsonl":
        raise ValueError(f"teacher.path: {str(path)!r}. Allowed: *.parquet, *.jsonl")
    try:
        return as_dataset(_json_rows(path))
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(
            f"{path}: a column is of another type than traces have ({error})"
        ) from None


def _json_rows(path: Path) -> Iterator[dict]:
    # Not splitlines: U+2028 may stand in a text.
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))  # without a byte order mark
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: no object with named columns")
        _check_columns(path, row)
        yield with_bytes(row)


def _check_columns(path: Path, names: Sequence[str]) -> None:
    absent = [name for name in FEATURES if name not in names]
    if absent:
        raise ValueError(
            f"{path}: column {absent[0]!r} is missing. Needed: {', '.join(FEATURES)}"
        )


def places_by_question(traces: Dataset) -> dict[str, dict[int, int]]:
    """Return, per folded question, the row of each sample id."""
    places: dict[str, dict[int, int]] = {}
    columns = (traces["question"], traces["sample_id"])
    for row, (question, sample_id) in enumerate(zip(*columns, strict=True)):
        places.setdefault(fold(question), {}).setdefault(sample_id, row)
    return places


def fold(question: str) -> str:
    """Return a question without regard to white space."""
    return " ".join(question.split())


def as_completion(row: Mapping[str, object], top_k: int) -> Completion:
    """Return a trace's completion with at most `top_k` alternatives per token."""
    tops = {name: [step[:top_k] for step in row[name]] for name in _TOPS}
    lists = {name: row[name] for name in _LISTS}
    reason = row["finish_reason"]
    return Completion(row["completion"], **lists, **tops, finish_reason=reason)


# --- solutions that the problems come with --------------------------------------------

_WORD = re.compile(r"\s*\S+")


@dataclass(frozen=True)
class WrittenBackend:
    """The training set's own solutions: one a question, words without probabilities."""

    model: str = WRITTEN
    max_new_tokens: int = 256
    top_k: int = 5

    def complete(
        self,
        requests: Sequence[Request],
        options: SamplingOptions,
        missing: Mapping[int, set[int]],
    ) -> Iterator[list[Sample]]:
        """Yield each request's own solution as sample 0, see `Backend`.

        Raises
        ------
        ValueError
            No problem has a solution of its own.
        """
        if not any(request.solution for request in requests):
            raise ValueError(
                f"teacher.backend 'dataset': none of {len(requests)} problems comes "
                "with a solution. Allowed: a data.train_task that does, such as gsm8k"
            )
        absent = sum(len(wanted - {0}) for wanted in missing.values())
        for index, wanted in missing.items():
            if 0 in wanted and (text := requests[index].solution):
                yield [(index, 0, as_written(text))]
            else:
                absent += 0 in wanted
        if absent:
            logger.warning("%d samples are not there: one solution a question", absent)


def as_written(text: str) -> Completion:
    """Return a text as a solution, a word a token, each with all of the probability."""
    words = [word.encode() for word in _WORD.findall(text)]
    return Completion(
        text=text,
        token_ids=[NO_ID] * len(words),
        token_bytes=words,
        token_logprobs=[0.0] * len(words),
        topk_ids=[[NO_ID]] * len(words),
        topk_bytes=[[word] for word in words],
        topk_logprobs=[[0.0]] * len(words),
        finish_reason="stop",
    )
