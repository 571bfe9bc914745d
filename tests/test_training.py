"""Training on a tiny T5: schedule, resume, processes, precision and errors.

Run as a script, ``python tests/test_training.py WORK_DIR``, it trains once: that is
what the test of several processes starts.
"""

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

from cotspec import batching, losses, training
from cotspec.models import as_student
from cotspec.profiles import DATA_FORMATS, LossConfig, TrainingConfig

WORDS = [f"w{i}" for i in range(40)]
CONFIG = TrainingConfig(
    learning_rate=1e-2,
    max_steps=12,
    warmup_steps=2,
    batch_tokens=160,
    precision="float32",
    num_checkpoints=3,
)


def tiny_tokenizer(words=WORDS):
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def random_student(name, model_class, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return as_student(name, model_class(config), tiny_tokenizer())


def tiny_student(dropout=0.1):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    sizes |= {"vocab_size": 48, "feed_forward_proj": "gated-gelu"}
    config = T5Config(dropout_rate=dropout, decoder_start_token_id=0, **sizes)
    return random_student("tiny", T5ForConditionalGeneration, config)


def tiny_causal_student():
    sizes = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 32}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(num_hidden_layers=2, eos_token_id=1, pad_token_id=0, **sizes)
    return random_student("tiny-causal", LlamaForCausalLM, config)


def make_examples(num_problems=12):
    """Copy tasks in all four formats; the answer-only ones have sample_id -1."""
    generator = np.random.default_rng(0)
    rows = []
    for problem in range(num_problems):
        for data_format in DATA_FORMATS:
            is_cot = data_format.endswith("chain_of_thought")
            length = 20 if data_format.startswith("in_context") else 6
            words = generator.choice(WORDS, length)
            target = np.array(WORDS)[np.arange(10) * (problem + 1) % 40]
            target = target if is_cot else words[-1:]
            row = {"data_format": data_format, "sample_id": 0 if is_cot else -1}
            row |= {"inputs": " ".join(words), "targets": " ".join(target)}
            rows.append(row | {"problem_id": f"micro/{problem}"})
    return Dataset.from_list(rows)


def make_aligned(num_problems=12, mass=0.9):
    """The teacher gives `mass` to the sampled token and some to its neighbour."""
    tokenizer, rows = tiny_tokenizer(), []
    for problem in range(num_problems):
        target = np.array(WORDS)[np.arange(10) * (problem + 1) % 40]
        ids = tokenizer(" ".join(target), add_special_tokens=False).input_ids
        row = {"problem_id": f"micro/{problem}", "sample_id": 0, "student_ids": ids}
        row["topk_ids"] = [[i, (i + 1) % 40, -1] for i in ids]
        rows.append(row | {"topk_probs": [[mass, 0.95 - mass, 0.0]] * len(ids)})
    return Dataset.from_list(rows)


def encode(student, aligned=None, examples=None):
    """`make_examples` or others in a student's tokens."""
    return batching.encode(
        examples or make_examples(),
        student.tokenizer,
        aligned=aligned,
        max_input_tokens=64,
        is_causal=not student.model.config.is_encoder_decoder,
    )


def run(work_dir, student=None, *, mass=0.9, loss=None, seed=3, **changes):
    """Train the tiny T5 or another student; `changes` are of `CONFIG`."""
    student = student or tiny_student()
    encoded = encode(student, make_aligned(mass=mass))
    config = dataclasses.replace(CONFIG, **changes)
    options = {"work_dir": work_dir, "loss": loss, "seed": seed}
    return student, training.train(student, encoded, config, **options)


def load_last(student, work_dir):
    """The student with the weights of a run's newest checkpoint."""
    return training.load_checkpoint(student, training.list_checkpoints(work_dir)[-1][1])


def assert_same_run(first, second):
    """Bit for bit: all checkpoints' weights, the newest state, the log."""
    names = [folder.name for _, folder in training.list_checkpoints(first)]
    assert names == [folder.name for _, folder in training.list_checkpoints(second)]
    for name in names:
        for file in (training.WEIGHTS, training.STATE):
            pair = [folder / "checkpoints" / name / file for folder in (first, second)]
            assert pair[0].read_bytes() == pair[1].read_bytes(), pair
    log = "metrics.csv"
    assert (first / log).read_bytes() == (second / log).read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole run: (work_dir, student, metrics)."""
    work_dir = tmp_path_factory.mktemp("finished")
    return work_dir, *run(work_dir)


def test_the_loss_falls_and_the_log_has_a_row_per_update(finished):
    _, _, metrics = finished
    assert metrics["step"].tolist() == list(range(1, 13))
    assert list(metrics.columns) == training.METRICS
    assert metrics["loss"][9:].mean() < 0.8 * metrics["loss"][:3].mean()
    assert (metrics["num_target_tokens"] > 0).all()
    rates = [training.learning_rate_at(step, 12, CONFIG) for step in range(1, 13)]
    assert metrics["learning_rate"].tolist() == pytest.approx(rates)


def test_checkpoints_are_named_by_step_and_only_the_newest_can_be_resumed(finished):
    checkpoints = training.list_checkpoints(finished[0])
    files = {step: {f.name for f in path.iterdir()} for step, path in checkpoints}
    assert list(files) == [4, 8, 12]
    assert files[4] == files[8] == {"model.safetensors", "state.json"}
    assert files[12] == files[4] | {"resume"}


def test_a_checkpoint_gives_back_the_student_as_it_was(finished):
    work_dir, student, _ = finished
    given = tiny_student()
    loaded = load_last(given, work_dir)
    assert not loaded.model.training
    for name, tensor in student.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name
    assert loaded is given  # no second copy in memory


def test_a_buffer_that_belongs_to_the_weights_comes_back_too(tmp_path):
    trained, given = tiny_student(), tiny_student()
    trained.model.register_buffer("final_logits_bias", torch.ones(1, 48))  # of BART
    given.model.register_buffer("final_logits_bias", torch.zeros(1, 48))
    run(tmp_path, trained, max_steps=1)
    assert load_last(given, tmp_path).model.final_logits_bias.eq(1).all()


def test_another_seed_gives_another_run(finished, tmp_path):
    _, metrics = run(tmp_path, seed=4)
    assert metrics["loss"].tolist() != finished[2]["loss"].tolist()


def test_training_leaves_the_global_random_state_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run(tmp_path, max_steps=1)
    assert torch.equal(torch.rand(3), expected)


class StopHere(Exception):
    """Raised by the tests in the middle of a run."""


@pytest.mark.parametrize("stop_at", (3, 4, 7, 11))
@pytest.mark.parametrize("optimizer", ("adamw", "adafactor"))
def test_an_interrupted_run_ends_with_the_same_bytes(
    tmp_path, monkeypatch, stop_at, optimizer
):
    run(tmp_path / "whole", optimizer=optimizer)
    append = training._append_row

    def append_then_stop(path, row):
        append(path, row)
        if row["step"] == stop_at:
            raise StopHere

    monkeypatch.setattr(training, "_append_row", append_then_stop)
    with pytest.raises(StopHere):
        run(tmp_path / "cut", optimizer=optimizer)
    monkeypatch.undo()
    run(tmp_path / "cut", optimizer=optimizer)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_is_not_trained_again(finished, tmp_path, monkeypatch):
    work_dir, student, _ = finished
    monkeypatch.setattr(training, "take_update", None)
    again, metrics = run(work_dir)
    assert len(metrics) == 12
    assert torch.equal(again.model.shared.weight, student.model.shared.weight)


def test_half_written_checkpoints_and_log_lines_are_forgotten(finished, tmp_path):
    run(tmp_path)
    torn = tmp_path / "checkpoints" / ".step-000016"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    with open(tmp_path / "metrics.csv", "a", encoding="utf-8") as file:
        file.write("13,0.5,2.1")
    run(tmp_path)
    assert not torn.exists()
    assert_same_run(finished[0], tmp_path)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"learning_rate": 1e-3}, "training"),
        ({"mass": 0.8}, "data"),
        ({"seed": 4}, "seed"),
    ],
)
def test_a_folder_of_another_run_is_refused(finished, change, name):
    with pytest.raises(ValueError, match=f"is of another run: its {name} is"):
        run(finished[0], **change)


def test_weights_of_another_model_or_none_are_refused(finished, tmp_path):
    folder = training.list_checkpoints(finished[0])[-1][1]
    student = tiny_student()
    student.model.resize_token_embeddings(56)
    with pytest.raises(ValueError, match="do not fit student 'tiny'.*size mismatch"):
        training.load_checkpoint(student, folder)
    empty = tmp_path / "step-4"
    empty.mkdir()
    (empty / "state.json").write_bytes((folder / "state.json").read_bytes())
    with pytest.raises(ValueError, match="weights do not fit.*model.safetensors"):
        training.load_checkpoint(tiny_student(), empty)


def test_weights_are_loaded_with_the_tokenizer_they_were_trained_with_only(finished):
    """Another of the same size and end token would read the words as others."""
    student = tiny_student()
    swapped = tiny_tokenizer(WORDS[::-1])
    other = dataclasses.replace(student, name="other", tokenizer=swapped)
    with pytest.raises(ValueError, match="vocabulary of 'tiny', which 'other' lacks"):
        load_last(other, finished[0])


@pytest.mark.parametrize(
    ("max_steps", "num_checkpoints", "steps"), [(10, 3, [3, 7, 10]), (2, 8, [1, 2])]
)
def test_checkpoints_are_a_number_evenly_spaced(
    tmp_path, max_steps, num_checkpoints, steps
):
    run(tmp_path, max_steps=max_steps, num_checkpoints=num_checkpoints)
    assert [step for step, _ in training.list_checkpoints(tmp_path)] == steps


def test_loss_and_gradients_do_not_depend_on_how_an_update_is_cut(tmp_path):
    """Four micro-batches in one update: the mean over all their tokens."""
    student, fresh = tiny_student(dropout=0.0), tiny_student(dropout=0.0)
    _, metrics = run(tmp_path, student, gradient_accumulation_steps=4, max_steps=1)
    encoded = encode(fresh, make_aligned())
    stream = batching.batch_stream(encoded.lengths(), 160, seed=3)
    indices = np.concatenate([next(stream)[1] for _ in range(4)])
    batch = batching.collate(encoded, indices)
    loss = training.batch_loss(fresh, fresh.model, batch, LossConfig())
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in fresh.model.parameters()])
    row = metrics.iloc[0]
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert row["num_examples"] == len(indices)


def test_gradients_are_clipped(tmp_path, monkeypatch):
    """AdamW divides the scale away, so the moments show it."""
    kept = []
    monkeypatch.setattr(training, "save", lambda run, step: kept.append(run.optimizer))
    _, metrics = run(tmp_path, max_grad_norm=1e-3, max_steps=1)
    moments = [state["exp_avg"] for state in kept[-1].state_dict()["state"].values()]
    norm = math.sqrt(sum(float(t.double().pow(2).sum()) for t in moments))
    assert metrics["grad_norm"][0] > 1e-2
    assert norm == pytest.approx(0.1 * 1e-3, rel=1e-2)  # (1 - beta1) times the clip


def test_the_rate_is_a_cosine_sized_in_updates_after_a_linear_warm_up():
    config = TrainingConfig(learning_rate=1.0, warmup_steps=3)
    rates = [training.learning_rate_at(step, 11, config) for step in range(1, 12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[7] == pytest.approx(0.5)
    assert rates[10] == pytest.approx((1 + math.cos(math.pi * 7 / 8)) / 2)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    # Fewer updates than warm-up steps only warm up.
    config = dataclasses.replace(config, warmup_steps=10)
    assert training.learning_rate_at(2, 2, config) == pytest.approx(2 / 11)


def test_epochs_size_the_run_when_max_steps_does_not(tmp_path):
    _, metrics = run(tmp_path, max_steps=None, num_epochs=0.5)
    assert metrics["num_examples"].sum() == pytest.approx(24, abs=6)
    assert metrics["epoch"].max() < 0.5


def test_dropout_is_on_in_training_and_the_student_comes_back_in_eval_mode(tmp_path):
    modes = []
    student = tiny_student()
    student.model.encoder.register_forward_hook(
        lambda module, *_: modes.append(module.training)
    )
    run(tmp_path, student, max_steps=2)
    assert modes == [True, True]
    assert not student.model.training


def test_bfloat16_trains_float32_weights_and_leaves_forward_as_it_was(tmp_path):
    student, metrics = run(tmp_path, precision="bfloat16")
    assert metrics["loss"][9:].mean() < 0.8 * metrics["loss"][:3].mean()
    assert student.model.shared.weight.dtype == torch.float32
    ids = torch.tensor([[3, 4, 1]])
    logits = student.model(input_ids=ids, decoder_input_ids=ids).logits
    loaded = load_last(tiny_student(), tmp_path).model
    assert torch.equal(logits, loaded(input_ids=ids, decoder_input_ids=ids).logits)


def test_activation_checkpointing_changes_memory_but_no_bit_of_the_result(
    finished, tmp_path
):
    student, metrics = run(tmp_path, activation_checkpointing=True)
    assert metrics.equals(finished[2])
    assert not student.model.is_gradient_checkpointing


def test_examples_must_be_encoded_for_the_loss_and_the_student(tmp_path):
    config = dataclasses.replace(CONFIG, max_steps=1)
    student, loss = tiny_student(), LossConfig(name="sample_matching")
    encoded, options = encode(student), {"work_dir": tmp_path / "a", "seed": 3}
    with pytest.raises(ValueError, match="aligned: None.*'distribution_matching'"):
        training.train(student, encoded, config, **options)
    with pytest.raises(ValueError, match="is_causal: False.*'tiny-causal': True"):
        training.train(tiny_causal_student(), encoded, config, loss=loss, **options)
    without = training.train(student, encoded, config, loss=loss, **options)
    _, with_aligned = run(tmp_path / "b", loss=loss, max_steps=1)
    assert with_aligned.equals(without)


@pytest.mark.parametrize("name", ("distribution_matching", "sample_matching"))
def test_a_decoder_only_student_takes_the_same_examples(tmp_path, name):
    loss, length = LossConfig(name=name), {"max_steps": 60, "num_checkpoints": 1}
    _, metrics = run(tmp_path, tiny_causal_student(), loss=loss, **length)
    losses_seen = metrics["loss"]
    assert losses_seen[-10:].mean() < 0.8 * losses_seen[:10].mean()


def test_frozen_layers_and_embeddings_stay_as_they_are(tmp_path):
    student = tiny_causal_student()
    before = {n: p.clone() for n, p in student.model.named_parameters()}
    run(tmp_path, student, num_frozen_layers=1)
    same = {n for n, p in student.model.named_parameters() if torch.equal(before[n], p)}
    assert {n for n in before if "embed_tokens" in n or ".layers.0." in n} == same
    assert all(p.requires_grad for p in student.model.parameters())


def test_frozen_layers_are_refused_where_there_are_none(tmp_path):
    with pytest.raises(ValueError, match="num_frozen_layers: 9. Allowed.*0 to"):
        run(tmp_path, tiny_causal_student(), num_frozen_layers=9)
    with pytest.raises(ValueError, match="num_frozen_layers: 9.*0 to 0"):
        run(tmp_path, num_frozen_layers=9)


def test_a_decoder_only_student_is_scored_on_its_targets_only():
    """One example at a time without padding: Hugging Face's own shifted loss."""
    student = tiny_causal_student()
    encoded = encode(student)
    chosen = np.array([0, 1, 7])
    batch = batching.collate(encoded, chosen)
    loss = training.batch_loss(
        student, student.model, batch, LossConfig(name="sample_matching")
    )
    total = count = 0
    for i in chosen:
        source, target = encoded.input_ids[i], encoded.labels[i]
        ids = torch.tensor(np.concatenate([source, target]), dtype=torch.long)[None]
        labels = ids.clone()
        labels[:, : len(source)] = batching.IGNORED
        total += student.model(input_ids=ids, labels=labels).loss.item() * len(target)
        count += len(target)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_a_loss_that_is_not_finite_names_the_step_and_loses_nothing(
    tmp_path, monkeypatch
):
    matching, calls = losses.distribution_matching, []

    def nan_in_the_sixth_update(*arguments, **options):
        calls.append(1)
        return matching(*arguments, **options) * (math.nan if len(calls) == 6 else 1)

    monkeypatch.setattr(losses, "distribution_matching", nan_in_the_sixth_update)
    with pytest.raises(FloatingPointError, match="loss is nan at step 6"):
        run(tmp_path)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 5
    assert [step for step, _ in training.list_checkpoints(tmp_path)] == [4]


# --- Runs in processes of their own ----------------------------------------------

LONG = {"max_steps": 60, "num_checkpoints": 12}


def run_on_two_processes(*command, **environment):
    """``accelerate launch`` starts two CPU processes only if told "multi_gpu"."""
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true"}
    launcher = "-m accelerate.commands.launch --multi_gpu --mixed_precision no "
    launcher += "--num_processes 2 --dynamo_backend no --main_process_port 0"
    options = {"env": os.environ | environment, "capture_output": True, "text": True}
    command = [sys.executable, *launcher.split(), *command]
    done = subprocess.run(command, timeout=300, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", (1, 2, 3))  # one is idle, even, uneven
def test_two_processes_leave_the_loss_trace_of_one(tmp_path, accumulation):
    _, one = run(tmp_path / "one", gradient_accumulation_steps=accumulation, **LONG)
    run_on_two_processes(__file__, str(tmp_path / "two"), str(accumulation))
    two = pd.read_csv(tmp_path / "two" / "metrics.csv")
    exact = ["step", "epoch", "learning_rate", "num_examples", "num_target_tokens"]
    assert two[exact].equals(one[exact])
    np.testing.assert_allclose(two["loss"], one["loss"], atol=1e-4)
    np.testing.assert_allclose(two["grad_norm"], one["grad_norm"], rtol=1e-2)


if __name__ == "__main__":
    run(Path(sys.argv[1]), gradient_accumulation_steps=int(sys.argv[2]), **LONG)
