"""The decode loop: prompts in, texts and, on demand, the top-k of every token out.

Enters: a model, encoder-decoder or decoder-only, and token ids. Leaves: a `Row` per
text; for a student a `Generation`. Texts of similar length share a batch, a row that
has ended leaves it, and each row draws from a generator of its own: no text depends on
which others are decoded beside it (but for rounding), nor on the number of processes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from cotspec.alignment.student import vocabulary_bytes
from cotspec.models import Student, end_ids, in_precision
from cotspec.profiles import EvaluationConfig
from cotspec.prompts import find_end, separate

# How a generation ends: an end token or the answer sentence; the token limit; logits
# that are NaN or infinite; a question that does not fit and was not decoded.
FINISH_REASONS = ("stop", "length", "not_finite", "prompt_too_long")
DROP_FRACTION = 0.125  # ended rows leave once they are this share of the batch
EXPECTED_SHARE = 0.5  # of the token limit, that a student's batch has room for at first
_PAIRS_AT_ONCE = 2**25  # of tokens that an encoder compares
_NOT_FINITE = -1  # stands for a token in rows whose logits are not finite


@dataclass
class Row:
    """One text while it is written.

    Attributes
    ----------
    tokens : list of int, without the end token
    text : their bytes
    finish_reason : "" while it goes on, then one of `FINISH_REASONS`
    cut : int or None
        Length of `text`, in bytes, up to its end.
    """

    tokens: list[int] = field(default_factory=list)
    text: bytearray = field(default_factory=bytearray)
    finish_reason: str = ""
    cut: int | None = None


def write_rows(
    batch: EncoderDecoderBatch | CausalBatch,
    uniforms: Tensor,
    *,
    temperature: float,
    vocabulary: list[bytes],
    end_tokens: frozenset[int],
    room: Callable[[int], int] | None = None,
    record: Callable[[int, Tensor, Tensor, Tensor], None] | None = None,
) -> list[Row]:
    """Write a text per row of a batch, one token a step.

    Parameters
    ----------
    batch : EncoderDecoderBatch or CausalBatch
        R rows that have read their prompts.
    uniforms : FloatTensor, shape (R, steps), in [0, 1)
        Each row's own draws; their number is the limit of new tokens.
    temperature : float
        0 is greedy.
    vocabulary : list of bytes
        What each token id spells.
    end_tokens : set of int
        Ids that end a text.
    room : callable, optional
        How many rows fit that have written so many tokens. If more go on, the last of
        them leave without a finish reason.
    record : callable, optional
        ``(step, rows (A,), tokens (A,), logprobs (A, V))`` of the rows that go on.
    """
    rows = [Row() for _ in range(len(uniforms))]
    alive = torch.arange(len(rows), device=uniforms.device)
    num_steps = uniforms.shape[1]
    for step in range(num_steps):
        logits = batch.logits().float()  # (A, V)
        logprobs = logits.log_softmax(-1) if temperature or record else logits
        tokens = choose(logprobs, temperature, uniforms[alive, step])
        is_finite = logits.amax(-1).isfinite()  # NaN wins the maximum
        tokens = tokens.masked_fill(~is_finite, _NOT_FINITE)
        if record:
            record(step, alive, tokens, logprobs)
        for index, token in zip(alive.tolist(), tokens.tolist(), strict=True):
            if not rows[index].finish_reason:
                is_last = step == num_steps - 1
                _advance(rows[index], token, vocabulary, end_tokens, is_last)
        runs = torch.tensor([not rows[i].finish_reason for i in alive.tolist()])
        if not runs.any():
            break
        fitting = room(step + 2) if room else len(runs)
        # A step costs as much for a row that has ended; to leave costs a copy.
        if runs.sum() <= (1 - DROP_FRACTION) * len(runs) or fitting < len(runs):
            keep = runs.nonzero()[:fitting, 0].to(alive.device)
            alive, tokens = alive[keep], tokens[keep]
            batch.keep(keep)
        batch.append(tokens.clamp(min=0))
    return rows


def _advance(
    row: Row, token: int, vocabulary: list[bytes], ends: frozenset[int], is_last: bool
) -> None:
    """Append a row's token and see whether its text ends there."""
    if token in ends or token == _NOT_FINITE:
        row.finish_reason = "stop" if token >= 0 else "not_finite"
        row.cut = len(row.text)
        return
    row.tokens.append(token)
    row.text += vocabulary[token]
    # What follows decides whether a period ends a sentence; at the limit, nothing. A
    # number without one may go on there.
    row.cut = find_end(bytes(row.text) + b" " * is_last)
    if row.cut is not None:
        row.finish_reason = "stop"
    elif is_last:
        row.finish_reason, row.cut = "length", len(row.text)


def choose(logprobs: Tensor, temperature: float, uniforms: Tensor) -> Tensor:
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


def draw_uniforms(seeds: Sequence[int], length: int) -> Tensor:
    """Draw (R, length) numbers: one generator per row, so that none needs another."""
    generators = (torch.Generator().manual_seed(seed) for seed in seeds)
    return torch.stack([torch.rand(length, generator=g) for g in generators])


def padded_vocabulary(tokenizer, model: PreTrainedModel) -> list[bytes]:
    """Return the bytes of every row of the output layer; unused ones spell nothing."""
    table = vocabulary_bytes(tokenizer)
    rows = model.get_output_embeddings().weight.shape[0]
    return table + [b""] * (rows - len(table))


# --- students -------------------------------------------------------------------------


@dataclass(frozen=True)
class Generation:
    """What the student wrote for one prompt, cut after its answer sentence.

    Attributes
    ----------
    completion : str
    num_tokens : int
        Tokens written, the end token not counted.
    finish_reason : str
        One of `FINISH_REASONS`.
    """

    completion: str
    num_tokens: int
    finish_reason: str


def prompt_ids(student: Student, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens that the student reads before it writes, of each text."""
    if not student.model.config.is_encoder_decoder:
        texts = [separate(text)[0] for text in texts]
    return student.tokenizer(list(texts), verbose=False)["input_ids"] if texts else []


# In inference mode autocast would cast every weight again at every step.
@torch.no_grad()
def decode(
    student: Student,
    encoded: Sequence[Sequence[int]],
    config: EvaluationConfig,
    *,
    seeds: Sequence[int] | None = None,
    accelerator: Accelerator | None = None,
) -> list[Generation]:
    """Let the student complete each prompt.

    Parameters
    ----------
    student : Student
        Encoder-decoder or decoder-only; left in evaluation mode.
    encoded : sequence of sequence of int
        Token ids of each prompt, from `prompt_ids`.
    config : EvaluationConfig
        A batch holds at most ``batch_tokens``, input and output together. Temperature
        0 is greedy; else each text is sampled with a generator of its own.
    seeds : sequence of int, optional
        One per prompt. Default: 0, 1, 2, ...
    accelerator : Accelerator, optional
        Its processes take turns at the batches; each gets all generations back.

    Returns
    -------
    list of Generation, in the order of `encoded`
    """
    tokenizer, model = student.tokenizer, student.model
    seeds = range(len(encoded)) if seeds is None else seeds
    start = EncoderDecoderBatch if model.config.is_encoder_decoder else CausalBatch
    is_half = in_precision(config).precision == "bfloat16"
    options = {
        "temperature": config.temperature,
        "vocabulary": padded_vocabulary(tokenizer, model),
        "end_tokens": end_ids(model, tokenizer),
    }
    mine = slice(None)
    if accelerator is not None:
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
    model.eval()
    done: dict[int, Generation] = {}
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=is_half):
        # A step costs little more for many rows than for few, and most texts end long
        # before the limit. Those that find no room, where many do not, start again.
        for share in (EXPECTED_SHARE, 1.0):
            left = {i: len(ids) for i, ids in enumerate(encoded) if i not in done}
            for indices in make_batches(left, config, share)[mine]:
                longest = left[indices[0]]
                batch = start(model, [encoded[i] for i in indices])
                own = [seeds[i] for i in indices]
                draws = draw_uniforms(own, config.max_new_tokens).to(model.device)
                room = partial(num_fitting, longest, config=config)
                rows = write_rows(batch, draws, room=room, **options)
                for i, row in zip(indices, rows, strict=True):
                    if row.finish_reason:
                        done[i] = _generation(row, tokenizer)
            if accelerator is not None:
                done = dict(gather_object(list(done.items())))
    return [done[i] for i in range(len(encoded))]


def make_batches(
    lengths: Mapping[int, int], config: EvaluationConfig, share: float
) -> list[list[int]]:
    """Group indices, longest first, so that a batch pads little and fits the budget.

    Parameters
    ----------
    lengths : mapping of index to int
        Input tokens of each text.
    share : float
        Of ``max_new_tokens``, that there is room for.

    Returns
    -------
    list of list of int
        Each index once.
    """
    order = sorted(lengths, key=lambda i: (-lengths[i], i))
    num_new = math.ceil(share * config.max_new_tokens)
    batches: list[list[int]] = []
    while order:
        size = num_fitting(lengths[order[0]], num_new, config)
        batches.append(order[:size])
        order = order[size:]
    return batches


def num_fitting(num_read: int, num_new: int, config: EvaluationConfig) -> int:
    """Return how many rows of so many tokens each fit the budget, at least one."""
    return max(1, config.batch_tokens // (num_read + num_new))


def _generation(row: Row, tokenizer) -> Generation:
    text = tokenizer.decode(row.tokens, skip_special_tokens=True)
    written = text.encode()
    text = written[: find_end(written)].decode()
    return Generation(text.strip(), len(row.tokens), row.finish_reason)


# --- batches --------------------------------------------------------------------------


class EncoderDecoderBatch:
    """Running rows of an encoder-decoder: R rows, S source tokens."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]):
        source, self.mask = _padded(prompts, model.device, on_left=False)  # (R, S)
        self.model = model
        # T5's bias takes 6 bytes a head and pair of tokens: a few prompts at a time.
        size = max(1, _PAIRS_AT_ONCE // source.shape[1] ** 2)
        parts = zip(source.split(size), self.mask.split(size), strict=True)
        encode = model.get_encoder()
        self.encoded = torch.cat([encode(i, attention_mask=m)[0] for i, m in parts])
        start = model.config.decoder_start_token_id
        self.inputs = torch.full((len(prompts), 1), start, device=model.device)
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def logits(self) -> Tensor:
        """The next token's logits, shape (R, V)."""
        options = {"attention_mask": self.mask, "decoder_input_ids": self.inputs}
        options |= {"past_key_values": self.cache, "use_cache": True}
        encoded = BaseModelOutput(self.encoded)
        return self.model(encoder_outputs=encoded, **options).logits[:, -1]

    def append(self, tokens: Tensor) -> None:
        """Give each row its next input."""
        self.inputs = tokens[:, None]

    def keep(self, rows: Tensor) -> None:
        """Drop the other rows, and the padding that no row needs any more."""
        self.mask, self.encoded = self.mask[rows], self.encoded[rows]
        self.cache.batch_select_indices(rows)
        longest = int(self.mask.sum(1).max())
        self.mask, self.encoded = self.mask[:, :longest], self.encoded[:, :longest]
        for layer in self.cache.cross_attention_cache.layers:
            layer.keys = layer.keys[:, :, :longest]
            layer.values = layer.values[:, :, :longest]


class CausalBatch:
    """Running rows of a decoder-only model, their prompts padded on the left.

    Parameters
    ----------
    prompts : U sequences of token ids, behind the prefix if there is one
    owners : the prompt of each row, length R; default: a row per prompt
        A question is read once for all its samples.
    prefix : keys and values of what all prompts begin with
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        *,
        owners: Sequence[int] | None = None,
        prefix: Prefix | None = None,
    ):
        self.model, self.prefix = model, prefix
        self.inputs, visible = _padded(prompts, model.device, on_left=True)
        self.visible = visible.bool()  # (U, T)
        start = prefix[0][0].shape[2] if prefix else 0
        self.position = (visible.cumsum(-1) - 1).clamp(min=0) + start
        self.cache = DynamicCache(config=model.config)
        self._owners = None if owners is None else torch.tensor(owners)

    def logits(self) -> Tensor:
        """The next token's logits, shape (R, V)."""
        if self.prefix is None:
            options = {"attention_mask": self.visible.long()}
        else:
            length = self.inputs.shape[1]
            causal = torch.ones_like(self.visible[0]).expand(length, -1)
            causal = causal.tril(self.visible.shape[1] - length)
            mask = (self.visible[:, None, :] & causal)[:, None]  # (R, 1, Q, S)
            options = {"attention_mask": mask, "shared_prefix": self.prefix}
        options |= {"past_key_values": self.cache, "use_cache": True}
        options |= {"position_ids": self.position, "logits_to_keep": 1}
        logits = self.model(self.inputs, **options).logits[:, -1]
        self.position = self.position[:, -1:]
        if self._owners is None:
            return logits
        owners, self._owners = self._owners.to(logits.device), None
        self.keep(owners)
        return logits[owners]

    def append(self, tokens: Tensor) -> None:
        """Give each row its next input."""
        self.inputs, self.position = tokens[:, None], self.position + 1
        self.visible = F.pad(self.visible, (0, 1), value=True)

    def keep(self, rows: Tensor) -> None:
        """Drop the other rows."""
        self.visible, self.position = self.visible[rows], self.position[rows]
        self.cache.batch_select_indices(rows)


def _padded(
    rows: Sequence[Sequence[int]], device: torch.device, *, on_left: bool
) -> tuple[Tensor, Tensor]:
    """Return ids and mask, (R, longest), on the model's device."""
    side = "left" if on_left else "right"
    padded = partial(pad_sequence, batch_first=True, padding_side=side)
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    mask = [torch.ones_like(row) for row in ids]
    return padded(ids).to(device), padded(mask).to(device)


# --- one prefix for all rows ----------------------------------------------------------
#
# All prompts of a teacher begin with the same demonstrations. An expanded cache would
# hold, and read at every step, one copy of them per row. The method is Hydragen
# (Juravsky et al. 2024, arXiv 2402.05099) with one softmax over both blocks of scores,
# so that it is exact.

_SHARED = "cotspec_shared_prefix"
Prefix = list[tuple[Tensor, Tensor]]  # per layer, (1, KV heads, P, D)


@torch.no_grad()
def compute_prefix(model: PreTrainedModel, prefix_ids: Sequence[int]) -> Prefix:
    """Return keys and values of the prefix, one forward pass of one row.

    Call it within `shared_prefix_attention`.
    """
    if not prefix_ids:
        return []
    ids = torch.tensor([list(prefix_ids)], device=model.device)
    mask = torch.ones(1, 1, len(prefix_ids), len(prefix_ids), dtype=torch.bool).tril()
    cache = DynamicCache()
    options = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    model(ids, attention_mask=mask.to(model.device), **options)
    return [(layer.keys, layer.values) for layer in cache.layers]


@torch.no_grad()
def shares_prefixes(model: PreTrainedModel) -> bool:
    """Tell whether `attend` computes what the model's own attention does.

    Sliding windows and models that do not take Transformers' attention interface are
    ruled out by their configuration; anything else that `attend` does not know (soft
    caps, sinks, position biases) by comparing the logits of a short text.
    """
    config = model.config
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    is_partial = others or getattr(config, "sliding_window", None)
    if is_partial or not model._supports_attention_backend:
        return False
    token_ids = [i % config.vocab_size for i in range(16)]
    expected = model(torch.tensor([token_ids], device=model.device)).logits[0, -1]
    with shared_prefix_attention(model):
        prefix = compute_prefix(model, token_ids[:8])
        batch = CausalBatch(model, [token_ids[8:]], prefix=prefix)
        logits = batch.logits()[0]
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    return torch.allclose(logits, expected, rtol=tolerance, atol=tolerance)


@contextlib.contextmanager
def shared_prefix_attention(model: PreTrainedModel) -> Iterator[None]:
    """Run `model` with `attend`; pass it ``shared_prefix`` and a 4-D boolean mask."""
    before = model.config._attn_implementation
    AttentionInterface.register(_SHARED, attend)
    model.set_attn_implementation(_SHARED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    shared_prefix: Prefix | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attend to a prefix common to all rows, then to each row's own positions.

    Parameters
    ----------
    query : Tensor, shape (R, H, Q, D)
    key, value : Tensor, shape (R, KV heads, S, D); the rows' own positions
    attention_mask : BoolTensor, shape (R, 1, Q, S), True where a query may look
    shared_prefix : per layer keys and values, shape (1, KV heads, P, D), visible to all

    Returns
    -------
    Tensor, shape (R, Q, H, D)

    The signature is that of Transformers' ``AttentionInterface``.
    """
    rows, heads, length, width = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    scale = width**-0.5 if scaling is None else scaling
    query = query.reshape(rows, kv_heads, groups * length, width) * scale
    scores = query @ key.transpose(2, 3)  # (R, KV, G*Q, S)
    scores = scores.view(rows, kv_heads, groups, length, -1)
    hidden = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(~attention_mask[:, :, None], hidden).flatten(2, 3)
    if shared_prefix:
        prefix_key, prefix_value = (p[0] for p in shared_prefix[module.layer_idx])
        stacked = query.transpose(0, 1).flatten(1, 2)  # (KV, R*G*Q, D)
        prefix_scores = stacked @ prefix_key.transpose(1, 2)
        prefix_scores = prefix_scores.view(kv_heads, rows, groups * length, -1)
        scores = torch.cat([prefix_scores.transpose(0, 1), scores], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    own = weights[..., -key.shape[2] :]
    output = own @ value  # (R, KV, G*Q, D)
    if shared_prefix:
        shared = weights[..., : -key.shape[2]].transpose(0, 1).flatten(1, 2)
        read = (shared @ prefix_value).view(kv_heads, rows, groups * length, width)
        output = output + read.transpose(0, 1)
    output = output.view(rows, heads, length, width).transpose(1, 2)
    return output.contiguous(), None
