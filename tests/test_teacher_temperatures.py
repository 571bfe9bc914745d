"""The study of temperatures, on a tiny model and on literal votes."""

import dataclasses

import pytest
from datasets import Dataset
from test_teacher_huggingface import problems, tiny_teacher

from cotspec.profiles import TeacherConfig
from cotspec.teacher import temperatures
from cotspec.teacher.huggingface import HuggingFaceBackend

CONFIG = TeacherConfig(
    backend="huggingface",
    study_temperatures=(0.0, 1.0),
    study_questions=2,
    study_samples=3,
)


@pytest.fixture(scope="module")
def study():
    backend = HuggingFaceBackend(tiny_teacher(), 6, max_new_tokens=12)
    return temperatures.sample_study(problems(), backend, CONFIG, seed=0)


def test_questions_are_spread_and_sampled_at_each_temperature(study):
    assert study["temperature"] == [0.0] * 6 + [1.0] * 6
    assert study["problem_id"] == (["p/0"] * 3 + ["p/2"] * 3) * 2
    assert "is_correct" in study.column_names


def test_greedy_samples_do_not_differ_and_warm_ones_do(study):
    table = temperatures.summarize(study)
    different = table[table["measure"] == "different texts"].set_index("temperature")
    assert different["value"].tolist() == [pytest.approx(1 / 3), 1.0]


def test_a_second_call_samples_nothing(tmp_path):
    backend = HuggingFaceBackend(tiny_teacher(), 6, max_new_tokens=6)
    options = {"seed": 0, "store": tmp_path}
    first = temperatures.sample_study(problems(), backend, CONFIG, **options)
    broken = dataclasses.replace(backend.teacher, model=None)
    again = HuggingFaceBackend(broken, 6, max_new_tokens=6)
    second = temperatures.sample_study(problems(), again, CONFIG, **options)
    assert second.to_dict() == first.to_dict()


class Recorded:
    """A backend without a solution; `asked` are the temperatures it was asked for."""

    model, max_new_tokens, top_k = "recorded", 12, 5

    def __init__(self):
        self.asked = []

    def complete(self, requests, options, missing, folder=None):
        self.asked.append(options.temperature)
        yield []


def test_recorded_solutions_have_the_temperature_they_were_drawn_at():
    source, config = Recorded(), dataclasses.replace(CONFIG, backend="recorded")
    temperatures.sample_study(problems(), source, config, seed=0)
    assert source.asked == [config.temperature]


def test_no_temperature_is_an_error():
    config = dataclasses.replace(CONFIG, study_temperatures=())
    with pytest.raises(ValueError, match=r"teacher.study_temperatures: \(\)"):
        temperatures.sample_study(problems(), None, config, seed=0)


def marked(*rows) -> Dataset:
    names = ("temperature", "problem_id", "completion", "predicted_answer")
    made = [dict(zip(names, row, strict=True)) for row in rows]
    for row in made:
        row |= {"answer": "5", "is_correct": row["predicted_answer"] == "5"}
    return Dataset.from_list(made)


def test_accuracy_and_diversity_of_literal_votes():
    table = temperatures.summarize(
        marked(
            (0.5, "a", "x 5", "5"),
            (0.5, "a", "x  5", "5"),
            (0.5, "a", "y", "4"),
            (0.5, "b", "z", "1"),
            (0.5, "b", "w", "5"),
            (0.5, "b", "v", "1"),
        )
    )
    value = table.set_index("measure")["value"]
    assert value["one sample"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert value["majority of 3"] == 0.5
    assert value["any of 3"] == 1
    assert value["different texts"] == pytest.approx((2 / 3 + 1) / 2)
    assert value["different answers"] == pytest.approx(2 / 3)
    assert (table["ci_low"] <= table["value"]).all()
