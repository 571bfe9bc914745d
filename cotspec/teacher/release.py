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

import json
import logging
import math
import pickle
import pickletools
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import constants
from tqdm import tqdm

from cotspec import artifacts
from cotspec.alignment.records import token_bytes
from cotspec.profiles import TeacherConfig
from cotspec.teacher.store import with_bytes
from cotspec.teacher.traces import (
    FEATURES,
    STORED,
    WRITTEN,
    Completion,
    Request,
    Sample,
    SamplingOptions,
    as_dataset,
    as_row,
    as_tables,
)

logger = logging.getLogger(__name__)

HALF_UNIT = 5e-5  # a sampled token rounded to probability 0 had less than this
_NUMBERED = re.compile(r"\A(?:Question|Model output) \d+:\s*")

Step = Sequence[tuple[str, float]]  # the sampled token, then the top five


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) != ("collections", "OrderedDict"):
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return OrderedDict


def load_restricted(path: Path | str) -> object:
    """Load a pickle of lists, tuples, dicts, strings, numbers and OrderedDict.

    Raises
    ------
    ValueError
        If it holds anything else, or is damaged; nothing of it has run.
    """
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        try:
            # Ten bytes could ask for a memo of 4 GiB; a large file for hardly more
            # than it is itself.
            for opcode, argument, _ in pickletools.genops(file) if size < 2**26 else ():
                if opcode.name == "LONG_BINPUT" and argument > size:
                    raise ValueError(f"asks for {argument:,} places in {size:,} bytes")
            file.seek(0)
            return _Unpickler(file).load()
        except Exception as error:  # damaged bytes may raise any
            raise ValueError(
                f"{path}: {str(error) or type(error).__name__}. Allowed: lists, "
                "tuples, strings, numbers, OrderedDict"
            ) from None


def import_release(folder: Path | str, target: Path) -> Counter:
    """Write the release as a Parquet file of traces; return the repaired faults.

    Raises
    ------
    ValueError
        A missing file, a pickle with code in it, or lists that do not fit together.
    """
    repairs = Counter()
    rows = tqdm(_rows(Path(folder), repairs), desc="importing", unit="solution")
    with (
        artifacts.replacing(target) as part,
        pq.ParquetWriter(part, STORED, compression="zstd") as writer,
    ):
        try:
            for table in as_tables(rows):
                writer.write_table(table)
        except (TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"{folder}: not in the authors' form ({error})") from None
    return repairs


def _rows(folder: Path, repairs: Counter) -> Iterator[dict]:
    """Yield rows with the columns of `traces.FEATURES`; count repaired faults."""
    numbered = _read(folder, "codex_questions")
    questions = list(dict.fromkeys(numbered))  # one came again under its number
    repairs["question listed twice"] += len(numbered) - len(questions)
    answers = _read(folder, "codex_answers")
    per_step = _read(folder, "codex_per_step_probs")
    predictions = _read(folder, "codex_predictions")
    lengths = [len(questions), len(answers), len(predictions), len(per_step)]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"{folder}: {lengths} questions, answers, predictions and probabilities; "
            "they must be as many"
        )
    for number, question in enumerate(questions):
        problem = {
            "problem_id": f"gsm8k/release/{number:04d}",
            "task": "gsm8k",
            "question": _unnumbered(question),
            "answer": answers[number].rpartition("####")[2].strip(),
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
    text = b"".join(pieces).decode(errors="replace")
    if text.encode() != b"".join(pieces):
        repairs["not UTF-8 (will count as unaligned)"] += 1
    # Where no newline follows, the limit of new tokens cut the solution off.
    has_ended = bool(steps) and not steps[-1][0][0].strip("\n")
    return Completion.without_ids(
        text,
        pieces,
        [math.log(max(step[0][1], HALF_UNIT)) for step in kept],
        [_alternatives(step, repairs) for step in kept],
        "stop" if has_ended else "length",
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
    """Return the top five in nats, the most probable first, each once, none at zero."""
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
    best = sorted(top.items(), key=lambda item: -item[1])
    return [(piece, math.log(probability)) for piece, probability in best]


def _read(folder: Path, name: str) -> list:
    pickled, plain = folder / f"{name}.pkl", folder / f"{name}.json"
    if pickled.exists():
        found = load_restricted(pickled)
    elif plain.exists():
        found = artifacts.read_json(plain)
    else:
        raise ValueError(f"{pickled}: not there. Needed: the authors' released files")
    if not isinstance(found, (list, tuple)):
        raise ValueError(f"{folder}: {name} is a {type(found).__name__}, no list")
    return found


def _unnumbered(text: str) -> str:
    return _NUMBERED.sub("", text).strip()


# --- backends -------------------------------------------------------------------------

_LISTS = ("token_ids", "token_bytes", "token_logprobs")
_TOPS = ("topk_ids", "topk_bytes", "topk_logprobs")


def load(config: TeacherConfig) -> RecordedBackend:
    """Return the backend of solutions that are there; a release is imported once.

    Raises
    ------
    ValueError
        ``teacher.path`` does not exist, or see `import_release`.
    """
    limits = (config.max_new_tokens, config.top_k)
    if config.backend == "dataset":
        return RecordedBackend(None, *limits)
    is_there = Path.is_dir if config.backend == "release" else Path.is_file
    if not config.path or not is_there(Path(config.path)):
        raise ValueError(
            f"teacher.path: {config.path!r} does not exist. Allowed: a file of traces "
            "(backend recorded) or the authors' folder (backend release)"
        )
    path = Path(config.path)
    if config.backend == "release":
        # Not into the authors' folder: it may be read-only, and what lies there counts
        # as the teacher.
        name = f"codex_traces-{artifacts.identity(path)}.parquet"
        path = Path(constants.HF_HOME) / "cotspec" / name
        if not path.exists():
            repairs = dict(import_release(config.path, path))
            logger.info("%s: repaired %s", config.path, repairs)
    return RecordedBackend(path, *limits)


@dataclass(frozen=True)
class RecordedBackend:
    """Solutions that are there; what is not is left out and counted.

    Attributes
    ----------
    path : Path, or None for the solutions that the problems come with
    """

    path: Path | None
    max_new_tokens: int = 256
    top_k: int = 5

    @property
    def model(self) -> str:
        """The file's name and contents."""
        if self.path is None:
            return WRITTEN
        return f"recorded {self.path.name} {artifacts.identity(self.path)}"

    def complete(
        self,
        requests: Sequence[Request],
        options: SamplingOptions,
        missing: Mapping[int, set[int]],
    ) -> Iterator[list[Sample]]:
        """Yield what there is of each request, see `Backend`.

        Raises
        ------
        ValueError
            See `read_traces`; or no problem has a solution of its own.
        """
        if self.path is None:
            solutions = _written(requests)
        else:
            solutions = _recorded(read_traces(self.path), options.top_k)
        num_absent = 0
        for index, wanted in missing.items():
            found = solutions(requests[index])
            num_absent += len(wanted - found.keys())
            yield [(index, s, found[s]) for s in sorted(wanted & found.keys())]
        if num_absent:
            name = self.path or self.model
            said = "%s: %d samples are not in it, or no lists of log-probabilities"
            logger.warning(said, name, num_absent)


Find = Callable[[Request], dict[int, Completion]]  # each sample id's solution


def _recorded(traces: Dataset, top_k: int) -> Find:
    """Find a question's traces, whatever its id and white space."""
    places: dict[str, dict[int, int]] = {}  # the row of each sample id
    columns = zip(traces["question"], traces["sample_id"], strict=True)
    for row, (question, sample_id) in enumerate(columns):
        places.setdefault(_fold(question or ""), {}).setdefault(sample_id, row)

    if repeated := len(traces) - sum(map(len, places.values())):
        said = "%d traces repeat a question's sample_id: only the first of each counts"
        logger.warning(said, repeated)

    def find(request: Request) -> dict[int, Completion]:
        rows = places.get(_fold(request.question), {})
        found = {s: as_completion(traces[row], top_k) for s, row in rows.items()}
        return {s: done for s, done in found.items() if _is_sound(done)}

    return find


def _is_sound(done: Completion) -> bool:
    """Whether the lists fit together and hold log-probabilities."""
    tops = [getattr(done, name) for name in _TOPS]
    lists = [getattr(done, name) for name in _LISTS] + tops
    alike = [lists, *zip(*tops, strict=False)]
    has_null = done.text is None or None in done.token_bytes
    if has_null or any(len(set(map(len, some))) > 1 for some in alike):
        return False
    steps = [done.token_logprobs, *done.topk_logprobs]
    known = all(p is not None and p <= 1e-3 for step in steps for p in step)  # no NaN
    return known and all(sum(map(math.exp, top)) <= 1.01 for top in done.topk_logprobs)


def _written(requests: Sequence[Request]) -> Find:
    """Find the one solution that a question comes with; its words are the tokens."""
    if not any(request.solution for request in requests):
        raise ValueError(
            f"teacher.backend 'dataset': none of {len(requests)} problems comes "
            "with a solution. Allowed: a data.train_task that does, such as gsm8k"
        )

    def find(request: Request) -> dict[int, Completion]:
        words = [word.encode() for word in re.findall(r"\s*\S+", request.solution)]
        tops = [[(word, 0.0)] for word in words]  # all of the probability
        logprobs = [0.0] * len(words)
        done = Completion.without_ids(request.solution, words, logprobs, tops, "stop")
        return {0: done} if words else {}

    return find


_UNREADABLE = (ValueError, TypeError, AttributeError, OverflowError, DatasetsError)


def read_traces(path: Path | str) -> Dataset:
    """Read traces from ``.parquet`` or ``.jsonl`` (bytes as Latin-1 text).

    Raises
    ------
    ValueError
        Another kind of file, or a missing column.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".jsonl"):
        raise ValueError(f"teacher.path: {str(path)!r}. Allowed: *.parquet, *.jsonl")
    try:
        if path.suffix == ".jsonl":
            try:
                return as_dataset(_json_rows(path))
            except _UNREADABLE:  # of a whole table no line is known
                return as_dataset(_json_rows(path, singly=True))
        table = Dataset.from_parquet(str(path), keep_in_memory=False)
        _check_columns(path, table.column_names)
        return table.select_columns(list(FEATURES)).cast(FEATURES)
    except _UNREADABLE as error:
        if str(path) in str(error):
            raise
        raise ValueError(
            f"{path}: damaged, or a column is of another type than traces have "
            f"({error})"
        ) from None


def _json_rows(path: Path, *, singly: bool = False) -> Iterator[dict]:
    """Yield traces; `singly` makes a table of each, so that its faults have a line."""
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
        try:
            with_bytes(row)
            list(as_tables([row] if singly else []))
        except _UNREADABLE as error:
            said = f"a column is of another type than traces have ({error})"
            raise ValueError(f"{path}, line {number}: {said}") from None
        yield row


def _check_columns(path: Path, names: Sequence[str]) -> None:
    absent = [name for name in FEATURES if name not in names]
    if absent:
        raise ValueError(
            f"{path}: column {absent[0]!r} is missing. Needed: {', '.join(FEATURES)}"
        )


def _fold(question: str) -> str:
    """Return a question without regard to white space."""
    return " ".join(question.split())


def as_completion(row: Mapping[str, object], top_k: int) -> Completion:
    """Return a trace's completion with at most `top_k` alternatives per token."""
    found = {name: row[name] or [] for name in _LISTS}
    tops = {name: [(step or [])[:top_k] for step in row[name] or []] for name in _TOPS}
    reason = row["finish_reason"] or "none"
    return Completion(row["completion"], **found, **tops, finish_reason=reason)
