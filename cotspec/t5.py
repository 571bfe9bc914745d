"""T5 models with random weights.

Enters: a `T5Config`. Leaves: a model shaped like the published T5 v1.1 and FlanT5.
"""

from __future__ import annotations

import torch
from transformers import T5Config, T5ForConditionalGeneration


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
