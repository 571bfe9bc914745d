"""The authors' released files: read without running anything, trimmed."""

import collections
import json
import os
import pickle
import random

import numpy as np
import psutil
import pytest
from test_malformed import damaged, outcome
from test_teacher_store import problems

from cotspec import teacher
from cotspec.profiles import TeacherConfig
from cotspec.teacher.release import as_completion, read_list, read_solution


def step(token: str, probability: float, *others: tuple[str, float]) -> list:
    return [(token, probability), *others, (token, probability)]


QUESTIONS = ["Question 0: a?\n", "Question 1: b?\n"]
SOLUTION = [
    step(" step", 1.0),
    step("\n", 0.98),
    step("2", 0.6, ("Two", 0.3), ("x", 0.0)),
    step(".", 0.9, (" and", 0.05)),
    step("\n", 0.9),
    step("\n", 0.9),
]


class Harmful:
    """Its pickle would run a command."""

    def __reduce__(self):
        return os.system, ("touch harmed",)


def write_release(folder, questions, solutions=(SOLUTION,)) -> None:
    steps = [list(solutions) for _ in dict.fromkeys(questions)]
    (folder / "codex_questions.pkl").write_bytes(pickle.dumps(questions))
    (folder / "codex_per_step_probs.pkl").write_bytes(pickle.dumps(steps))


CODE = [Harmful(), {"a": [Harmful()]}, print, np.float64(1), {1, 2}.__class__]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *[(pickle.dumps(content), "not allowed") for content in CODE],
        (b"\x80\x04}]K\x01s.", "unhashable"),  # TypeError
        (b"\x80\xff.", ""),  # ValueError without the file's name
        (b"I1x\n.", ""),  # ValueError: no number
        (b"\x80\x04\x8d" + b"\xff" * 8 + b".", ""),  # OverflowError: a text too long
        (b"h\x07.", ""),  # UnpicklingError: a memo that is not there
        (b"", ""),  # EOFError
        (pickle.dumps(["text"] * 9)[:-3], ""),  # torn
    ],
)
def test_a_pickle_with_code_or_damage_is_named(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad.pkl: .*{message}.*\. Allowed: lists"):
        list(read_list(path))
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_containers_are_read(tmp_path, protocol):
    content = [("a", 0.5), [1, None, True], {"k": collections.OrderedDict(b=2)}]
    path = tmp_path / "good.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    assert list(read_list(path)) == content
    # What is alone in a batch of 1,000, or deep, is told from the list's own items.
    lists, deep = tuple([i] for i in range(20)), []
    for _ in range(30):
        deep = [deep]
    for odd in ([lists], [[i] for i in range(1000)] + [lists], [deep] * 3 + [lists]):
        path.write_bytes(pickle.dumps(odd, protocol))
        assert list(read_list(path)) == odd


@pytest.fixture
def little_memory():
    """A damaged length asks for any amount of memory; it shall not get it."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = psutil.Process().memory_info().vms + 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_changed_bytes_load_or_name_the_file(little_memory, tmp_path):
    write_release(tmp_path, QUESTIONS, [SOLUTION] * 2)
    path, rng = tmp_path / "codex_per_step_probs.pkl", random.Random(0)
    content = path.read_bytes()
    for _ in range(300):
        path.write_bytes(damaged(content, rng))
        said = outcome(lambda: list(read_list(path)))
        assert said == "read" or (str(path) in said and "Allowed: lists" in said)


def test_the_prompts_and_the_stop_strings_tokens_are_trimmed():
    completion = read_solution(SOLUTION)
    assert completion.text == "2."
    assert completion.token_bytes == [b"2", b"."]
    assert completion.topk_bytes == [[b"2", b"Two"], [b".", b" and"]]
    assert np.exp(completion.topk_logprobs[0]) == pytest.approx([0.6, 0.3])
    assert completion.finish_reason == "stop"
    # Without trailing newlines it was cut off.
    assert read_solution(SOLUTION[:4]).finish_reason == "length"


def test_half_a_character_keeps_the_space_before_it():
    names = ["4", "8", "bytes: \\xc3", "bytes:\\x97", " 2"]
    assert read_solution([[(name, 0.5)] * 2 for name in names]).text == "48 × 2"


@pytest.mark.parametrize("probability", [2.0, float("nan"), -0.1])
def test_a_solution_with_an_impossible_probability_is_left_out(probability):
    for step in ([("a", 0.5), ("a", probability)], [("a", probability), ("a", 0.5)]):
        assert as_completion(lambda step=step: read_solution([step]), 5) is None


def draw(folder, questions, num_samples=1):
    config = TeacherConfig(backend="release", path=str(folder))
    options = {"num_samples": num_samples, "temperature": 0.5, "seed": 0}
    return teacher.sample(problems(questions), teacher.load_backend(config), **options)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("per_step_probs", [[SOLUTION]]),
        ("per_step_probs", {0: [], 1: []}),
        ("questions", [["a"], ["b"]]),
        ("questions", Harmful()),
        ("questions", None),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, file, content):
    write_release(tmp_path, QUESTIONS)
    path = tmp_path / f"codex_{file}.pkl"
    path.write_bytes(pickle.dumps(content)) if content else path.unlink()
    with pytest.raises(ValueError, match=f"{tmp_path}: not in the authors' form"):
        draw(tmp_path, ["a?"])


@pytest.mark.parametrize("steps", [[3], [[("a",)]], 3, [[]]])
def test_malformed_steps_cost_their_solution_alone(tmp_path, steps):
    write_release(tmp_path, QUESTIONS, [steps, SOLUTION])
    assert draw(tmp_path, ["a?"], num_samples=2)["sample_id"][:] == [1]


def test_a_question_listed_twice_shifts_nothing_and_a_changed_file_is_read(tmp_path):
    write_release(tmp_path, [*QUESTIONS, QUESTIONS[-1], "Question 2: c?\n"])
    (tmp_path / "codex_per_step_probs.pkl").write_bytes(
        pickle.dumps([[[*SOLUTION[:2], step(name, 0.5)]] for name in "abc"])
    )
    rows = draw(tmp_path, ["c?", "a?", "b?"])
    assert rows["completion"][:] == ["c", "a", "b"]
    assert rows["problem_id"][:] == ["p/0", "p/1", "p/2"]
    before = {row["completion"] for row in rows}
    write_release(tmp_path, QUESTIONS)
    assert draw(tmp_path, ["b?"])["completion"][0] == "2." not in before
    backend = teacher.load_backend(TeacherConfig(backend="release", path=str(tmp_path)))
    name = backend.model
    (tmp_path / "README.md").write_text("Others may lie beside them.")
    assert backend.model == name


def test_real_codex_solutions_join_to_their_text(data_dir):
    path = data_dir / "codex" / "per_step_probs_question0.json"
    read = [read_solution(steps) for steps in json.loads(path.read_text())]
    assert len(read) == 20
    for completion in read:
        assert b"".join(completion.token_bytes).decode() == completion.text
        assert completion.text.endswith("The answer is 72")
        assert completion.finish_reason == "stop"
        masses = [sum(np.exp(top)) for top in completion.topk_logprobs]
        assert 0 < min(masses) and max(masses) < 1 + 1e-3
