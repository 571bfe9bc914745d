"""What goes into a backend and what comes out of it.

Enters: samples. Leaves: `Request` (a prompt), `Completion` (a solution and its tokens),
`Backend`, the protocol that every source of solutions follows, and traces: a `Dataset`
with the columns of `FEATURES`. On disk they have the types of `STORED`: a probability
has 11 significant bits, and so it has in every table, stored or not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value

from cotspec import artifacts

NO_ID = -1  # for teachers that name tokens by their text
WRITTEN = "the training set's own solutions (no probabilities)"  # a teacher's name
PROBLEM_COLUMNS = ("problem_id", "task", "question", "answer")

FEATURES = Features(
    {name: Value("string") for name in PROBLEM_COLUMNS}
    | {
        "sample_id": Value("int32"),
        "completion": Value("string"),
        "token_ids": List(Value("int32")),
        "token_bytes": List(Value("binary")),
        "token_logprobs": List(Value("float32")),
        "topk_ids": List(List(Value("int32"))),
        "topk_bytes": List(List(Value("binary"))),
        "topk_logprobs": List(List(Value("float32"))),
        "finish_reason": Value("string"),
    }
)
_HALF = {
    "token_logprobs": pa.list_(pa.float16()),
    "topk_logprobs": pa.list_(pa.list_(pa.float16())),
}
STORED = pa.schema(
    [
        pa.field(name, _HALF.get(name, feature.type), nullable=False)
        for name, feature in zip(FEATURES, FEATURES.arrow_schema, strict=True)
    ]
)


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
    max_new_tokens: int
    top_k: int

    def __post_init__(self):
        for name in ("num_samples", "max_new_tokens", "top_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)!r} must be >= 1")
        if not 0 <= self.temperature <= 10:
            raise ValueError(
                f"temperature: {self.temperature!r}. Allowed: 0 (greedy) to 10"
            )


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


Sample = tuple[int, int, Completion]  # index of the request, sample_id, solution


class ServerError(RuntimeError):
    """A server that refuses, keeps failing, or lacks what sampling needs."""


class Backend(Protocol):
    """A source of solutions.

    ``model`` names the teacher in keys and artifacts; ``max_new_tokens`` and ``top_k``
    are limits it was made with.
    """

    model: str
    max_new_tokens: int
    top_k: int

    def complete(
        self,
        requests: Sequence[Request],
        options: SamplingOptions,
        missing: Mapping[int, set[int]],
    ) -> Iterator[list[Sample]]:
        """Yield, in batches, the missing sample ids of each request (by index).

        All requests are given, wanted or not: a resumed run plans the same batches.
        """
        ...


def sample_keys(
    model: str, request: Request, options: SamplingOptions, sample_ids: Iterable[int]
) -> list[str]:
    """Return the identities of samples: 32 hexadecimal digits of a SHA-256 each.

    They cover model, problem, prompt, temperature, limits, seed and sample index; not
    the number of samples, so that a larger run finds those of a smaller one.
    """
    written = (request.solution,) if model == WRITTEN else ()
    shared = (
        model,
        request.problem_id,
        request.prompt,
        options.temperature,
        options.max_new_tokens,
        options.top_k,
        options.seed,
        *written,
    )
    # Hashed once: the prompt is long, and a question has forty samples.
    begun = hashlib.sha256(json.dumps(shared)[:-1].encode())
    keys = []
    for sample_id in sample_ids:
        digest = begun.copy()
        digest.update(f", {sample_id}]".encode())
        keys.append(digest.hexdigest()[:32])
    return keys


def sample_seed(seed: int, problem_id: str, sample_id: int) -> int:
    """Return the seed of one sample: 63 bits of a SHA-256."""
    identity = f"{seed}\0{problem_id}\0{sample_id}".encode()
    return int.from_bytes(hashlib.sha256(identity).digest()[:8], "big") >> 1


def as_row(
    problem: Mapping[str, object], sample_id: int, completion: Completion
) -> dict[str, object]:
    """Return one row with the columns of `FEATURES`."""
    row = {name: problem[name] for name in PROBLEM_COLUMNS}
    row |= {"sample_id": sample_id, "completion": completion.text}
    for name in FEATURES:
        if name not in row:
            row[name] = getattr(completion, name)
    return row


def as_dataset(rows: Iterable[Mapping[str, object]]) -> Dataset:
    """Return traces, one row per sample, with the columns and types of `FEATURES`."""
    return Dataset(as_stored(rows).cast(FEATURES.arrow_schema))


def as_stored(rows: Iterable[Mapping[str, object]]) -> pa.Table:
    """Return traces with the types of `STORED`."""
    rows = list(rows)
    columns = {name: [row[name] for row in rows] for name in FEATURES}
    return pa.table(columns, schema=FEATURES.arrow_schema).cast(STORED)


def write_parquet(rows: Iterable[Mapping[str, object]], path: Path) -> int:
    """Write traces as they come, with flat memory; return their number."""
    rows, num_rows = iter(rows), 0
    with (
        artifacts.replacing(Path(path)) as part,
        pq.ParquetWriter(part, STORED, compression="zstd") as writer,
    ):
        while batch := list(islice(rows, 1_000)):
            writer.write_table(as_stored(batch))
            num_rows += len(batch)
    return num_rows


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
    kept = []
    for piece in pieces:
        if length <= 0:
            break
        kept.append(piece[:length])
        length -= len(piece)
    return kept
