"""Where a solution ends."""

import json
from pathlib import Path

import pytest

from cotspec.prompts import find_end
from cotspec.teacher.traces import cut_tokens, valid_length

CASES = json.loads(Path(__file__).with_name("answer_cases.json").read_text("utf-8"))


@pytest.mark.parametrize(("text", "end"), CASES["ends"])
def test_a_solution_ends_behind_its_answer_or_before_the_next_question(text, end):
    assert text.encode()[: find_end(text.encode())] == end.encode()


@pytest.mark.parametrize("text", CASES["goes on"])
def test_a_solution_goes_on_until_what_follows_decides(text):
    assert find_end(text.encode()) is None


def test_a_completion_ends_at_the_first_byte_that_is_not_text():
    assert valid_length("né".encode(), 3) == 3
    assert valid_length("né".encode()[:2], 2) == 1
    assert valid_length(b"a\xffb", 3) == 1


def test_a_token_across_the_cut_keeps_its_first_bytes():
    assert cut_tokens([b"is", b" 3", b".\n\n"], 5) == [b"is", b" 3", b"."]
    assert cut_tokens([b"is", b" 3", b".\n\n"], 4) == [b"is", b" 3"]
