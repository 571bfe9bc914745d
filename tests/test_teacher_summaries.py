"""Solutions in numbers."""

import dataclasses

import numpy as np
import pytest
from test_teacher_store import completion

from cotspec.teacher import studies
from cotspec.teacher.traces import as_dataset, as_row


def traces(*completions):
    problem = {"problem_id": "p/0", "task": "gsm8k", "question": "?", "answer": "3"}
    return as_dataset(as_row(problem, i, made) for i, made in enumerate(completions))


@pytest.mark.parametrize("at_once", [1, 2, 1024])
def test_solutions_are_counted_token_by_token(monkeypatch, at_once):
    monkeypatch.setattr(studies, "_AT_ONCE", at_once)
    two = dataclasses.replace(
        completion("né"),
        token_logprobs=[-1.0, -0.5, -0.75],
        topk_logprobs=[[-1.0, -2.0], [-0.5], [-0.75, -1.5]],
        finish_reason="length",
    )
    table = studies.summarize_solutions(traces(two, completion(""), completion("3")))
    assert table["tokens"].tolist() == [3, 0, 1]
    assert table["finish_reason"].tolist() == ["length", "stop", "stop"]
    assert table["task"].tolist() == ["gsm8k"] * 3
    probability = table["probability_per_token"]
    assert probability[0] == pytest.approx(np.exp(-0.75)) and probability[2] == 1
    assert np.isnan(probability[1]) and np.isnan(table["top_five_mass"][1])
    mass = [np.exp(-1) + np.exp(-2), np.exp(-0.5), np.exp(-0.75) + np.exp(-1.5)]
    assert table["top_five_mass"][0] == pytest.approx(np.mean(mass))
    assert table["most_mass"][0] == pytest.approx(max(mass))
    assert table["is_whole"].all()


def test_a_solution_is_whole_if_its_bytes_are_its_text_and_no_step_is_missing():
    good = completion("né 3.")
    other_text = dataclasses.replace(good, text="ne 3.")
    missing = dataclasses.replace(good, topk_ids=good.topk_ids[1:])
    table = studies.summarize_solutions(traces(good, other_text, missing))
    assert table["is_whole"].tolist() == [True, False, False]
