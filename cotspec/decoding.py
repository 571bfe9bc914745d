"""Let a student complete texts, batched by length under a budget of tokens.

Enters: a student and texts. Leaves: a `Generation` per text. A row ends at its end
token or its answer sentence, leaves the batch, and makes room for waiting texts. Rows
are as many as fit with what they have written so far, not with all they might write: a
step costs little more for thirty rows than for ten. If they outgrow the budget, the
youngest wait and are taken up again later. Which texts share a batch depends on the
texts alone, so the same texts give the same generations however many processes share
them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import BaseModelOutput

from cotspec.models import Student
from cotspec.profiles import EvaluationConfig
from cotspec.prompts import find_end
from cotspec.teacher.decoding import choose

# How a generation ends: an end token or the answer sentence; the token limit; logits
# that are NaN or infinite; a question that does not fit and was not decoded.
FINISH_REASONS = ("stop", "length", "not_finite", "prompt_too_long")
CHECK_EVERY = 4  # decoder steps between looks at the rows, which wait for the device
REFILL_FRACTION = 0.25  # of the batch must be free before waiting texts join it
HEADROOM = 0.125  # of the token limit: what rows that join may write before others wait
STREAM_BATCHES = 8  # a stream, what one process decodes in one go, has so many fills
_NOT_FINITE = -1  # stands for a token in rows whose logits are not finite


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


def decode(
    student: Student,
    texts: Sequence[str],
    config: EvaluationConfig,
    *,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    accelerator: Accelerator | None = None,
) -> list[Generation]:
    """Let the student complete each text.

    Texts are batched by length under ``config.batch_tokens`` padded tokens, input and
    output together. A row ends at its end token or its answer sentence
    (`prompts.find_end`) and makes room for the next text.

    Parameters
    ----------
    student : Student
        Encoder-decoder or decoder-only; decoded in evaluation mode where it is.
    texts : sequence of str
    config : EvaluationConfig
    temperature : float
        0 is greedy; else each text is sampled with a generator of its own.
    seeds : sequence of int, optional
        One per text. Default: 0, 1, 2, ...
    accelerator : Accelerator, optional
        Its processes take turns at the streams; each gets all generations back.

    Returns
    -------
    list of Generation, in the order of `texts`

    Raises
    ------
    ValueError
        If model and tokenizer do not belong together.
    """
    check_tokenizer(student)
    encoded = (
        student.tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
    )
    streams = make_streams([len(ids) for ids in encoded], config)
    process, num_processes = place(accelerator)
    seeds = range(len(texts)) if seeds is None else seeds
    done: list[tuple[int, Generation]] = []
    with _evaluation_mode(student.model), _precision(student.model, config):
        for stream in streams[process::num_processes]:
            draws = _uniforms([seeds[i] for i in stream], config)
            pick = functools.partial(_pick, temperature=temperature, draws=draws)
            rows = _decode_stream(student, [encoded[i] for i in stream], config, pick)
            done += zip(stream, rows, strict=True)
    if num_processes > 1:
        done = gather_object(done)
    return [generation for _, generation in sorted(done, key=lambda pair: pair[0])]


def make_streams(lengths: Sequence[int], config: EvaluationConfig) -> list[list[int]]:
    """Group indices, longest first, into streams of `STREAM_BATCHES` fills.

    Parameters
    ----------
    lengths : sequence of int
        Input tokens of each text.

    Returns
    -------
    list of list of int
        Each index once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    streams: list[list[int]] = []
    while order:
        longest = lengths[order[0]] + config.max_new_tokens
        size = STREAM_BATCHES * max(1, config.batch_tokens // longest)
        streams.append(order[:size])
        order = order[size:]
    return streams


def check_tokenizer(student: Student) -> None:
    """Raise ValueError if the tokenizer is not the one the model was made with."""
    tokenizer, model = student.tokenizer, student.model
    rows = model.get_input_embeddings().num_embeddings
    ends = _end_ids(model, tokenizer)
    if len(tokenizer) > rows or tokenizer.eos_token_id not in ends:
        raise ValueError(
            f"student {student.name!r}: model and tokenizer do not belong together: "
            f"{rows} embeddings for {len(tokenizer)} entries, end token "
            f"{sorted(ends)} for {tokenizer.eos_token_id}. Load the tokenizer saved "
            "with this checkpoint"
        )


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    configured = model.config.eos_token_id
    if configured is None:
        configured = tokenizer.eos_token_id
    return set(configured if isinstance(configured, (list, tuple)) else [configured])


def place(accelerator: Accelerator | None) -> tuple[int, int]:
    """Return this process and the number of processes."""
    if accelerator is None:
        return 0, 1
    return accelerator.process_index, accelerator.num_processes


@contextlib.contextmanager
def _evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        # In inference mode autocast would cast every weight again at every step.
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _precision(model: PreTrainedModel, config: EvaluationConfig) -> torch.autocast:
    enabled = config.precision == "bfloat16"
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=enabled)


class _Seq2SeqBatch:
    """Running rows of an encoder-decoder: B rows, S source tokens, T written ones.

    What is written is padded on the left. T5 sees relative positions only, so padding
    does not change what it computes.
    """

    def __init__(self, model: PreTrainedModel, prompts, written):
        source, self.mask = _padded(model, prompts, on_left=False)  # (B, S)
        self.model = model
        self.encoded = model.get_encoder()(source, attention_mask=self.mask)[0]
        start = model.config.decoder_start_token_id
        begun = [[start, *tokens] for tokens in written]
        self.inputs, self.seen = _padded(model, begun, on_left=True)  # (B, T)
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def logits(self) -> torch.Tensor:
        """The next token's logits, shape (B, V)."""
        output = self.model(
            encoder_outputs=BaseModelOutput(self.encoded),
            attention_mask=self.mask,
            decoder_input_ids=self.inputs,
            decoder_attention_mask=self.seen,
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[:, -1]

    def append(self, tokens: torch.Tensor) -> None:
        self.inputs = tokens[:, None]
        self.seen = F.pad(self.seen, (0, 1), value=1)

    def keep(self, rows: torch.Tensor) -> None:
        """Drop the other rows, and the padding that no row needs any more."""
        self.mask, self.seen = self.mask[rows], self.seen[rows]
        self.encoded, self.inputs = self.encoded[rows], self.inputs[rows]
        self.cache.batch_select_indices(rows)
        num_source = int(self.mask.sum(1).max())
        self.mask = self.mask[:, :num_source]
        self.encoded = self.encoded[:, :num_source]
        _trim(self.cache.cross_attention_cache, slice(num_source))
        longest = int(self.seen.sum(1).max())
        self.seen = self.seen[:, -longest:]
        _trim(self.cache.self_attention_cache, _cached(longest))

    def join(self, other: _Seq2SeqBatch) -> None:
        """Add the rows of another batch."""
        self.mask = _stack(self.mask, other.mask, dim=1, on_left=False)
        self.encoded = _stack(self.encoded, other.encoded, dim=1, on_left=False)
        self.seen = _stack(self.seen, other.seen, dim=1, on_left=True)
        self.inputs = torch.cat([self.inputs, other.inputs])
        mine, theirs = self.cache, other.cache
        _join(mine.self_attention_cache, theirs.self_attention_cache, on_left=True)
        _join(mine.cross_attention_cache, theirs.cross_attention_cache, on_left=False)


class _CausalBatch:
    """Running rows of a decoder-only model, padded on the left: B rows, T tokens."""

    def __init__(self, model: PreTrainedModel, prompts, written):
        begun = [[*p, *tokens] for p, tokens in zip(prompts, written, strict=True)]
        self.inputs, self.seen = _padded(model, begun, on_left=True)  # (B, T)
        self.model, self.cache = model, DynamicCache()

    def logits(self) -> torch.Tensor:
        """The next token's logits, shape (B, V)."""
        positions = (self.seen.cumsum(-1) - 1).clamp(min=0)
        output = self.model(
            self.inputs,
            attention_mask=self.seen,
            position_ids=positions[:, -self.inputs.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[:, -1]

    def append(self, tokens: torch.Tensor) -> None:
        self.inputs = tokens[:, None]
        self.seen = F.pad(self.seen, (0, 1), value=1)

    def keep(self, rows: torch.Tensor) -> None:
        """Drop the other rows, and the padding that no row needs any more."""
        self.seen, self.inputs = self.seen[rows], self.inputs[rows]
        self.cache.batch_select_indices(rows)
        longest = int(self.seen.sum(1).max())
        self.seen = self.seen[:, -longest:]
        _trim(self.cache, _cached(longest))

    def join(self, other: _CausalBatch) -> None:
        """Add the rows of another batch."""
        self.seen = _stack(self.seen, other.seen, dim=1, on_left=True)
        self.inputs = torch.cat([self.inputs, other.inputs])
        _join(self.cache, other.cache, on_left=True)


def _padded(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], *, on_left: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, (B, longest), on the model's device."""
    longest = max(map(len, rows))
    ids = torch.zeros((len(rows), longest), dtype=torch.long)  # masked where padded
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        columns = slice(longest - len(row), None) if on_left else slice(0, len(row))
        ids[i, columns] = torch.tensor(row, dtype=torch.long)
        mask[i, columns] = 1
    return ids.to(model.device), mask.to(model.device)


def _cached(longest: int) -> slice:
    """The columns of a cache; the last token written is not in it yet."""
    return slice(1 - longest, None)


def _trim(cache: DynamicCache, columns: slice) -> None:
    for layer in cache.layers:
        layer.keys, layer.values = (
            layer.keys[:, :, columns],
            layer.values[:, :, columns],
        )


def _join(mine: DynamicCache, theirs: DynamicCache, *, on_left: bool) -> None:
    for layer, other in zip(mine.layers, theirs.layers, strict=True):
        layer.keys = _stack(layer.keys, other.keys, dim=2, on_left=on_left)
        layer.values = _stack(layer.values, other.values, dim=2, on_left=on_left)


def _stack(
    first: torch.Tensor, second: torch.Tensor, *, dim: int, on_left: bool
) -> torch.Tensor:
    """Concatenate rows; the narrower along `dim` is padded with zeros on one side."""
    width = max(first.shape[dim], second.shape[dim])

    def pad(tensor: torch.Tensor) -> torch.Tensor:
        missing = width - tensor.shape[dim]
        sides = (missing, 0) if on_left else (0, missing)
        return F.pad(tensor, (0, 0) * (tensor.dim() - dim - 1) + sides)

    return torch.cat([pad(first), pad(second)])


def _decode_stream(
    student: Student,
    encoded: Sequence[Sequence[int]],
    config: EvaluationConfig,
    pick: Callable[..., torch.Tensor],
) -> list[Generation]:
    """Complete texts, longest first, as many at a time as the budget allows."""
    written: list[list[int]] = [[] for _ in encoded]
    done: list[Generation | None] = [None] * len(encoded)
    waiting, alive = list(range(len(encoded))), []
    running = None
    fitting = functools.partial(_num_fitting, encoded, written, config.batch_tokens)
    headroom = max(CHECK_EVERY + 1, int(HEADROOM * config.max_new_tokens))
    while alive or waiting:
        slots = fitting(alive + waiting, headroom)
        fresh = waiting[: max(0, slots - len(alive))]
        is_worth = len(fresh) == len(waiting) or len(fresh) >= REFILL_FRACTION * slots
        if fresh and (not alive or is_worth):
            waiting = waiting[len(fresh) :]
            started = _start(student, fresh, encoded, written)
            _advance(started, fresh, written, pick, num_steps=1)
            if alive:
                running.join(started)
            else:
                running = started
            alive += fresh
        _advance(running, alive, written, pick, num_steps=CHECK_EVERY)
        for row in alive:
            done[row] = _finish(student, written[row], config.max_new_tokens)
        going_on = [i for i, row in enumerate(alive) if done[row] is None]
        num_kept = fitting([alive[i] for i in going_on], CHECK_EVERY)
        waiting[:0] = [alive[i] for i in going_on[num_kept:]]
        going_on = going_on[:num_kept]
        if going_on and len(going_on) < len(alive):
            running.keep(torch.tensor(going_on, device=student.model.device))
        alive = [alive[i] for i in going_on]
    return [generation for generation in done if generation is not None]


def _num_fitting(
    encoded: Sequence[Sequence[int]],
    written: Sequence[Sequence[int]],
    budget: int,
    rows: Sequence[int],
    headroom: int,
) -> int:
    """How many of the first rows the budget holds after `headroom` more tokens each.

    Of any rows at least one. A batch holds its longest input and its longest output
    once per row.
    """
    source = target = 0
    for count, row in enumerate(rows):
        source = max(source, len(encoded[row]))
        target = max(target, len(written[row]))
        if count and (count + 1) * (source + target + headroom) > budget:
            return count
    return len(rows)


def _advance(
    running: _Seq2SeqBatch | _CausalBatch,
    rows: Sequence[int],
    written: list[list[int]],
    pick: Callable[..., torch.Tensor],
    *,
    num_steps: int,
) -> None:
    """Write `num_steps` tokens to every running row."""
    block = []
    for step in range(num_steps):
        places = [len(written[row]) + step for row in rows]
        tokens = pick(running.logits(), rows, places)
        running.append(tokens.clamp(min=0))
        block.append(tokens)
    for row, tokens in zip(rows, torch.stack(block, dim=1).tolist(), strict=True):
        written[row] += tokens


def _start(
    student: Student,
    rows: Sequence[int],
    encoded: Sequence[Sequence[int]],
    written: Sequence[Sequence[int]],
) -> _Seq2SeqBatch | _CausalBatch:
    """Begin rows, or take them up where they waited."""
    is_seq2seq = student.model.config.is_encoder_decoder
    make = _Seq2SeqBatch if is_seq2seq else _CausalBatch
    prompts, begun = ([table[row] for row in rows] for table in (encoded, written))
    return make(student.model, prompts, begun)


def _uniforms(seeds: Sequence[int], config: EvaluationConfig) -> torch.Tensor:
    """Draws, (rows, steps); a generator each, so that no row depends on another."""
    length = config.max_new_tokens + CHECK_EVERY  # the last look may be that late
    generators = (torch.Generator().manual_seed(seed) for seed in seeds)
    return torch.stack([torch.rand(length, generator=g) for g in generators])


def _pick(
    logits: torch.Tensor,
    rows: Sequence[int],
    places: Sequence[int],
    *,
    temperature: float,
    draws: torch.Tensor,
) -> torch.Tensor:
    """One token per row (B,), or `_NOT_FINITE` where the best logit is no number."""
    best, tokens = logits.max(dim=-1)  # NaN wins the maximum
    if temperature:
        drawn = draws[rows, places].to(logits.device)
        tokens = choose(logits.float().log_softmax(-1), temperature, drawn)
    return tokens.masked_fill(~best.isfinite(), _NOT_FINITE)


def _finish(student: Student, tokens: list[int], limit: int) -> Generation | None:
    """The generation if it has ended, else None."""
    is_last = len(tokens) >= limit
    tokens = tokens[:limit]
    ends = _end_ids(student.model, student.tokenizer)
    length = next((i for i, t in enumerate(tokens) if t in ends or t < 0), None)
    text = student.tokenizer.decode(tokens[:length], skip_special_tokens=True)
    text_end = find_end(text.encode())
    if text_end is not None:
        cut = text.encode()[:text_end].decode().strip()
        return Generation(cut, len(tokens[:length]), "stop")
    if length is not None:
        reason = "not_finite" if tokens[length] < 0 else "stop"
        return Generation(text.strip(), length, reason)
    return Generation(text.strip(), len(tokens), "length") if is_last else None
