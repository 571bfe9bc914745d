"""The preflight lists everything that is missing, with a remedy each."""

import dataclasses
from pathlib import Path

import pytest
import torch
import transformers

from cotspec import grids, profiles, run, sizing, stages
from cotspec.micro import shipped

SERIES = stages.load_series(Path(__file__).resolve().parents[1])
GIB = 2**30


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("cotspec.tasks.sources.is_reachable", lambda: False)
    monkeypatch.setenv("COTSPEC_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COTSPEC_DATA", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def stages_of(name, only="", overrides=None):
    profile, chosen = (
        profiles.resolve(name, overrides),
        run.choose(SERIES, only or None, None),
    )
    return [(nb, profile) for nb in SERIES if nb.name in chosen]


def problem(*arguments):
    with pytest.raises(ValueError) as error:
        run.preflight(stages_of(*arguments))
    return str(error.value)


def test_smoke_needs_nothing():
    run.preflight(stages_of("smoke"))


def test_an_empty_data_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("COTSPEC_DATA", str(tmp_path))
    message = problem("smollm2")
    assert "gsm8k" in message and str(tmp_path) in message


def test_models_and_data_without_hub_say_what_to_set():
    assert "set COTSPEC_DATA" in problem("smollm2")
    message = problem("flan-t5-base")
    assert "--set student.model=/path/to/model" in message
    assert "OPENAI_API_KEY" in message and "COTSPEC_DATA" in message


def test_every_student_is_looked_at_not_only_the_profiles_own(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    local = {"student.model": str(tmp_path)}
    message = problem("flan-t5-base", "", local)
    assert "student.model" not in message
    for name in ("google/flan-t5-small", "google/flan-t5-base", "google/t5-v1_1-base"):
        assert f"{name!r} is no local folder" in message
    # Stages that train no other student need no other.
    run.preflight(stages_of("flan-t5-base", "03,04", local))


@pytest.mark.parametrize(
    ("name", "on_hub", "words"),
    [
        ("google/flan-t5-bas", False, "there is no such model on the Hugging Face"),
        ("google/flan-t5-base", True, ""),
        ("/no/where/model", True, "hub does not give it (Repo id must be"),
        ("a/gated", OSError("403 Client Error\nmore"), "give it (403 Client Error)"),
        ("a/slow", TimeoutError(), "give it (TimeoutError)"),
    ],
)
def test_a_students_name_is_looked_up_on_the_hub(monkeypatch, name, on_hub, words):
    def file_exists(repository, file):
        if isinstance(on_hub, OSError):
            raise on_hub
        return on_hub

    monkeypatch.setattr("huggingface_hub.file_exists", file_exists)
    said = run._not_on_hub(name, lambda: True)
    assert words in said and bool(words) == bool(said)


def test_a_model_in_the_hubs_cache_needs_no_hub(monkeypatch):
    cached = {"a/model": "/cache/config.json", "a/other": object()}  # known to lack it
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda name, file: cached[name]
    )
    assert not run._not_on_hub("a/model", lambda: False)
    assert "cannot be reached" in run._not_on_hub("a/other", lambda: False)


def test_a_path_that_leads_nowhere_is_refused_before_any_work():
    no_model = problem("smoke", "", {"student.model": "/"})
    assert "student.model: no config.json in /" in no_model
    recorded = {"teacher.backend": "recorded", "teacher.path": "/nowhere"}
    assert "'/nowhere' does not exist" in problem("smoke", "", recorded)
    assert "None does not exist" in problem("smoke", "", {"teacher.backend": "release"})
    for kind, path in (("recorded", "/"), ("release", __file__)):
        given = {"teacher.backend": kind, "teacher.path": path}
        assert f"{path!r} does not exist as a f" in problem("smoke", "", given)


def test_frozen_layers_of_a_student_with_an_encoder_are_refused_before_any_work():
    message = problem("smoke", "", {"training.num_frozen_layers": 1})
    assert "num_frozen_layers: 1. Allowed for 'micro-small': 0 to 0" in message


@pytest.mark.parametrize("name", ["smollm2", "local"])
def test_more_frozen_layers_than_a_decoder_has_are_refused_before_any_work(
    tmp_path, monkeypatch, name
):
    monkeypatch.setattr("cotspec.models.smollm2_gguf", lambda: None)
    config = transformers.LlamaConfig(num_hidden_layers=30)
    config.save_pretrained(tmp_path)
    student = name if name == "smollm2" else str(tmp_path)
    for count in (30, 31):
        given = {"student.model": student, "training.num_frozen_layers": count}
        given["teacher.backend"] = "recorded"  # one fault at least
        message = problem("smoke", "01,05", given)
        said = f"num_frozen_layers: 31. Allowed for {student!r}: 0 to 30"
        assert (said in message) == (count == 31)


def test_an_empty_tokenizer_file_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("COTSPEC_DATA", str(tmp_path))
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5/spiece.model").touch()
    for field, value in (("model", "random:google/flan-t5-small"), ("tokenizer", "/")):
        message = problem("smoke", "03", {f"student.{field}": value})
        assert f"{tmp_path}/t5/spiece.model is empty" in message


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("student.start", "random", "'random' of 'micro-base'. Allowed: raw, instr"),
        ("experiments.raw_students", "micro-xl", "'raw' of 'micro-xl'. Allowed: instr"),
        ("student.tokenizer", "/", "'/' is not read of a shipped student"),
        ("student.revision", "main", "'main' is not read of a shipped student"),
    ],
)
def test_what_a_shipped_student_has_not_is_refused_before_any_work(field, value, words):
    assert words in problem("smoke", "", {field: value})


def test_openai_is_not_asked_for_a_model_that_it_does_not_have(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    assert "OpenAI has no 'code-davinci-002'; " in problem("flan-t5-base", "01")
    for name in ("smoke", "smollm2"):
        message = problem(name, "01", {"teacher.backend": "openai"})
        assert "--set teacher.model=NAME" in message
    own = {"teacher.backend": "openai", "teacher.base_urls": "http://localhost/v1"}
    monkeypatch.setenv("OPENAI_API_KEY", "x\u2019")
    assert "OPENAI_API_KEY: has a character" in problem("smoke", "01", own)
    monkeypatch.setenv("OPENAI_API_KEY", " \n")
    run.preflight(stages_of("smoke", "01", own))


def give(monkeypatch, free):
    usage = dataclasses.make_dataclass("Usage", ["free"])(free=free)
    monkeypatch.setattr(run.shutil, "disk_usage", lambda _: usage)


def test_a_full_disk_is_noticed(monkeypatch):
    give(monkeypatch, 2**20)
    assert "COTSPEC_RUNS" in problem("smoke")


def test_checkpoints_that_cannot_fit_are_refused_and_begun_ones_count(
    monkeypatch, tmp_path
):
    monkeypatch.setattr("cotspec.tasks.sources.is_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.file_exists", lambda *_: True)
    give(monkeypatch, 500 * GIB)
    monkeypatch.setattr(run, "_teacher", lambda used: [])
    assert "disk: 500.0 GiB" in problem("flan-t5-xl")
    assert "training.num_checkpoints" in problem("flan-t5-xl")
    run.preflight(stages_of("flan-t5-xl", "03,05"))
    begun = tmp_path / "runs/flan-t5-xl/store/cell/model.safetensors"
    begun.parent.mkdir(parents=True)
    with begun.open("wb") as file:
        file.truncate(6000 * GIB)  # sparse
    run.preflight(stages_of("flan-t5-xl"))


def test_the_disk_estimate_counts_every_training_of_the_grids_once():
    two = {"training.num_checkpoints": 2, "experiments.seeds": (0,)}
    weights = 4 * shipped.facts("base-instruction_tuned-0")["parameters"]
    assert sizing.checkpoint_bytes(stages_of("smoke", "00,03", two)) == 0
    one = sizing.checkpoint_bytes(stages_of("smoke", "05", two))
    assert one == (2 + 2) * weights
    profile = profiles.resolve("smoke", {"experiments.seeds": (0,)})
    base = grids.base_cells(profile, profile.experiments.seeds)
    cells = {*grids.format_grid(base), *grids.loss_grid(base)}
    small = 4 * shipped.facts("small-instruction_tuned-0")["parameters"]
    # The newest checkpoint of a training that runs has the optimiser's state, too.
    expected = (2 * len(cells) + 2) * weights + 2 * small
    three = sizing.checkpoint_bytes(stages_of("smoke", "07,08,09", two))
    assert three == expected


def test_models_that_are_not_packed_say_how_to_make_them(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    assert "cotspec.micro build" in problem("micro")


def test_every_flan_t5_profile_fits_its_card_and_says_what_it_needs(capsys):
    sizing.main()
    table = capsys.readouterr().out
    readme = Path(sizing.__file__).parent / "accelerate/README.md"
    assert table in readme.read_text()  # one computation
    for size, (_, room, _) in sizing.CARDS.items():
        profile = profiles.PROFILES[f"flan-t5-{size}"]
        needed = sizing.card_bytes(profile.student.model, profile.training)
        assert needed < room * GIB
    early, _ = sizing.needs(stages_of("flan-t5-base", "00,01,02,03,04,05,06,07"))
    assert early.startswith("largest student 248M parameters: 18 GiB of a card")


def test_updates_that_are_given_count_instead_of_the_epochs():
    few, twice, epochs = (
        sizing.training_hours(
            "google/flan-t5-base",
            profiles.resolve("flan-t5-base", {"training.max_steps": steps}),
            1e13,
        )
        for steps in (10, 20, None)
    )
    assert twice == pytest.approx(2 * few)
    assert few < epochs / 10


def test_a_card_that_is_too_small_is_refused_before_it_is_filled(monkeypatch):
    class Small:
        total_memory = 8 * GIB

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Small)
    (problem,) = run._card(stages_of("flan-t5-base", "05"))
    assert problem.startswith("card: 8 GiB, 18 needed; choose a smaller training.")
