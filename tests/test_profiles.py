"""Profiles: overrides are typed and checked, and a wrong one says what is allowed."""

import dataclasses
import pickle

import pytest

from cotspec import profiles


def test_every_named_profile_resolves():
    for name in profiles.PROFILES:
        assert profiles.resolve(name).name == name


def test_default_profile_exists():
    assert profiles.DEFAULT_PROFILE in profiles.PROFILES


@pytest.mark.parametrize(
    ("dotted", "text", "value"),
    [
        ("training.learning_rate", "1e-3", 1e-3),
        ("training.max_steps", "none", None),
        ("training.max_steps", "7", 7),
        ("filtering.drop_duplicates", "true", True),
        ("formats.data_formats", "zero_shot_answer_only", ("zero_shot_answer_only",)),
        ("student.model", "/tmp/model", "/tmp/model"),
        ("experiments.seeds", "[0, 1]", (0, 1)),
        ("experiments.seeds", "(0, 1)", (0, 1)),
        ("experiments.seeds", "0,1", (0, 1)),
        ("teacher.study_temperatures", "(0.0, 0.7)", (0.0, 0.7)),
        ("experiments.students", "['micro-base']", ("micro-base",)),
        ("experiments.students", "", ()),
    ],
)
def test_a_string_from_the_shell_becomes_the_fields_type(dotted, text, value):
    section, name = dotted.split(".")
    changed = profiles.resolve("smoke", {dotted: text})
    assert getattr(getattr(changed, section), name) == value


def test_an_override_leaves_the_named_profile_alone():
    before = profiles.PROFILES["smoke"].training.learning_rate
    profiles.resolve("smoke", {"training.learning_rate": before * 2})
    assert profiles.PROFILES["smoke"].training.learning_rate == before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"training.learning_rat": 1}, ["training.learning_rat", "learning_rate"]),
        ({"trainin.learning_rate": 1}, ["trainin", "training"]),
        ({"training.learning_rate": "fast"}, ["learning_rate", "'fast'", "number"]),
        ({"training.learning_rate": -1.0}, ["learning_rate", "-1.0", "greater than 0"]),
        ({"training.max_steps": 2.5}, ["max_steps", "2.5"]),
        ({"loss.tail": "head"}, ["loss.tail", "'head'", "bucket"]),
        ({"formats.data_formats": "cot"}, ["data_formats", "'cot'", "zero_shot"]),
        ({"filtering.drop_duplicates": "maybe"}, ["drop_duplicates", "'maybe'"]),
        (
            {"teacher.temperature": -3},
            ["teacher.temperature", "-3", "greater than or equal to 0"],
        ),
        ({"teacher.temperature": "nan"}, ["teacher.temperature", "nan", "finite"]),
        (
            {"teacher.study_temperatures": (0.5, 11)},
            ["study_temperatures", "11", "equal to 10"],
        ),
        ({"evaluation.confidence": 7}, ["confidence", "7", "less than 1"]),
        ({"evaluation.confidence": 1}, ["confidence", "1", "less than 1"]),
        (
            {"filtering.duplicate_similarity": 5},
            ["duplicate_similarity", "5", "less than or equal to 1"],
        ),
        (
            {"filtering.duplicate_similarity": 0},
            ["duplicate_similarity", "0", "greater than 0"],
        ),
        (
            {"loss.cross_entropy_weight": 1.5},
            ["cross_entropy_weight", "1.5", "equal to 1"],
        ),
        ({"training.weight_decay": -0.1}, ["weight_decay", "-0.1", "equal to 0"]),
        ({"training.warmup_steps": -1}, ["warmup_steps", "-1", "equal to 0"]),
        ({"experiments.seeds": []}, ["experiments.seeds", "at least 1 item"]),
        ({"experiments.seeds": (0, -1)}, ["experiments.seeds", "-1", "equal to 0"]),
        (
            {"experiments.students": "micro-smal,micro-base"},
            ["experiments.students", "'micro-smal'", "micro-small", "micro-xl"],
        ),
        ({"experiments.raw_students": "micro-xxl"}, ["raw_students", "'micro-xxl'"]),
        ({"student.model": "micro-teacher"}, ["student.model", "'micro-teacher'"]),
        ({"loss.tail": "buckt"}, ["loss.tail", "did you mean 'bucket'"]),
        ([], ["OVERRIDES", "[]", "a dict"]),
        ({1: 2}, ["1", "unknown section"]),
        (
            {"training.max_steps": 0, "training.batch_tokens": "x"},
            ["training.max_steps", "training.batch_tokens"],
        ),
        ({"training.max_steps": "inf"}, ["training.max_steps", "'inf'"]),
    ],
)
def test_a_wrong_override_names_field_value_and_what_is_allowed(overrides, words):
    with pytest.raises(ValueError) as error:
        profiles.resolve("smoke", overrides)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "overrides",
    [
        {"teacher.temperature": 0},
        {"teacher.temperature": 10},
        {"filtering.duplicate_similarity": 1},
        {"loss.cross_entropy_weight": 1},
        {"training.warmup_steps": 0},
        {"experiments.students": "micro-base,google/flan-t5-small,/tmp/micro-new"},
    ],
)
def test_values_at_the_limits_and_other_students_are_allowed(overrides):
    profiles.resolve("smoke", overrides)


def test_an_unknown_profile_lists_the_known_ones():
    with pytest.raises(ValueError, match="smok.*did you mean 'smoke'.*rehearsal"):
        profiles.resolve("smok")


def test_profiles_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        profiles.PROFILES["smoke"].training.learning_rate = 1.0


def test_as_dict_round_trips_through_overrides():
    profile = profiles.resolve("rehearsal")
    flat = {
        f"{section}.{field}": value
        for section, fields in profiles.as_dict(profile).items()
        for field, value in fields.items()
    }
    assert profiles.resolve("rehearsal", flat) == profile


@pytest.mark.parametrize("url", ["http://user:pw@host/v1", "http://h/v1?key=pw", "pw"])
def test_an_address_with_a_secret_is_refused_without_showing_it(url):
    with pytest.raises(ValueError, match="teacher.base_urls") as error:
        profiles.resolve("smoke", {"teacher.base_urls": [url]})
    assert "pw" not in str(error.value)


def test_sections_can_be_hashed_copied_and_sent_to_other_processes():
    section = profiles.PROFILES["micro"].training
    assert pickle.loads(pickle.dumps(section)) == section
    assert hash(dataclasses.replace(section, max_steps=7)) != hash(section)
    with pytest.raises(ValueError, match="max_steps"):
        dataclasses.replace(section, max_steps=-7)
