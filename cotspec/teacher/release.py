"""Solutions that are there already: recorded, the authors' release, or the data's own.

Enters: a Parquet or JSON-lines file with the columns of `traces.FEATURES`, or the
authors' folder with ``codex_questions.pkl``, ``codex_answers.pkl`` and
``codex_per_step_probs.pkl``. Leaves: completions of the questions asked, matched by the
question's text. Nothing in a pickle is executed: only containers, strings, numbers and
OrderedDict are built.

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
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset
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
    Missing,
    Request,
    Sample,
    SamplingOptions,
    as_dataset,
    as_row,
    as_tables,
    ranked,
)

logger = logging.getLogger(__name__)

HALF_UNIT = 5e-5  # a sampled token rounded to probability 0 had less than this


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


def import_release(folder: Path | str, target: Path) -> None:
    """Write the release as a Parquet file of traces.

    Raises
    ------
    ValueError
        No such files, a pickle with code in it, or lists that do not fit together.
    """
    try:
        rows = tqdm(_rows(Path(folder)), desc="importing", unit="solution")
        with (
            artifacts.replacing(target) as part,
            pq.ParquetWriter(part, STORED, compression="zstd") as writer,
        ):
            for table in as_tables(rows):
                writer.write_table(table)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"{folder}: not in the authors' form ({error}). Needed: as many questions, "
            "answers and lists of solutions; a solution is [[(token, probability) x 6]]"
        ) from None


def _rows(folder: Path) -> Iterator[dict]:
    """Yield rows with the columns of `traces.FEATURES`."""
    # One question came again under its number, without a second answer.
    questions = dict.fromkeys(load_restricted(folder / "codex_questions.pkl"))
    answers = load_restricted(folder / "codex_answers.pkl")
    per_step = load_restricted(folder / "codex_per_step_probs.pkl")
    num_left_out = 0
    for number, (question, answer, solutions) in enumerate(
        zip(questions, answers, per_step, strict=True)
    ):
        problem = {
            "problem_id": f"gsm8k/release/{number:04d}",
            "task": "gsm8k",
            "question": re.sub(r"\AQuestion \d+:", "", question).strip(),
            "answer": answer.rpartition("####")[2].strip(),
        }
        for sample_id, steps in enumerate(solutions):
            if completion := read_solution(steps):
                yield as_row(problem, sample_id, completion)
            else:
                num_left_out += 1
    if num_left_out:
        said = "%s: %d solutions with impossible probabilities left out"
        logger.warning(said, folder, num_left_out)


def read_solution(steps: Sequence[Sequence[tuple[str, float]]]) -> Completion | None:
    """Return one solution: per step the sampled token, then the top five.

    The leading ``' step'`` and newlines belong to the prompt, the trailing newlines to
    the stop string. Alternatives rounded to probability 0 are left to the tail. None
    for a solution with a probability that is none.
    """
    start, end = int(bool(steps) and steps[0][0][0] == " step"), len(steps)
    while start < end and not steps[start][0][0].strip():
        start += 1
    while end > start and not steps[end - 1][0][0].strip("\n"):
        end -= 1
    read = []
    for (token, probability), *top in steps[start:end]:
        if not all(0 <= p <= 1 + 1e-3 for _, p in [(token, probability), *top]):
            return None  # nor is NaN one
        others = ranked((token_bytes(t), math.log(p)) for t, p in top if p > 0)
        read.append((token_bytes(token), math.log(max(probability, HALF_UNIT)), others))
    # What is not UTF-8 will count as unaligned.
    text = b"".join(piece for piece, *_ in read).decode(errors="replace")
    # Where no newline follows, the limit of new tokens cut the solution off.
    return Completion.without_ids(text, read, "stop" if end < len(steps) else "length")


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
    if not config.path or not Path(config.path).exists():
        raise ValueError(f"teacher.path: {config.path!r} does not exist")
    path = Path(config.path)
    if config.backend == "release":
        # Not into the authors' folder: it may be read-only, and what lies there counts
        # as the teacher.
        name = f"codex_traces-{artifacts.identity(path)}.parquet"
        path = Path(constants.HF_HOME) / "cotspec" / name
        if not path.exists():
            import_release(config.path, path)
    return RecordedBackend(path, *limits)


@dataclass(frozen=True)
class RecordedBackend:
    """Solutions that are there; what is not is left out.

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
        self, requests: Sequence[Request], options: SamplingOptions, missing: Missing
    ) -> Iterator[list[Sample]]:
        """Yield what there is of each request, see `Backend`.

        Raises
        ------
        ValueError
            See `read_traces`.
        """
        find = _written
        if self.path is not None:
            find = _recorded(read_traces(self.path), self.top_k)
        for index, wanted in missing.items():
            found = find(requests[index])
            yield [(index, s, found[s]) for s in sorted(wanted & found.keys())]


def _written(request: Request) -> dict[int, Completion]:
    """Return the one solution that a question comes with; its words are the tokens."""
    words = [word.encode() for word in re.findall(r"\s*\S+", request.solution)]
    steps = [(word, 0.0, [(word, 0.0)]) for word in words]  # all of the probability
    done = Completion.without_ids(request.solution, steps, "stop")
    return {0: done} if words else {}


def _recorded(
    traces: Dataset, top_k: int
) -> Callable[[Request], dict[int, Completion]]:
    """Find a question's traces, whatever its id and white space."""
    places: dict[str, dict[int, int]] = {}  # the row of each sample id
    columns = zip(traces["question"], traces["sample_id"], strict=True)
    for row, (question, sample_id) in enumerate(columns):
        places.setdefault(_fold(question or ""), {}).setdefault(sample_id, row)
    if repeated := len(traces) - sum(map(len, places.values())):
        logger.warning("%d traces repeat a sample_id: the first counts", repeated)

    def find(request: Request) -> dict[int, Completion]:
        rows = places.get(_fold(request.question), {})
        found = {s: as_completion(traces[row], top_k) for s, row in rows.items()}
        return {s: done for s, done in found.items() if done}

    return find


def _fold(question: str) -> str:
    """Return a question without regard to white space."""
    return " ".join(question.split())


def as_completion(row: Mapping[str, object], top_k: int) -> Completion | None:
    """Return a trace's completion with at most `top_k` alternatives per token.

    None if its lists do not fit together or hold no log-probabilities.
    """
    try:
        lists = [row[name] for name in _LISTS]
        tops = [[step[:top_k] for step in row[name]] for name in _TOPS]
        steps = list(zip(*lists, *tops, strict=True))
        fits = all(len(ids) == len(names) == len(p) for *_, ids, names, p in steps)
        masses = [math.exp(logprob) for logprob in row["token_logprobs"]]
        masses += [sum(map(math.exp, top)) for *_, top in steps]
        b"".join(row["token_bytes"]), row["completion"].encode()
    except (TypeError, ValueError, AttributeError, OverflowError):
        return None
    if not fits or not all(mass <= 1.01 for mass in masses):  # nor NaN
        return None
    return Completion(row["completion"], *lists, *tops, row["finish_reason"] or "none")


def read_traces(path: Path | str) -> Dataset:
    """Read traces from Parquet or from ``.jsonl`` (bytes as Latin-1 text).

    Raises
    ------
    ValueError
        Another kind of file, a missing column, or one of another type.
    """
    path = Path(path)
    try:
        if path.suffix == ".jsonl":
            return as_dataset(_json_rows(path))
        table = Dataset.from_parquet(str(path), keep_in_memory=False)
        return table.select_columns(list(FEATURES)).cast(FEATURES)
    except Exception as error:  # damaged bytes may raise any
        needed = "Needed: Parquet or .jsonl with " + ", ".join(FEATURES)
        raise ValueError(f"{path}: no traces ({error}). {needed}") from None


def _json_rows(path: Path) -> Iterator[dict]:
    # Not splitlines: U+2028 may stand in a text.
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield with_bytes(json.loads(line))
        except Exception as error:  # as above
            raise ValueError(f"line {number}: {error!r}") from None
