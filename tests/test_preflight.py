"""The preflight lists everything that is missing, with a remedy each."""

import dataclasses

import pytest

from cotspec import preflight, profiles
from cotspec.micro import shipped


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("cotspec.tasks.hub.is_reachable", lambda: False)
    monkeypatch.delenv("COTSPEC_DATA", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def problem(tmp_path, name, **overrides):
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    with pytest.raises(ValueError) as error:
        preflight.check([profiles.resolve(name, dotted)], tmp_path)
    return str(error.value)


def test_smoke_needs_nothing(tmp_path):
    preflight.check([profiles.resolve("smoke")], tmp_path)


def test_real_data_without_hub_or_folder_says_what_to_set(tmp_path):
    assert "set COTSPEC_DATA" in problem(tmp_path, "rehearsal")


def test_an_empty_data_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("COTSPEC_DATA", str(tmp_path))
    message = problem(tmp_path, "rehearsal")
    assert "gsm8k" in message and str(tmp_path) in message


def test_hub_models_without_hub_say_what_to_set(tmp_path):
    message = problem(tmp_path, "flan-t5-base")
    assert "--set student.model=/path/to/model" in message
    assert "OPENAI_API_KEY" in message and "COTSPEC_DATA" in message


def test_a_local_student_without_an_encoder_is_refused_before_any_work(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    message = problem(tmp_path, "smoke", student__model=str(tmp_path))
    assert "student.model" in message and "has no encoder" in message


def test_recorded_traces_must_exist(tmp_path):
    message = problem(
        tmp_path, "smoke", teacher__backend="recorded", teacher__path="/nowhere"
    )
    assert "'/nowhere' does not exist" in message


def test_a_full_disk_is_noticed(tmp_path, monkeypatch):
    usage = dataclasses.make_dataclass("Usage", ["free"])(free=2**20)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)
    assert "COTSPEC_RUNS" in problem(tmp_path, "smoke")


def test_models_that_are_not_packed_say_how_to_make_them(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    assert "cotspec.micro build" in problem(tmp_path, "micro")
