"""Grids on a tiny T5: what is trained once, kept, resumed, and named when it fails."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from test_training import make_aligned, make_examples, tiny_student
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from cotspec import artifacts, experiments, grids, models, profiles, training
from cotspec.alignment import Rule
from cotspec.experiments import Grid
from cotspec.grids import Cell, Measurement
from cotspec.profiles import (
    AlignmentConfig,
    EvaluationConfig,
    ExperimentsConfig,
    FormatsConfig,
    LossConfig,
    StudentConfig,
    TrainingConfig,
)

TASK = "micro/math"
MODE = "zero_shot_chain_of_thought"
SETTINGS = {
    "formats": FormatsConfig(),
    "training": TrainingConfig(
        learning_rate=1e-2,
        max_steps=4,
        warmup_steps=1,
        batch_tokens=160,
        precision="float32",
        num_checkpoints=2,
    ),
    "evaluation": EvaluationConfig(
        num_demonstrations=1,
        max_input_tokens=64,
        max_new_tokens=8,
        batch_tokens=1024,
        precision="float32",
    ),
    "experiments": ExperimentsConfig(seeds=(0, 1)),
}
MEASUREMENTS = [
    Measurement("validation", (TASK,), (MODE,), steps="all"),
    Measurement("test", (TASK,), (MODE,), steps="first_and_last"),
]
CELL_FIELDS = {"model": "m", "start": "instruction_tuned", "seed": 0}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As the workers have: only then are floats the same in both ways of running."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A student's folder, loaded like any other model."""
    folder, student = tmp_path_factory.mktemp("models") / "tiny", tiny_student()
    student.model.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)
    return str(folder)


def aligned_by(method, mass=0.9):
    """Targets as this method makes them: a rule of its own at every second token."""
    own = {"offsets": Rule.INSIDE, "dtw": Rule.NOT_ONE_TO_ONE}[method]
    table = make_aligned(mass=mass)
    return table.add_column("rule", [[Rule.IDENTICAL, own] * 5] * len(table))


@pytest.fixture(scope="module")
def inputs():
    problems = [
        {"problem_id": f"{split}/{i}", "task": TASK, "split": split}
        | {"question": f"w{i} w{i + 1}", "answer": str(i)}
        for split in ("validation", "test")
        for i in range(3)
    ]
    shown = {"task": TASK, "description": "", "question": "w1", "rationale": "w2"}
    return {
        "examples": make_examples(),
        "aligned": {"offsets": aligned_by("offsets"), "dtw": aligned_by("dtw", 0.8)},
        "problems": Dataset.from_list(problems),
        "demonstrations": Dataset.from_list([shown | {"answer": "1"}]),
    }


@pytest.fixture(scope="module")
def finished(model, inputs, tmp_path_factory):
    """Two seeds, run once: (cells, store, predictions)."""
    store = tmp_path_factory.mktemp("store")
    cells = [Cell(model, "instruction_tuned", seed) for seed in (0, 1)]
    return cells, store, run(cells, inputs, store)


def grid_of(inputs, store, settings=SETTINGS):
    return Grid(store, **settings, **inputs)


def run(cells, inputs, store, settings=SETTINGS, measurements=MEASUREMENTS):
    return grid_of(inputs, store, settings).run(cells, measurements)


def states(cells, inputs, store, settings=SETTINGS, measurements=MEASUREMENTS):
    plan = grid_of(inputs, store, settings).plan(cells, measurements)
    return plan["state"].tolist()


def changed(settings, section, **changes):
    config = dataclasses.replace(settings[section], **changes)
    return settings | {section: config}


def contents(store):
    """Every file of a store but the locks, by relative name."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and not path.name.startswith(".")  # locks, torn files
    }


# --- Grids -----------------------------------------------------------------------

BASE = grids.base_cells(
    StudentConfig(model="base"),
    ExperimentsConfig(seeds=(0, 1)),
    formats=FormatsConfig(),
    loss=LossConfig(),
    alignment=AlignmentConfig(),
)


def test_the_base_cells_are_in_every_grid():
    sizes = ExperimentsConfig(students=("small", "base"), raw_students=("small",))
    found = [
        grids.ability_grid(BASE, sizes),
        grids.format_grid(BASE),
        grids.loss_grid(BASE),
        grids.scaling_grid(BASE, sizes),
    ]
    assert [len(grid) for grid in found] == [4, 6, 4, 6]
    assert all(set(BASE) <= set(grid) for grid in found)
    assert len(set().union(*found)) == 2 + 4 + 2 + 4


def test_the_format_grid_is_figure_4_and_takes_more_by_name():
    parts = ["in_context", "zero_shot"]
    names = [cell.formats_name for cell in grids.format_grid(BASE)[::2]]
    assert names == ["all", *parts]
    more = grids.format_grid(BASE, [*parts, "answer_only"])
    assert more[-1].formats_name == "answer_only"
    with pytest.raises(ValueError, match="parts: .*'cot'.*chain_of_thought"):
        grids.format_grid(BASE, ["cot"])


def test_the_loss_grid_varies_one_thing_at_a_time():
    extra = [{"tail": "renormalized"}, {"tail": "paper"}, {"alignment": "dtw"}]
    both = grids.loss_grid(BASE)
    seen = {
        (c.loss.name, c.loss.tail, c.alignment)
        for c in grids.loss_grid(BASE, extra=extra)
    }
    assert {c.loss.name for c in both} == {"distribution_matching", "sample_matching"}
    assert seen == {
        ("distribution_matching", "bucket", "offsets"),
        ("distribution_matching", "renormalized", "offsets"),
        ("distribution_matching", "paper", "offsets"),
        ("distribution_matching", "bucket", "dtw"),
        ("sample_matching", "bucket", "offsets"),
    }


def test_an_extra_loss_adds_one_cell_per_seed():
    extra = [{"divergence": "reverse_kl"}, {"tail": "paper"}]
    added = set(grids.loss_grid(BASE, extra=extra)) - set(grids.loss_grid(BASE))
    assert {(c.seed, c.loss.divergence) for c in added} == {
        (0, "reverse_kl"),
        (1, "reverse_kl"),
        (0, "forward_kl"),  # tail paper
        (1, "forward_kl"),
    }


def test_a_grid_without_other_sizes_is_the_base():
    assert grids.scaling_grid(BASE, ExperimentsConfig()) == BASE


def test_a_pinned_revision_stays_with_its_own_model():
    pinned = [dataclasses.replace(cell, revision="abc") for cell in BASE[:1]]
    sizes = ExperimentsConfig(students=("small", "base"))
    grid = grids.scaling_grid(pinned, sizes)
    assert {(cell.model, cell.revision) for cell in grid} == {
        ("base", "abc"),
        ("small", None),
    }


def test_the_order_of_formats_makes_no_other_cell():
    formats = profiles.DATA_FORMATS
    assert Cell(**CELL_FIELDS, data_formats=formats[::-1]) == Cell(**CELL_FIELDS)


@pytest.mark.parametrize(
    ("build", "message"),
    (
        (lambda: Cell(**CELL_FIELDS, alignment="x"), "alignment: .*offsets, dtw"),
        (lambda: Cell(**CELL_FIELDS, data_formats=()), "data_formats: empty"),
        (lambda: Measurement("train", ("t",), ("m",)), "split: .*validation, test"),
        (lambda: Measurement("test", ("t",), ("m",), "some"), "steps: .*first_and"),
        (lambda: Measurement("test", (), ("m",)), "tasks is empty"),
    ),
)
def test_a_wrong_field_names_itself_and_what_is_allowed(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- Running ---------------------------------------------------------------------


def test_predictions_have_a_row_per_cell_step_and_problem(finished):
    _, _, predictions = finished
    assert list(predictions.columns) == experiments.COLUMNS
    counts = predictions.groupby(["split", "seed", "step"]).size().to_dict()
    every = {("validation", seed, step): 3 for seed in (0, 1) for step in (0, 2, 4)}
    ends = {("test", seed, step): 3 for seed in (0, 1) for step in (0, 4)}
    assert counts == every | ends
    assert set(predictions["data_formats"]) == {"all"}
    assert predictions["size"].nunique() == 1
    scorers = predictions[["reference_is_correct", "lm_eval_is_correct"]]
    assert scorers.notna().all(axis=None)  # math; generic tasks have none


def test_the_store_keeps_weights_and_no_optimiser_state(finished):
    _, store, _ = finished
    names = {path.name for path in store.rglob("*") if path.is_file()}
    assert "optimizer.safetensors" not in names
    kept = {"model.safetensors", "state.json", "metrics.csv", "cell.json"}
    assert kept <= names
    assert not list(store.rglob("training"))


def of_other_words(student):
    """The same sizes and end token, but two words have changed places."""
    backend = json.loads(student.tokenizer.backend_tokenizer.to_str())
    words = backend["model"]["vocab"]
    words["w1"], words["w2"] = words["w2"], words["w1"]
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    return dataclasses.replace(student, name="other", tokenizer=other)


def test_a_kept_checkpoint_is_loaded_with_its_own_tokenizer_only(finished, model):
    _, store, _ = finished
    path = next((store / "cells").glob("*/checkpoints/step-4"))
    student = tiny_student()
    training.load_checkpoint(student, path)
    other = of_other_words(student)
    own, given = (models.tokenizer_digest(s.tokenizer)[:12] for s in (student, other))
    message = rf"tokenizer {own} \(student '{model}'\) .*{given} \(student 'other'\)"
    with pytest.raises(ValueError, match=message):
        training.load_checkpoint(other, path)


def test_a_checkpoint_of_other_sizes_is_refused(finished):
    _, store, _ = finished
    path = next((store / "cells").glob("*/checkpoints/step-4"))
    student = tiny_student()
    student.model.resize_token_embeddings(60)
    with pytest.raises(ValueError, match="do not fit student 'tiny'.* size mismatch"):
        training.load_checkpoint(student, path)


def test_the_base_is_decoded_once_for_all_seeds(finished):
    _, store, predictions = finished
    assert len(list((store / "bases").iterdir())) == 1
    before = predictions[predictions["step"] == 0]
    columns = ["split", "problem_id", "predicted_answer"]
    seeds = [before.loc[before["seed"] == s, columns].to_numpy() for s in (0, 1)]
    assert (seeds[0] == seeds[1]).all()


def test_what_is_measured_on_one_checkpoint_is_decoded_together(
    finished, model, inputs, tmp_path, monkeypatch
):
    def evaluate(student, problems, modes, *arguments, **options):
        asked.append((options["checkpoint"], {t: tuple(m) for t, m in modes.items()}))
        return really(student, problems, modes, *arguments, **options)

    asked, really = [], experiments.evaluation.evaluate
    shutil.copytree(finished[1], tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(experiments.evaluation, "evaluate", evaluate)
    both = (MODE, "zero_shot_answer_only")
    measurements = [*MEASUREMENTS, Measurement("test", (TASK,), both)]
    again = run(finished[0][:1], inputs, tmp_path, measurements=measurements)
    assert asked == [("step-4", {TASK: both[1:]})]  # the other mode was there
    fresh = Measurement("test", (TASK,), ("in_context_answer_only", both[1]))
    run(finished[0][1:], inputs, tmp_path, measurements=[fresh])
    assert asked[1:] == [("step-4", {TASK: fresh.prompt_modes})]
    assert len(again) == len(finished[2]) // 2 + 3


def test_a_second_run_trains_and_decodes_nothing(finished, inputs, monkeypatch):
    cells, store, predictions = finished
    assert predictions.attrs == {"cells": 2, "trained": 2, "decoded": 5}
    assert states(cells, inputs, store) == ["finished", "finished"]
    monkeypatch.setattr(experiments.training, "train", None)
    monkeypatch.setattr(experiments.evaluation, "evaluate", None)
    again = run(cells, inputs, store)
    assert again.attrs == {"cells": 2, "trained": 0, "decoded": 0}
    pd.testing.assert_frame_equal(again, predictions)


def test_a_tweak_of_one_cell_trains_only_this_cell(finished, model, inputs):
    cells, store, _ = finished
    before = contents(store)
    tweaked = dataclasses.replace(cells[1], loss=LossConfig(tail="paper"))
    predictions = run([cells[0], tweaked], inputs, store)
    assert predictions.attrs["trained"] == 1
    assert predictions.attrs["decoded"] == 2  # its checkpoints, no base
    after = contents(store)
    assert {name: after[name] for name in before} == before


def test_what_cannot_change_a_result_computes_nothing(finished, inputs):
    cells, store, _ = finished
    settings = changed(SETTINGS, "evaluation", confidence=0.9)
    settings = changed(settings, "experiments", num_workers=2)
    assert states(cells, inputs, store, settings) == ["finished"] * 2


@pytest.mark.parametrize(
    ("section", "change", "state"),
    (
        ("training", {"learning_rate": 2e-2}, "to train"),
        ("formats", {"max_input_tokens": 16}, "to train"),
        ("evaluation", {"max_new_tokens": 9}, "to decode"),
        ("evaluation", {"num_demonstrations": 2}, "to decode"),
        ("evaluation", {"num_samples": 3, "temperature": 0.5}, "to decode"),
    ),
)
def test_what_changes_a_result_is_stale(finished, inputs, section, change, state):
    cells, store, _ = finished
    settings = changed(SETTINGS, section, **change)
    assert states(cells, inputs, store, settings) == [state] * 2
    digests = [grid_of(inputs, store, s).settings_digest for s in (SETTINGS, settings)]
    assert digests[0] != digests[1]  # a report must not mix them


def test_other_data_or_other_weights_are_stale(finished, inputs, tmp_path):
    cells, store, _ = finished
    fewer = inputs | {"examples": inputs["examples"].select(range(40))}
    assert states(cells, fewer, store) == ["to train"] * 2
    other = inputs | {"aligned": {"offsets": aligned_by("offsets", 0.7)}}
    assert states(cells, other, store) == ["to train"] * 2
    student = tiny_student()
    student.model.shared.weight.data[3] += 1
    student.model.save_pretrained(tmp_path / "tiny")
    student.tokenizer.save_pretrained(tmp_path / "tiny")
    moved = [dataclasses.replace(c, model=str(tmp_path / "tiny")) for c in cells]
    assert states(moved, inputs, store) == ["to train"] * 2


def test_sample_matching_depends_on_no_target_distribution(model, inputs, tmp_path):
    folder = grid_of(inputs, tmp_path)._folder
    cell = Cell(model, "raw", 0, loss=LossConfig(name="sample_matching"))
    other = dataclasses.replace(
        cell, alignment="dtw", loss=dataclasses.replace(cell.loss, tail="paper")
    )
    assert folder(cell) == folder(other)
    matching = dataclasses.replace(other, loss=LossConfig())
    assert folder(matching) != folder(
        dataclasses.replace(matching, alignment="offsets")
    )


def test_a_file_that_is_gone_is_decoded_again(finished, inputs, tmp_path):
    cells, store, predictions = finished
    shutil.copytree(store, tmp_path, dirs_exist_ok=True)
    folder = grid_of(inputs, tmp_path)._folder(cells[0])
    next(folder.glob("predictions/step-4/test.*")).unlink()
    assert sorted(states(cells, inputs, tmp_path)) == ["finished", "to decode"]
    again = run(cells, inputs, tmp_path)
    assert again.attrs == {"cells": 2, "trained": 0, "decoded": 1}
    pd.testing.assert_frame_equal(again, predictions)
    assert contents(tmp_path) == contents(store)


@pytest.mark.parametrize("others", ({"models": ("other",)}, {"starts": ("raw",)}))
def test_a_measurement_of_some_students_leaves_the_others_alone(
    finished, inputs, others
):
    cells, store, _ = finished
    modes = {"prompt_modes": ("zero_shot_answer_only",)}
    extra = dataclasses.replace(MEASUREMENTS[1], **modes | others)
    measurements = [*MEASUREMENTS, extra]
    assert states(cells, inputs, store, measurements=measurements) == ["finished"] * 2


def test_missing_problems_and_targets_are_said_before_anything_is_trained(
    model, inputs, tmp_path
):
    cell = Cell(model, "raw", 0)
    none = Measurement("test", ("gsm8k",), (MODE,))
    with pytest.raises(ValueError, match="no test problems of task 'gsm8k'.*test of"):
        run([cell], inputs, tmp_path, measurements=[none])
    lacking = inputs | {"aligned": {"dtw": aligned_by("dtw")}}
    with pytest.raises(ValueError, match="no targets by 'offsets', .*Allowed: dtw"):
        run([cell], lacking, tmp_path)
    with pytest.raises(ValueError, match="cells: none"):
        run([], inputs, tmp_path)
    assert not list(tmp_path.rglob("*.parquet")) + list(tmp_path.rglob("*.csv"))


@pytest.mark.parametrize(("method", "other"), (("offsets", "dtw"), ("dtw", "offsets")))
def test_targets_of_another_method_are_refused(inputs, method, other):
    message = rf"inputs.aligned\['{method}'\]: .* by '{other}' .* Allowed: .*{method}"
    with pytest.raises(ValueError, match=message):
        grid_of(inputs | {"aligned": {method: aligned_by(other)}}, "x").aligned_of(
            method
        )


def test_targets_by_rules_that_both_methods_give_are_accepted(inputs):
    table = make_aligned()
    table = table.add_column("rule", [[Rule.IDENTICAL, Rule.SAME_SPAN] * 5] * 12)
    grid = grid_of(inputs | {"aligned": {"offsets": table, "dtw": table}}, "x")
    for method in ("offsets", "dtw"):
        assert grid.aligned_of(method) is table


def test_a_training_on_what_no_grid_asks_for_is_not_kept(model, inputs, capsys):
    grid = grid_of(inputs | {"aligned": {"offsets": aligned_by("dtw")}}, "x")
    grid.keep(Cell(model, "raw", 0), None)
    assert "not shared with notebooks 07 to 10: inputs" in capsys.readouterr().out


def test_a_format_without_examples_is_named_before_anything_is_trained(
    model, inputs, tmp_path
):
    examples = inputs["examples"]
    is_zero_shot = [f.startswith("zero_shot") for f in examples["data_format"]]
    partly = inputs | {"examples": examples.select(np.flatnonzero(is_zero_shot))}
    missing = "in_context_chain_of_thought, in_context_answer_only"
    for formats in (profiles.DATA_FORMATS, profiles.DATA_FORMATS[:2]):
        cell = Cell(model, "raw", 0, data_formats=formats)
        with pytest.raises(ValueError, match=f"none in {missing}, .*notebook 03"):
            run([cell], partly, tmp_path)
    cell = Cell(model, "raw", 0, data_formats=profiles.DATA_FORMATS[2:])
    assert states([cell], partly, tmp_path) == ["to train"]


def test_samples_without_a_temperature_are_refused_before_anything_is_trained(inputs):
    settings = changed(SETTINGS, "evaluation", num_samples=3)
    with pytest.raises(ValueError, match="temperature: 0.0 with num_samples 3"):
        grid_of(inputs, "x", settings)


def test_self_consistency_keeps_its_samples(finished, inputs, tmp_path):
    cells, store, _ = finished
    shutil.copytree(store, tmp_path, dirs_exist_ok=True)
    settings = changed(SETTINGS, "evaluation", num_samples=3, temperature=0.5)
    known = set(contents(tmp_path))
    assert run(cells[:1], inputs, tmp_path, settings).attrs["trained"] == 0
    (path, *_) = sorted(set(contents(tmp_path)) - known)
    kept = artifacts.read_dataset(tmp_path / path)
    assert [len(samples) for samples in kept["samples"]] == [3, 3, 3]


def test_a_failing_cell_is_named_and_the_others_are_finished(
    finished, inputs, tmp_path, monkeypatch
):
    cells, _, predictions = finished
    train = experiments.training.train

    def fail_for_seed_0(*arguments, seed, **options):
        if seed == 0:
            raise FloatingPointError("loss is nan at step 3")
        return train(*arguments, seed=seed, **options)

    monkeypatch.setattr(experiments.training, "train", fail_for_seed_0)
    with pytest.raises(experiments.CellsFailed) as failure:
        run(cells, inputs, tmp_path)
    assert str(cells[0]) in str(failure.value)
    assert str(cells[1]) not in str(failure.value)
    assert "loss is nan at step 3" in str(failure.value)
    assert states(cells, inputs, tmp_path) == ["to train", "finished"]
    monkeypatch.undo()
    again = run(cells, inputs, tmp_path)
    assert again.attrs["trained"] == 1
    pd.testing.assert_frame_equal(again, predictions)


# --- Processes -------------------------------------------------------------------

TWO_WORKERS = changed(SETTINGS, "experiments", num_workers=2)


def test_two_workers_leave_the_same_bytes_as_one(finished, inputs, tmp_path):
    cells, store, predictions = finished
    beside = run(cells, inputs, tmp_path, TWO_WORKERS)
    pd.testing.assert_frame_equal(beside, predictions)
    alone = contents(store)
    assert {name: alone[name] for name in contents(tmp_path)} == contents(tmp_path)


def test_a_process_that_is_killed_costs_only_its_own_cell(
    finished, model, inputs, tmp_path, monkeypatch
):
    """The second cell's model is a folder whose loading kills the process."""
    cells, _, predictions = finished
    deadly = Cell(f"{model}-deadly", "instruction_tuned", 0)
    shutil.copytree(model, deadly.model)
    grid = grid_of(inputs, tmp_path, TWO_WORKERS)
    grid.plan([*cells, deadly], MEASUREMENTS)  # the parent knows its digest
    (Path(deadly.model) / "config.json").unlink()
    with pytest.raises(experiments.CellsFailed) as failure:
        grid.run([*cells, deadly], MEASUREMENTS)
    assert str(deadly) in str(failure.value)
    assert "1 of " in str(failure.value)
    shutil.rmtree(deadly.model)
    assert states(cells, inputs, tmp_path) == ["finished"] * 2


def test_the_pool_is_made_again_without_the_job_that_kills_it(tmp_path, monkeypatch):
    cells = [Cell(**CELL_FIELDS | {"seed": seed}) for seed in range(4)]
    jobs = [experiments.Job(cell, tmp_path / str(cell.seed)) for cell in cells]
    done = dict(experiments.side_by_side(jobs, 2, None, work=deadly_work))
    assert set(done) == set(jobs)
    assert [job.cell.seed for job, error in done.items() if error] == [1]
    assert "its process was killed" in done[jobs[1]]


def deadly_work(job):
    """Module-level, so that a process can import it."""
    if job.cell.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_are_told_of_cards_take_one_each(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5f")
    jobs = [experiments.Job(Cell(**CELL_FIELDS), tmp_path / str(i)) for i in range(6)]
    done = experiments.side_by_side(jobs, 2, None, work=card_of_worker)
    assert {card for _, card in done} == {"3", "GPU-5f"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert models.cards() == []


def card_of_worker(job):
    """Take long enough that no worker gets all jobs."""
    time.sleep(0.3)
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_what_cells_share_is_encoded_once(model, inputs, tmp_path, monkeypatch):
    counted = []
    plain = experiments.batching.encode
    monkeypatch.setattr(
        experiments.batching,
        "encode",
        lambda *given, **named: (counted.append(named), plain(*given, **named))[1],
    )
    grid = grid_of(inputs, tmp_path)
    cell = Cell(model, "instruction_tuned", 0)
    tokenizer = models.load_student(cell.student).tokenizer
    others = [
        dataclasses.replace(cell, seed=1),
        dataclasses.replace(cell, data_formats=("zero_shot_answer_only",)),
    ]
    for one in (cell, *others):
        found = grid.encoded_of(one, tokenizer)
        assert len(found) == len(grid.examples_of(one.data_formats))
        assert set(found.data_format) == set(one.data_formats)
    assert len(counted) == 1
    by_dtw = dataclasses.replace(cell, alignment="dtw")
    for one in (by_dtw, cell):
        found = grid.encoded_of(one, tokenizer)
        alone = plain(
            grid.examples_of(one.data_formats),
            tokenizer,
            aligned=grid.aligned_of(one.alignment),
            max_input_tokens=SETTINGS["formats"].max_input_tokens,
        )
        assert np.array_equal(found.aligned.topk_probs, alone.aligned.topk_probs)
        assert all(map(np.array_equal, found.labels, alone.labels))
    assert not pickle.loads(pickle.dumps(grid))._encoded
    hard = dataclasses.replace(cell, loss=LossConfig(name="sample_matching"))
    assert grid.encoded_of(hard, tokenizer).aligned is None


def run_elsewhere(cells, inputs, store, settings):
    torch.set_num_threads(1)
    run(cells, inputs, store, settings)


def start_elsewhere(*arguments):
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=run_elsewhere, args=arguments)
    process.start()
    return process


def test_a_training_that_is_kept_is_the_one_a_grid_would_have_done(
    finished, inputs, tmp_path, monkeypatch
):
    cells, store, predictions = finished
    cell = cells[0]
    result = training.train(
        models.load_student(cell.student, seed=cell.seed),
        inputs["examples"],
        SETTINGS["training"],
        aligned=inputs["aligned"]["offsets"],
        seed=cell.seed,
        work_dir=tmp_path / "elsewhere",
    )
    grid = grid_of(inputs, tmp_path / "store")
    grid.keep(cell, result)
    shutil.rmtree(tmp_path / "elsewhere")
    grid.keep(cell, None)  # has it
    monkeypatch.setattr(experiments, "_train", None)  # nothing is left to train
    kept = run([cell], inputs, tmp_path / "store")
    of_cell = predictions[predictions["seed"] == cell.seed]
    pd.testing.assert_frame_equal(kept, of_cell.reset_index(drop=True))
    own = contents(tmp_path / "store")
    assert own and own.items() <= contents(store).items()


def has(folder, pattern):
    """Whether a file is there; folders may be renamed while this looks."""
    try:
        return bool(list(folder.rglob(pattern)))
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("settings", (SETTINGS, TWO_WORKERS), ids=("one", "two"))
@pytest.mark.parametrize("seen", ("*/training/checkpoints/step-*", "predictions/*"))
def test_a_killed_run_resumes_and_ends_with_the_same_bytes(
    finished, inputs, tmp_path, settings, seen
):
    cells, store, predictions = finished
    process = start_elsewhere(cells, inputs, tmp_path, settings)
    while process.is_alive() and not has(tmp_path, seen):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    resumed = run(cells, inputs, tmp_path, settings)
    assert resumed.attrs["decoded"] > 0
    pd.testing.assert_frame_equal(resumed, predictions)
    whole = contents(store)
    assert {name: whole[name] for name in contents(tmp_path)} == contents(tmp_path)


def test_two_runs_at_once_in_one_store_do_not_disturb_each_other(
    finished, inputs, tmp_path
):
    cells, store, _ = finished
    processes = [start_elsewhere(cells, inputs, tmp_path, SETTINGS) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    whole = contents(store)
    assert {name: whole[name] for name in contents(tmp_path)} == contents(tmp_path)


def test_predictions_survive_the_way_into_an_artifact(finished, tmp_path):
    _, _, predictions = finished
    table = Dataset.from_pandas(predictions, preserve_index=False)
    artifacts.write_dataset(tmp_path / "x.parquet", table)
    again = artifacts.read_dataset(tmp_path / "x.parquet").to_pandas()
    pd.testing.assert_frame_equal(again, predictions, check_dtype=False)
