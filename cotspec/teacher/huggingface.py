"""Solutions from a Hugging Face causal language model on this machine.

Enters: a `models.Teacher` (safetensors or GGUF) and the run's prompts. Leaves: batches
of completions. The demonstrations, which begin every prompt, are computed once for the
run, each question once for its samples, and many questions are decoded together.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from cotspec import decoding, models
from cotspec.decoding import Prefix, Row
from cotspec.models import Teacher
from cotspec.profiles import TeacherConfig
from cotspec.teacher.traces import (
    Completion,
    Request,
    Sample,
    SamplingOptions,
    cut_tokens,
    sample_seed,
    valid_length,
)

logger = logging.getLogger(__name__)


def load(config: TeacherConfig) -> HuggingFaceBackend:
    """Return the backend of a model on this machine, on its accelerator if it has one.

    Raises
    ------
    ValueError
        See `models.load_teacher`.
    """
    config = models.in_precision(config)
    teacher = models.load_teacher(config)
    teacher.model.to(models.device())
    limits = {"max_new_tokens": config.max_new_tokens, "top_k": config.top_k}
    return HuggingFaceBackend(teacher, config.batch_size, **limits)


@dataclass(frozen=True)
class HuggingFaceBackend:
    """A local model as teacher.

    Attributes
    ----------
    batch_size : int, solutions decoded at once
    """

    teacher: Teacher
    batch_size: int = 64
    max_new_tokens: int = 256
    top_k: int = 5

    @property
    def model(self) -> str:
        """The teacher's name and, below float32, its precision: other numbers."""
        dtype = getattr(self.teacher.model, "dtype", torch.float32)
        precision = str(dtype).removeprefix("torch.")
        name = self.teacher.name
        return name if dtype == torch.float32 else f"{name} ({precision})"

    def complete(
        self,
        requests: Sequence[Request],
        options: SamplingOptions,
        missing: Mapping[int, set[int]],
    ) -> Iterator[list[Sample]]:
        """Yield the missing samples batch by batch, see `Backend`.

        A batch of which anything is missing is computed whole: its composition, and
        with it every float, is that of an uninterrupted run.
        """
        model, tokenizer = self.teacher.model, self.teacher.tokenizer
        token_ids = [tokenizer(request.prompt)["input_ids"] for request in requests]
        _check_window(self.teacher, requests, token_ids, self.max_new_tokens)
        is_shared = decoding.shares_prefixes(model)
        if not is_shared:
            logger.warning("%s: demonstrations are computed per question", self.model)
        attention = decoding.shared_prefix_attention if is_shared else nullcontext
        vocabulary = decoding.padded_vocabulary(tokenizer, model)
        with attention(model), torch.no_grad():
            for group in group_by_context(requests):
                prompts = {i: token_ids[i] for i in group}
                prefix_length = (
                    common_prefix_length(prompts.values()) if is_shared else 0
                )
                prefix = None
                for batch in plan_batches(
                    {i: len(ids) for i, ids in prompts.items()},
                    options.num_samples,
                    self.batch_size,
                ):
                    if not any(sample_id in missing[i] for i, sample_id in batch):
                        continue
                    if prefix is None and is_shared:
                        head = token_ids[group[0]][:prefix_length]
                        prefix = decoding.compute_prefix(model, head)
                    rest = {i: token_ids[i][prefix_length:] for i, _ in batch}
                    seeds = [
                        sample_seed(options.seed, requests[i].problem_id, s)
                        for i, s in batch
                    ]
                    done = self._draw(
                        rest,
                        [i for i, _ in batch],
                        seeds,
                        options,
                        vocabulary,
                        prefix,
                        prefix_length,
                    )
                    samples = zip(batch, done, strict=True)
                    yield [(i, s, c) for (i, s), c in samples if s in missing[i]]

    def _draw(
        self,
        prompts: Mapping[int, Sequence[int]],
        owners: Sequence[int],
        seeds: Sequence[int],
        options: SamplingOptions,
        vocabulary: Sequence[bytes],
        prefix: Prefix | None,
        prefix_length: int,
    ) -> list[Completion]:
        """Sample one solution per owner, behind the common prefix."""
        questions = sorted(prompts)
        steps = _Steps(len(owners), options)
        rows = decoding.write_rows(
            decoding.CausalBatch(
                self.teacher.model,
                [prompts[i] for i in questions],
                owners=[questions.index(i) for i in owners],
                prefix=prefix,
                prefix_length=prefix_length,
            ),
            decoding.draw_uniforms(seeds, options.max_new_tokens).to(
                self.teacher.model.device
            ),
            temperature=options.temperature,
            vocabulary=vocabulary,
            end_tokens=end_ids(self.teacher),
            record=steps.record,
        )
        return [steps.completion(i, row, vocabulary) for i, row in enumerate(rows)]


def _check_window(
    teacher: Teacher,
    requests: Sequence[Request],
    token_ids: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> None:
    """Raise ValueError, before anything is sampled, for a prompt that cannot fit."""
    window = getattr(teacher.model.config, "max_position_embeddings", None)
    for request, ids in zip(requests, token_ids, strict=True):
        if window is not None and len(ids) + max_new_tokens > window:
            raise ValueError(
                f"problem {request.problem_id!r}: its prompt of {len(ids)} tokens and "
                f"{max_new_tokens} new ones exceed the {window} that {teacher.name} "
                "reads. Lower teacher.num_demonstrations or teacher.max_new_tokens, or "
                "leave the problem out"
            )


def group_by_context(requests: Sequence[Request]) -> list[list[int]]:
    """Group requests (by index) by what precedes their question.

    A question that is among the demonstrations is asked without that one; it must not
    shorten the prefix that the others share.
    """
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        context = request.prompt.rpartition(request.question)[0]
        groups.setdefault(context, []).append(index)
    return list(groups.values())


def common_prefix_length(token_ids: Collection[Sequence[int]]) -> int:
    """Return how many first tokens all prompts share; one stays out of it in each.

    It is found in the tokens, not the text: a tokenizer may merge across the border.
    """
    shortest, longest = min(token_ids), max(token_ids)
    shared = os.path.commonprefix([list(shortest), list(longest)])
    return min(len(shared), min(map(len, token_ids)) - 1)


def plan_batches(
    num_tokens: Mapping[int, int], num_samples: int, batch_size: int
) -> list[list[tuple[int, int]]]:
    """Split all (request, sample id) into batches of questions of similar length.

    Parameters
    ----------
    num_tokens : the prompt's length of each request
    """
    order = sorted(num_tokens, key=lambda i: (num_tokens[i], i))
    rows = [(i, sample_id) for i in order for sample_id in range(num_samples)]
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]


def end_ids(teacher: Teacher) -> frozenset[int]:
    """Return the token ids that end a text, from tokenizer and generation config."""
    configured = teacher.model.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(
        i for i in (*several, teacher.tokenizer.eos_token_id) if i is not None
    )


class _Steps:
    """What was drawn at each step, (R, steps) and (R, steps, k), on the CPU."""

    def __init__(self, num_rows: int, options: SamplingOptions):
        shape = (num_rows, options.max_new_tokens)
        self.k = options.top_k
        self.logprobs = torch.zeros(shape)
        self.top_ids = torch.zeros(*shape, self.k, dtype=torch.int32)
        self.top_logprobs = torch.zeros(*shape, self.k)

    def record(self, step, rows, chosen, logprobs) -> None:
        """Keep one step of the rows that go on, see `decoding.write_rows`."""
        rows = rows.cpu()
        top = logprobs.topk(min(self.k, logprobs.shape[-1]), dim=-1)
        self.logprobs[rows, step] = logprobs.gather(1, chosen.clamp(min=0)[:, None])[
            :, 0
        ].cpu()
        self.top_ids[rows, step] = top.indices.int().cpu()
        self.top_logprobs[rows, step] = top.values.cpu()

    def completion(self, index: int, row: Row, table: Sequence[bytes]) -> Completion:
        """Return the row's solution, cut to whole UTF-8 characters."""
        ids = row.tokens
        end = valid_length(bytes(row.text), row.cut)
        pieces = cut_tokens([table[i] for i in ids], end)
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
