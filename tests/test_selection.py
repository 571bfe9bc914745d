"""Which problems a run uses: drawn once with a seed, roles kept apart."""

import pytest
from conftest import REPOSITORY

from cotspec import profiles, selection, stages, tasks

DATA = profiles.resolve("smoke").data


@pytest.fixture(scope="module")
def problems():
    return selection.select_problems(DATA, seed=0)


def test_counts_are_those_of_the_profile(problems):
    counts = problems.to_pandas().groupby(["task", "split"]).size()
    assert counts["micro/math", "train"] == DATA.num_train
    assert counts["micro/math", "validation"] == DATA.num_validation
    assert counts["micro/svamp", "test"] == DATA.num_test_math
    assert counts["micro/last_letters", "test"] == DATA.num_test_generic
    assert len(set(problems["problem_id"])) == len(problems)


def test_real_sets_have_the_validation_problems_of_notebook_07(data_dir, monkeypatch):
    monkeypatch.setenv("COTSPEC_DATA", str(data_dir))
    data = profiles.resolve("smollm2").data
    frame = selection.select_problems(data, seed=0).to_pandas()
    found = set(frame.loc[frame["split"] == "validation", "task"])
    assert found == set(selection.validation_tasks(data)) == {"gsm8k", "multiarith"}
    notebook = REPOSITORY / "notebooks/07_ability_tradeoff.ipynb"
    code = "\n".join(stages.load_notebook(notebook).code)
    assert 'Measurement("validation", validated,' in code


def test_the_same_seed_draws_the_same_problems_and_another_seed_others(problems):
    again = selection.select_problems(DATA, seed=0)
    other = selection.select_problems(DATA, seed=1)
    assert again["problem_id"][:] == problems["problem_id"][:]
    assert other["problem_id"][:] != problems["problem_id"][:]


def test_math_tasks_share_the_training_tasks_demonstrations(problems):
    table = selection.select_demonstrations(DATA)
    asked = selection.prompts_by_task(table, problems)
    shown = {task: its.demonstrations for task, its in asked.items()}
    assert shown["micro/svamp"] == shown["micro/math"]
    assert shown["micro/last_letters"] == tasks.demonstrations("micro/last_letters")


def test_every_task_has_its_prompt_modes(problems):
    config = profiles.resolve("smoke").evaluation
    modes = selection.prompt_modes_by_task(DATA, config)
    assert set(modes) == set(problems["task"])
    assert modes["micro/svamp"] == config.math_prompt_modes
    assert modes["micro/last_letters"] == config.generic_prompt_modes


def test_splitting_by_task_keeps_every_row_in_order(problems):
    parts = selection.split_by_task(problems)
    assert sum(map(len, parts.values())) == len(problems)
    assert set(parts["micro/asdiv"]["task"]) == {"micro/asdiv"}
