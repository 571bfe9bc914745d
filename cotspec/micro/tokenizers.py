"""The two tokenizers of the micro-world, as transformers fast tokenizers.

Enters: the package's ``tokenizers/*.json``. Leaves: a byte-level BPE for the teacher,
like GPT-2's, and a Unigram for the students, shaped like T5's: Metaspace, ``</s>``
appended, sentinels last. Numbers up to 99 are single pieces of both. They were made
from an early version of the world's sentences; the shipped models know these only.
"""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

DATA_FILES = ("tokenizers",)  # part of the keys of stages that read them
FOLDER = Path(__file__).parent / "tokenizers"
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(20))  # mark cut spans, as T5's do
_END = "<|endoftext|>"


def load_teacher() -> PreTrainedTokenizerFast:
    """Return the teacher's byte-level BPE; ``<|endoftext|>`` ends and pads."""
    return _load("teacher.json", eos_token=_END, pad_token=_END)


def load_student() -> PreTrainedTokenizerFast:
    """Return the students' Unigram; like T5's it appends ``</s>``."""
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    special["extra_special_tokens"] = list(SENTINELS)
    return _load("student.json", **special)


def _load(file: str, **special: object) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(FOLDER / file), clean_up_tokenization_spaces=False, **special
    )
