"""Where a solution ends."""

import pytest

from cotspec.prompts import find_end
from cotspec.teacher.traces import cut_tokens, valid_length


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (b"1 + 1 = 2. The answer is 2.\n", b"1 + 1 = 2. The answer is 2."),
        (b"The answer is $3.50. Q:", b"The answer is $3.50."),
        (b"the answer is Yes.\n\nQ: More", b"the answer is Yes."),
        (b"The answer is 7\nQ: More", b"The answer is 7"),
        (b"The answer is:\n\n**18**\nSo", b"The answer is:\n\n**18**"),
        (b"The answer is approx. 18 eggs. So", b"The answer is approx. 18 eggs."),
        (b"The answer is 18 U.S. dollars. So", b"The answer is 18 U.S. dollars."),
        (b"The answer is B. So", b"The answer is B."),
        (b"The answer is. The answer is 18.\n", b"The answer is. The answer is 18."),
        ("The answer is –3. So".encode(), "The answer is –3.".encode()),
        (b"The answer is (B).\n", b"The answer is (B)."),
        (b"No idea.\n\nQ: More", b"No idea."),
        (b"No idea.\nQ: More", b"No idea."),
    ],
)
def test_a_solution_ends_behind_its_answer_or_before_the_next_question(text, end):
    assert text[: find_end(text)] == end


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"1 + 1 = 2.\n",
        b"The answer is 3.",
        b"The answer is 3.5",
        b"FAQ: no\n",
        b"The answer is:\n\n",
        b"The answer is approx. ",
        b"The answer is the U.S. ",
        b"what the answer is. 9\n",
    ],
)
def test_a_solution_goes_on_until_what_follows_decides(text):
    assert find_end(text) is None


def test_a_completion_ends_at_the_first_byte_that_is_not_text():
    assert valid_length("né".encode(), 3) == 3
    assert valid_length("né".encode()[:2], 2) == 1
    assert valid_length(b"a\xffb", 3) == 1


def test_a_token_across_the_cut_keeps_its_first_bytes():
    assert cut_tokens([b"is", b" 3", b".\n\n"], 5) == [b"is", b" 3", b"."]
    assert cut_tokens([b"is", b" 3", b".\n\n"], 4) == [b"is", b" 3"]
