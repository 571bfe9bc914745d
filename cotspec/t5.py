"""T5 models with random weights, and T5's attention and activation made faster.

Enters: a `T5Config`. Leaves: a model shaped like the published T5 v1.1 and FlanT5.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, T5Config, T5ForConditionalGeneration
from transformers.activations import NewGELUActivation
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

IN_PLACE = "t5_in_place"  # a name for `PreTrainedModel.set_attn_implementation`
SCORES_AT_ONCE = 2**20  # of prompts, so that a core's cache holds them


def new_t5(config: T5Config) -> T5ForConditionalGeneration:
    """Return a T5 v1.1 with random weights and an output layer of its own.

    transformers 5 ties the output layer to the embedding in every T5 made from a
    configuration, whatever ``tie_word_embeddings`` says, and unties it only when a
    checkpoint holds both. FlanT5's are two matrices.
    """
    model = T5ForConditionalGeneration(config)
    weight = torch.empty(config.vocab_size, config.d_model)
    torch.nn.init.normal_(weight, std=config.initializer_factor * config.d_model**-0.5)
    model.lm_head.weight = torch.nn.Parameter(weight)
    return model


def attend_in_place(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, Tensor | None]:
    """Attend as transformers' eager T5 does, with fewer copies of the scores.

    The scores are the largest tensors of a small student, and a CPU waits for memory:
    they are added to in place. T5 does not scale them. Where no gradient is asked for,
    PyTorch's fused kernel attends to prompts, equal up to rounding; in training it
    would have to return the gradient of the position bias, which it does not on CPUs.

    Parameters
    ----------
    query : Tensor, shape (B, H, L, D)
    key, value : Tensor, shape (B, H, S, D)
    attention_mask : Tensor, optional
        Added to the scores; broadcasts to (B, H, L, S).
    dropout : float
        Of the weights.
    position_bias : Tensor, optional
        Likewise, broadcasts to (B, H, L, S).

    Returns
    -------
    tuple of Tensor
        What was attended to, (B, L, H, D), and the weights, (B, H, L, S); None for the
        weights if they were not computed as such.
    """
    terms = [term for term in (position_bias, attention_mask) if term is not None]
    is_plain = not dropout and all(term.dtype == query.dtype for term in terms)
    if is_plain and query.shape[2] > 1 and not torch.is_grad_enabled():
        num_rows = SCORES_AT_ONCE // (query.shape[1] * query.shape[2] * key.shape[2])
        parts = []
        for start in range(0, len(query), num_rows := max(1, num_rows)):
            rows = slice(start, start + num_rows)
            biases = [term if len(term) == 1 else term[rows] for term in terms]
            options = {"attn_mask": sum(biases) if biases else None, "scale": 1.0}
            part = query[rows], key[rows], value[rows]
            parts.append(F.scaled_dot_product_attention(*part, **options))
        return torch.cat(parts).transpose(1, 2).contiguous(), None
    scores = torch.matmul(query, key.transpose(2, 3))
    for term in terms:
        # Under autocast the scores are narrower than what is added.
        same = term.dtype == scores.dtype
        scores = scores.add_(term) if same else scores + term
    weights = F.dropout(F.softmax(scores, dim=-1), dropout, module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def fuse_gelu(model: torch.nn.Module) -> None:
    """Let a gated-GELU T5 compute its activation in one kernel instead of seven.

    The same function, GELU's approximation by tanh, equal up to rounding.
    """
    for module in model.modules():
        is_gated = isinstance(module, T5DenseGatedActDense)
        if is_gated and isinstance(module.act, NewGELUActivation):
            module.act = torch.nn.GELU(approximate="tanh")


AttentionInterface.register(IN_PLACE, attend_in_place)
AttentionMaskInterface.register(IN_PLACE, eager_mask)
