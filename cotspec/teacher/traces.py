"""What goes into a backend and what comes out of it.

Enters: samples. Leaves: `Request` (a prompt), `Completion` (a solution and its tokens),
`Backend`, the protocol that every source of solutions follows, and traces: a `Dataset`
with the columns of `FEATURES`. A probability has 11 significant bits in every table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Protocol

import pyarrow as pa
from datasets import Dataset, Features, List, Value

NO_ID = -1  # for teachers that name tokens by their text
WRITTEN = "the training set's own solutions (no probabilities)"  # a teacher's name
PROBLEM_COLUMNS = ("problem_id", "task", "question", "answer")
ROWS_AT_ONCE = 1_000  # in memory, while a table is written


def _features(probability: str) -> Features:
    numbers = List(Value(probability))
    return Features(
        {name: Value("string") for name in PROBLEM_COLUMNS}
        | {
            "sample_id": Value("int32"),
            "completion": Value("string"),
            "token_ids": List(Value("int32")),
            "token_bytes": List(Value("binary")),
            "token_logprobs": numbers,
            "topk_ids": List(List(Value("int32"))),
            "topk_bytes": List(List(Value("binary"))),
            "topk_logprobs": List(numbers),
            "finish_reason": Value("string"),
        }
    )


FEATURES = _features("float32")


@dataclass(frozen=True)
class Request:
    """One question as the teacher reads it; `prompt` ends where it shall go on.

    `solution` is the problem's own, written with it; "" if it has none.
    """

    problem_id: str
    question: str
    prompt: str
    solution: str = ""


@dataclass(frozen=True)
class SamplingOptions:
    """How solutions are drawn. Temperature 0 is greedy."""

    num_samples: int
    temperature: float
    seed: int

    def __post_init__(self) -> None:
        if self.num_samples < 1 or not self.temperature >= 0:
            raise ValueError(f"{self}. Allowed: num_samples from 1, temperature from 0")


@dataclass(frozen=True)
class Completion:
    """One sampled solution; the joined `token_bytes` are `text` in UTF-8.

    Attributes
    ----------
    text : str
    token_ids : sequence of int, length T' (-1 where the teacher gives none)
    token_bytes : sequence of bytes, length T'
    token_logprobs : sequence of float, length T'; nats, at temperature 1
    topk_ids, topk_bytes, topk_logprobs : T' sequences of up to k alternatives
    finish_reason : "stop" (the answer sentence or the text ended) or "length"
    """

    text: str
    token_ids: Sequence[int]
    token_bytes: Sequence[bytes]
    token_logprobs: Sequence[float]
    topk_ids: Sequence[Sequence[int]]
    topk_bytes: Sequence[Sequence[bytes]]
    topk_logprobs: Sequence[Sequence[float]]
    finish_reason: str

    @classmethod
    def without_ids(cls, text: str, steps: Sequence[Step], reason: str) -> Completion:
        """Return a solution whose tokens, and alternatives, are known by their text."""
        own = [piece for piece, *_ in steps], [logprob for _, logprob, _ in steps]
        no_ids = [NO_ID] * len(steps)
        ids = [[NO_ID] * len(top) for *_, top in steps]
        names = [[piece for piece, _ in top] for *_, top in steps]
        logprobs = [[logprob for _, logprob in top] for *_, top in steps]
        return cls(text, no_ids, *own, ids, names, logprobs, reason)


# A token, its log-probability, and its alternatives with theirs.
Step = tuple[bytes, float, Sequence[tuple[bytes, float]]]
Sample = tuple[int, int, Completion]  # index of the request, sample_id, solution
Missing = Mapping[int, set[int]]  # the sample ids that a request (by index) lacks


class Backend(Protocol):
    """A source of solutions.

    ``model`` names the teacher in keys and artifacts; ``max_new_tokens`` and ``top_k``
    are limits it was made with.
    """

    model: str
    max_new_tokens: int
    top_k: int

    def complete(
        self, requests: Sequence[Request], options: SamplingOptions, missing: Missing
    ) -> Iterator[list[Sample]]:
        """Yield, in batches, the missing sample ids of each request (by index).

        All requests are given, wanted or not: a resumed run plans the same batches.
        """
        ...


def sample_keys(
    backend: Backend, request: Request, options: SamplingOptions
) -> list[str]:
    """Return the identity of each sample: 32 hexadecimal digits of a SHA-256.

    It covers model, API, problem, prompt, temperature, limits, seed and sample; not
    the number of samples, so that a larger run finds those of a smaller one.
    """
    shared = [backend.model, request.problem_id, request.prompt, options.temperature]
    shared += [backend.max_new_tokens, backend.top_k, options.seed]
    if backend.model == WRITTEN:
        shared.append(request.solution)
    if getattr(backend, "api", "completions") != "completions":  # keys older than that
        shared.append(backend.api)
    # Hashed once: the prompt is long, and a question has forty samples.
    begun = hashlib.sha256(json.dumps(shared)[:-1].encode())
    keys = []
    for sample_id in range(options.num_samples):
        digest = begun.copy()
        digest.update(f", {sample_id}]".encode())
        keys.append(digest.hexdigest()[:32])
    return keys


def sample_seed(seed: int, problem_id: str, sample_id: int) -> int:
    """Return the seed of one sample: 63 bits of a SHA-256."""
    identity = f"{seed}\0{problem_id}\0{sample_id}".encode()
    return int.from_bytes(hashlib.sha256(identity).digest()[:8], "big") >> 1


def ranked(alternatives: Iterable[tuple[bytes, float]]) -> list[tuple[bytes, float]]:
    """Return alternatives, the most probable first; one named twice counts once."""
    best: dict[bytes, float] = {}
    for piece, logprob in sorted(alternatives, key=lambda one: -one[1]):
        best.setdefault(piece, logprob)
    return list(best.items())


def as_row(
    problem: Mapping[str, object], sample_id: int, completion: Completion
) -> dict[str, object]:
    """Return one row with the columns of `FEATURES`."""
    row = {name: problem[name] for name in PROBLEM_COLUMNS}
    row |= {"sample_id": sample_id, "completion": completion.text}
    return row | {n: getattr(completion, n) for n in FEATURES if n not in row}


def as_tables(rows: Iterable[Mapping[str, object]]) -> Iterator[pa.Table]:
    """Yield traces with the types of `FEATURES`, some at once: with flat memory."""
    half, whole = _features("float16").arrow_schema, FEATURES.arrow_schema
    rows = iter(rows)
    while batch := list(islice(rows, ROWS_AT_ONCE)):
        columns = {name: [row[name] for row in batch] for name in FEATURES}
        yield pa.table(columns, schema=whole).cast(half).cast(whole)


def as_dataset(rows: Iterable[Mapping[str, object]]) -> Dataset:
    """Return traces, one row per sample, with the columns and types of `FEATURES`."""
    empty = FEATURES.arrow_schema.empty_table()
    return Dataset(pa.concat_tables([empty, *as_tables(rows)]))


def valid_length(text: bytes, end: int) -> int:
    """Return the bytes, of the first `end`, before the first that is not UTF-8."""
    try:
        bytes(text[:end]).decode()
    except UnicodeDecodeError as error:
        return error.start
    return end


def cut_tokens(pieces: Sequence[bytes], length: int) -> list[bytes]:
    """Keep the first `length` bytes; a token across the cut keeps its first bytes.

    Such a token (``".\\n\\n"`` after the answer) keeps its log-probability: that of a
    sentence that ends here and goes on as sampled.
    """
    spans = zip(pieces, accumulate(map(len, pieces), initial=0), strict=False)
    return [piece[: length - start] for piece, start in spans if start < length]
