"""The shipped models: whole, checked, small, and made again by one command."""

import shutil

import pytest
import torch
from scipy.stats import fisher_exact

from cotspec import evaluation, models, prompts, tasks
from cotspec.micro import build, shipped
from cotspec.micro.shipped import MICRO_SIZES, MICRO_STARTS
from cotspec.profiles import NUM_BASES, EvaluationConfig, StudentConfig, TeacherConfig


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A copy of the shipped folder that a test may damage; it is loaded from."""
    folder = shutil.copytree(shipped.FOLDER, tmp_path / "weights")
    monkeypatch.setattr(shipped, "FOLDER", folder)
    return folder


def test_all_weights_together_are_at_most_30_megabytes():
    files = [shipped.FOLDER / f"{name}.safetensors" for name in shipped.names()]
    assert sum(file.stat().st_size for file in files) <= 30e6


@pytest.mark.parametrize("start", MICRO_STARTS)
def test_students_load_by_name_and_are_about_a_factor_three_apart(start):
    sizes = [
        models.load_student(StudentConfig(f"micro-{size}", start=start)).size
        for size in list(MICRO_SIZES)[: 4 if start == "instruction_tuned" else 3]
    ]
    assert all(2.5 < b / a < 3.5 for a, b in zip(sizes, sizes[1:], strict=False))


def test_a_seed_chooses_its_base_and_seeds_as_many_apart_share_it():
    config = StudentConfig("micro-small")
    weights = [
        models.load_student(config, seed=seed).model.get_input_embeddings().weight
        for seed in (0, 1, NUM_BASES)
    ]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])
    assert models.base_seed(config, NUM_BASES) == models.base_seed(config, 0) == 0


def test_the_model_card_says_what_the_weights_can_do():
    rows = (shipped.FOLDER / "MODEL_CARD.md").read_text().splitlines()
    base = "| micro-small | instruction_tuned | 4 | 40,096 | "
    (stated,) = (row.removeprefix(base) for row in rows if row.startswith(base))
    student = models.load_student(StudentConfig("micro-small"), seed=4)
    assert stated.startswith(f"{num_right(student) / 200:.1%} [")


def test_loading_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    models.load_student(StudentConfig("micro-small"))
    models.load_teacher(TeacherConfig("huggingface", models.MICRO_TEACHER))
    assert torch.equal(before, torch.get_rng_state())


def test_changed_or_missing_weights_are_refused_and_say_how_to_get_them(weights):
    path = weights / "small-raw-0.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (weights / "teacher.safetensors").unlink()
    for name in ("small-raw-0", "teacher"):
        with pytest.raises(ValueError, match=f"{name}.*Reinstall.*micro build"):
            shipped.load(name)
    shipped.load_student("small", "instruction_tuned")


@pytest.mark.parametrize(
    "size, start, message",
    [
        ("huge", "raw", "no shipped student.*Allowed: micro-small, micro-base"),
        ("xl", "raw", "start: 'raw' of 'micro-xl'. Allowed: instruction_tuned"),
    ],
)
def test_an_unknown_student_is_named_with_what_is_allowed(size, start, message):
    with pytest.raises(ValueError, match=message):
        models.load_student(StudentConfig(f"micro-{size}", start=start))


def num_right(student):
    task = "micro/math"
    problems = tasks.load(task, "validation").select(range(200))
    found = evaluation.evaluate(
        student,
        {task: prompts.TaskPrompts(problems, tasks.demonstrations(task))},
        {task: ("in_context_chain_of_thought",)},
        EvaluationConfig(num_demonstrations=1, precision="float32"),
        checkpoint="",
    )
    return sum(found["is_correct"])


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_smallest_student_built_again_is_as_good_as_the_shipped_one(tmp_path):
    folder = build.make("small-instruction_tuned-0", tmp_path)
    again = models.load_student(StudentConfig(str(folder)))
    as_shipped = models.load_student(StudentConfig("micro-small"))
    right = [num_right(student) for student in (again, as_shipped)]
    assert min(right) > 0
    assert fisher_exact([[n, 200 - n] for n in right]).pvalue > 0.01
