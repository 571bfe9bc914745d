"""The memory table: counted again on the meta device and measured on a small T5."""

import shlex
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import (
    _validate_launch_command,
    launch_command_parser,
)
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers import Adafactor, T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Block

from cotspec import artifacts, memory, profiles
from cotspec.models import FLAN_T5_SHAPES, flan_t5_config
from cotspec.training import __main__ as command_line

ACCELERATE = Path(memory.__file__).parent / "accelerate"
# Published counts: the hub's model cards of google/flan-t5-*.
PUBLISHED = {
    "google/flan-t5-small": 76961152,
    "google/flan-t5-base": 247577856,
    "google/flan-t5-large": 783150080,
    "google/flan-t5-xl": 2849757184,
    "google/flan-t5-xxl": 11135332352,
}
TINY = memory.Shape(d_model=64, d_kv=16, d_ff=128, num_layers=3, num_heads=4)


def build(config):
    """A T5 as published: its head is not tied to the embeddings."""
    model = T5ForConditionalGeneration(config)
    model.lm_head = torch.nn.Linear(config.d_model, config.vocab_size, bias=False)
    return model


def tiny_model():
    config = T5Config(
        vocab_size=memory.VOCABULARY,
        d_model=TINY.d_model,
        d_kv=TINY.d_kv,
        d_ff=TINY.d_ff,
        num_layers=TINY.num_layers,
        num_heads=TINY.num_heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    return build(config).train()


@pytest.mark.parametrize("name", FLAN_T5_SHAPES)
def test_parameters_are_those_of_the_model_and_of_its_card(name):
    with torch.device("meta"):
        model = build(flan_t5_config(name))
    shape = memory.shape_of(name)
    assert memory.num_parameters(shape) == PUBLISHED[name]
    built = sorted(tuple(p.shape) for p in model.parameters())
    assert built == sorted(memory.parameter_shapes(shape))


@pytest.mark.parametrize("name", ("adamw", "adafactor"))
def test_optimizer_state_is_what_the_optimizer_allocates(name):
    model = tiny_model()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = (
        torch.optim.AdamW(model.parameters())
        if name == "adamw"
        else Adafactor(
            model.parameters(), lr=1e-3, scale_parameter=False, relative_step=False
        )
    )
    optimizer.step()
    allocated = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.ndim > 0
    )
    assert memory.optimizer_bytes(TINY, name) == allocated


def saved_bytes(model, batch, source, target):
    """Bytes autograd keeps after a bfloat16 forward pass, weights and casts apart."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    weight_shapes = {tuple(p.shape) for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        is_cast = tuple(tensor.shape) in weight_shapes
        is_cast |= tuple(tensor.T.shape) in weight_shapes if tensor.ndim == 2 else False
        if storage.data_ptr() not in weights and not is_cast:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        model(
            input_ids=torch.ones(batch, source, dtype=torch.long),
            attention_mask=torch.ones(batch, source, dtype=torch.long),
            decoder_input_ids=torch.ones(batch, target, dtype=torch.long),
            use_cache=False,
        )
    return sum(size for size, _ in kept.values())


# Lengths such that no activation has the shape of a weight.
MICRO_BATCH = {"batch": 2, "source": 120, "target": 56}


def estimate(checkpointing):
    logits = 12 * MICRO_BATCH["batch"] * MICRO_BATCH["target"] * memory.VOCABULARY
    total = memory.activation_bytes(TINY, **MICRO_BATCH, checkpointing=checkpointing)
    return total - logits


def test_activations_are_estimated_within_a_quarter_of_what_autograd_keeps():
    measured = saved_bytes(tiny_model(), **MICRO_BATCH)
    assert estimate(checkpointing=False) == pytest.approx(measured, rel=0.25)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_checkpointing_keeps_inputs_and_the_estimate_adds_the_layer_recomputed():
    model = tiny_model()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    measured = saved_bytes(model, **MICRO_BATCH)
    assert measured < estimate(checkpointing=True) < estimate(checkpointing=False)


def test_the_table_adds_up():
    table = memory.memory_table(num_processes=4).set_index("size")
    row = table.loc["3B"]
    parts = row[["weights", "gradients", "bfloat16_weights"]].sum()
    assert row["adamw_card"] == pytest.approx(
        parts + row["adamw"] + row["activations"], abs=0.3
    )
    assert row["fsdp_card"] == pytest.approx(
        (parts + row["adamw"]) / 4 + row["activations_checkpointed"], abs=0.3
    )


def test_every_profile_fits_one_card_of_141_gb_with_a_tenth_to_spare():
    table = memory.memory_table()
    assert (table["profile_card"] < 0.9 * 131).all()
    xxl = profiles.PROFILES["flan-t5-xxl"].training
    assert xxl.optimizer == "adafactor" and xxl.activation_checkpointing


def test_the_committed_table_is_the_computed_one():
    text = (ACCELERATE / "README.md").read_text("utf-8")
    assert memory.as_markdown(memory.memory_table()) in text
    assert "not measured" in text


def commands():
    for line in (ACCELERATE / "README.md").read_text("utf-8").splitlines():
        if "accelerate launch --config_file" in line:
            yield line.split("`")[1]


def launched(command):
    """The environment that ``accelerate launch`` would give each process."""
    given = launch_command_parser().parse_args(shlex.split(command)[2:])
    given.config_file = str(ACCELERATE.parents[1] / given.config_file)
    merged, _, _ = _validate_launch_command(given)
    return merged, prepare_multi_gpu_env(merged)


def test_there_is_a_command_per_paper_size_that_accelerate_understands():
    found = list(commands())
    assert len(found) == len(memory.PAPER_SIZES)
    for command, profile in zip(found, memory.PAPER_SIZES.values(), strict=True):
        merged, environment = launched(command)
        assert merged.training_script == "cotspec.training" and merged.module
        assert merged.training_script_args[0] == profile
        assert merged.num_processes == 8
        assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
        is_sharded = profile in ("flan-t5-xl", "flan-t5-xxl")
        assert (environment.get("ACCELERATE_USE_FSDP") == "true") == is_sharded
        assert merged.multi_gpu != is_sharded


def test_the_arguments_after_the_module_are_those_of_our_command_line(monkeypatch):
    calls = []
    monkeypatch.setattr(command_line, "load_student", lambda *a, **k: "student")
    monkeypatch.setattr(artifacts, "read_dataset", lambda path: path.name)
    monkeypatch.setattr(command_line, "train", lambda *a, **k: calls.append((a, k)))
    for command in commands():
        merged, _ = launched(command)
        command_line.main(merged.training_script_args)
    assert [a[1] for a, _ in calls] == ["examples.parquet"] * 4
    assert [k["aligned"] for _, k in calls] == ["aligned.parquet"] * 4
    of_3b, of_11b = calls[2][0][2], calls[3][0][2]
    assert of_3b.gradient_accumulation_steps == of_11b.gradient_accumulation_steps == 1
    assert of_11b.optimizer == "adamw"


def test_the_fsdp_configuration_reaches_the_plugin_and_wraps_the_models_blocks(
    monkeypatch,
):
    """As far as it goes without a GPU: Accelerate has no FSDP on the CPU."""
    _, environment = launched(list(commands())[-1])
    for name, value in environment.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    plugin.set_auto_wrap_policy(tiny_model())
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy.keywords["transformer_layer_cls"] == {T5Block}
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert not plugin.activation_checkpointing


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="name: 'flan'. Allowed: google/flan-t5-small"):
        memory.shape_of("flan")
    with pytest.raises(ValueError, match="optimizer: 'sgd'. Allowed: adamw"):
        memory.optimizer_bytes(TINY, "sgd")
