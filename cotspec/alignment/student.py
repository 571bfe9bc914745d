"""A student's tokenizer: what its tokens spell, and what a piece of text begins with.

Enters: any Hugging Face fast tokenizer, byte-level (GPT-2) or SentencePiece (T5).
Leaves: the bytes of every token, a text's tokens with their places in it, and the token
with which a piece of text begins.
"""

import functools
import json
import re
from collections.abc import Iterable
from itertools import accumulate, starmap
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

WORD_MARK = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Control tokens of this and of other models: as a teacher's alternative they spell
# nothing, whatever their letters are.
_CONTROL = re.compile(
    rb"<\|[^<>|]*\|>|<\xef\xbd\x9c[^<>]*\xef\xbd\x9c>|</?s>|\[/?INST\]"
    rb"|<(?:eos|bos|pad|unk|(?:start|end)_of_turn)>"
)
_REMEMBERED = 2**17  # pieces of text whose first token is kept


class Token(NamedTuple):
    """A student token and its place, ``[start, end)`` in bytes of the text."""

    id: int
    start: int
    end: int


def spelled_bytes(text: str, tokens: Iterable[Token]) -> bytearray:
    """Return 1 for each byte of the text that some token spells, 0 for the others."""
    covered = bytearray(len(text.encode()))
    for token in tokens:
        covered[token.start : token.end] = b"\1" * (token.end - token.start)
    return covered


def vocabulary_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """Return the bytes of every token id; joined they are the text's UTF-8.

    Byte-level BPE (GPT-2, Llama 3, SmolLM2, Qwen) is recognised by its entry for the
    space, ``Ġ``; all else is read as SentencePiece (Llama 2, T5, Gemma): ``▁`` is the
    space, ``<0xNN>`` a byte. Special tokens stand for their own text, ids without an
    entry for nothing.
    """
    vocabulary = tokenizer.get_vocab()
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    is_byte_level = "Ġ" in vocabulary
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, token_id in vocabulary.items():
        is_text = token not in added
        table[token_id] = _spell(token, is_byte_level) if is_text else token.encode()
    return table


_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


def _spell(token: str, is_byte_level: bool) -> bytes:
    if is_byte_level:
        is_bytes = all(character in _BYTES for character in token)
        return bytes(_BYTES[c] for c in token) if is_bytes else token.encode()
    if single := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(single[1], 16)])
    return token.replace(WORD_MARK, " ").encode("utf-8", "replace")


class StudentTokenizer:
    """What the alignment asks of a tokenizer.

    Attributes
    ----------
    spelled : list of bytes
        By token id.
    bare_mark : int or None
        The id of a lone ``▁``: T5 writes `` x`` as ``▁``, ``x`` where it has no ``▁x``.
    marks_words : bool
        Whether the first word of a text gets a mark.
    control_ids : set of int
        Ids that mean something to a model (end, padding), not text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            given = type(tokenizer).__name__
            raise ValueError(f"student_tokenizer: {given}. Allowed: a fast tokenizer")
        raw = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
        special = {entry["id"] for entry in raw["added_tokens"] if entry["special"]}
        self._whole = Tokenizer.from_str(json.dumps(raw))
        for part in ("normalizer", "pre_tokenizer"):
            raw[part] = json.loads(json.dumps(raw[part]), object_hook=_without_prefix)
        self._inside = Tokenizer.from_str(json.dumps(raw))
        self._is_byte_level = "ByteLevel" in json.dumps(raw["pre_tokenizer"])
        self._special = special | set(tokenizer.all_special_ids)
        # Bytes spell all, so there the unknown token is a control token like others.
        unknown = {tokenizer.unk_token_id} if not self._is_byte_level else set()
        self.control_ids = self._special - unknown
        self.spelled = vocabulary_bytes(tokenizer)
        vocabulary = tokenizer.get_vocab()
        self._byte_ids = {i for t, i in vocabulary.items() if _BYTE_TOKEN.fullmatch(t)}
        # Of two tokens that spell the same the one that is no byte token counts.
        text_ids = set(vocabulary.values()) - self._special
        text_ids = sorted(text_ids, key=lambda i: (i not in self._byte_ids, -i))
        self._ids = {self.spelled[i]: i for i in text_ids}
        self.bare_mark = None if self._is_byte_level else self._ids.get(b" ")
        self.marks_words = self._begins_with_space(self._whole, "a")
        self._folds_spaces = not self._begins_with_space(self._inside, " a")
        self.first_two = functools.lru_cache(_REMEMBERED)(self._first_two)

    def _begins_with_space(self, reader: Tokenizer, text: str) -> bool:
        ids = reader.encode(text, add_special_tokens=False).ids
        return bool(ids) and self.spelled[ids[0]][:1] == b" "

    def tokens(self, text: str) -> list[Token]:
        """Return a text's tokens; whitespace that the student folds is in none."""
        encoding = self._whole.encode(text, add_special_tokens=False)
        if self._is_byte_level:
            ends = np.cumsum([len(self.spelled[i]) for i in encoding.ids]).tolist()
            return list(map(Token, encoding.ids, [0, *ends], ends))
        lengths = [1] * len(text) if text.isascii() else map(len, map(str.encode, text))
        byte = list(accumulate(lengths, initial=0))
        read = zip(encoding.ids, encoding.offsets, strict=True)
        spans = [[i, byte[start], byte[end]] for i, (start, end) in read]
        if not self._byte_ids.isdisjoint(encoding.ids):
            self._place_bytes(spans)
        raw, end_before = text.encode(), 0
        for span, following in zip(spans, [*spans[1:], [None, -1, -1]], strict=False):
            start, end = span[1:]
            while start < end - 1 and raw[start : start + 1].isspace():
                start += 1  # the whitespace under a word's mark
            if span[0] == self.bare_mark and following[1] == span[1]:
                # It stands before a character for which there is no marked token.
                start, end = min(end_before, span[1]), span[1]
            end_before, span[1:] = span[2], (start, end)
        for one, following in zip(spans, spans[1:], strict=False):
            one[2] = max(one[1], min(one[2], following[1]))
        return list(starmap(Token, spans))

    def _place_bytes(self, spans: list[list[int]]) -> None:
        """Byte tokens share their character's span: set them one after the other."""
        nth = first = 0
        for n, span in enumerate(spans):
            shares = n > 0 and span[1] == first
            shares = shares and {span[0], spans[n - 1][0]} <= self._byte_ids
            nth, first = (nth + 1 if shares else 0), span[1]
            if span[0] in self._byte_ids:
                span[1:] = span[1] + nth, min(span[2], span[1] + nth + 1)

    def _first_two(self, piece: bytes, at_word: bool) -> tuple[int | None, int | None]:
        """The token a piece begins with, and the one after it if that is a bare mark.

        With `at_word` a piece without a space is read with one: T5 writes a word after
        whitespace as ``▁word``, whatever the teacher's token looks like.
        """
        if at_word and piece and not piece[:1].isspace():
            piece = b" " + piece
        if piece in self._ids:
            return self._ids[piece], None
        is_control = _CONTROL.fullmatch(piece.strip())
        text = "" if is_control else piece.decode("utf-8", "ignore")
        if not text or text.encode() != piece:
            return None, None
        folds = self._folds_spaces and text[0].isspace()
        reader = self._whole if folds else self._inside
        found = reader.encode(text, add_special_tokens=False).ids[:2]
        ids = [None if i in self._special else i for i in found]
        first = ids[0] if ids else None
        is_bare = len(ids) == 2 and first is not None and first == self.bare_mark
        return first, ids[1] if is_bare else None


_WITHOUT_PREFIX = {
    "Metaspace": {"prepend_scheme": "never"},
    "ByteLevel": {"add_prefix_space": False},
}


def _without_prefix(node: dict) -> dict:
    """A part of a tokenizer's description, changed to read from within a word."""
    if node.get("type") == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    return node | _WITHOUT_PREFIX.get(node.get("type"), {})


# A tokenizer as the alignment reads it; the last one is kept.
open_student = functools.lru_cache(maxsize=1)(StudentTokenizer)
