"""The two tokenizers of the micro-world, and the command that makes them.

Enters: text of the world. Leaves: a byte-level BPE for the teacher and a T5-like
Unigram for the students, as transformers fast tokenizers. Their files come with the
package (``tokenizers/*.json``). They were made from an earlier version of the world's
sentences: ``python -m cotspec.micro tokenizers`` gives all but 11 of 680 and 10 of 453
pieces of them. The shipped models know the shipped ones only.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from string import ascii_letters, digits

import tokenizers as tk
from transformers import PreTrainedTokenizerFast

DATA_FILES = ("tokenizers",)  # part of the keys of stages that read them
FOLDER = Path(__file__).parent / "tokenizers"
TEACHER_FILE = FOLDER / "teacher.json"
STUDENT_FILE = FOLDER / "student.json"
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(20))  # mark cut spans, as T5's do
_SPACE = "▁"
_NUMBER_LINES = 4000
_SPLIT_FROM = 6  # characters of a word, its space included
_SPECIAL = ("<pad>", "</s>", "<unk>")
_END = "<|endoftext|>"
# How many pieces the teacher has in all; whole words and fragments of the students.
_NUM_TEACHER_PIECES, _NUM_WORDS, _NUM_FRAGMENTS = 680, 190, 60


def load_teacher() -> PreTrainedTokenizerFast:
    """Return the teacher's byte-level BPE; ``<|endoftext|>`` ends and pads."""
    return _load(TEACHER_FILE, eos_token=_END, pad_token=_END)


def load_student() -> PreTrainedTokenizerFast:
    """Return the students' Unigram; like T5's it appends ``</s>``."""
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return _load(STUDENT_FILE, **special, extra_special_tokens=list(SENTINELS))


def _load(file: Path, **special: object) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file), clean_up_tokenization_spaces=False, **special
    )


def train_teacher(texts: Iterable[str]) -> tk.Tokenizer:
    """Train a byte-level BPE like GPT-2's; 256 of its pieces are the bytes.

    Lines of numbers are added to the text, so that 0 to 99 become single pieces.
    """
    numbers = ["".join(f" {number}" for number in range(100))] * _NUMBER_LINES
    new = load_teacher().train_new_from_iterator(
        [*texts, *numbers], _NUM_TEACHER_PIECES, show_progress=False
    )
    return new.backend_tokenizer


def train_student(texts: Iterable[str]) -> tk.Tokenizer:
    """Make a Unigram with T5's shape: Metaspace, ``</s>`` appended, sentinels last.

    The pieces are the most frequent words (long ones without a final s), the most
    frequent fragments of the others, all characters, and the whole numbers 0 to 99;
    each scores its log frequency. Counting instead of expectation maximisation makes
    the same file every time.
    """
    counts = Counter(word for text in texts for word in _words(text))
    pieces = _most_common(counts, _NUM_WORDS)
    fragments = Counter()
    for word in counts.keys() - pieces:
        for length in (2, 3, 4):
            for start in range(len(word) - length + 1):
                fragments[word[start : start + length]] += counts[word]
    pieces |= _most_common(fragments, _NUM_FRAGMENTS)
    pieces |= {f"{_SPACE}{number}": max(counts.values()) for number in range(100)}
    singles = sorted({*"".join(counts), *ascii_letters, *digits})
    for single in [*singles, *(_SPACE + letter for letter in ascii_letters)]:
        pieces.setdefault(single, 1)
    total = sum(pieces.values())
    scores = [(piece, math.log(count / total)) for piece, count in pieces.items()]
    made = json.loads(STUDENT_FILE.read_text("utf-8"))  # all but the pieces stays
    made["model"]["vocab"] = [*((piece, 0.0) for piece in _SPECIAL), *scores]
    made["added_tokens"] = []
    tokenizer = tk.Tokenizer.from_str(json.dumps(made))
    tokenizer.add_special_tokens([*_SPECIAL, *SENTINELS])
    return tokenizer


def _words(text: str) -> list[str]:
    """Split text into words with ``▁`` for the space before; long ones lose their s."""
    marked = _SPACE + text.replace("\n", " ").replace(" ", _SPACE)
    pattern = rf"{_SPACE}?\(\w\)|{_SPACE}?[^\W\d_]+|{_SPACE}?[^\w{_SPACE}]"
    words = []
    for word in re.findall(pattern, marked):
        is_plural = len(word) >= _SPLIT_FROM and word.endswith("s")
        words += [word[:-1], "s"] if is_plural else [word]
    return words


def _most_common(counts: Counter, n: int) -> dict[str, int]:
    """The `n` most frequent with their counts, ties in alphabetical order."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:n])


def save(texts: list[str], folder: Path) -> None:
    """Train both tokenizers on `texts` and write their files."""
    folder.mkdir(parents=True, exist_ok=True)
    train_teacher(texts).save(str(folder / TEACHER_FILE.name), pretty=False)
    train_student(texts).save(str(folder / STUDENT_FILE.name), pretty=False)
