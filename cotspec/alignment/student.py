"""The student's tokenizer, opened up for alignment.

Enters: a Hugging Face fast tokenizer, byte-level or SentencePiece (Metaspace). Leaves:
a `Student`: copies of it that can be asked without side effects, what it does with
spaces, and the bytes that each of its tokens spells.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "▁"  # how SentencePiece writes a space
NO_TOKEN = -1
_MODEL_KEY = ',"model":'  # inside a string its quotes would be escaped


class Interner(dict):
    """Number keys in order of appearance."""

    def __missing__(self, key) -> int:
        self[key] = number = len(self)
        return number


class Encoded(NamedTuple):
    """Pieces of text in tokens, one piece after the other.

    ``start`` and ``end`` are bytes within the piece; ``counts`` are tokens per piece.
    """

    ids: np.ndarray
    start: np.ndarray
    end: np.ndarray
    counts: np.ndarray

    def followed_by(self, other: Encoded) -> Encoded:
        """Return the pieces of both."""
        return Encoded(*map(np.concatenate, zip(self, other, strict=True)))


def no_pieces() -> Encoded:
    """Return the encoding of nothing."""
    return Encoded(*(np.zeros(0, np.int64) for _ in Encoded._fields))


@dataclass
class Memory:
    """What a student has read before, so that it is read once.

    ``codes`` numbers the texts of teacher tokens and alternatives; ``first_ids`` and
    ``second_ids`` hold by code the student tokens they begin with. ``words`` numbers
    whole words, ``encoded`` holds their tokens.
    """

    codes: Interner = field(default_factory=Interner)
    first_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    second_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    words: Interner = field(default_factory=Interner)
    encoded: Encoded = field(default_factory=no_pieces)


@dataclass(frozen=True, eq=False)
class Student:
    """A student's tokenizer; V is its vocabulary."""

    backend: Tokenizer  # a private copy: no padding, no truncation
    continuation: Tokenizer  # the same without the dummy prefix
    is_byte_level: bool
    marks_words: bool  # a word at the start of the text is written with a space
    folds_whitespace: bool  # so is a word after a newline; whitespace is no token
    bare_mark: int  # the token that is a space and nothing else; -1 if there is none
    whole_text: re.Pattern | None  # finds what may not be read word by word
    exact: dict[bytes, int]  # ordinary tokens by the bytes they spell
    surfaces: list[str]  # (V,)
    surface_codes: np.ndarray  # (V,) codes of the surfaces; -1 for special tokens
    num_bytes: np.ndarray  # (V,)
    is_byte_token: np.ndarray  # (V,) bool: SentencePiece's <0x0A>
    memory: Memory


def open_student(tokenizer: PreTrainedTokenizerBase) -> Student:
    """Open a tokenizer; the same one is opened once.

    Raises
    ------
    ValueError
        If it has no character offsets (a slow tokenizer), or is neither byte-level
        nor SentencePiece.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(
            f"student_tokenizer: {type(tokenizer).__name__} has no character offsets. "
            "Allowed: fast tokenizers (those with a backend_tokenizer)"
        )
    return _open(tokenizer, len(tokenizer))


@functools.lru_cache(maxsize=4)
def _open(tokenizer: PreTrainedTokenizerBase, size: int) -> Student:
    raw = tokenizer.backend_tokenizer.to_str()
    backend = Tokenizer.from_str(raw)
    backend.no_padding()
    backend.no_truncation()
    spec, model = _without_model(raw)
    is_byte_level = _is_byte_level(spec, tokenizer)
    vocabulary = tokenizer.get_vocab()
    tokens = [""] * (1 + max(vocabulary.values()))
    for token, i in vocabulary.items():
        tokens[i] = token
    special = {entry["id"] for entry in spec["added_tokens"] if entry["special"]}
    special.update(tokenizer.all_special_ids)
    ordinary = [i for i, token in enumerate(tokens) if token and i not in special]
    spelled = [_spelled(token, is_byte_level) for token in tokens]
    memory = Memory()
    surface_codes = np.full(len(tokens), -1, np.int64)
    surface_codes[ordinary] = [memory.codes[spelled[i]] for i in ordinary]
    is_byte_token = np.array([_byte_of(token) is not None for token in tokens])
    by_rank = sorted(ordinary, key=lambda i: (is_byte_token[i], i), reverse=True)
    exact = {spelled[i]: i for i in by_rank}  # the last one of equal spelling stays
    unprefixed = json.dumps(_without_dummy_prefix(spec)).removesuffix("}")
    continuation = Tokenizer.from_str(unprefixed + _MODEL_KEY + model)
    return Student(
        backend=backend,
        continuation=continuation,
        is_byte_level=is_byte_level,
        marks_words=_begins_marked(backend, spelled, "a"),
        folds_whitespace=not _begins_marked(continuation, spelled, " a"),
        bare_mark=NO_TOKEN if is_byte_level else exact.get(b" ", NO_TOKEN),
        whole_text=_whole_text(spec),
        exact=exact,
        surfaces=[
            tokens[i] if i in special else piece.decode("utf-8", "replace")
            for i, piece in enumerate(spelled)
        ],
        surface_codes=surface_codes,
        num_bytes=np.array(list(map(len, spelled)), np.int64),
        is_byte_token=is_byte_token,
        memory=memory,
    )


def _without_model(raw: str) -> tuple[dict, str]:
    """Return a tokenizer's JSON without its model, and the model as it is written.

    To parse and to write tens of thousands of entries again takes as long as to align
    hundreds of solutions.
    """
    head, _, model = raw.partition(_MODEL_KEY)  # the last key, as tokenizers writes it
    return json.loads(head + "}") | {"padding": None, "truncation": None}, model


def _is_byte_level(spec: dict, tokenizer: PreTrainedTokenizerBase) -> bool:
    kinds = set(_types([spec["normalizer"], spec["pre_tokenizer"], spec["decoder"]]))
    if "ByteLevel" in kinds:
        return True
    if kinds & {"Metaspace", "Prepend"}:
        return False
    raise ValueError(
        f"student_tokenizer: {type(tokenizer).__name__} has {sorted(kinds)}. Allowed: "
        "byte-level (ByteLevel) and SentencePiece (Metaspace) tokenizers"
    )


def _types(node) -> Iterator[str]:
    """Yield the type names in a part of a tokenizer's JSON."""
    if isinstance(node, dict):
        yield from [node["type"]] if "type" in node else []
        node = list(node.values())
    for child in node if isinstance(node, list) else []:
        yield from _types(child)


def _without_dummy_prefix(node):
    """Return a tokenizer's JSON in which no space is put before the text."""
    if isinstance(node, list):
        return [_without_dummy_prefix(child) for child in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    changes = {
        "Metaspace": {"prepend_scheme": "never"},
        "ByteLevel": {"add_prefix_space": False},
    }.get(node.get("type"), {})
    parts = ("normalizer", "pre_tokenizer", "normalizers", "pretokenizers")
    children = {key: _without_dummy_prefix(node[key]) for key in parts if key in node}
    return node | children | changes


def _whole_text(spec: dict) -> re.Pattern | None:
    """Return what keeps a text from being read word by word; None: everything does.

    A tokenizer that begins by splitting at whitespace reads words independently. Only
    printable ASCII is trusted (a Unicode normaliser may join or split words), without
    the first letters of special tokens.
    """
    steps = (spec["pre_tokenizer"] or {}).get("pretokenizers", [])
    if not steps or steps[0]["type"] != "WhitespaceSplit":
        return None
    opening = {entry["content"][0] for entry in spec["added_tokens"]}
    trusted = {*"\t\n\r", *map(chr, range(32, 127))} - opening
    return re.compile(f"[^{re.escape(''.join(sorted(trusted)))}]")


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """Return the characters in which byte-level vocabularies spell bytes (GPT-2)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    letters = {chr(byte): byte for byte in kept}
    return letters | {chr(256 + i): byte for i, byte in enumerate(others)}


def _byte_of(token: str) -> int | None:
    is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return int(token[3:5], 16) if is_byte else None


def _spelled(token: str, is_byte_level: bool) -> bytes:
    """Return the bytes that a vocabulary entry spells, a space for its mark."""
    alphabet = _byte_alphabet()
    if is_byte_level and all(letter in alphabet for letter in token):
        return bytes(alphabet[letter] for letter in token)
    byte = _byte_of(token)
    if byte is not None:
        return bytes([byte])
    return token.replace(MARK, " ").encode("utf-8", "replace")


def _begins_marked(tokenizer: Tokenizer, spelled: list[bytes], text: str) -> bool:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return bool(ids) and spelled[ids[0]].startswith(b" ")
