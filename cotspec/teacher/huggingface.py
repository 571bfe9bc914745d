"""Solutions from a Hugging Face causal language model on this machine.

Enters: a `models.Teacher` (safetensors or GGUF) and the run's prompts. Leaves: batches
of completions. The demonstrations, which begin every prompt, are computed once for the
run, each question once for its samples, and many questions are decoded together.
"""

from __future__ import annotations

import functools
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from cotspec import decoding, models
from cotspec.models import Teacher, end_ids
from cotspec.profiles import TeacherConfig
from cotspec.teacher import traces
from cotspec.teacher.traces import Completion, Missing, Request, Sample, SamplingOptions


def load(config: TeacherConfig) -> HuggingFaceBackend:
    """Return the backend of a model on this machine, on its accelerator if it has one.

    Raises
    ------
    ValueError
        See `models.load_teacher`.
    """
    teacher = models.load_teacher(models.in_precision(config))
    teacher.model.to(models.device())
    limits = (config.batch_size, config.max_new_tokens, config.top_k)
    return HuggingFaceBackend(teacher, *limits)


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
        if dtype == torch.float32:
            return self.teacher.name
        return f"{self.teacher.name} ({str(dtype).removeprefix('torch.')})"

    @functools.cached_property
    def vocabulary(self) -> list[bytes]:
        """What each token id spells."""
        return decoding.padded_vocabulary(self.teacher.tokenizer, self.teacher.model)

    def complete(
        self, requests: Sequence[Request], options: SamplingOptions, missing: Missing
    ) -> Iterator[list[Sample]]:
        """Yield the missing samples batch by batch, see `Backend`.

        A batch of which anything is missing is computed whole: its composition, and
        with it every float, is that of an uninterrupted run.
        """
        model, tokenizer = self.teacher.model, self.teacher.tokenizer
        token_ids = [tokenizer(request.prompt)["input_ids"] for request in requests]
        self._check_window(requests, token_ids)
        if self.top_k > (most := len(self.vocabulary)):
            raise ValueError(f"teacher.top_k: {self.top_k}. Allowed: 1 to {most}")
        is_shared = decoding.shares_prefixes(model)
        attention = decoding.shared_prefix_attention if is_shared else nullcontext
        num_threads = models.batches_at_once(model)
        with attention(model), ThreadPoolExecutor(num_threads) as threads:
            for group in group_by_context(requests):
                prompts = [token_ids[i] for i in group]
                # Questions of similar length together.
                order = sorted(group, key=lambda i: (len(token_ids[i]), i))
                rows = [(i, s) for i in order for s in range(options.num_samples)]
                starts = range(0, len(rows), self.batch_size)
                planned = [rows[start : start + self.batch_size] for start in starts]
                due = [b for b in planned if any(s in missing[i] for i, s in b)]
                length, prefix = 0, None
                if due and is_shared:
                    # In tokens, not text: a tokenizer may merge across the border. Of
                    # each prompt one stays out of it.
                    shared = len(os.path.commonprefix(prompts))
                    length = min(shared, min(map(len, prompts)) - 1)
                    prefix = decoding.compute_prefix(model, prompts[0][:length])
                suffixes = {i: token_ids[i][length:] for i in group}
                known = requests, options, suffixes, prefix
                write = functools.partial(self._write, *known)
                for batch, done in zip(due, threads.map(write, due), strict=True):
                    samples = zip(batch, done, strict=True)
                    yield [(i, s, c) for (i, s), c in samples if s in missing[i]]

    def _check_window(
        self, requests: Sequence[Request], token_ids: Sequence[Sequence[int]]
    ) -> None:
        """Raise ValueError, before anything is sampled, if a prompt cannot fit."""
        config = self.teacher.model.config
        window = getattr(config, "max_position_embeddings", None) or math.inf
        for request, ids in zip(requests, token_ids, strict=True):
            if len(ids) + self.max_new_tokens > window:
                said = f"problem {request.problem_id!r}: {len(ids)} tokens of prompt, "
                said += f"{self.max_new_tokens} new; {self.teacher.name} reads {window}"
                remedy = "Lower teacher.num_demonstrations or .max_new_tokens"
                raise ValueError(f"{said}. {remedy}")

    @torch.no_grad()  # holds for one thread
    def _write(
        self,
        requests: Sequence[Request],
        options: SamplingOptions,
        suffixes: Mapping[int, Sequence[int]],
        prefix: decoding.Prefix | None,
        batch: Sequence[tuple[int, int]],
    ) -> list[Completion]:
        """Sample one solution per (request, sample id) of the batch."""
        model, tokenizer = self.teacher.model, self.teacher.tokenizer
        asked = sorted({i for i, _ in batch})
        owners = [asked.index(i) for i, _ in batch]
        read = [suffixes[i] for i in asked]
        running = decoding.CausalBatch(model, read, owners=owners, prefix=prefix)
        named = [(requests[i].problem_id, sample_id) for i, sample_id in batch]
        seeds = [traces.sample_seed(options.seed, *name) for name in named]
        shape = (len(seeds), self.max_new_tokens, self.top_k)  # (R, steps, k)
        drawn, top_logprobs = torch.zeros(shape[:2]), torch.zeros(shape)
        top_ids = torch.zeros(shape, dtype=torch.int32)

        def record(step, rows, chosen, logprobs) -> None:
            """Keep, on the CPU, one step of the rows that go on."""
            rows, top = rows.cpu(), logprobs.topk(self.top_k)
            logprobs = logprobs.gather(1, chosen.clamp(min=0)[:, None])[:, 0]
            drawn[rows, step] = logprobs.cpu()
            top_ids[rows, step] = top.indices.int().cpu()
            top_logprobs[rows, step] = top.values.cpu()

        known = {"temperature": options.temperature, "vocabulary": self.vocabulary}
        ends = end_ids(model, tokenizer) | {tokenizer.eos_token_id}
        known |= {"end_tokens": ends, "record": record}
        uniforms = decoding.draw_uniforms(seeds, self.max_new_tokens).to(model.device)
        rows = decoding.write_rows(running, uniforms, **known)
        kept = zip(rows, drawn, top_ids, top_logprobs, strict=True)
        return [self._completion(*one) for one in kept]

    def _completion(self, row: decoding.Row, logprobs, top_ids, top_logprobs):
        """Return a row's solution, cut to whole UTF-8 characters."""
        end = traces.valid_length(bytes(row.text), row.cut)
        pieces = traces.cut_tokens([self.vocabulary[i] for i in row.tokens], end)
        length = len(pieces)
        is_whole = sum(map(len, pieces)) == row.cut
        names = top_ids[:length].tolist()
        return Completion(
            text=b"".join(pieces).decode(),
            token_ids=row.tokens[:length],
            token_bytes=pieces,
            token_logprobs=logprobs[:length].tolist(),
            topk_ids=names,
            topk_bytes=[[self.vocabulary[i] for i in step] for step in names],
            topk_logprobs=top_logprobs[:length].tolist(),
            finish_reason=row.finish_reason if is_whole else "length",
        )


def group_by_context(requests: Sequence[Request]) -> list[list[int]]:
    """Group requests (by index) by what precedes their question.

    A question that is among the demonstrations is asked without that one; it must not
    shorten the prefix that the others share.
    """
    groups = defaultdict(list)
    for index, request in enumerate(requests):
        groups[request.prompt.rpartition(request.question)[0]].append(index)
    return list(groups.values())
