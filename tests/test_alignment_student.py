"""Token bytes of the three kinds of tokenizer."""

import pytest
from transformers import GPT2Tokenizer, T5Tokenizer

from cotspec.alignment.student import byte_alphabet, vocabulary_bytes

TEXTS = (
    "If 3 cats, 12 legs.\nThe answer is 12.",
    "naïve café – 5 € 🙂\n\n  x",
    "\t{}\\",
)


@pytest.fixture(scope="module")
def gpt2(data_dir):
    return GPT2Tokenizer.from_pretrained(str(data_dir / "gpt2"))


def test_the_byte_alphabet_covers_every_byte_once():
    assert sorted(byte_alphabet().values()) == list(range(256))


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_tokens_join_to_the_text(gpt2, text):
    table = vocabulary_bytes(gpt2)
    token_ids = gpt2(text)["input_ids"]
    assert b"".join(table[i] for i in token_ids) == text.encode()


def test_a_character_split_over_tokens_is_split_over_their_bytes(gpt2):
    table = vocabulary_bytes(gpt2)
    pieces = [table[i] for i in gpt2("🙂")["input_ids"]]
    assert len(pieces) > 1
    assert b"".join(pieces).decode() == "🙂"


def test_special_tokens_stand_for_their_own_text(gpt2):
    assert vocabulary_bytes(gpt2)[gpt2.eos_token_id] == gpt2.eos_token.encode()


def test_sentencepiece_tokens_join_to_the_text_behind_one_space(data_dir):
    tokenizer = T5Tokenizer.from_pretrained(str(data_dir / "t5"))
    table = vocabulary_bytes(tokenizer)
    token_ids = tokenizer("If 3 cats run", add_special_tokens=False)["input_ids"]
    assert b"".join(table[i] for i in token_ids) == b" If 3 cats run"
