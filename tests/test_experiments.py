"""Grids on a tiny T5: what is trained once, kept, resumed, and named when it fails."""

import multiprocessing
import os
import shutil
import signal
import time
import types
from dataclasses import replace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from test_training import CONFIG, encode, make_aligned, make_examples, tiny_student

from cotspec import experiments, grids, models, profiles, training
from cotspec.alignment import Rule
from cotspec.experiments import Grid
from cotspec.grids import Cell, Measurement
from cotspec.profiles import EvaluationConfig, ExperimentsConfig, LossConfig
from cotspec.report import next_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
TASK = "micro/math"
MODE = "zero_shot_chain_of_thought"
SETTINGS = {
    "formats": profiles.FormatsConfig(),
    "training": replace(CONFIG, max_steps=4, warmup_steps=1, num_checkpoints=2),
    "evaluation": EvaluationConfig(
        num_demonstrations=1,
        max_input_tokens=64,
        max_new_tokens=8,
        batch_tokens=1024,
        precision="float32",
    ),
    "num_workers": 1,
}
MEASUREMENTS = [
    Measurement("validation", (TASK,), (MODE,), steps="all"),
    Measurement("test", (TASK,), (MODE,), steps="first_and_last"),
]
CELL_FIELDS = {"model": "m", "start": "instruction_tuned", "seed": 0}


def saved(student, folder):
    """A student's folder, loaded like any other model."""
    student.model.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tiny_student(), tmp_path_factory.mktemp("models") / "tiny")


def aligned_by(method, mass=0.9):
    """Targets as this method makes them: a rule of its own at every second token."""
    own = {"offsets": Rule.INSIDE, "dtw": Rule.NOT_ONE_TO_ONE}[method]
    table = make_aligned(mass=mass)
    return table.add_column("rule", [[Rule.IDENTICAL, own] * 5] * len(table))


PROBLEMS = [
    {"problem_id": f"{split}/{i}", "task": TASK, "split": split}
    | {"question": f"w{i} w{i + 1}", "answer": str(i)}
    for split in ("validation", "test")
    for i in range(3)
]
SHOWN = {"task": TASK, "description": "", "question": "w1", "rationale": "w2"}
INPUTS = {
    "examples": make_examples(),
    "aligned": {"offsets": aligned_by("offsets"), "dtw": aligned_by("dtw", 0.8)},
    "problems": Dataset.from_list(PROBLEMS),
    "demonstrations": Dataset.from_list([SHOWN | {"answer": "1"}]),
}


@pytest.fixture(scope="module")
def cells(model):
    """Two seeds; all tests share their finished run."""
    return [Cell(model, "instruction_tuned", seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def predictions(cells, store):
    return run(cells, store)


@pytest.fixture
def copied(predictions, store, tmp_path):
    """A copy of the finished run's store."""
    return shutil.copytree(store, tmp_path / "copied")


def grid_of(store, settings=SETTINGS, **inputs):
    return Grid(store, **settings, **INPUTS | inputs)


def run(cells, store, settings=SETTINGS, measurements=MEASUREMENTS, **inputs):
    return grid_of(store, settings, **inputs).run(cells, measurements)


def states(cells, store, settings=SETTINGS, measurements=MEASUREMENTS, **inputs):
    plan = grid_of(store, settings, **inputs).plan(cells, measurements)
    return plan["state"].repeat(plan["trainings"]).tolist()


def changed(section, **changes):
    return SETTINGS | {section: replace(SETTINGS[section], **changes)}


def contents(store):
    """Every file of a store but the locks, by relative name."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and not path.name.startswith(".")  # locks, torn files
    }


# --- Grids -----------------------------------------------------------------------

BASE = [Cell("base", "instruction_tuned", seed) for seed in (0, 1)]


def test_the_base_cells_are_in_every_grid():
    small = "micro-small"
    sizes = ExperimentsConfig(students=(small, "base"), raw_students=(small,))
    found = [
        grids.ability_grid(BASE, sizes),
        grids.format_grid(BASE),
        grids.loss_grid(BASE),
        grids.scaling_grid(BASE, sizes),
    ]
    assert [len(grid) for grid in found] == [4, 6, 4, 6]
    assert all(set(BASE) <= set(grid) for grid in found)
    assert len(set().union(*found)) == 2 + 4 + 2 + 4
    assert grids.scaling_grid(BASE, ExperimentsConfig()) == BASE


def test_the_format_grid_is_figure_4_and_takes_more_by_name():
    parts = ["in_context", "zero_shot"]
    names = [cell.formats_name for cell in grids.format_grid(BASE)[::2]]
    assert names == ["all", *parts]
    more = grids.format_grid(BASE, [*parts, "answer_only"])
    assert more[-1].formats_name == "answer_only"
    with pytest.raises(ValueError, match="parts: .*'cot'.*chain_of_thought"):
        grids.format_grid(BASE, ["cot"])


def test_the_loss_grid_varies_one_thing_at_a_time():
    extra = [{"tail": "paper"}, {"divergence": "reverse_kl"}, {"alignment": "dtw"}]
    both = grids.loss_grid(BASE)
    assert {c.loss.name for c in both} == {"distribution_matching", "sample_matching"}
    added = [c for c in grids.loss_grid(BASE, extra=extra) if c not in both]
    seen = [(c.loss.tail, c.loss.divergence, c.alignment) for c in added[::2]]
    tail, divergence = ("paper", "forward_kl", "offsets"), ("bucket", "reverse_kl")
    assert seen == [tail, (*divergence, "offsets"), ("bucket", "forward_kl", "dtw")]
    assert [c.seed for c in added] == [0, 1] * 3
    assert {c.loss.name for c in added} == {"distribution_matching"}


def test_a_pinned_revision_stays_with_its_own_model():
    pinned = [replace(cell, revision="abc") for cell in BASE[:1]]
    sizes = ExperimentsConfig(students=("small", "base"))
    found = {(c.model, c.revision) for c in grids.scaling_grid(pinned, sizes)}
    assert found == {("base", "abc"), ("small", None)}


def test_the_order_of_formats_makes_no_other_cell():
    formats = profiles.DATA_FORMATS
    assert Cell(**CELL_FIELDS, data_formats=formats[::-1]) == Cell(**CELL_FIELDS)


@pytest.mark.parametrize(
    ("build", "message"),
    (
        (lambda: Cell(**CELL_FIELDS, alignment="x"), "'offsets' or 'dtw'.*'x'"),
        (lambda: Cell(**CELL_FIELDS, data_formats=()), "data_formats\n.*at least 1"),
        (lambda: Measurement("train", ("t",), ("m",)), "'validation' or 'test'"),
        (lambda: Measurement("test", ("t",), ("m",), "some"), "'last', 'first_and"),
        (lambda: Measurement("test", (), ("m",)), "at least 1 item"),
    ),
)
def test_a_wrong_field_names_itself_and_what_is_allowed(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- Running ---------------------------------------------------------------------


def test_predictions_have_a_row_per_cell_step_and_problem(predictions):
    assert list(predictions.columns) == experiments.COLUMNS
    counts = predictions.groupby(["split", "seed", "step"]).size().to_dict()
    every = {("validation", seed, step): 3 for seed in (0, 1) for step in (0, 2, 4)}
    ends = {("test", seed, step): 3 for seed in (0, 1) for step in (0, 4)}
    assert counts == every | ends
    assert set(predictions["data_formats"]) == {"all"}
    assert predictions["size"].nunique() == 1
    scorers = predictions[["reference_is_correct", "lm_eval_is_correct"]]
    assert scorers.notna().all(axis=None)  # math; generic tasks have none


def test_the_store_keeps_weights_and_no_optimiser_state(predictions, store):
    names = {path.name for path in store.rglob("*") if path.is_file()}
    assert "optimizer.safetensors" not in names
    assert {"model.safetensors", "state.json", "metrics.csv", "cell.json"} <= names
    assert not list(store.rglob("training"))


def test_trained_is_the_last_or_the_asked_checkpoint_and_says_where_there_is_none(
    cells, predictions, store
):
    student = grid_of(store).trained(cells[1])
    _, last = training.list_checkpoints(grid_of(store)._folder(cells[1]))[-1]
    base = models.load_student(cells[1].student, seed=1)
    weights = training.load_checkpoint(models.copy_of(base), last).model.state_dict()
    for name, tensor in student.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert not student.model.training
    start = grid_of(store).trained(cells[1], 0)
    assert models.student_digest(start) == models.student_digest(base)
    with pytest.raises(ValueError, match=r"step 99: not trained.* at \[0, "):
        grid_of(store).trained(cells[1], 99)
    with pytest.raises(ValueError, match="seed 9.*not trained. Allowed: one that was"):
        grid_of(store).trained(replace(cells[1], seed=9))


def test_next_tokens_are_the_teachers_candidates_with_a_students_probabilities(
    cells, predictions, store
):
    grid = grid_of(store)
    table = next_tokens.next_token_probs(grid, cells, num_updates=1)
    assert set(table.index.unique("seed")) == {0, 1}
    assert list(table) == ["the teacher", "distribution matching"]
    np.testing.assert_allclose(table.groupby(["seed", "place"]).sum(), 1, atol=1e-6)
    place = table.loc[(1, 3)]  # the fourth of its solution's ten places
    np.testing.assert_allclose(place["the teacher"], [0.9, 0.05, 0.05], atol=1e-6)
    texts, tokens = (place.index.get_level_values(n) for n in ("text", "token"))
    student = grid.trained(cells[1])
    ids = student.tokenizer(texts[0], add_special_tokens=False).input_ids
    assert len(ids) == 3 and tokens[-1] == next_tokens.OTHERS
    rows = INPUTS["examples"].to_list()
    row = next(r for r in rows if f"{r['targets']} ".startswith(f"{texts[0]} "))
    asked = student.tokenizer(row["inputs"], return_tensors="pt").input_ids
    first = student.tokenizer.convert_tokens_to_ids(tokens[0])
    labels = torch.tensor([[*ids, first]])
    with torch.inference_mode():
        probs = student.model(input_ids=asked, labels=labels).logits[0, 3].softmax(-1)
    assert place["distribution matching"].iloc[0] == pytest.approx(probs[first].item())


def test_where_no_teacher_has_probabilities_no_next_tokens_are_asked(
    cells, predictions, store, monkeypatch
):
    hard = [replace(cells[0], loss=LossConfig(name="sample_matching"))]
    table = next_tokens.next_token_probs(grid_of(store), hard, num_updates=1)
    assert table.empty and list(table) == ["the teacher", "sample matching"]
    assert list(table.index.names) == next_tokens.LEVELS
    # Nor where no example has targets.
    monkeypatch.setattr(next_tokens, "_unreached", lambda *_: np.array([], int))
    assert next_tokens.next_token_probs(grid_of(store), cells, num_updates=1).empty


def test_the_base_is_decoded_once_for_all_seeds(predictions, store):
    assert len(list((store / "bases").iterdir())) == 1
    before = predictions[predictions["step"] == 0]
    columns = ["split", "problem_id", "predicted_answer"]
    first, second = (before.loc[before["seed"] == s, columns] for s in (0, 1))
    assert first.reset_index(drop=True).equals(second.reset_index(drop=True))


def test_what_is_measured_on_one_checkpoint_is_decoded_together(
    cells, predictions, copied, monkeypatch
):
    def decode(student, texts, *arguments, **options):
        asked.append(len(texts))
        return really(student, texts, *arguments, **options)

    asked, really = [], experiments.evaluation.decode
    monkeypatch.setattr(experiments.evaluation, "decode", decode)
    both = (MODE, "zero_shot_answer_only")
    measurements = [*MEASUREMENTS, Measurement("test", (TASK,), both)]
    again = run(cells[:1], copied, measurements=measurements)
    assert asked == [3]  # the other mode was there
    fresh = Measurement("test", (TASK,), ("in_context_answer_only", both[1]))
    run(cells[1:], copied, measurements=[fresh])
    assert asked[1:] == [6]
    assert len(again) == len(predictions) // 2 + 3


def test_a_second_run_trains_or_decodes_nothing(cells, store, predictions, monkeypatch):
    assert predictions.attrs == {"cells": 2, "trained": 2, "decoded": 5}
    assert states(cells, store) == ["finished", "finished"]
    monkeypatch.setattr(experiments.training, "train", None)
    monkeypatch.setattr(experiments.evaluation, "evaluate", None)
    again = run(cells, store)
    assert again.attrs == {"cells": 2, "trained": 0, "decoded": 0}
    pd.testing.assert_frame_equal(again, predictions)


def test_a_tweak_of_one_cell_trains_only_this_cell(cells, predictions, copied):
    before = contents(copied)
    tweaked = replace(cells[1], loss=LossConfig(tail="paper"))
    counts = run([cells[0], tweaked], copied).attrs
    assert counts == {"cells": 2, "trained": 1, "decoded": 2}  # no base
    assert before.items() <= contents(copied).items()


def test_what_cannot_change_a_result_computes_nothing(cells, store, predictions):
    settings = changed("evaluation", confidence=0.9) | {"num_workers": 2}
    assert states(cells, store, settings) == ["finished"] * 2
    other = replace(MEASUREMENTS[1], prompt_modes=("zero_shot_answer_only",))
    for extra in (replace(other, models=("other",)), replace(other, starts=("raw",))):
        measurements = [*MEASUREMENTS, extra]
        assert states(cells, store, measurements=measurements) == ["finished"] * 2


@pytest.mark.parametrize(
    ("section", "change", "state"),
    (
        ("training", {"learning_rate": 2e-2}, "to train"),
        ("formats", {"max_input_tokens": 65}, "to train"),
        ("evaluation", {"max_new_tokens": 9}, "to decode"),
        ("evaluation", {"num_demonstrations": 2}, "to decode"),
        ("evaluation", {"num_samples": 3, "temperature": 0.5}, "to decode"),
    ),
)
def test_what_changes_a_result_is_stale(
    cells, store, predictions, section, change, state
):
    settings = changed(section, **change)
    assert states(cells, store, settings) == [state] * 2
    digests = [grid_of(store, s).settings_digest for s in (SETTINGS, settings)]
    assert digests[0] != digests[1]  # a report must not mix them


def test_other_data_or_other_weights_are_stale(cells, store, predictions, tmp_path):
    fewer = INPUTS["examples"].select(range(40))
    assert states(cells, store, examples=fewer) == ["to train"] * 2
    other = {"offsets": aligned_by("offsets", 0.7)}
    assert states(cells, store, aligned=other) == ["to train"] * 2
    student = tiny_student()
    student.model.shared.weight.data[3] += 1
    moved = [replace(c, model=saved(student, tmp_path / "tiny")) for c in cells]
    assert states(moved, store) == ["to train"] * 2


def test_sample_matching_depends_on_no_target_distribution(model, tmp_path):
    def num_trainings(name):
        cells = [
            Cell(model, "raw", 0, loss=LossConfig(name=name, tail=t), alignment=method)
            for t, method in variants
        ]
        jobs = grid_of(tmp_path)._jobs(cells, MEASUREMENTS).values()
        return len({job for (job,) in jobs})

    variants = ("bucket", "offsets"), ("paper", "offsets"), ("bucket", "dtw")
    assert num_trainings("sample_matching") == 1
    assert num_trainings("distribution_matching") == 3


@pytest.mark.parametrize("is_evaluated", (False, True))
def test_a_file_that_is_gone_is_taken_from_notebook_06_or_decoded_again(
    cells, store, predictions, copied, tmp_path, monkeypatch, is_evaluated
):
    grid = grid_of(copied, evaluated=tmp_path)
    folder = grid._folder(cells[0]) / "predictions" / "step-4"
    if is_evaluated:
        weights = models.student_digest(grid.trained(cells[0]))
        shutil.copytree(folder, tmp_path / weights / "step-4")
        monkeypatch.setattr(experiments.evaluation, "decode", None)
    next(folder.glob("*.parquet")).unlink()
    assert sorted(states(cells, copied)) == ["finished", "to decode"]
    again = grid.run(cells, MEASUREMENTS)
    assert again.attrs == {"cells": 2, "trained": 0, "decoded": 1}
    pd.testing.assert_frame_equal(again, predictions)
    assert contents(copied) == contents(store)


IS_ZERO_SHOT = [f.startswith("zero_shot") for f in INPUTS["examples"]["data_format"]]
UNKNOWN = [Measurement("test", ("gsm8k",), (MODE,))]
PARTLY = {"examples": INPUTS["examples"].select(np.flatnonzero(IS_ZERO_SHOT))}


@pytest.mark.parametrize(
    ("given", "message"),
    (
        ({"measurements": UNKNOWN}, "no test problems of task 'gsm8k'"),
        ({"aligned": {"dtw": aligned_by("dtw")}}, r"'dtw'\].*with \['offsets'\] "),
        (PARTLY, "with .*in_context_chain.*, .in_context_answer.*03: formats"),
        ({"cells": []}, "cells or measurements: none"),
        ({"measurements": []}, "cells or measurements: none"),
    ),
)
def test_what_is_missing_is_said_before_any_training(model, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        run(**{"cells": [Cell(model, "raw", 0)], "store": tmp_path} | given)
    assert not list(tmp_path.rglob("*.parquet")) + list(tmp_path.rglob("*.csv"))


def test_formats_that_no_cell_learns_from_may_be_missing(model, tmp_path):
    cell = Cell(model, "raw", 0, data_formats=profiles.DATA_FORMATS[2:])
    assert states([cell], tmp_path, **PARTLY) == ["to train"]


@pytest.mark.parametrize(("method", "other"), (("offsets", "dtw"), ("dtw", "offsets")))
def test_targets_of_another_method_are_refused(method, other):
    message = rf"inputs.aligned\['{method}'\]: .*another method.* Allowed: .*{method}"
    with pytest.raises(ValueError, match=message):
        experiments.targets_digest(aligned_by(other), method)
    both = [[Rule.IDENTICAL, Rule.SAME_SPAN] * 5] * 12  # either method gives these
    table = make_aligned().add_column("rule", both)
    assert experiments.targets_digest(table, method)


def test_a_training_on_what_no_grid_asks_for_is_not_kept(model, capsys):
    grid = grid_of("x", aligned={"offsets": aligned_by("dtw")})
    grid.keep(Cell(model, "raw", 0), None)
    assert "not shared with notebooks 07 to 10: inputs" in capsys.readouterr().out


# --- Processes -------------------------------------------------------------------

TWO_WORKERS = SETTINGS | {"num_workers": 2}


@pytest.mark.parametrize(
    ("cores", "gib", "workers"),
    ((1, 9, 2), (6, 9, 6), (64, 99, 8), (16, 3, 3), (4, 0, 2)),
)
def test_workers_fill_the_machine_but_not_its_memory(monkeypatch, cores, gib, workers):
    free = types.SimpleNamespace(available=gib * 2**30)
    monkeypatch.setattr(experiments.psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert experiments.workers_that_fit() == workers


def assert_same_bytes(store, whole):
    """All that a store holds is what the other holds, too."""
    found, whole = contents(store), contents(whole)
    assert found and found == {name: whole.get(name) for name in found}


@pytest.mark.parametrize("settings", (SETTINGS, TWO_WORKERS), ids=("one", "two"))
def test_a_failing_cell_is_named_and_the_others_are_finished(
    cells, predictions, model, tmp_path, settings
):
    broken = Cell(str(tmp_path / "broken"), "instruction_tuned", 0)
    shutil.copytree(model, broken.model)
    path = tmp_path / "broken/config.json"
    grid = grid_of(tmp_path / "store", settings)
    grid.plan([broken], MEASUREMENTS)  # its digest is known from here on
    hidden = path.rename(tmp_path / "hidden")
    with pytest.raises(experiments.CellsFailed, match="1 of ") as failure:
        grid.run([broken, *cells], MEASUREMENTS)
    said = str(failure.value)
    assert str(broken) in said and "cannot load" in said
    assert not any(str(cell) in said for cell in cells)
    plan = grid.plan([broken, *cells], MEASUREMENTS)
    kinds = [(broken.model, "to train", 1), (model, "finished", 2)]
    assert list(plan.itertuples(index=False, name=None)) == kinds
    hidden.rename(path)
    again = grid.run([broken, *cells], MEASUREMENTS)
    assert again.attrs == {"cells": 3, "trained": 1, "decoded": 3}
    others = again[again["model"] == model].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, predictions, check_flags=False)


def test_a_training_whose_weights_were_deleted_is_not_done(tmp_path):
    job = experiments.Job(Cell(**CELL_FIELDS), tmp_path)
    for path, is_done in (("cell.json", False), ("checkpoints/step-4", True)):
        (tmp_path / path).mkdir(parents=True)
        assert job.is_done() == is_done


def test_jobs_whose_process_was_killed_have_failed(tmp_path):
    jobs = [experiments.Job(Cell(**CELL_FIELDS), tmp_path / str(i)) for i in range(4)]
    due = jobs.copy
    done = list(experiments.side_by_side(due, 2, grid_of(tmp_path), work=deadly_work))
    assert {job for job, *_ in done} == set(jobs)
    assert all("killed, perhaps for its memory" in error for _, error, _ in done)


def deadly_work(job):
    """Module-level, so that a process can import it."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_are_told_of_cards_take_one_each(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5f")
    assert len(models.cards()) == 2  # as many workers as cards, at least
    jobs = [experiments.Job(Cell(**CELL_FIELDS), tmp_path / str(i)) for i in range(6)]
    due = jobs.copy
    done = experiments.side_by_side(due, 2, grid_of(tmp_path), work=card_of_worker)
    assert {card for _, card, _ in done} == {"3", "GPU-5f"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert models.cards() == []


def card_of_worker(job):
    """Take long enough that no worker gets all jobs."""
    time.sleep(0.3)
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_what_cells_share_is_encoded_once(model, tmp_path, monkeypatch):
    counted = mock.Mock(wraps=experiments.batching.encode)
    monkeypatch.setattr(experiments.batching, "encode", counted)
    grid, cell = grid_of(tmp_path), Cell(model, "instruction_tuned", 0)
    tokenizer = models.load_student(cell.student).tokenizer
    one_format = {"data_formats": ("zero_shot_answer_only",)}
    for change in ({}, {"seed": 1}, one_format, {"alignment": "dtw"}, {}):
        one = replace(cell, **change)
        found = grid.encoded_of(one, tokenizer)
        assert set(found.data_format) == set(one.data_formats)
        mass = {"offsets": 0.9, "dtw": 0.8}[one.alignment]
        assert found.aligned.topk_probs[0, 0] == pytest.approx(mass)
    assert counted.call_count == 3  # by offsets, by dtw, and by offsets again
    hard = replace(cell, loss=LossConfig(name="sample_matching"))
    assert grid.encoded_of(hard, tokenizer).aligned is None


def run_elsewhere(cells, store, settings):
    torch.set_num_threads(1)
    run(cells, store, settings)


def start_elsewhere(*arguments):
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=run_elsewhere, args=arguments)
    process.start()
    return process


def test_a_training_that_is_kept_is_the_one_a_grid_would_have_done(
    cells, store, predictions, tmp_path, monkeypatch
):
    cell = cells[0]
    training.train(
        models.load_student(cell.student, seed=cell.seed),
        encode(tiny_student(), INPUTS["aligned"]["offsets"], INPUTS["examples"]),
        SETTINGS["training"],
        seed=cell.seed,
        work_dir=tmp_path / "elsewhere",
    )
    grid = grid_of(tmp_path / "store")
    grid.keep(cell, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "elsewhere")
    grid.keep(cell, None)  # has it
    monkeypatch.setattr(experiments, "_train", None)  # nothing is left to train
    kept = run([cell], tmp_path / "store")
    of_cell = predictions[predictions["seed"] == cell.seed]
    pd.testing.assert_frame_equal(kept, of_cell.reset_index(drop=True))
    assert_same_bytes(tmp_path / "store", store)


def has(folder, pattern):
    """Whether a file is there; folders may be renamed while this looks."""
    try:
        return bool(list(folder.rglob(pattern)))
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("settings", (SETTINGS, TWO_WORKERS), ids=("one", "two"))
@pytest.mark.parametrize("seen", ("*/training/checkpoints/step-*", "predictions/*"))
def test_a_killed_run_resumes_and_ends_with_the_same_bytes(
    cells, store, predictions, tmp_path, settings, seen
):
    process = start_elsewhere(cells, tmp_path, settings)
    while process.is_alive() and not has(tmp_path, seen):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    resumed = run(cells, tmp_path, settings)
    assert resumed.attrs["decoded"] > 0
    pd.testing.assert_frame_equal(resumed, predictions)
    assert_same_bytes(tmp_path, store)


def test_two_runs_at_once_in_one_store_do_not_disturb_each_other(
    cells, store, predictions, tmp_path
):
    processes = [start_elsewhere(cells, tmp_path, SETTINGS) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert_same_bytes(tmp_path, store)
