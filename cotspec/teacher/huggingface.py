"""Solutions from a Hugging Face causal language model on this machine.

Enters: a `models.Teacher` (safetensors or GGUF) and the run's prompts. Leaves: batches
of completions. The demonstrations, which begin every prompt, are computed once for the
run, each question once for its samples, and many questions are decoded together.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from cotspec import models
from cotspec.alignment.student import vocabulary_bytes
from cotspec.models import Teacher
from cotspec.profiles import TeacherConfig
from cotspec.prompts import find_end
from cotspec.teacher.decoding import Decoder, decode
from cotspec.teacher.shared_prefix import (
    compute_prefix,
    is_supported,
    shared_prefix_attention,
)
from cotspec.teacher.traces import Request, Sample, SamplingOptions, sample_seed

logger = logging.getLogger(__name__)


def load(config: TeacherConfig) -> HuggingFaceBackend:
    """Return the backend of a model on this machine, on its accelerator if it has one.

    Raises
    ------
    ValueError
        See `models.load_teacher`.
    """
    config = dataclasses.replace(config, precision=resolve_precision(config.precision))
    teacher = models.load_teacher(config)
    teacher.model.to(models.device())
    limits = {"max_new_tokens": config.max_new_tokens, "top_k": config.top_k}
    return HuggingFaceBackend(teacher, config.batch_size, **limits)


def resolve_precision(precision: str) -> str:
    """Return what ``teacher.precision`` "auto" means here; other values as they are.

    bfloat16 where the machine multiplies in it: a GPU from Ampere on, a CPU with AMX or
    AVX512-BF16. Elsewhere it is emulated, slower than float32.
    """
    if precision != "auto":
        return precision
    return "bfloat16" if _has_bfloat16() else "float32"


def _has_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    amx, avx512 = (
        getattr(torch.cpu, f"_is_{name}_supported", lambda: False)
        for name in ("amx_tile", "avx512_bf16")
    )
    return amx() or avx512()


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
        tokenizer = self.teacher.tokenizer
        token_ids = [tokenizer(request.prompt)["input_ids"] for request in requests]
        _check_window(self.teacher, requests, token_ids, self.max_new_tokens)
        is_shared = is_supported(self.teacher.model)
        if not is_shared:
            logger.warning("%s: demonstrations are computed per question", self.model)
        attention = shared_prefix_attention if is_shared else nullcontext
        with attention(self.teacher.model):
            for group in group_by_context(requests):
                decoder = None
                batches = plan_batches(
                    {i: len(token_ids[i]) for i in group},
                    options.num_samples,
                    self.batch_size,
                )
                for batch in batches:
                    if not any(sample_id in missing[i] for i, sample_id in batch):
                        continue
                    decoder = decoder or self._decoder(
                        [token_ids[i] for i in group], options, is_shared
                    )
                    samples = _sample_batch(decoder, requests, token_ids, batch)
                    yield [s for s in samples if s[1] in missing[s[0]]]

    def _decoder(
        self,
        token_ids: Sequence[Sequence[int]],
        options: SamplingOptions,
        is_shared: bool,
    ) -> Decoder:
        """Compute what the prompts of one group have in common."""
        model = self.teacher.model
        length = common_prefix_length(token_ids) if is_shared else 0
        prefix = compute_prefix(model, token_ids[0][:length]) if is_shared else None
        return Decoder(
            model=model,
            prefix=prefix,
            prefix_length=length,
            vocabulary=_padded(vocabulary_bytes(self.teacher.tokenizer), model),
            end_ids=end_ids(self.teacher),
            find_end=find_end,
            options=options,
        )


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


def common_prefix_length(token_ids: Sequence[Sequence[int]]) -> int:
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


def _padded(table: list[bytes], model) -> list[bytes]:
    """Give the embedding's unused rows, beyond the vocabulary, no bytes."""
    rows = model.get_output_embeddings().weight.shape[0]
    return table + [b""] * (rows - len(table))


def _sample_batch(
    decoder: Decoder,
    requests: Sequence[Request],
    token_ids: Sequence[Sequence[int]],
    batch: Sequence[tuple[int, int]],
) -> list[Sample]:
    questions = sorted({i for i, _ in batch})
    seed = decoder.options.seed
    completions = decode(
        decoder,
        [token_ids[i][decoder.prefix_length :] for i in questions],
        [questions.index(i) for i, _ in batch],
        [sample_seed(seed, requests[i].problem_id, s) for i, s in batch],
    )
    return [(*row, done) for row, done in zip(batch, completions, strict=True)]
