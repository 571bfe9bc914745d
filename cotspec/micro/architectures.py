"""The shapes of the micro-world's models.

Enters: a `MicroConfig` and a tokenizer. Leaves: a Llama or a FlanT5-shaped T5 with
random weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
)

from cotspec.t5 import new_t5

if TYPE_CHECKING:  # `shipped` builds its models here
    from cotspec.micro.shipped import MicroConfig

_TEACHER_HEAD_SIZE = 32
# In every size. With heads of 32, students hardly learned to copy a running total into
# the next step (139 of 152 errors); with 8 heads of 8 instead of 4 of 16, the student
# of 304k ended at 57% instead of 72% of the validation problems.
STUDENT_HEAD_SIZE = 16
_MAX_POSITIONS = 2048


def new_teacher(config: MicroConfig, tokenizer: PreTrainedTokenizerBase):
    """Return a Llama with random weights (torch's global generator)."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.teacher_hidden,
            intermediate_size=config.teacher_hidden * 3,
            num_hidden_layers=config.teacher_layers,
            num_attention_heads=config.teacher_hidden // _TEACHER_HEAD_SIZE,
            max_position_embeddings=_MAX_POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_student(config: MicroConfig, tokenizer: PreTrainedTokenizerBase):
    """Return a FlanT5-shaped T5 with random weights (torch's global generator)."""
    return new_t5(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=config.student_hidden,
            d_kv=STUDENT_HEAD_SIZE,
            d_ff=config.student_hidden * 2,
            num_layers=config.student_layers,
            num_heads=config.student_heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            tie_word_embeddings=False,
            decoder_start_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_model(
    kind: str, config: MicroConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> PreTrainedModel:
    """Return a teacher or student with random weights; global state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = new_teacher if kind == "teacher" else new_student
        return new(config, tokenizer)
