"""Batches and the pretraining loop: masks, files."""

import dataclasses
import itertools
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from cotspec.micro import build, tokenizers
from cotspec.micro.shipped import MicroConfig

TINY = MicroConfig(
    num_demonstrations=1,
    pool_size=40,
    teacher_steps=4,
    teacher_hidden=32,
    teacher_layers=1,
    raw_steps=2,
    student_steps=4,
    student_hidden=32,
    student_layers=1,
    batch_size=4,
)


@pytest.fixture(scope="module")
def problems():
    return build.solved_problems("pretraining", TINY.pool_size, seed=0)


@pytest.fixture(scope="module")
def corpus(problems):
    return build.Corpus(problems, TINY, tokenizers.load_student())


def build_all(out_dir, config=TINY):
    """Train a teacher, a raw base, and from it an instruction-tuned one."""
    folders = {kind: out_dir / kind for kind in ("teacher", "raw", "instruction_tuned")}
    for kind, folder in folders.items():
        base = folders["raw"] if kind == "instruction_tuned" else None
        build.train_model(folder, kind, config=config, seed=0, base=base)
    return folders


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_all(tmp_path_factory.mktemp("micro"))


def test_teacher_labels_are_the_solutions_and_the_end(problems):
    tokenizer = tokenizers.load_teacher()
    corpus = build.Corpus(problems, TINY, tokenizer)
    rng = Random(1)
    for _ in range(20):
        ids, labels = corpus.teacher(rng)
        assert len(ids) == len(labels) and labels[-1] == tokenizer.eos_token_id
        learned = [token for token in labels[:-1] if token != -100]
        text = tokenizer.decode(learned)
        blocks = text.count("The answer is")
        assert blocks == tokenizer.decode(ids).count("Q: ")
        assert "Q:" not in text and "Let's" not in text


def test_the_four_formats_all_occur(corpus):
    rng, kinds = Random(0), set()
    for _ in range(60):
        inputs, targets = (
            corpus.tokenizer.decode(ids, skip_special_tokens=True)
            for ids in corpus.instruction_tuned(rng)
        )
        is_cot = inputs.endswith("Let's think step by step.")
        assert is_cot != targets.startswith("The answer is")
        kinds.add((is_cot, inputs.count("Q:") > 1))
    assert len(kinds) == 4


def test_corrupted_spans_and_what_is_left_make_the_text_again():
    text, marks = list(range(100, 160)), [1, 2, 3, 4, 5, 6, 7, 8]
    for seed in range(50):
        inputs, labels = build.corrupt_spans(Random(seed), text, marks, 99)
        spans, key = {}, None
        for token in labels[:-1]:
            if token in marks:
                key = token
                spans[key] = []
            else:
                spans[key].append(token)
        restored = [x for t in inputs[:-1] for x in spans.get(t, [t])]
        assert restored == text and inputs[-1] == labels[-1] == 99


def test_batches_depend_on_the_seed_alone(corpus):
    draw = corpus.instruction_tuned
    streams = [
        build.batches(draw, corpus.tokenizer, batch_size=4, seed=seed)
        for seed in (0, 0, 1)
    ]
    for _ in range(20):
        first, again, other = map(next, streams)
        assert first.keys() == again.keys()
        assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["input_ids"], other["input_ids"])


def test_batches_pad_inputs_and_ignore_padding_in_labels(corpus):
    examples = itertools.cycle([([5, 6], [7]), ([8], [9, 10])])
    stream = build.batches(
        lambda rng: next(examples), corpus.tokenizer, batch_size=2, seed=0
    )
    batch = next(stream)
    assert batch["input_ids"].tolist() == [[5, 6], [8, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [[7, -100], [9, 10]]


def test_a_build_leaves_folders_that_transformers_loads(built):
    AutoModelForCausalLM.from_pretrained(built["teacher"])
    for start in ("raw", "instruction_tuned"):
        model = AutoModelForSeq2SeqLM.from_pretrained(built[start])
        tokenizer = AutoTokenizer.from_pretrained(built[start])
        assert model.config.vocab_size == len(tokenizer)
    suffixes = {path.suffix for path in built["teacher"].iterdir()}
    assert ".safetensors" in suffixes and not suffixes & {".bin", ".pt", ".pkl"}


def test_instruction_tuning_starts_from_the_raw_base(built):
    raw = load_file(built["raw"] / "model.safetensors")
    tuned = load_file(built["instruction_tuned"] / "model.safetensors")
    key = "shared.weight"
    assert not torch.equal(raw[key], tuned[key])
    scratch = torch.randn_like(raw[key])
    near = (raw[key] - tuned[key]).abs().mean()
    assert near < (raw[key] - scratch).abs().mean() / 3


def test_a_build_gives_the_same_weights_again(built, tmp_path):
    again = build_all(tmp_path)
    for role, folder in built.items():
        expected = (folder / "model.safetensors").read_bytes()
        assert (again[role] / "model.safetensors").read_bytes() == expected


def test_a_finished_build_is_left_alone(built):
    files = {role: f / "model.safetensors" for role, f in built.items()}
    before = {role: path.stat().st_mtime_ns for role, path in files.items()}
    build_all(built["teacher"].parent)
    assert before == {role: path.stat().st_mtime_ns for role, path in files.items()}


def test_another_configuration_in_the_same_folder_is_refused(built):
    other = dataclasses.replace(TINY, teacher_learning_rate=1.0)
    with pytest.raises(
        ValueError, match="another configuration .*teacher_learning_rate"
    ):
        build_all(built["teacher"].parent, other)
