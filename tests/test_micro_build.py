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
TINY = {
    recipe.kind: replace(recipe, **SMALL)
    for recipe in map(
        shipped.recipe_of, ("teacher", "small-raw-0", "small-instruction_tuned-0")
    )
}


@pytest.fixture(scope="module")
def problems():
    return build.solved_problems("pretraining", 40, seed=0)


@pytest.fixture(scope="module")
def corpus(problems):
    recipe = TINY["instruction_tuned"]
    return build.Corpus(problems, recipe, tokenizers.load_student())


def build_all(out_dir, **changes):
    """Train a teacher, a raw base, and from it an instruction-tuned one."""
    for kind, recipe in TINY.items():
        base = out_dir / "raw" if kind == "instruction_tuned" else None
        build.train_model(out_dir / kind, replace(recipe, **changes), base=base)
    return {kind: out_dir / kind / "model.safetensors" for kind in TINY}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_all(tmp_path_factory.mktemp("micro"))


def test_teacher_labels_are_the_solutions_and_the_end(problems):
    tokenizer = tokenizers.load_teacher()
    corpus = build.Corpus(problems, TINY["teacher"], tokenizer)
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


def test_a_build_leaves_folders_that_transformers_loads(built):
    AutoModelForCausalLM.from_pretrained(built["teacher"].parent)
    for start in ("raw", "instruction_tuned"):
        model = AutoModelForSeq2SeqLM.from_pretrained(built[start].parent)
        tokenizer = AutoTokenizer.from_pretrained(built[start].parent)
        assert model.config.vocab_size == len(tokenizer)
        known = tokenizers.load_student()
        assert tokenizer("Tom has 3.")["input_ids"] == known("Tom has 3.")["input_ids"]
    suffixes = {path.suffix for path in built["teacher"].parent.iterdir()}
    assert ".safetensors" in suffixes and not suffixes & {".bin", ".pt", ".pkl"}


def test_instruction_tuning_starts_from_the_raw_base(built):
    key = "shared.weight"
    raw, tuned = (load_file(built[k])[key] for k in ("raw", "instruction_tuned"))
    assert not torch.equal(raw, tuned)
    near, far = (raw - tuned).abs().mean(), (raw - torch.randn_like(raw)).abs().mean()
    assert near < far / 3


def test_a_build_gives_the_same_weights_again_without_the_unfinished(built, tmp_path):
    unfinished = tmp_path / "raw" / "model.safetensors"
    unfinished.parent.mkdir()
    unfinished.write_text("killed while this was written")
    again = build_all(tmp_path)
    for kind, file in built.items():
        assert again[kind].read_bytes() == file.read_bytes()


def test_a_finished_build_is_left_alone(built):
    before = {kind: file.stat().st_mtime_ns for kind, file in built.items()}
    build_all(built["raw"].parents[1])
    assert before == {kind: file.stat().st_mtime_ns for kind, file in built.items()}


def test_another_recipe_in_the_same_folder_is_refused(built):
    with pytest.raises(ValueError, match="teacher: holds a model of another recipe"):
        build_all(built["raw"].parents[1], learning_rate=1.0)


def test_what_was_built_is_packed_and_the_rest_of_the_package_stays(
    built, tmp_path, monkeypatch
):
    folder = shutil.copytree(shipped.FOLDER, tmp_path / "weights")
    monkeypatch.setattr(shipped, "FOLDER", folder)
    before = artifacts.read_json(folder / shipped.MANIFEST)
    (tmp_path / "small-raw-0").mkdir()  # unfinished
    shutil.copytree(built["teacher"].parent, tmp_path / "teacher")
    size = build.pack(tmp_path)
    after = artifacts.read_json(folder / shipped.MANIFEST)
    assert list(after) == list(before)
    assert after["teacher"].keys() == before["teacher"].keys()
    changed = [name for name in after if after[name] != before[name]]
    assert changed == ["teacher"] and after["teacher"]["steps"] == 4
    files = list(folder.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) == size
    assert {file.stem for file in files} == set(after)
