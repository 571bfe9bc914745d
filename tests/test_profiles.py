"""Profiles: overrides are typed and checked, and a wrong one says what is allowed."""

import copy
import dataclasses
import pickle
import traceback
from operator import attrgetter

import pytest

from cotspec import profiles, tasks
from cotspec.micro import shipped


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_a_named_profile_resolves_to_itself_and_passes_its_own_checks(name):
    profile = profiles.resolve(name)
    assert profile.name == name
    flat = {
        f"{section}.{field}": value
        for section, fields in profiles.as_dict(profile).items()
        for field, value in fields.items()
    }
    assert profiles.resolve(name, flat) == profile


def test_shipped_students_and_micro_tasks_are_those_that_a_profile_may_name():
    sizes = tuple(f"micro-{size}" for size in shipped.MICRO_SIZES)
    assert sizes == profiles.MICRO_STUDENTS
    assert {*profiles.MICRO_MATH, *profiles.MICRO_GENERIC} == set(tasks.MICRO_TASKS)


URLS = "http://[::1]:80/v1,https://b"


@pytest.mark.parametrize(
    ("dotted", "given", "value"),
    [
        ("training.learning_rate", "1e-3", 1e-3),
        ("training.learning_rate", 1, 1.0),
        ("training.max_steps", "none", None),
        ("training.max_steps", "7", 7),
        ("training.max_steps", 7.0, 7),
        ("filtering.drop_duplicates", "true", True),
        ("student.model", "/tmp/model", "/tmp/model"),
        ("student.model", "7", "7"),
        ("teacher.path", "None", None),
        ("formats.data_formats", "zero_shot_answer_only", ("zero_shot_answer_only",)),
        ("data.generic_tasks", "bbh", profiles.BBH_TASKS),
        ("experiments.seeds", "0,1", (0, 1)),
        ("experiments.seeds", "[0, 1]", (0, 1)),
        ("experiments.seeds", [0, 1], (0, 1)),
        ("experiments.raw_students", "", ()),
        ("experiments.students", "['micro-xl', 'a/b']", ("micro-xl", "a/b")),
        ("experiments.students", "a/b,/tmp/micro-new", ("a/b", "/tmp/micro-new")),
        # Values at the limits.
        ("teacher.temperature", 0, 0.0),
        ("teacher.temperature", 10, 10.0),
        ("filtering.duplicate_similarity", 1, 1.0),
        ("loss.cross_entropy_weight", 1, 1.0),
        ("training.warmup_steps", 0, 0),
        ("teacher.study_temperatures", "(0.0, 0.7, 2.0)", (0.0, 0.7, 2.0)),
        ("teacher.base_urls", URLS, tuple(URLS.split(","))),
    ],
)
def test_text_and_python_values_become_the_fields_type(dotted, given, value):
    found = attrgetter(dotted)(profiles.resolve("smoke", {dotted: given}))
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("dotted", "given", "words"),
    [
        ("training.learning_rat", 1, ["unknown field", "did you mean 'learning_rate'"]),
        ("trainin.learning_rate", 1, ["unknown section", "did you mean 'training'"]),
        ("training", 1, ["unknown field", "learning_rate"]),
        (1, 2, ["1", "unknown section"]),
        ("training.learning_rate", "fast", ["'fast'", "valid number"]),
        ("training.learning_rate", -1.0, ["-1.0", "greater than 0"]),
        ("training.learning_rate", float("inf"), ["inf", "finite"]),
        ("training.max_steps", 2.5, ["2.5", "integer"]),
        ("training.max_steps", "inf", ["'inf'", "integer"]),
        ("training.max_steps", [1], ["[1]", "integer"]),
        ("training.weight_decay", -0.1, ["-0.1", "equal to 0"]),
        ("training.warmup_steps", -1, ["-1", "equal to 0"]),
        ("training.num_checkpoints", 0, ["0", "greater than 0"]),
        ("loss.tail", "head", ["'head'", "'bucket', 'renormalized' or 'paper'"]),
        ("loss.cross_entropy_weight", 1.5, ["1.5", "equal to 1"]),
        ("formats.data_formats", "cot", ["'cot'", "zero_shot_answer_only"]),
        ("formats.data_formats", [], ["[]", "at least 1"]),
        ("evaluation.generic_prompt_modes", "x", ["'x'", "'answer_only'"]),
        ("filtering.drop_duplicates", "maybe", ["'maybe'", "boolean"]),
        ("filtering.duplicate_similarity", 0, ["0", "greater than 0"]),
        ("teacher.temperature", -3, ["-3", "equal to 0"]),
        ("teacher.temperature", "nan", ["nan", "finite"]),
        ("teacher.temperature", "1e-320", ["1e-320", "0 (greedy), or 0.001 to 10"]),
        ("teacher.study_temperatures", (0.5, 11), ["11", "equal to 10"]),
        ("teacher.base_urls", "localhost:8000", ["http(s)://host/v1"]),
        ("evaluation.confidence", 1, ["1", "less than 1"]),
        ("experiments.seeds", [], ["[]", "at least 1"]),
        ("experiments.seeds", (0, -1), ["-1", "equal to 0"]),
        ("experiments.students", "micro-smal,b", ["'micro-smal'", "micro-xl"]),
        ("student.model", "micro-teacher", ["'micro-teacher'", "micro-small"]),
        ("student.model", "", ["''", "at least 1 character"]),
        # What would count twice, or reach no one.
        ("experiments.seeds", "0,0", ["names 0 twice"]),
        ("experiments.seeds", [2**32], ["less than or equal"]),
        ("experiments.students", "b,micro-xl,b", ["names 'b' twice"]),
        ("teacher.num_demonstrations", 5, ["equal to 4"]),
        ("teacher.study_temperatures", "1,1.0", ["names 1.0 twice"]),
        ("teacher.study_temperatures", "", ["at least 1 item"]),
        ("data.generic_tasks", "bbh,bbh/snarks", ["names 'bbh/snarks' twice"]),
        ("data.out_of_distribution_tasks", "micro/math", ["names 'micro/math' twice"]),
        ("training.max_steps", 10**400, ["less than or equal"]),
        ("training.num_epochs", 1e300, ["1e+300", "less than or equal"]),
        ("training.learning_rate", 1e12, ["less than or equal to 1"]),
        ("training.weight_decay", 1e300, ["less than or equal to 1"]),
        # What only a late notebook would meet.
        ("training.warmup_steps", 37, ["37 of 36. Allowed: 0 to 36"]),
        ("evaluation.math_prompt_modes", "zero_shot_answer_only", ["in_context_ch"]),
        ("evaluation.generic_prompt_modes", "answer_only", ["too: chain_of_thought"]),
        ("training.batch_tokens", 607, ["607. Allowed: from 608"]),
        ("evaluation.max_input_tokens", 1, ["equal to 64"]),
        # What would be asked of the memory, or started, for each.
        ("teacher.max_new_tokens", 2**32 - 1, ["less than or equal to 32768"]),
        ("teacher.num_samples", 10**6, ["less than or equal to 1024"]),
        *(
            (field, value, ["neither a number nor a text"])
            for value in (True, [False], "[True]")
            for field in ("experiments.seeds", "experiments.students")
        ),
        ("student.model", True, ["neither a number nor a text"]),
        ("student.model", 7, ["7", "valid string"]),
        ("training.max_steps", True, ["neither a number nor a text"]),
        ("teacher.path", False, ["neither a number nor a text"]),
        ("evaluation.num_samples", 3, ["num_samples 3 at temperature 0. Allowed"]),
        ("teacher.base_urls", "http://h:port/v1", ["Port"]),
        ("teacher.base_urls", "http://a b/v1", ["not an address"]),
        ("data.generic_tasks", "bbh/snark", ["'bbh/snarks'"]),
        ("data.generic_tasks", "svamp", ["svamp", "bbh/snarks"]),  # not text
        ("data.out_of_distribution_tasks", "micro/navigate", ["micro/asdiv"]),
        ("data.generic_tasks", "", ["at least 1 item"]),  # lessons show the first
        ("data.out_of_distribution_tasks", (), ["at least 1 item"]),
        ("data.train_task", "svamp", ["'gsm8k', 'micro/math'"]),  # nothing to train on
    ],
)
def test_a_wrong_override_names_field_value_and_what_is_allowed(dotted, given, words):
    with pytest.raises(ValueError) as error:
        profiles.resolve("smoke", {dotted: given})
    message = str(error.value)
    assert all(word in message for word in words), message
    assert str(dotted) in message or " twice" in message  # of several fields
    assert "\n" not in message


def test_only_a_shipped_student_is_its_own_raw_start():
    fields = "experiments.students", "experiments.raw_students"
    with pytest.raises(ValueError, match="raw_students: 'b' is in students, too"):
        profiles.resolve("smoke", dict.fromkeys(fields, "micro-xl,b"))


def test_several_faults_are_all_named():
    wrong = {"training.max_steps": "x", "loss.tail": "y", "data.nothing": 1}
    with pytest.raises(ValueError) as error:
        profiles.resolve("smoke", wrong)
    assert all(field in str(error.value) for field in wrong)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@host/v1",
        "user:hunter2@host",
        "https://host/v1?key=hunter2",
        "http://user:pass/hunter2@host",
    ],
)
def test_a_password_in_an_address_is_refused_and_written_nowhere(url):
    with pytest.raises(ValueError) as error:
        profiles.resolve("smoke", {"teacher.base_urls": url})
    assert "OPENAI_API_KEY" in str(error.value)
    assert "hunter2" not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("smoke", [1], r"OVERRIDES: .*Allowed: a dict"),
        ("smoke", "training.max_steps=1", r"OVERRIDES: .*Allowed: a dict"),
        ("smok", None, "smok.*did you mean 'smoke'.*smollm2"),
    ],
)
def test_an_unknown_profile_and_overrides_that_are_no_dict(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        profiles.resolve(name, overrides)


def test_sets_need_an_equals_sign():
    assert profiles.parse_sets(["a.b = c=d"]) == {"a.b": "c=d"}
    with pytest.raises(ValueError, match=r"'a\.b'.*section\.field=value"):
        profiles.parse_sets(["a.b"])


def test_sections_are_frozen_dataclasses_that_copy_pickle_and_hash():
    profile = profiles.PROFILES["smoke"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.training.learning_rate = 1.0
    for twin in (pickle.loads(pickle.dumps(profile)), copy.deepcopy(profile)):
        assert twin == profile and hash(twin) == hash(profile)
    changed = dataclasses.replace(profile.loss, tail="paper")
    assert dataclasses.asdict(changed)["tail"] == "paper" != profile.loss.tail
    with pytest.raises(ValueError, match="tail"):
        dataclasses.replace(profile.loss, tail="head")
