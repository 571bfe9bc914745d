"""Batches and the pretraining loop: masks, files."""

import shutil
from dataclasses import replace
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from cotspec import artifacts
from cotspec.micro import build, shipped, tokenizers

SMALL = {"hidden": 32, "layers": 1, "steps": 4, "pool_size": 40, "batch_size": 4}
TEACHER, RAW, BASE = "teacher", "small-raw-0", "small-pretrained-0"
TUNED = "small-instruction_tuned-0"
RECIPE_OF = shipped.recipe_of


def tiny(name, **changes):
    return replace(RECIPE_OF(name), **SMALL | changes)


@pytest.fixture(scope="module")
def problems():
    return build.solved_problems(40, seed=0)


@pytest.fixture(scope="module")
def corpus(problems):
    return build.Corpus(problems, tiny(TUNED), tokenizers.load_student())


def build_all(out_dir, **changes):
    """Train a teacher, a raw student, and a tuned one with what it starts from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "recipe_of", lambda name: tiny(name, **changes))
        for name in (TEACHER, RAW, TUNED):
            assert build.make(name, out_dir) == out_dir / name
    names = (TEACHER, RAW, BASE, TUNED)
    return {name: out_dir / name / "model.safetensors" for name in names}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_all(tmp_path_factory.mktemp("micro"))


def test_teacher_labels_are_the_solutions_and_the_end(problems):
    tokenizer = tokenizers.load_teacher()
    corpus = build.Corpus(problems, tiny(TEACHER), tokenizer)
    rng = Random(1)
    for _ in range(20):
        ids, labels = corpus.teacher(rng)
        assert len(ids) == len(labels) and labels[-1] == tokenizer.eos_token_id
        text = tokenizer.decode([token for token in labels[:-1] if token != -100])
        assert text.count("The answer is") == tokenizer.decode(ids).count("Q: ")
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
    streams = [
        replace(corpus, recipe=tiny(TUNED, seed=seed)).batches() for seed in (0, 0, 1)
    ]
    for _ in range(20):
        first, again, other = map(next, streams)
        assert first.keys() == again.keys()
        assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["input_ids"], other["input_ids"])


def test_a_build_leaves_folders_that_transformers_loads(built):
    AutoModelForCausalLM.from_pretrained(built[TEACHER].parent)
    for name in (RAW, TUNED):
        model = AutoModelForSeq2SeqLM.from_pretrained(built[name].parent)
        tokenizer = AutoTokenizer.from_pretrained(built[name].parent)
        assert model.config.vocab_size == len(tokenizer)
        known = tokenizers.load_student()
        assert tokenizer("Tom has 3.")["input_ids"] == known("Tom has 3.")["input_ids"]
    suffixes = {path.suffix for path in built[TEACHER].parent.iterdir()}
    assert ".safetensors" in suffixes and not suffixes & {".bin", ".pt", ".pkl"}


def test_instruction_tuning_starts_from_the_raw_base(built):
    raw, tuned = (load_file(built[name])["shared.weight"] for name in (BASE, TUNED))
    assert not torch.equal(raw, tuned)
    near, far = (raw - tuned).abs().mean(), (raw - torch.randn_like(raw)).abs().mean()
    assert near < far / 3


def test_a_build_gives_the_same_weights_again_without_the_unfinished(built, tmp_path):
    unfinished = tmp_path / RAW / "model.safetensors"
    unfinished.parent.mkdir()
    unfinished.write_text("killed while this was written")
    again = build_all(tmp_path)
    for name, file in built.items():
        assert again[name].read_bytes() == file.read_bytes()


def test_a_finished_build_is_left_alone_and_of_another_recipe_refused(built):
    folder = built[RAW].parents[1]
    before = {name: file.stat().st_mtime_ns for name, file in built.items()}
    build_all(folder)
    assert before == {name: file.stat().st_mtime_ns for name, file in built.items()}
    with pytest.raises(ValueError, match="teacher: holds a model of another recipe"):
        build_all(folder, learning_rate=1.0)


def test_what_was_built_is_packed_and_the_rest_of_the_package_stays(
    built, tmp_path, monkeypatch
):
    folder = shutil.copytree(shipped.FOLDER, tmp_path / "weights")
    monkeypatch.setattr(shipped, "FOLDER", folder)
    before = artifacts.read_json(folder / shipped.MANIFEST)
    (tmp_path / RAW).mkdir()  # unfinished
    shutil.copytree(built[TEACHER].parent, tmp_path / "teacher")
    size = build.pack(tmp_path)
    after = artifacts.read_json(folder / shipped.MANIFEST)
    assert list(after) == list(before)
    assert after["teacher"].keys() == before["teacher"].keys()
    changed = [name for name in after if after[name] != before[name]]
    assert changed == ["teacher"] and after["teacher"]["steps"] == 4
    files = list(folder.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) == size
    assert {file.stem for file in files} == set(after)
