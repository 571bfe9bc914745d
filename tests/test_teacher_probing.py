"""A server is refused before the run, with a sentence that says what it lacks."""

import dataclasses
import math

import pytest

from cotspec.teacher.connection import ServerError
from cotspec.teacher.probing import check, check_temperature
from cotspec.teacher.traces import Completion

GOOD = Completion(
    text="4 + 1",
    token_ids=[-1, -1],
    token_bytes=[b"4", b" + 1"],
    token_logprobs=[math.log(0.6), math.log(0.2)],
    topk_ids=[[-1, -1], [-1]],
    topk_bytes=[[b"4", b"If"], [b" - 1"]],
    topk_logprobs=[[math.log(0.6), math.log(0.3)], [math.log(0.7)]],
    finish_reason="length",
)


def test_a_token_may_lack_an_alternative_where_two_have_one_text():
    check(GOOD, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "4 + 2"}, r"\[b'4', b' \+ 1'\] … do not join to its text '4 \+ 2'"),
        ({"text": "", "token_bytes": []}, "returns no tokens"),
        ({"topk_logprobs": [[-1.0], [-1.0]]}, "at most 1 alternatives a token, asked"),
        ({"topk_logprobs": [[-1.0, -2.0], []]}, "at most 2 alternatives"),
        ({"topk_logprobs": [[0.6, 0.3], [0.7]]}, "at token 0 sum to 3.172"),
        ({"token_logprobs": [0.6, 0.2]}, "they are no log-probabilities"),
    ],
)
def test_what_a_reply_lacks_is_named(changes, message):
    with pytest.raises(ServerError, match=message):
        check(dataclasses.replace(GOOD, **changes), 2)


def test_logprobs_must_not_follow_the_temperature():
    squared = [0.36 / 0.45, 0.09 / 0.45]  # 0.6 and 0.3 at temperature 1/2
    cold = [[math.log(p) for p in squared], [0.0]]
    check_temperature(GOOD, GOOD)
    with pytest.raises(ServerError, match="differ by 0.41 nats between temperatures"):
        check_temperature(GOOD, dataclasses.replace(GOOD, topk_logprobs=cold))
