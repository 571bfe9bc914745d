"""The decode loop: many solutions at once behind one prefix.

Enters: a model, the prefix, questions' token ids and which samples of each are wanted.
Leaves: a `Completion` per row. Each question is computed once for all its rows; a row
ends with its answer sentence and leaves the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from cotspec.teacher.shared_prefix import Prefix, suffix_cache
from cotspec.teacher.traces import (
    Completion,
    SamplingOptions,
    cut_tokens,
    valid_length,
)

DROP_FRACTION = 0.125  # finished rows leave once they are this share of the batch


@dataclass(frozen=True)
class Decoder:
    """What stays the same over all batches of a run.

    Attributes
    ----------
    prefix : keys and values of the common prefix, see `compute_prefix`; None for a
        model with an attention of its own, which reads the prompts whole
    prefix_length : int, its tokens
    vocabulary : the bytes of each token id
    end_ids : ids that end a text (EOS)
    find_end : maps the completion so far to the length, in bytes, at which it ends, or
        None while it goes on
    """

    model: PreTrainedModel
    prefix: Prefix | None
    prefix_length: int
    vocabulary: Sequence[bytes]
    end_ids: frozenset[int]
    find_end: Callable[[bytes], int | None]
    options: SamplingOptions


@dataclass
class Row:
    """One solution while it is written."""

    text: bytearray = field(default_factory=bytearray)
    num_tokens: int = 0
    finish_reason: str = ""
    cut: int | None = None  # the completion's length in bytes, once it is known


def decode(
    decoder: Decoder,
    questions: Sequence[Sequence[int]],
    owners: Sequence[int],
    seeds: Sequence[int],
) -> list[Completion]:
    """Sample one solution per row.

    Parameters
    ----------
    questions : token ids after the prefix, one sequence per question
    owners : the question of each row, length R
    seeds : the seed of each row's generator, length R

    Returns
    -------
    list of Completion, length R
    """
    options, device = decoder.options, decoder.model.device
    uniforms = _uniforms(seeds, options.max_new_tokens).to(device)
    rows = [Row() for _ in owners]
    steps = _Steps(len(rows), options)
    with torch.inference_mode():
        logits, cache, visible = _read_questions(decoder, questions)
        alive = torch.arange(len(rows), device=device)
        index = torch.tensor(owners, device=device)
        cache.batch_select_indices(index)
        logits, visible = logits[index], visible[index]
        lengths = torch.tensor([len(q) for q in questions], device=device)[index]
        for step in range(options.max_new_tokens):
            logprobs = logits.float().log_softmax(-1)
            chosen = choose(logprobs, options.temperature, uniforms[alive, step])
            steps.record(step, alive, chosen, logprobs)
            _advance(decoder, rows, alive.tolist(), chosen.tolist())
            running = [not rows[row].finish_reason for row in alive.tolist()]
            if not any(running):
                break
            if sum(running) <= (1 - DROP_FRACTION) * len(running):
                keep = torch.tensor(running, device=device).nonzero()[:, 0]
                alive, chosen, lengths = alive[keep], chosen[keep], lengths[keep]
                visible = visible[keep]
                cache.batch_select_indices(keep)
            visible = torch.nn.functional.pad(visible, (0, 1), value=True)
            position = (decoder.prefix_length + lengths + step)[:, None]
            logits = _forward(decoder, chosen[:, None], visible, position, cache)
    return [steps.completion(i, row, decoder.vocabulary) for i, row in enumerate(rows)]


def choose(
    logprobs: torch.Tensor, temperature: float, uniforms: torch.Tensor
) -> torch.Tensor:
    """Return one token per row by inverting the cumulative distribution.

    Parameters
    ----------
    logprobs : FloatTensor, shape (R, V), at temperature 1
    temperature : float; 0 takes the most probable token
    uniforms : FloatTensor, shape (R,), in [0, 1)

    Returns
    -------
    LongTensor, shape (R,)
    """
    if temperature == 0:
        return logprobs.argmax(-1)
    cumulative = (logprobs / temperature).softmax(-1).cumsum(-1)
    threshold = uniforms[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    return index.clamp(max=logprobs.shape[-1] - 1)


def _uniforms(seeds: Sequence[int], length: int) -> torch.Tensor:
    """One generator per row, so that no row depends on its neighbours: (R, length)."""
    draws = [
        torch.rand(length, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.stack(draws)


def _read_questions(decoder: Decoder, questions: Sequence[Sequence[int]]):
    """Compute the questions behind the prefix, left-padded to the longest.

    Returns the next token's logits (U, V), the cache and what is visible in it (U, S).
    """
    device = decoder.model.device
    longest = max(len(question) for question in questions)
    padding = torch.tensor([longest - len(q) for q in questions], device=device)
    input_ids = torch.tensor(
        [[0] * (longest - len(q)) + list(q) for q in questions], device=device
    )
    columns = torch.arange(longest, device=device)
    visible = columns >= padding[:, None]  # (U, S)
    position = (columns - padding[:, None]).clamp(min=0) + decoder.prefix_length
    config = decoder.model.config
    if decoder.prefix is None:
        cache = DynamicCache(config=config)
    else:
        cache = suffix_cache(config.num_hidden_layers)
    logits = _forward(decoder, input_ids, visible, position, cache)
    return logits, cache, visible


def _forward(
    decoder: Decoder,
    input_ids: torch.Tensor,
    visible: torch.Tensor,
    position: torch.Tensor,
    cache: Cache,
) -> torch.Tensor:
    """Return the last position's logits, shape (R, V)."""
    length = input_ids.shape[1]
    if decoder.prefix is None:
        options = {"attention_mask": visible.long()}
    else:
        causal = torch.ones_like(visible[0]).expand(length, -1)
        causal = causal.tril(visible.shape[1] - length)
        mask = (visible[:, None, :] & causal)[:, None]  # (R, 1, Q, S)
        options = {"attention_mask": mask, "shared_prefix": decoder.prefix}
    output = decoder.model(
        input_ids,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **options,
    )
    return output.logits[:, -1]


def _advance(
    decoder: Decoder, rows: list[Row], alive: list[int], chosen: list[int]
) -> None:
    """Append each row's token and see whether its text ends there."""
    for index, token_id in zip(alive, chosen, strict=True):
        row = rows[index]
        if row.finish_reason:
            continue
        if token_id in decoder.end_ids:
            row.finish_reason, row.cut = "stop", len(row.text)
            continue
        row.num_tokens += 1
        row.text += decoder.vocabulary[token_id]
        is_last = row.num_tokens == decoder.options.max_new_tokens
        # What follows decides whether a period ends a sentence; at the limit, nothing.
        row.cut = decoder.find_end(bytes(row.text) + b"\n" * is_last)
        if row.cut is not None:
            row.finish_reason = "stop"
        elif is_last:
            row.finish_reason, row.cut = "length", len(row.text)


class _Steps:
    """What was drawn at each step, (R, steps) and (R, steps, k), on the CPU."""

    def __init__(self, num_rows: int, options: SamplingOptions):
        shape = (num_rows, options.max_new_tokens)
        self.k = options.top_k
        self.ids = torch.zeros(shape, dtype=torch.int32)
        self.logprobs = torch.zeros(shape)
        self.top_ids = torch.zeros(*shape, self.k, dtype=torch.int32)
        self.top_logprobs = torch.zeros(*shape, self.k)

    def record(self, step, alive, chosen, logprobs) -> None:
        rows = alive.cpu()
        top = logprobs.topk(min(self.k, logprobs.shape[-1]), dim=-1)
        self.ids[rows, step] = chosen.int().cpu()
        self.logprobs[rows, step] = logprobs.gather(1, chosen[:, None])[:, 0].cpu()
        self.top_ids[rows, step] = top.indices.int().cpu()
        self.top_logprobs[rows, step] = top.values.cpu()

    def completion(self, index: int, row: Row, table: Sequence[bytes]) -> Completion:
        """Return the row's solution, cut to whole UTF-8 characters."""
        ids = self.ids[index, : row.num_tokens].tolist()
        pieces = cut_tokens([table[i] for i in ids], valid_length(row.text, row.cut))
        length = len(pieces)
        whole = sum(map(len, pieces)) == row.cut
        top_ids = self.top_ids[index, :length].tolist()
        return Completion(
            text=b"".join(pieces).decode(),
            token_ids=ids[:length],
            token_bytes=pieces,
            token_logprobs=self.logprobs[index, :length].tolist(),
            topk_ids=top_ids,
            topk_bytes=[[table[i] for i in step] for step in top_ids],
            topk_logprobs=self.top_logprobs[index, :length].tolist(),
            finish_reason=row.finish_reason if whole else "length",
        )
