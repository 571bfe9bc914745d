"""Solutions that are there already: recorded, the authors' release, or the data's own.

Enters: a Parquet or JSON-lines file with the columns of `traces.FEATURES`, or the
authors' folder with ``codex_questions.pkl`` and ``codex_per_step_probs.pkl``. Leaves:
completions of the questions asked, matched by the question's text. Nothing in a pickle
is executed: only containers, strings, numbers and OrderedDict are built.

Source: github.com/FranxYao/FlanT5-CoT-Specialization, as PAPER's "Released files" has
them. Probabilities are rounded to four decimals there.
"""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import math
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from datasets import Dataset, data_files

from cotspec import artifacts
from cotspec.alignment.records import token_bytes
from cotspec.profiles import TeacherConfig
from cotspec.prompts import folded
from cotspec.teacher import traces
from cotspec.teacher.store import with_bytes
from cotspec.teacher.traces import Completion, Missing, Request, Sample, SamplingOptions

logger = logging.getLogger(__name__)

HALF_UNIT = 5e-5  # a sampled token rounded to probability 0 had less than this
_LISTS = ("token_ids", "token_bytes", "token_logprobs")
_TOPS = ("topk_ids", "topk_bytes", "topk_logprobs")


class _Memo(dict):
    """What a pickle refers to again, by number; the rest is not held."""

    def __init__(self, again: set[int]):
        self.again, self.seen = again, 0

    def __len__(self) -> int:
        return self.seen

    def __setitem__(self, number: int, value: object) -> None:
        self.seen += 1
        if number in self.again:
            super().__setitem__(number, value)


class _Unpickler(pickle._Unpickler):  # the one in Python: it can be taken step by step
    def find_class(self, module: str, name: str) -> type:
        if (module, name) != ("collections", "OrderedDict"):
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return OrderedDict

    def items(self, begins: set[int]) -> Iterator[object]:
        """Yield the items of the outermost list, each when the next one `begins`."""
        frames = self._unframer = pickle._Unframer(self._file_read, self._file_readline)
        self.read, self.readline = frames.read, frames.readline
        self.readinto, self.proto = frames.readinto, 0
        self.metastack, self.stack = [], []
        self.append = self.stack.append
        try:
            for step in itertools.count():
                if step in begins:
                    for whole in (self.metastack[0][0], self.stack):
                        yield from whole
                        whole.clear()
                self.dispatch[self.read(1)[0]](self)
        except pickle._Stop as end:
            if not isinstance(end.value, list):
                raise TypeError(f"a {type(end.value).__name__}, not a list") from None
            yield from end.value


def _scan(file: BinaryIO) -> tuple[set[int], set[int]]:
    """Read a pickle's steps without taking them.

    Returns what it refers to again, by number, and the steps with which an item of its
    list begins. Only at their end is it known whose they are: until then the parts of
    a tuple that is a list's one item look like the list's own.
    """
    again, begins = set(), set()
    stack = []  # of each thing that would be there, the step with which it begins
    marks = []  # where in the stack
    for step, (code, number, _) in enumerate(pickletools.genops(file)):
        takes = len(code.stack_before)
        if code.name.endswith("GET"):
            again.add(number)
        if code.name == "MARK":
            marks.append(len(stack))
        elif pickletools.markobject in code.stack_before:
            if code.name == "APPENDS" and marks == [1]:
                begins.update(stack[2:])
            takes = code.stack_before.index(pickletools.markobject)
            takes += len(stack) - marks.pop()
        first = stack[-takes] if takes else step
        stack[len(stack) - takes :] = [first] * len(code.stack_after)
    return again, begins


def read_list(path: Path | str) -> Iterator[object]:
    """Yield the items of a pickled list, with the memory of one.

    They may be lists, tuples, dicts, strings, numbers and OrderedDict. The file is read
    twice, since only what it refers to again is held: about 10 ms for a solution.

    Raises
    ------
    ValueError
        If it holds anything else, or is damaged; nothing of it has run.
    """
    try:
        with Path(path).open("rb") as file:
            again, begins = _scan(file)
            file.seek(0)
            unpickler = _Unpickler(file)
            unpickler.memo = _Memo(again)
            yield from unpickler.items(begins)
    except Exception as error:  # damaged bytes may raise any
        said = str(error) or type(error).__name__
        allowed = "lists, tuples, strings, numbers, OrderedDict"
        raise ValueError(f"{path}: {said}. Allowed: {allowed}") from None


def read_release(folder: Path) -> Iterator[Callable[[], dict]]:
    """Yield for each solution what reads it as a row of traces.

    Raises
    ------
    ValueError
        No such files, a pickle with code in it, or lists that do not fit together.
    """
    try:
        # One question came again under its number, without a second answer.
        questions = dict.fromkeys(read_list(folder / "codex_questions.pkl"))
        per_step = read_list(folder / "codex_per_step_probs.pkl")
        for question, solutions in zip(questions, per_step, strict=True):
            problem = dict.fromkeys(traces.PROBLEM_COLUMNS, "")
            problem["question"] = re.sub(r"\AQuestion \d+:", "", question)
            for sample_id, steps in enumerate(solutions):
                yield partial(_row, problem, sample_id, steps)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{folder}: not in the authors' form ({error}). Needed: as many questions "
            "as lists of solutions; a solution is [[(token, probability) x 6]]"
        ) from None


def _row(problem: dict, sample_id: int, steps: list) -> dict:
    return traces.as_row(problem, sample_id, read_solution(steps))


def read_solution(steps: Sequence[Sequence[tuple[str, float]]]) -> Completion:
    """Return one solution: per step the sampled token, then the top five.

    The leading ``' step'`` and newlines belong to the prompt, the trailing newlines to
    the stop string. Alternatives rounded to probability 0 are left to the tail.
    """
    start, end = int(bool(steps) and steps[0][0][0] == " step"), len(steps)
    while start < end and not steps[start][0][0].strip():
        start += 1
    while end > start and not steps[end - 1][0][0].strip("\n"):
        end -= 1
    read = []
    for (token, probability), *top in steps[start:end]:
        others = traces.ranked((token_bytes(t), math.log(p)) for t, p in top if p)
        read.append((token_bytes(token), math.log(probability or HALF_UNIT), others))
    # What is not UTF-8 will count as unaligned.
    text = b"".join(piece for piece, *_ in read).decode(errors="replace")
    # Where no newline follows, the limit of new tokens cut the solution off.
    return Completion.without_ids(text, read, "stop" if end < len(steps) else "length")


def read_lines(path: Path) -> Iterator[Callable[[], dict]]:
    """Yield for each line of ``.jsonl`` what reads it as a row of traces."""
    # Not `splitlines`: a string may hold U+2028, which ends no line of JSON.
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                    row = {name: row[name] for name in traces.FEATURES}
                except Exception as error:  # damaged text may raise any
                    raise ValueError(f"line {number}: {error}") from None
                yield partial(with_bytes, row)


def read_traces(path: Path) -> Dataset:
    """Read traces from Parquet, from ``.jsonl`` (bytes as Latin-1 text) or a release.

    They are mapped into memory, the last two from a copy that `datasets` keeps in its
    cache: to make it takes 13 ms a solution of the release, an hour for 323,810.

    Raises
    ------
    ValueError
        Another kind of file, a missing column, or one of another type.
    """
    try:
        if path.is_dir() or path.suffix == ".jsonl":
            # The copy goes by the file's contents and by what reads it.
            named = {"path": path, "contents": _identity(path)}
            # One text: `datasets` would read the file anew for each item of a list.
            named["reader"] = Path(__file__).read_text() + inspect.getsource(traces)
            return Dataset.from_generator(_rows, traces.FEATURES, gen_kwargs=named)
        # By itself, `datasets` would read [, * and ? in a name as a pattern, and take a
        # file for the one that was there before if its time of change is the same.
        files = data_files.DataFilesList([str(path)], [(_identity(path),)])
        table = Dataset.from_parquet(data_files.DataFilesDict(train=files), "train")
        return table.select_columns(list(traces.FEATURES)).cast(traces.FEATURES)
    except Exception as error:  # damaged bytes may raise any
        said = error.__cause__ or error
        needed = "Needed: Parquet or .jsonl with " + ", ".join(traces.FEATURES)
        raise ValueError(f"{path}: no traces ({said}). {needed}") from None


def _rows(path: Path, **_: object) -> Iterator[dict]:
    """Yield what a table can hold; the rest will be counted as missing."""
    for read in read_release(path) if path.is_dir() else read_lines(path):
        try:
            row = read()
            list(traces.as_tables([row]))
        except (TypeError, ValueError, LookupError, AttributeError, pa.ArrowException):
            continue
        yield row


def _identity(path: Path) -> str:
    # Of a release no other file of the folder, which may be a whole repository.
    files = sorted(path.glob("codex_*.pkl")) or [path]
    return " ".join(["recorded", path.name, *map(artifacts.identity, files)])


def as_completion(row: Mapping, top_k: int) -> Completion | None:
    """Return a row of the traces as a completion.

    It has at most `top_k` alternatives per token, the best first; None if the lists do
    not fit together or hold no log-probabilities.
    """
    try:
        lists, tops = ([row[name] for name in names] for names in (_LISTS, _TOPS))
        steps = ((zip(i, n, strict=True), p) for i, n, p in zip(*tops, strict=True))
        best = [traces.ranked(zip(*step, strict=True))[:top_k] for step in steps]
        fits = len({len(best), *map(len, lists)}) == 1
        masses = [math.exp(logprob) for logprob in row["token_logprobs"]]
        masses += [sum(math.exp(logprob) for _, logprob in step) for step in best]
        b"".join(row["token_bytes"]), row["completion"].encode()
    except (TypeError, ValueError, AttributeError, OverflowError):
        return None
    if not fits or not all(mass <= 1.01 for mass in masses):  # nor NaN
        return None
    tops = [[[one[at] for one, _ in step] for step in best] for at in (0, 1)]
    lists += [*tops, [[logprob for _, logprob in step] for step in best]]
    return Completion(row["completion"], *lists, row["finish_reason"] or "none")


# --- the backend ----------------------------------------------------------------------


def load(config: TeacherConfig) -> RecordedBackend:
    """Return the backend of solutions that are there.

    Raises
    ------
    ValueError
        ``teacher.path`` does not exist.
    """
    limits = config.max_new_tokens, config.top_k
    if config.backend == "dataset":
        return RecordedBackend(None, traces.WRITTEN, *limits)
    path = Path(str(config.path))
    if not (config.path and path.exists()):
        raise ValueError(f"teacher.path: {config.path!r} does not exist")
    return RecordedBackend(path, _identity(path), *limits)


@dataclass(frozen=True)
class RecordedBackend:
    """Solutions that are there; what is not, or is malformed, is left out.

    Attributes
    ----------
    path : Path of traces or of the release, or None for what the problems come with
    model : str, the file's name and contents
    """

    path: Path | None
    model: str
    max_new_tokens: int = 256
    top_k: int = 5

    def complete(
        self, requests: Sequence[Request], options: SamplingOptions, missing: Missing
    ) -> Iterator[list[Sample]]:
        """Yield what there is of each request, see `Backend`.

        Raises
        ------
        ValueError
            See `read_traces`.
        """
        if self.path is None:
            for index, wanted in missing.items():
                if 0 in wanted and (written := _written(requests[index])):
                    yield [(index, 0, written)]
            return
        solutions = read_traces(self.path)
        columns = solutions["question"], solutions["sample_id"]
        places: dict[str, dict[int, int]] = {}  # question, sample_id: row
        for row, (question, sample_id) in enumerate(zip(*columns, strict=True)):
            places.setdefault(folded(question or ""), {}).setdefault(sample_id, row)
        if repeated := len(solutions) - sum(map(len, places.values())):
            logger.warning("%d traces repeat a sample_id: the first counts", repeated)
        for index, wanted in missing.items():
            rows = places.get(folded(requests[index].question), {})
            for sample_id in sorted(wanted & rows.keys()):
                if done := as_completion(solutions[rows[sample_id]], self.top_k):
                    yield [(index, sample_id, done)]


def _written(request: Request) -> Completion | None:
    """Return the one solution that a question comes with; its words are the tokens."""
    words = [word.encode() for word in re.findall(r"\s*\S+", request.solution)]
    steps = [(word, 0.0, [(word, 0.0)]) for word in words]  # all of the probability
    return Completion.without_ids(request.solution, steps, "stop") if words else None
