"""Trains the micro-world's teacher and students from nothing.

Enters: the name of a shipped model. Leaves: a folder that transformers loads, with
safetensors weights, its tokenizer, the recipe and what it took. Of a build that was
killed, the models that were done are kept. What the models read is an endless stream of
batches that depends on the seed alone.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from tqdm import trange
from transformers import (
    Adafactor,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
)

from cotspec import artifacts, prompts
from cotspec.losses import IGNORED
from cotspec.micro import generic, shipped, tokenizers, world
from cotspec.micro.shipped import MicroConfig
from cotspec.prompts import Demonstration
from cotspec.t5 import IN_PLACE
from cotspec.training import step_optimizer

_POOL_BATCHES = 16  # drawn at once and sorted by length, so that padding is rare
_CORRUPTED_SHARE = 0.15  # T5's, with spans of three tokens on average
_MEAN_SPAN = 3
_WARMUP_STEPS = 50
_DONE = "done.json"
FACTS = "facts.json"  # what the training took

Problems = dict[str, list[Demonstration]]  # by family
Example = tuple[list[int], list[int]]  # input ids, label ids


def solved_problems(split: str, size: int, *, seed: int) -> Problems:
    """Return `size` problems of every math family, a quarter of every generic one."""
    solved = {}
    for module, num in ((world, size), (generic, size // 4)):
        for family in module.FAMILIES:
            items = module.generate(family, split, num, seed=seed)
            solved[family] = [
                Demonstration(item["question"], item["rationale"], item["answer"])
                for item in items
            ]
    return solved


def tokenizer_texts() -> list[str]:
    """Return the solved problems that the shipped tokenizers were made from."""
    problems = solved_problems("train", 4000, seed=11)
    return [_solved(one) for family in problems.values() for one in family]


def _solved(problem: Demonstration) -> str:
    return prompts.demonstration_block(problem, chain_of_thought=True)


@dataclass(frozen=True)
class Corpus:
    """What examples are drawn from; there is a method for every kind of model."""

    problems: Problems
    config: MicroConfig
    tokenizer: PreTrainedTokenizerBase

    def teacher(self, rng: Random) -> Example:
        """Draw a few-shot CoT document; the solutions and the end are the labels.

        Learning to write questions would take most of a small model's capacity.
        """
        family = _draw_family(rng, self.config.teacher_out_of_distribution_share)
        num = rng.randint(0, self.config.teacher_demonstrations)
        *shown, asked = rng.sample(self.problems[family], num + 1)
        text = prompts.teacher_prompt(asked.question, shown)
        text += prompts.solution(asked.rationale, asked.answer)
        encoded = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids, labels, is_solution = encoded["input_ids"], [], False
        for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True):
            labels.append(token if is_solution else IGNORED)
            if "\n" in text[start:end]:
                is_solution = text[:start].endswith(prompts.COT_TRIGGER)
        end = self.tokenizer.eos_token_id
        return [*ids, end], [*labels, end]

    def raw(self, rng: Random) -> Example:
        """Draw a solved problem, spans replaced by sentinels (Raffel et al. 2020)."""
        tokenizer = self.tokenizer
        family = rng.choice([*generic.FAMILIES, *world.FAMILIES * 2])
        text = _solved(rng.choice(self.problems[family]))
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        marks = tokenizer.convert_tokens_to_ids(list(tokenizers.SENTINELS))
        return corrupt_spans(rng, ids, marks, tokenizer.eos_token_id)

    def instruction_tuned(self, rng: Random) -> Example:
        """Draw a problem of any family in one of the four data formats."""
        config = self.config
        if rng.random() < config.generic_share:
            family = rng.choice(generic.FAMILIES)
        else:
            family = _draw_family(rng, config.out_of_distribution_share)
        is_in_context = rng.random() < config.in_context_share
        is_chain_of_thought = rng.random() < config.chain_of_thought_share
        mode = "in_context" if is_in_context else "zero_shot"
        mode += "_chain_of_thought" if is_chain_of_thought else "_answer_only"
        num = rng.randint(1, config.num_demonstrations) if is_in_context else 0
        *shown, asked = rng.sample(self.problems[family], num + 1)
        inputs = prompts.build_inputs(asked.question, mode, shown)
        solution = prompts.solution(asked.rationale, asked.answer)
        targets = prompts.build_target(mode, completion=solution, answer=asked.answer)
        return tuple(self.tokenizer([inputs, targets], verbose=False)["input_ids"])


def _draw_family(rng: Random, other_share: float) -> str:
    """Draw the training family, or one of the other three with `other_share`."""
    first, *others = world.FAMILIES
    return rng.choice(others) if rng.random() < other_share else first


def corrupt_spans(
    rng: Random, ids: Sequence[int], sentinel_ids: Sequence[int], eos_id: int
) -> Example:
    """Replace random spans by sentinels; the labels are the sentinels and the spans.

    Parameters
    ----------
    rng : random.Random
    ids : sequence of int
        A text without its end token.
    sentinel_ids : sequence of int
        At most this many spans are cut, less one: the last mark closes the labels.
    eos_id : int
        Appended to both.

    Returns
    -------
    tuple of list of int
        Input ids, label ids.
    """
    wanted = round(len(ids) * _CORRUPTED_SHARE / _MEAN_SPAN)
    num_spans = max(1, min(wanted, len(sentinel_ids) - 1, len(ids) // 4))
    starts = sorted(rng.sample(range(len(ids)), num_spans))
    inputs, labels, end = [], [], 0
    for mark, start in zip(sentinel_ids, starts, strict=False):
        start = max(start, end)
        inputs += [*ids[end:start], mark]
        end = min(start + rng.randint(1, 2 * _MEAN_SPAN - 1), len(ids))
        labels += [mark, *ids[start:end]]
    closing = sentinel_ids[num_spans]
    return [*inputs, *ids[end:], eos_id], [*labels, closing, eos_id]


def batches(
    draw: Callable[[Random], Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    seed: int,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches for ever; each depends on the seed and its number.

    Examples are drawn a pool at a time and sorted by length within it. A batch is
    ``input_ids, attention_mask`` (B, S) and ``labels`` (B, T), -100 ignored; a causal
    model's labels are as long as its inputs, T = S.
    """
    collate = DataCollatorForSeq2Seq(tokenizer)
    for pool in itertools.count():
        rng = Random(f"{seed}/{pool}")
        drawn = [draw(rng) for _ in range(_POOL_BATCHES * batch_size)]
        drawn.sort(key=lambda example: len(example[0]) + len(example[1]))
        rows = [{"input_ids": ids, "labels": labels} for ids, labels in drawn]
        for position in rng.sample(range(_POOL_BATCHES), _POOL_BATCHES):
            start = position * batch_size
            yield collate(rows[start : start + batch_size])


def train_model(
    folder: Path, kind: str, *, config: MicroConfig, seed: int, base: Path | None = None
) -> None:
    """Train one model, or do nothing if it is done.

    Parameters
    ----------
    folder : Path
        Gets weights, tokenizer, the recipe and what it took.
    kind : str
        ``teacher``, ``raw`` or ``instruction_tuned``.
    seed : int
        Of weights and data.
    base : Path, optional
        A folder whose weights the training starts from.

    Raises
    ------
    ValueError
        If `folder` holds a model of another configuration.
    """
    recipe = _recipe(kind, config, seed)
    if _is_done(folder, recipe):
        return
    model, tokenizer = shipped.new_model(kind, config, seed=seed)
    if base is not None:
        model = T5ForConditionalGeneration.from_pretrained(base)
    problems = solved_problems("pretraining", config.pool_size, seed=seed)
    draw = getattr(Corpus(problems, config, tokenizer), kind)
    is_teacher = kind == shipped.TEACHER
    batch_size = config.teacher_batch_size if is_teacher else config.batch_size
    data = batches(draw, tokenizer, batch_size=batch_size, seed=seed)
    began = time.monotonic()
    _train(model, data, recipe)
    device = f"{torch.get_num_threads()} CPU threads"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    facts = {
        "parameters": model.num_parameters(),
        "steps": recipe["steps"],
        "seconds": round(time.monotonic() - began),
        "device": device,
    }
    # Saved beside its place and renamed, so that a folder is whole or absent.
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    (temporary / _DONE).write_text(json.dumps(recipe, indent=1, sort_keys=True))
    (temporary / FACTS).write_text(json.dumps(facts, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def _recipe(kind: str, config: MicroConfig, seed: int) -> dict:
    """Everything one model depends on; what differs is trained anew."""
    others, role, rate = {
        "teacher": (("student", "raw"), "teacher", config.teacher_learning_rate),
        "raw": (("teacher", "student_steps"), "raw", config.learning_rate),
        "instruction_tuned": (("teacher",), "student", config.learning_rate),
    }[kind]
    fields = {k: v for k, v in asdict(config).items() if not k.startswith(others)}
    steps = fields[f"{role}_steps"]
    return fields | {"kind": kind, "seed": seed, "steps": steps, "peak": rate}


def _is_done(folder: Path, recipe: dict) -> bool:
    if not (folder / _DONE).exists():
        return False
    found = artifacts.read_json(folder / _DONE)
    if found != recipe:
        changed = sorted(k for k in recipe if found.get(k) != recipe[k])
        raise ValueError(
            f"{folder}: holds a model of another configuration ({', '.join(changed)}). "
            "Delete the folder or choose another"
        )
    return True


def _train(model: PreTrainedModel, data: Iterator, recipe: dict) -> None:
    """Take the recipe's updates, clip 1, in bfloat16."""
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision="bf16")
    if not torch.cuda.is_available() and model.config.is_encoder_decoder:
        # T5's position bias keeps PyTorch's fused attention off its fast path.
        model.set_attn_implementation(IN_PLACE)
    optimizer = _optimizer(model, recipe["peak"])
    wrapped, optimizer = accelerator.prepare(model.train(), optimizer)
    for step in trange(recipe["steps"], desc=recipe["kind"]):
        batch = {k: v.to(accelerator.device) for k, v in next(data).items()}
        loss = [lambda batch=batch: wrapped(**batch).loss]
        rate = recipe["peak"] * _schedule(step, recipe)
        step_optimizer(
            accelerator, wrapped, optimizer, loss, rate=rate, max_grad_norm=1
        )
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    model.to("cpu").eval()


def _optimizer(model: PreTrainedModel, rate: float) -> torch.optim.Optimizer:
    """AdamW for the teacher; Adafactor for T5, which was pretrained with it.

    Measured on 19,200 problems, 0.4M parameters: Adafactor (rate 0.05, relative to
    the parameter's size) ends at 0.20 nats per token, AdamW at 0.49.
    """
    learned = model.parameters()
    if model.config.is_encoder_decoder:
        return Adafactor(learned, lr=rate, scale_parameter=True, relative_step=False)
    return torch.optim.AdamW(learned, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)


def _schedule(step: int, recipe: dict) -> float:
    """Linear warm-up; then constant (teacher) or a cosine to a twentieth (students).

    The teacher is stopped while it still errs, which needs no end to be planned for.
    """
    steps = recipe["steps"]
    warmup = min(_WARMUP_STEPS, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    if recipe["kind"] == shipped.TEACHER:
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def make(name: str, out_dir: Path) -> Path:
    """Train one of the shipped models, and the raw one that a tuned one starts from.

    The number at a student's end is its seed, of weights and data.

    Parameters
    ----------
    name : str
        One of `shipped.names`.
    out_dir : Path
        Gets a folder `name`; complete ones are kept.

    Raises
    ------
    ValueError
        Unknown name, or `out_dir` holds a model of another configuration.
    """
    if name not in shipped.names():
        raise ValueError(f"name: {name!r}. Allowed: {', '.join(shipped.names())}")
    folder = Path(out_dir) / name
    if name == shipped.TEACHER:
        train_model(folder, name, config=MicroConfig(), seed=0)
        return folder
    size, kind, seed = name.split("-")
    config, base = shipped.config_of(size), None
    if kind == "raw":
        updates = config.raw_steps + config.student_steps
        config = replace(config, raw_steps=updates)
    else:
        base = folder.with_name(f"{size}-pretrained-{seed}")
        train_model(base, "raw", config=config, seed=int(seed))
    train_model(folder, kind, config=config, seed=int(seed), base=base)
    return folder


def pack(out_dir: Path) -> int:
    """Write the models that `make` left in `out_dir` as float16, and the manifest.

    What `out_dir` lacks stays as it is in the package; what is shipped no more goes.

    Returns
    -------
    int
        Bytes of all weights.
    """
    folder = shipped.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / shipped.MANIFEST
    old = artifacts.read_json(path) if path.exists() else {}
    manifest = {}
    for name in shipped.names():
        built, packed = Path(out_dir) / name, folder / f"{name}.safetensors"
        if not built.exists() and name in old:
            manifest[name] = old[name]  # not built again
            continue
        weights = load_file(built / "model.safetensors")
        save_file({key: tensor.half() for key, tensor in weights.items()}, packed)
        facts = {"sha256": artifacts.checksum(packed), "bytes": packed.stat().st_size}
        manifest[name] = facts | artifacts.read_json(built / FACTS)
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    for stray in folder.glob("*.safetensors"):
        if stray.stem not in manifest:
            stray.unlink()
    return sum(entry["bytes"] for entry in manifest.values())
