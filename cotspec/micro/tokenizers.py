"""The two tokenizers of the micro-world, and the command that makes them.

Enters: text of the world. Leaves: a byte-level BPE for the teacher and a T5-like
Unigram for the students, as transformers fast tokenizers. Their files come with the
package (``tokenizers/*.json``); ``python -m cotspec.micro tokenizers`` makes the same
bytes again.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import tokenizers as tk
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

DATA_FILES = ("tokenizers",)  # part of the keys of stages that read them
FOLDER = Path(__file__).parent / "tokenizers"
TEACHER_FILE = FOLDER / "teacher.json"
STUDENT_FILE = FOLDER / "student.json"
NUM_SENTINELS = 20
_SPACE = "▁"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NUMBER_LINES = 4000
_SPLIT_FROM = 6  # characters of a word, its space included
_SPECIAL = ("<pad>", "</s>", "<unk>")


def load_teacher() -> PreTrainedTokenizerFast:
    """Return the teacher's byte-level BPE; ``<|endoftext|>`` ends and pads."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tk.Tokenizer.from_file(str(TEACHER_FILE)),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def load_student() -> PreTrainedTokenizerFast:
    """Return the students' Unigram; like T5's it appends ``</s>``."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tk.Tokenizer.from_file(str(STUDENT_FILE)),
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=list(sentinels()),
        clean_up_tokenization_spaces=False,
    )


def sentinels() -> tuple[str, ...]:
    """Return the span-corruption marks ``<extra_id_0>``, ``<extra_id_1>`` …"""
    return tuple(f"<extra_id_{index}>" for index in range(NUM_SENTINELS))


def train_teacher(texts: Iterable[str], vocab_size: int = 680) -> tk.Tokenizer:
    """Train a byte-level BPE like GPT-2's; 256 of its pieces are the bytes.

    Lines of numbers are added to the text, so that 0 to 99 become single pieces.

    Parameters
    ----------
    texts : iterable of str
    vocab_size : int
        Pieces in all, ``<|endoftext|>`` included.
    """
    tokenizer = tk.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    numbers = ["".join(f" {number}" for number in range(100))] * _NUMBER_LINES
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *numbers], trainer)
    return tokenizer


def train_student(
    texts: Iterable[str], num_words: int = 190, num_fragments: int = 60
) -> tk.Tokenizer:
    """Make a Unigram with T5's shape: Metaspace, ``</s>`` appended, sentinels last.

    The pieces are the most frequent words (long ones without a final s), the most
    frequent fragments of the others, all characters, and the whole numbers 0 to 99;
    each scores its log frequency. Counting instead of expectation maximisation makes
    the same file every time.

    Parameters
    ----------
    texts : iterable of str
    num_words, num_fragments : int
        How many of each are pieces.
    """
    counts = Counter(word for text in texts for word in _words(text))
    words = _most_common(counts, num_words)
    rest = {word: n for word, n in counts.items() if word not in words}
    fragments = Counter()
    for word, n in rest.items():
        for length in (2, 3, 4):
            for start in range(len(word) - length + 1):
                fragments[word[start : start + length]] += n
    pieces = {word: counts[word] for word in words}
    pieces |= {p: fragments[p] for p in _most_common(fragments, num_fragments)}
    pieces |= {f"{_SPACE}{number}": max(counts.values()) for number in range(100)}
    singles = sorted(
        {c for word in counts for c in word} | set(_LETTERS + "0123456789")
    )
    for single in [*singles, *(_SPACE + x for x in _LETTERS)]:
        pieces.setdefault(single, 1)
    return _unigram(pieces)


def _words(text: str) -> list[str]:
    """Split text into words with ``▁`` for the space before; long ones lose their s."""
    marked = _SPACE + text.replace("\n", " ").replace(" ", _SPACE)
    pattern = rf"{_SPACE}?\(\w\)|{_SPACE}?[^\W\d_]+|{_SPACE}?[^\w{_SPACE}]"
    words = []
    for word in re.findall(pattern, marked):
        is_plural = len(word) >= _SPLIT_FROM and word.endswith("s")
        words += [word[:-1], "s"] if is_plural else [word]
    return words


def _most_common(counts: Counter, n: int) -> list[str]:
    """The `n` most frequent, ties in alphabetical order."""
    return sorted(counts, key=lambda word: (-counts[word], word))[:n]


def _unigram(pieces: dict[str, int]) -> tk.Tokenizer:
    total = sum(pieces.values())
    vocab = [(piece, 0.0) for piece in _SPECIAL]
    vocab += [(piece, math.log(n / total)) for piece, n in pieces.items()]
    tokenizer = tk.Tokenizer(models.Unigram(vocab, unk_id=_SPECIAL.index("<unk>")))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(tk.Regex(r"\s+"), " "),
            normalizers.Strip(left=False, right=True),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(_SPACE, prepend_scheme="always")
    tokenizer.add_special_tokens([*_SPECIAL, *sentinels()])
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", end)]
    )
    return tokenizer


def save(texts: list[str], folder: Path = FOLDER) -> None:
    """Train both tokenizers on `texts` and write their files."""
    folder.mkdir(parents=True, exist_ok=True)
    train_teacher(texts).save(str(folder / TEACHER_FILE.name), pretty=False)
    train_student(texts).save(str(folder / STUDENT_FILE.name), pretty=False)
