"""The preflight lists everything that is missing, with a remedy each."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from cotspec import grids, models, profiles, run, sizing, stages
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
    chosen = run.choose(SERIES, only or None)
    given = name, None, overrides or {}
    return [run.given_to(nb, *given) for nb in SERIES if nb.name in chosen]


def problem(*arguments):
    with pytest.raises(ValueError) as error:
        run.preflight(stages_of(*arguments))
    return str(error.value)


def test_models_and_data_without_hub_say_what_to_set(tmp_path, monkeypatch):
    run.preflight(stages_of("smoke"))  # needs neither
    message = problem("flan-t5-base")
    assert "--set student.model=/path/to/model" in message
    assert "OPENAI_API_KEY" in message and "set COTSPEC_DATA" in message
    monkeypatch.setenv("COTSPEC_DATA", str(tmp_path))  # an empty folder
    message = problem("smollm2")
    assert "gsm8k" in message and str(tmp_path) in message


def test_every_student_is_looked_at_not_only_the_profiles_own(tmp_path):
    transformers.T5Config().save_pretrained(tmp_path)
    local = {"student.model": str(tmp_path)}
    message = problem("flan-t5-base", "", local)
    assert "student.model" not in message
    for name in ("google/flan-t5-small", "google/flan-t5-base", "google/t5-v1_1-base"):
        assert f"cannot load {name!r} (" in message
    # Stages that train no other student need no other.
    run.preflight(stages_of("flan-t5-base", "03,04", local))


@pytest.mark.parametrize("is_online", [False, True])
def test_a_model_is_looked_up_in_the_hubs_cache_or_on_the_hub(monkeypatch, is_online):
    asked = []

    def from_pretrained(name, revision, local_files_only):
        asked.append((name, not local_files_only))
        raise OSError("403 Client Error\nmore")

    monkeypatch.setattr("cotspec.models.AutoConfig.from_pretrained", from_pretrained)
    with pytest.raises(ValueError, match=r"cannot load 'a/gated'.*403 Client Error\)"):
        run._look_for("student.model", "a/gated", (), lambda: is_online)
    assert asked == [("a/gated", is_online)]


def test_a_path_that_leads_nowhere_is_refused_before_any_work(tmp_path):
    recorded = {"teacher.backend": "recorded", "teacher.path": "/nowhere"}
    assert "'/nowhere' is not there" in problem("smoke", "", recorded)
    recorded["teacher.path"] = "/"
    assert "'/' is not there" in problem("smoke", "", recorded)
    (tmp_path / "spiece.model").touch()
    with pytest.raises(ValueError, match=f"{tmp_path}/spiece.model is empty"):
        models.load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "field", "value", "words"),
    [
        ("smoke", "experiments.students", ("/",), "cannot load '/'"),
        ("smoke", "teacher.model", "micro-no", "cannot load 'micro-no'"),
        ("smollm2", "student.tokenizer", "/", "cannot load '/'"),
        ("smoke", "student.model", "/", "student.model: cannot load '/'"),
        ("smoke", "experiments.raw_students", "micro-xl", "'micro-xl'. Allowed: instr"),
        ("smoke", "student.tokenizer", "/", "'/' is not read of a shipped student"),
        ("smoke", "student.revision", "x", "'x' is not read of a shipped student"),
        ("smoke", "training.num_frozen_layers", 1, "Allowed for micro-small: 0 to 0"),
        ("smoke", "teacher.backend", "release", "None is not there"),
        ("smoke", "formats.data_formats", "zero_shot_answer_only", "which notebook 08"),
        ("smoke", "data.num_train", 1, "from 2, as in-context"),
    ],
)
def test_what_only_a_late_notebook_meets_is_refused_before(name, field, value, words):
    assert words in problem(name, "", {field: value})


def test_openai_needs_a_key_or_an_address(monkeypatch):
    given = {"teacher.backend": "openai"}
    monkeypatch.setenv("OPENAI_API_KEY", " \n")
    assert "set OPENAI_API_KEY in" in problem("smoke", "01", given)
    run.preflight(stages_of("smoke", "01", given | {"teacher.base_urls": "http://x"}))
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    run.preflight(stages_of("smoke", "01", given))


def test_checkpoints_that_cannot_fit_are_refused_and_begun_ones_count(
    monkeypatch, tmp_path
):
    def give(free):
        monkeypatch.setattr(
            run.shutil, "disk_usage", lambda _: SimpleNamespace(free=free)
        )

    monkeypatch.setattr("cotspec.tasks.sources.is_reachable", lambda: True)
    config = transformers.T5Config()
    monkeypatch.setattr("cotspec.models.load_config", lambda *_, **__: config)
    give(2**20)
    assert "COTSPEC_RUNS" in problem("smoke")
    give(500 * GIB)
    monkeypatch.setattr(run, "_teacher", lambda used: [])
    assert "disk: 500.0 GiB" in problem("flan-t5-xl")
    run.preflight(stages_of("flan-t5-xl", "03,05"))
    begun = tmp_path / "runs/flan-t5-xl/store/cell/model.safetensors"
    begun.parent.mkdir(parents=True)
    with begun.open("wb") as file:
        file.truncate(6000 * GIB)  # sparse
    run.preflight(stages_of("flan-t5-xl"))


def test_the_disk_estimate_counts_every_training_of_the_grids_once():
    def needed(only):
        two = {"training.num_checkpoints": 2, "experiments.seeds": (0,)}
        return sizing.needs(stages_of("flan-t5-base", only, two)).disk

    weights = 4 * sizing.num_parameters("google/flan-t5-base")
    assert needed("00,03") == 0
    # The newest checkpoint of a training that runs has the optimiser's state, too.
    assert needed("05") == (2 + 2) * weights
    profile = profiles.resolve("flan-t5-base", {"experiments.seeds": (0,)})
    base = grids.base_cells(profile, profile.experiments.seeds)
    cells = {*grids.format_grid(base), *grids.loss_grid(base)}
    assert needed("08,09") == (2 * len(cells) + 2) * weights


def test_models_that_are_not_packed_say_how_to_make_them(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    assert "cotspec.micro build" in problem("micro")


def test_every_flan_t5_profile_fits_its_card_and_says_what_it_needs(capsys):
    sizing.main()
    table = capsys.readouterr().out
    readme = Path(sizing.__file__).parent / "accelerate/README.md"
    assert table in readme.read_text()  # one computation
    for size, card in sizing.CARDS.items():
        assert sizing.needs(stages_of(f"flan-t5-{size}", "05")).card < card.room * GIB


def test_updates_that_are_given_count_instead_of_the_epochs():
    def training_hours(steps):
        profile = profiles.resolve("flan-t5-base", {"training.max_steps": steps})
        return sizing.training_hours(grids.base_cells(profile, [0])[0], profile)

    few, twice, epochs = map(training_hours, (10, 20, None))
    assert twice == pytest.approx(2 * few)
    assert few < epochs / 10


def test_a_card_that_is_too_small_is_refused_before_it_is_filled(monkeypatch, capsys):
    small = SimpleNamespace(total_memory=8 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: small)
    message = problem("flan-t5-base", "05")
    assert "card: 8 GiB. Allowed: 18; set a smaller training." in message
    said = "needs: largest student google/flan-t5-base, 18 GiB of a card"
    assert capsys.readouterr().out.startswith(said)
    begun = "work/05_distillation-1/training/checkpoints/step-000001"
    (stages_of("flan-t5-base", "05")[0].run / begun).mkdir(parents=True)
    assert "card: 8" not in problem("flan-t5-base", "05")  # it fitted somewhere


@pytest.mark.parametrize("name", ["smollm2", "local"])
def test_what_a_decoder_has_too_few_layers_or_positions_for_is_refused_before_any_work(
    tmp_path, monkeypatch, name
):
    monkeypatch.setattr("cotspec.models.smollm2_gguf", lambda: None)
    transformers.GPT2Config(n_layer=30).save_pretrained(tmp_path)  # 1,024 positions
    student = name if name == "smollm2" else str(tmp_path)
    for count in (30, 31):
        given = {"student.model": student, "training.num_frozen_layers": count}
        given["teacher.backend"] = "recorded"  # one fault at least
        message = problem("flan-t5-small", "01,05,06", given)
        said = f". Allowed for {student}: 0 to"
        assert (f"num_frozen_layers: 31{said} 30" in message) == (count == 31)
        assert (f"max_input_tokens: 1024{said} 768" in message) == (name == "local")
