"""T5's attention and activation against transformers' own."""

import pytest
import torch
from transformers import T5ForConditionalGeneration
from transformers.activations import ACT2FN

from cotspec import t5
from cotspec.models import flan_t5_config


def new_model(implementation, dropout=0.0):
    config = flan_t5_config("google/flan-t5-small")
    config.update({"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4})
    config.update({"num_layers": 2, "num_decoder_layers": 2, "vocab_size": 50})
    config.dropout_rate = dropout
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = t5.new_t5(config)
        attention = model.encoder.block[0].layer[0].SelfAttention
        attention.relative_attention_bias.reset_parameters()
    model.set_attn_implementation(implementation)
    return model


def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 50, (3, 17), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    labels = torch.randint(2, 50, (3, 11), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss_and_gradients(model, *, bfloat16):
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        loss = model.train()(**batch()).loss
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters()}


def test_an_untied_t5_survives_saving_and_loading(tmp_path):
    model = new_model("sdpa").eval()
    model.save_pretrained(tmp_path)
    loaded = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)
    assert not torch.equal(loaded.lm_head.weight, loaded.shared.weight)


@pytest.mark.parametrize("bfloat16", (False, True), ids=("float32", "bfloat16"))
@pytest.mark.parametrize("dropout", (0.0, 0.3))
def test_attention_in_place_trains_as_eager_attention_to_the_bit(bfloat16, dropout):
    eager, ours = (
        loss_and_gradients(new_model(name, dropout), bfloat16=bfloat16)
        for name in ("eager", t5.IN_PLACE)
    )
    assert torch.equal(eager[0], ours[0])
    for name, gradient in eager[1].items():
        assert torch.equal(gradient, ours[1][name]), name


def test_attention_in_place_generates_as_eager_attention():
    given = {name: batch()[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 12, "output_scores": True}
    options |= {"return_dict_in_generate": True, "do_sample": False}
    eager, ours = (
        new_model(name).eval().generate(**given, **options)
        for name in ("eager", t5.IN_PLACE)
    )
    assert torch.equal(eager.sequences, ours.sequences)
    for one, other in zip(eager.scores, ours.scores, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("is_padded", (False, True))
@pytest.mark.parametrize("is_biased", (False, True))
def test_prompts_are_attended_to_alike_with_and_without_gradients(
    is_padded, is_biased, monkeypatch
):
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind()
    mask, bias = torch.zeros(2, 1, 1, 5), torch.randn(1, 4, 5, 5)
    mask[0, ..., 3:] = torch.finfo(torch.float32).min
    before = mask.clone(), bias.clone()
    given = (query, key, value, mask if is_padded else None)
    options = {"position_bias": bias if is_biased else None}
    module = torch.nn.Module().eval()
    plain, weights = t5.attend_in_place(module, *given, **options)
    with torch.no_grad():
        fused, none = t5.attend_in_place(module, *given, **options)
        monkeypatch.setattr(t5, "SCORES_AT_ONCE", 1)  # row by row
        one_by_one, _ = t5.attend_in_place(module, *given, **options)
    assert torch.equal(fused, one_by_one)
    assert weights.shape == (2, 4, 5, 5) and none is None
    torch.testing.assert_close(fused, plain)
    assert torch.equal(mask, before[0]) and torch.equal(bias, before[1])


def activations(model):
    return {type(m.act) for m in model.modules() if hasattr(m, "wi_0")}


def test_the_fused_activation_is_the_same_function():
    plain, fused = new_model("eager"), new_model("eager")
    t5.fuse_gelu(fused)
    before = loss_and_gradients(plain, bfloat16=False)
    after = loss_and_gradients(fused, bfloat16=False)
    assert activations(fused) == {torch.nn.GELU}
    torch.testing.assert_close(before[0], after[0])
    for name, gradient in before[1].items():
        torch.testing.assert_close(gradient, after[1][name], rtol=1e-4, atol=1e-6)


def test_another_activation_stays_as_it_is():
    config = new_model("eager").config
    config.update({"feed_forward_proj": "gated-silu", "dense_act_fn": "silu"})
    model = t5.new_t5(config)
    t5.fuse_gelu(model)
    assert activations(model) == {type(ACT2FN["silu"])}
