"""Solutions that are there already: recorded, the authors' release, or the data's own.

Enters: a Parquet or JSON-lines file with the columns of `traces.FEATURES`, or the
authors' folder with ``codex_questions.pkl`` and ``codex_per_step_probs.pkl``. Leaves:
completions of the questions asked, matched by the question's text. Nothing in a pickle
is executed: only containers, strings, numbers and OrderedDict are built.

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
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets import Dataset

from cotspec import artifacts
from cotspec.alignment.records import token_bytes
from cotspec.profiles import TeacherConfig
from cotspec.teacher import traces
from cotspec.teacher.store import with_bytes
from cotspec.teacher.traces import Completion, Missing, Request, Sample, SamplingOptions

logger = logging.getLogger(__name__)

HALF_UNIT = 5e-5  # a sampled token rounded to probability 0 had less than this
_LISTS = ("token_ids", "token_bytes", "token_logprobs")
_UNFINISHED = 8  # lists in each other of one item each, that may still lack theirs
_NO_PROBLEM = dict.fromkeys(traces.PROBLEM_COLUMNS)
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

    def items(self) -> Iterator[object]:
        """Yield the items of the outermost list, each a little after it is whole."""
        self._unframer = frames = pickle._Unframer(self._file_read, self._file_readline)
        self.read, self.readline = frames.read, frames.readline
        self.readinto, self.proto = frames.readinto, 0
        self.metastack, self.stack = [], []
        self.append = self.stack.append
        try:
            while opcode := self.read(1):
                if opcode == pickle.EMPTY_LIST and len(self.stack) > _UNFINISHED:
                    if [type(o) for below in self.metastack for o in below] == [list]:
                        for whole in (self.metastack[0][0], self.stack):
                            ends = len(whole) - _UNFINISHED * (whole is self.stack)
                            yield from whole[:ends]
                            del whole[:ends]
                self.dispatch[opcode[0]](self)
        except pickle._Stop as end:
            if not isinstance(end.value, list):
                raise TypeError(f"a {type(end.value).__name__}, not a list") from None
            yield from end.value
        else:
            raise EOFError("it ends too early")


def read_list(path: Path | str) -> Iterator[object]:
    """Yield the items of a pickled list, with the memory of one.

    They may be lists, tuples, dicts, strings, numbers and OrderedDict. The file is read
    twice, since only what it refers to again is held: about 5 ms for a solution.

    Raises
    ------
    ValueError
        If it holds anything else, or is damaged; nothing of it has run.
    """
    try:
        with Path(path).open("rb") as file:
            codes = pickletools.genops(file)
            again = {number for code, number, _ in codes if code.name.endswith("GET")}
            file.seek(0)
            unpickler = _Unpickler(file)
            unpickler.memo = _Memo(again)
            yield from unpickler.items()
    except Exception as error:  # damaged bytes may raise any
        raise ValueError(
            f"{path}: {str(error) or type(error).__name__}. Allowed: lists, "
            "tuples, strings, numbers, OrderedDict"
        ) from None


def read_release(folder: Path) -> Iterator[tuple[str, int, list]]:
    """Yield each solution's question, number and steps.

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
            asked = re.sub(r"\AQuestion \d+:", "", question)
            yield from ((asked, i, steps) for i, steps in enumerate(solutions))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{folder}: not in the authors' form ({error}). Needed: as many questions "
            "as lists of solutions; a solution is [[(token, probability) x 6]]"
        ) from None


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


# A question, a sample's number, and what reads its row: only those asked for are read.
Recorded = tuple[str, int, Callable[[], Mapping]]


def read_recorded(path: Path) -> Iterator[Recorded]:
    """Yield the solutions of a release's folder, of Parquet, or of ``.jsonl``.

    The last has bytes as Latin-1 text.

    Raises
    ------
    ValueError
        Another kind of file, a missing column, or one of another type.
    """
    if path.is_dir():
        for question, sample_id, steps in read_release(path):
            yield question, sample_id, partial(read_solution, steps)
        return
    line = 0
    try:
        if path.suffix == ".jsonl":
            # Not `splitlines`: a string may hold U+2028, which ends no line of JSON.
            with path.open(encoding="utf-8-sig", newline="\n") as file:
                for text in file:
                    line += 1
                    if text.strip():
                        row = json.loads(text)
                        row = {name: row[name] for name in traces.FEATURES}
                        found = row["question"], row["sample_id"]
                        yield *found, partial(with_bytes, row)
        else:
            table = Dataset.from_parquet(str(path), keep_in_memory=False)
            table = table.select_columns(list(traces.FEATURES)).cast(traces.FEATURES)
            found = zip(table["question"], table["sample_id"], strict=True)
            for place, (question, sample_id) in enumerate(found):
                yield question, sample_id, partial(table.__getitem__, place)
    except Exception as error:  # damaged bytes may raise any
        said = f"line {line}: {error}" if line else error
        needed = "Needed: Parquet or .jsonl with " + ", ".join(traces.FEATURES)
        raise ValueError(f"{path}: no traces ({said}). {needed}") from None


def as_completion(read: Callable[[], Mapping], top_k: int) -> Completion | None:
    """Return the row that `read` returns as a completion.

    It has at most `top_k` alternatives per token; None if there is no such row, its
    lists do not fit together or hold no log-probabilities.
    """
    try:
        row = read()
        row = row if isinstance(row, Mapping) else traces.as_row(_NO_PROBLEM, 0, row)
        tops = [[step[:top_k] for step in row[name]] for name in _TOPS]
        lists = [row[name] for name in _LISTS] + tops
        text, end = row["completion"], row["finish_reason"] or "none"
        steps = list(zip(*lists, strict=True))
        fits = all(len(ids) == len(names) == len(p) for *_, ids, names, p in steps)
        masses = [math.exp(logprob) for logprob in row["token_logprobs"]]
        masses += [sum(map(math.exp, top)) for *_, top in steps]
        b"".join(row["token_bytes"]), text.encode()
        done = Completion(text, *lists, end)
        # What no table can hold would be found when all is drawn.
        list(traces.as_tables([traces.as_row(_NO_PROBLEM, 0, done)]))
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError):
        return None
    return done if fits and all(mass <= 1.01 for mass in masses) else None  # nor NaN


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
    # Of a release no other file of the folder, which may be a whole repository.
    files = sorted(path.glob("codex_*.pkl")) or [path]
    model = " ".join(["recorded", path.name, *map(artifacts.identity, files)])
    return RecordedBackend(path, model, *limits)


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
            See `read_recorded` and `read_release`.
        """
        if self.path is None:
            for index, wanted in missing.items():
                if 0 in wanted and (written := _written(requests[index])):
                    yield [(index, 0, written)]
            return
        asking, found, repeated = defaultdict(list), set(), 0
        for index in missing:
            asking[_fold(requests[index].question)].append(index)
        for question, sample_id, read in read_recorded(self.path):
            for i in asking.get(_fold(str(question)), ()):
                if not isinstance(sample_id, int) or sample_id not in missing[i]:
                    continue
                if (i, sample_id) in found:
                    repeated += 1
                elif done := as_completion(read, self.top_k):
                    yield [(i, sample_id, done)]
                found.add((i, sample_id))
        if repeated:
            logger.warning("%d traces repeat a sample_id: the first counts", repeated)


def _written(request: Request) -> Completion | None:
    """Return the one solution that a question comes with; its words are the tokens."""
    words = [word.encode() for word in re.findall(r"\s*\S+", request.solution)]
    steps = [(word, 0.0, [(word, 0.0)]) for word in words]  # all of the probability
    done = Completion.without_ids(request.solution, steps, "stop")
    return done if words else None


def _fold(question: str) -> str:
    """Return a question without regard to white space."""
    return " ".join(question.split())
