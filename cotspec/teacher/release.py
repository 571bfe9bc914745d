"""Solutions that are there already: recorded, the authors' release, or the data's own.

Enters: a Parquet or JSON-lines file with the columns of `traces.FEATURES`, or the
authors' folder with ``codex_questions.pkl`` and ``codex_per_step_probs.pkl``. Leaves:
completions of the questions asked, matched by the question's text. Nothing in a pickle
is executed: only containers, strings, numbers and OrderedDict are built.

Source: github.com/FranxYao/FlanT5-CoT-Specialization, as PAPER's "Released files" has
them. Probabilities are rounded to four decimals there.
"""

from __future__ import annotations

import logging
import math
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from cotspec import artifacts
from cotspec.alignment.records import token_bytes
from cotspec.profiles import TeacherConfig
from cotspec.tasks import sources
from cotspec.teacher import traces
from cotspec.teacher.store import with_bytes
from cotspec.teacher.traces import Completion, Missing, Request, Sample, SamplingOptions

logger = logging.getLogger(__name__)

HALF_UNIT = 5e-5  # a sampled token rounded to probability 0 had less than this
_LISTS = ("token_ids", "token_bytes", "token_logprobs")
_TOPS = ("topk_ids", "topk_bytes", "topk_logprobs")


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


def read_release(folder: Path) -> Iterator[tuple[str, int, list]]:
    """Yield each solution's question, number and steps.

    Raises
    ------
    ValueError
        No such files, a pickle with code in it, or lists that do not fit together.
    """
    try:
        # One question came again under its number, without a second answer.
        questions = dict.fromkeys(load_restricted(folder / "codex_questions.pkl"))
        per_step = load_restricted(folder / "codex_per_step_probs.pkl")
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


def read_traces(path: Path) -> Dataset:
    """Read traces from Parquet or from ``.jsonl`` (bytes as Latin-1 text).

    Raises
    ------
    ValueError
        Another kind of file, a missing column, or one of another type.
    """
    try:
        if path.suffix == ".jsonl":
            return traces.as_dataset(map(with_bytes, sources.read_file(path)))
        table = Dataset.from_parquet(str(path), keep_in_memory=False)
        return table.select_columns(list(traces.FEATURES)).cast(traces.FEATURES)
    except Exception as error:  # damaged bytes may raise any
        needed = "Needed: Parquet or .jsonl with " + ", ".join(traces.FEATURES)
        raise ValueError(f"{path}: no traces ({error}). {needed}") from None


def as_completion(solution: Mapping | list, top_k: int) -> Completion | None:
    """Return a row of the traces, or the steps of a release, as a completion.

    It has at most `top_k` alternatives per token; None if the lists do not fit together
    or hold no log-probabilities.
    """
    try:
        is_row = isinstance(solution, Mapping)
        row = solution if is_row else vars(read_solution(solution))
        text = row["completion" if is_row else "text"]
        tops = [[step[:top_k] for step in row[name]] for name in _TOPS]
        lists = [row[name] for name in _LISTS] + tops
        steps = list(zip(*lists, strict=True))
        fits = all(len(ids) == len(names) == len(p) for *_, ids, names, p in steps)
        masses = [math.exp(logprob) for logprob in row["token_logprobs"]]
        masses += [sum(map(math.exp, top)) for *_, top in steps]
        b"".join(row["token_bytes"]), text.encode()
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError):
        return None
    if not fits or not all(mass <= 1.01 for mass in masses):  # nor NaN
        return None
    return Completion(text, *lists, row["finish_reason"] or "none")


# --- the backend ----------------------------------------------------------------------


def load(config: TeacherConfig) -> RecordedBackend:
    """Return the backend of solutions that are there.

    Raises
    ------
    ValueError
        ``teacher.path`` does not exist.
    """
    path = None if config.backend == "dataset" else Path(str(config.path))
    if path and not (config.path and path.exists()):
        raise ValueError(f"teacher.path: {config.path!r} does not exist")
    return RecordedBackend(path, config.max_new_tokens, config.top_k)


@dataclass(frozen=True)
class RecordedBackend:
    """Solutions that are there; what is not, or is malformed, is left out.

    Attributes
    ----------
    path : Path of traces or of the release, or None for what the problems come with
    """

    path: Path | None
    max_new_tokens: int = 256
    top_k: int = 5

    @property
    def model(self) -> str:
        """The file's name and contents."""
        if self.path is None:
            return traces.WRITTEN
        # Asked with every question: of a release no other file of the folder is looked
        # at, which may be a whole repository.
        files = sorted(self.path.glob("codex_*.pkl")) or [self.path]
        return " ".join(["recorded", self.path.name, *map(artifacts.identity, files)])

    def complete(
        self, requests: Sequence[Request], options: SamplingOptions, missing: Missing
    ) -> Iterator[list[Sample]]:
        """Yield what there is of each request, see `Backend`.

        Raises
        ------
        ValueError
            See `read_traces` and `read_release`.
        """
        find = _recorded(self.path, self.top_k) if self.path else _written
        for index, wanted in missing.items():
            found = find(requests[index])
            yield [(index, s, found[s]) for s in sorted(wanted & found.keys())]


def _written(request: Request) -> dict[int, Completion]:
    """Return the one solution that a question comes with; its words are the tokens."""
    words = [word.encode() for word in re.findall(r"\s*\S+", request.solution)]
    steps = [(word, 0.0, [(word, 0.0)]) for word in words]  # all of the probability
    done = Completion.without_ids(request.solution, steps, "stop")
    return {0: done} if words else {}


def _recorded(path: Path, top_k: int) -> Callable[[Request], dict[int, Completion]]:
    """Find a question's solutions, whatever its id and white space."""
    table = None if path.is_dir() else read_traces(path)
    if table is None:
        solutions = list(read_release(path))
    else:
        columns = table["question"], table["sample_id"], range(len(table))
        solutions = list(zip(*columns, strict=True))
    places: dict[str, dict[int, object]] = {}  # steps, or a row of the traces
    for question, sample_id, place in solutions:
        places.setdefault(_fold(question or ""), {}).setdefault(sample_id, place)
    if repeated := len(solutions) - sum(map(len, places.values())):
        logger.warning("%d traces repeat a sample_id: the first counts", repeated)

    def find(request: Request) -> dict[int, Completion]:
        found = places.get(_fold(request.question), {})
        rows = {s: table[p] if table else p for s, p in found.items()}
        read = {s: as_completion(row, top_k) for s, row in rows.items()}
        return {s: done for s, done in read.items() if done}

    return find


def _fold(question: str) -> str:
    """Return a question without regard to white space."""
    return " ".join(question.split())
