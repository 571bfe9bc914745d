"""``python -m cotspec.commands``: a training, and one notebook's work, shared."""

import shutil
from dataclasses import replace

import pytest
from conftest import REPOSITORY
from safetensors.torch import save_model
from test_training import encode, make_aligned, make_examples, run_on_two_processes

from cotspec import artifacts, commands, models, profiles, selection, stages, training
from cotspec.evaluation import PREDICTION_FEATURES

OVERRIDES = {
    "data.num_train": 1,
    "data.num_validation": 2,
    "data.num_test_math": 3,
    "data.num_test_generic": 2,
    "student.model": "micro-small",
    "evaluation.max_new_tokens": 8,
    "evaluation.batch_tokens": 1,  # several streams a cell, for two processes to share
}


SETS = [f"--set={name}={value}" for name, value in OVERRIDES.items()]
SMOKE = ["evaluate", "--profile", "smoke", *SETS]


def publish(run, **values):
    """Leave artifacts as finished stages would."""
    for notebook in stages.load_series(REPOSITORY):
        folder, written = run / "artifacts" / notebook.name, {}
        for name in values.keys() & notebook.writes:
            form = next(f for f in stages.FORMS if isinstance(values[name], f[0]))
            path = form[2]((folder / name).with_suffix(form[1]), values[name])
            sums = {"path": str(path.relative_to(run))}
            written[name] = sums | {"sha256": artifacts.checksum(path)}
        if written:
            content = {"key_parts": {}, "artifacts": written}
            artifacts.write_json(folder / artifacts.SUCCESS, content)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run in which every stage before notebook 06 has finished."""
    runs = tmp_path_factory.mktemp("runs")
    profile = profiles.resolve("smoke", OVERRIDES)
    student = models.load_student(profile.student)
    weights = student.model.get_input_embeddings().weight
    weights.data.neg_()  # a trained student that answers differently
    step = runs / "trained/checkpoints/step-3"
    step.mkdir(parents=True)
    save_model(student.model, str(step / "model.safetensors"))
    digest = models.tokenizer_digest(student.tokenizer)
    state = {"settings": {"tokenizer": digest, "student": student.name}}
    artifacts.write_json(step / "state.json", state)
    problems = selection.select_problems(profile.data, seed=0)
    kept = problems.rename_columns({"rationale": "completion"})
    publish(
        runs / "smoke",
        problems=problems,
        kept_traces=kept.add_column("is_correct", [True] * len(kept)),
        demonstrations=selection.select_demonstrations(profile.data),
        checkpoints=runs / "trained",
    )
    return runs


@pytest.fixture
def runs(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "runs")
    monkeypatch.setenv("COTSPEC_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv(stages.RUNNER, "")  # which `main` sets
    return tmp_path / "runs"


def forbid_decoding(monkeypatch):
    monkeypatch.setattr("cotspec.evaluation.decode", None)


def predicted(runs, name="step-3"):
    return (runs / f"smoke/evaluation/{name}/predictions.parquet").read_bytes()


def test_train_reads_notebook_05s_parameters_and_it_takes_up_what_that_leaves(
    runs, monkeypatch, capsys
):
    cell = {"SEED": 7, "OVERRIDES": {"training.max_steps": 2}}
    series = stages.load_series(artifacts.repository_root())
    own = [replace(nb, parameters=nb.parameters | cell) for nb in series]
    monkeypatch.setattr(stages, "load_series", lambda root: own)
    examples = make_examples(8).filter(lambda row: row["sample_id"] == -1)
    aligned = make_aligned(1)  # of no example here
    publish(runs / "smoke", examples=examples, aligned=aligned)
    command = ["train", "--profile", "smoke", "--set", "loss.name=sample_matching"]
    assert commands.main(command) == 0
    assert "05_distillation takes it up" in capsys.readouterr().out
    sets = cell["OVERRIDES"] | {"loss.name": "sample_matching"}
    stage = stages.open_stage("05_distillation", "smoke", 7, sets)
    monkeypatch.setattr(training, "take_update", None)  # nothing is left to do
    profile = profiles.resolve("smoke", sets)
    student = models.load_student(profile.student, seed=7)
    metrics = training.train(
        student,
        encode(student, stage.read("aligned"), stage.read("examples")),
        profile.training,
        loss=profile.loss,
        work_dir=stage.work / "training",
        seed=7,
    )
    assert len(metrics) == 2


def test_a_checkpoint_gets_predictions_and_accuracies_once(runs, capsys, monkeypatch):
    assert commands.main(SMOKE) == 0
    rows = artifacts.read_dataset(runs / "smoke/evaluation/step-3/predictions.parquet")
    assert rows.features == PREDICTION_FEATURES
    assert set(rows["checkpoint"]) == {"step-3"}
    shown = capsys.readouterr().out
    assert "accuracy  ci_low  ci_high" in shown and "micro/last_letters" in shown
    table = (runs / "smoke/evaluation/step-3/results.csv").read_text()
    assert table.startswith("student,start,size,step,seed,task,prompt_mode,n,accuracy")
    first = predicted(runs)
    forbid_decoding(monkeypatch)
    assert commands.main(SMOKE) == 0
    assert predicted(runs) == first


@pytest.mark.slow
def test_notebook_06_takes_up_cells_and_the_command_its_predictions(runs, monkeypatch):
    for wanted in ("start", "last"):
        assert commands.main([*SMOKE, "--checkpoint", wanted]) == 0
    forbid_decoding(monkeypatch)
    names = {"PROFILE": "smoke", "SEED": 0, "OVERRIDES": OVERRIDES}
    for cell in stages.load_notebook(REPOSITORY / "notebooks/06_evaluation.ipynb").code:
        exec(cell, names)
        if "after" in names:  # what follows decodes for itself
            break
    assert set(names["after"]["checkpoint"]) == {"step-3"}
    first = predicted(runs)
    assert commands.main(SMOKE) == 0
    assert predicted(runs) == first


def test_a_checkpoint_of_another_tokenizer_is_refused_before_decoding(
    runs, capsys, monkeypatch
):
    (folder,) = (runs / "smoke/artifacts").glob("*/checkpoints/checkpoints/step-3")
    settings = {"tokenizer": "f" * 64, "student": "other"}
    artifacts.write_json(folder / "state.json", {"settings": settings})
    forbid_decoding(monkeypatch)
    assert commands.main([*SMOKE, "--checkpoint", "3"]) == 2
    assert "the vocabulary of 'other'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "nope"], "profile: unknown name 'nope'"),
        (["--profile", "micro"], "./run_all.sh --profile micro --only 00,05,02"),
        (["--checkpoint", "7"], "--checkpoint '7'. Allowed: last, start, 3"),
        (["--set", "evaluation.x=1"], "'evaluation.x': unknown field"),
        (["--set", "student.model=micro-base"], "weights do not fit student"),
        (["--seed", "-1"], "SEED: -1. Allowed: whole"),
        (["--checkpoint", "3", "train"], "--checkpoint '3'. Allowed: with evaluate"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(runs, capsys, arguments, message):
    command = [] if "train" in arguments else ["evaluate"]
    assert commands.main([*command, *SMOKE[1:], *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.slow
def test_two_processes_leave_the_predictions_of_one(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "two")
    two = {"COTSPEC_RUNS": str(tmp_path / "two")}
    said = run_on_two_processes("-m", "cotspec.commands", *SMOKE, **two)
    assert said.count("accuracy  ci_low  ci_high") == 1
    assert commands.main(SMOKE) == 0
    assert predicted(tmp_path / "two") == predicted(runs)
