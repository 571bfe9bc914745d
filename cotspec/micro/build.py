"""Trains the micro-world's teacher and students from nothing.

Enters: the name of a shipped model. Leaves: a folder that transformers loads, with
safetensors weights, its tokenizer, the recipe and what it took. Of a build that was
killed, the models that were done are kept. What the models read is an endless stream of
batches that depends on the seed alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load, save
from tqdm import tqdm
from transformers import (
    Adafactor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
)

from cotspec import prompts
from cotspec.micro import generic, shipped, tokenizers, world
from cotspec.micro.shipped import SHIPPED_MICRO, MicroConfig, new_model
from cotspec.t5 import IN_PLACE
from cotspec.training.loop import step_optimizer

IGNORE = -100
_POOL_BATCHES = 16  # drawn at once and sorted by length, so that padding is rare
_CORRUPTED_SHARE = 0.15  # T5's, with spans of three tokens on average
_MEAN_SPAN = 3

Items = dict[str, list[dict]]
Example = tuple[list[int], list[int]]  # input ids, label ids


def training_items(config: MicroConfig, *, seed: int) -> Items:
    """Return ``{family: items}`` of the pretraining split, `config.pool_size` each."""
    size = config.pool_size
    items = {
        family: world.generate(family, "pretraining", size, seed=seed)
        for family in world.FAMILIES
    }
    return items | {
        family: generic.generate(family, "pretraining", size // 4, seed=seed)
        for family in generic.FAMILIES
    }


def tokenizer_texts() -> list[str]:
    """Return the solved problems that the shipped tokenizers were made from."""
    items = []
    for family in world.FAMILIES:
        items += world.generate(family, "train", 4000, seed=11)
    for family in generic.FAMILIES:
        items += generic.generate(family, "train", 1000, seed=11)
    return [_solved(item) for item in items]


def _solved(item: dict) -> str:
    return prompts.demonstration_block(_demonstration(item), chain_of_thought=True)


def _demonstration(item: dict) -> prompts.Demonstration:
    return prompts.Demonstration(item["question"], item["rationale"], item["answer"])


def _solution(item: dict) -> str:
    return prompts.solution(item["rationale"], item["answer"])


def teacher_example(
    rng: Random, items: Items, config: MicroConfig, tokenizer: PreTrainedTokenizerBase
) -> Example:
    """Draw a few-shot CoT document; the solutions and the end are the labels.

    Learning to write questions would take most of a small model's capacity.
    """
    family = _draw_family(rng, config, config.teacher_out_of_distribution_share)
    num = rng.randint(0, config.teacher_demonstrations)
    *shown, asked = rng.sample(items[family], num + 1)
    prompt = prompts.teacher_prompt(
        asked["question"], [_demonstration(item) for item in shown]
    )
    text = prompt + _solution(asked)
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids, labels, is_solution = encoded["input_ids"], [], False
    for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True):
        labels.append(token if is_solution else IGNORE)
        if "\n" in text[start:end]:
            is_solution = text[:start].endswith(prompts.COT_TRIGGER)
    return [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]


def _draw_family(rng: Random, config: MicroConfig, other_share: float) -> str:
    """Draw the training family, or one of the other three with `other_share`."""
    first, *others = world.FAMILIES
    return rng.choice(others) if rng.random() < other_share else first


def instruction_example(
    rng: Random, items: Items, config: MicroConfig, tokenizer: PreTrainedTokenizerBase
) -> Example:
    """Draw a problem of any family in one of the four data formats."""
    if rng.random() < config.generic_share:
        family = rng.choice(generic.FAMILIES)
    else:
        family = _draw_family(rng, config, config.out_of_distribution_share)
    is_in_context = rng.random() < config.in_context_share
    is_chain_of_thought = rng.random() < config.chain_of_thought_share
    shown_as = "in_context" if is_in_context else "zero_shot"
    mode = f"{shown_as}_{'chain_of_thought' if is_chain_of_thought else 'answer_only'}"
    num = rng.randint(1, config.num_demonstrations) if is_in_context else 0
    *shown, asked = rng.sample(items[family], num + 1)
    inputs = prompts.build_inputs(
        asked["question"], mode, [_demonstration(item) for item in shown]
    )
    targets = prompts.build_target(
        mode, completion=_solution(asked), answer=asked["answer"]
    )
    encode = tokenizer(inputs, verbose=False), tokenizer(targets, verbose=False)
    return encode[0]["input_ids"], encode[1]["input_ids"]


def span_corruption_example(
    rng: Random, items: Items, config: MicroConfig, tokenizer: PreTrainedTokenizerBase
) -> Example:
    """Draw a solved problem with spans replaced by sentinels (Raffel et al. 2020)."""
    family = rng.choice([*generic.FAMILIES, *world.FAMILIES * 2])
    text = _solved(rng.choice(items[family]))
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    marks = tokenizer.convert_tokens_to_ids(list(tokenizers.sentinels()))
    return corrupt_spans(rng, ids, marks, tokenizer.eos_token_id)


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
    collate: Callable[[list[Example]], dict[str, torch.Tensor]],
    *,
    batch_size: int,
    seed: int,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches for ever; each depends on the seed and its number.

    Examples are drawn a pool at a time and sorted by length within it.
    """
    for pool in itertools.count():
        rng = Random(f"{seed}/{pool}")
        drawn = [draw(rng) for _ in range(_POOL_BATCHES * batch_size)]
        drawn.sort(key=lambda example: len(example[0]) + len(example[1]))
        order = rng.sample(range(_POOL_BATCHES), _POOL_BATCHES)
        for position in order:
            start = position * batch_size
            yield collate(drawn[start : start + batch_size])


def collate(examples: list[Example], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Pad to ``input_ids, attention_mask`` (B, S) and ``labels`` (B, T).

    A causal model's labels are as long as its inputs, T = S; -100 is ignored.
    """
    ids = [torch.tensor(inputs) for inputs, _ in examples]
    labels = [torch.tensor(targets) for _, targets in examples]
    padded = torch.nn.utils.rnn.pad_sequence(ids, True, pad_id)
    lengths = torch.tensor([len(row) for row in ids])
    mask = torch.arange(padded.shape[1])[None] < lengths[:, None]  # (B, S)
    return {
        "input_ids": padded,
        "attention_mask": mask.long(),
        "labels": torch.nn.utils.rnn.pad_sequence(labels, True, IGNORE),
    }


logger = logging.getLogger(__name__)
_WARMUP_STEPS = 50
_DONE = "done.json"
FACTS = "facts.json"  # what the training took
_EXAMPLES = {
    "teacher": teacher_example,
    "raw": span_corruption_example,
    "instruction_tuned": instruction_example,
}


def train_model(
    folder: Path,
    kind: str,
    *,
    config: MicroConfig,
    seed: int,
    show: bool = True,
    source: Path | None = None,
) -> None:
    """Train one model, or do nothing if it is done.

    Parameters
    ----------
    folder : Path
        Gets weights, tokenizer, the recipe and what it took.
    kind : str
        ``teacher``, ``raw`` or ``instruction_tuned``.
    source : Path, optional
        A folder whose weights the training starts from.

    Raises
    ------
    ValueError
        If `folder` holds a model of another configuration.
    """
    recipe = _recipe(kind, config, seed)
    if _is_done(folder, recipe):
        return
    is_teacher = kind == "teacher"
    tokenizer = (tokenizers.load_teacher if is_teacher else tokenizers.load_student)()
    model = new_model(kind, config, tokenizer, seed=seed)
    if source is not None:
        model = T5ForConditionalGeneration.from_pretrained(source)
    items = training_items(config, seed=seed)
    data = batches(
        partial(_EXAMPLES[kind], items=items, config=config, tokenizer=tokenizer),
        partial(collate, pad_id=tokenizer.pad_token_id),
        batch_size=config.teacher_batch_size if is_teacher else config.batch_size,
        seed=seed,
    )
    seconds = _train(model, data, recipe, show=show)
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": recipe["steps"],
        "seconds": round(seconds),
        "device": _device_name(),
    }
    _save(model, tokenizer, recipe, facts, folder)


def make(name: str, out_dir: Path, *, show: bool = True) -> Path:
    """Train one of the shipped models, and the raw one that a tuned one starts from.

    The number at a student's end is its seed, of weights and data.

    Parameters
    ----------
    name : str
        One of `shipped.names`.
    out_dir : Path
        Gets a folder `name`; complete ones are kept.
    show : bool
        A progress bar on stderr.

    Raises
    ------
    ValueError
        Unknown name, or `out_dir` holds a model of another configuration.
    """
    if name not in shipped.names():
        raise ValueError(f"name: {name!r}. Allowed: {', '.join(shipped.names())}")
    out_dir = Path(out_dir)
    if name == shipped.TEACHER:
        train_model(
            out_dir / name, shipped.TEACHER, config=SHIPPED_MICRO, seed=0, show=show
        )
        return out_dir / name
    size, kind, seed = name.split("-")
    config, source = shipped.config_of(size), None
    if kind == "raw":
        updates = config.raw_steps + config.student_steps
        config = replace(config, raw_steps=updates)
    else:
        source = out_dir / f"{size}-pretrained-{seed}"
        train_model(source, "raw", config=config, seed=int(seed), show=show)
    folder = out_dir / name
    train_model(folder, kind, config=config, seed=int(seed), show=show, source=source)
    return folder


def pack(out_dir: Path, folder: Path = shipped.FOLDER) -> int:
    """Write the models that `make` left in `out_dir` as float16, and the manifest.

    What `out_dir` lacks stays as it is in `folder`; what is shipped no more goes.

    Returns
    -------
    int
        Bytes of all weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / shipped.MANIFEST
    old = json.loads(path.read_text()) if path.exists() else {}
    manifest = {}
    for name in shipped.names():
        if not (Path(out_dir) / name).exists() and name in old:
            manifest[name] = old[name]  # not built again
            continue
        weights = load((Path(out_dir) / name / "model.safetensors").read_bytes())
        packed = save({key: tensor.half() for key, tensor in weights.items()})
        (folder / f"{name}.safetensors").write_bytes(packed)
        facts = json.loads((Path(out_dir) / name / FACTS).read_text())
        checksum = {"sha256": hashlib.sha256(packed).hexdigest(), "bytes": len(packed)}
        manifest[name] = checksum | facts
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    for stray in folder.glob("*.safetensors"):
        if stray.stem not in manifest:
            stray.unlink()
    return sum(entry["bytes"] for entry in manifest.values())


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads"


def _recipe(kind: str, config: MicroConfig, seed: int) -> dict:
    """Everything one model depends on; what differs is trained anew."""
    is_teacher = kind == "teacher"
    others = ("student", "raw") if is_teacher else ("teacher",)
    if kind == "raw":
        others += ("student_steps",)
    fields = {
        name: getattr(config, name)
        for name in config.__dataclass_fields__
        if not name.startswith(others)
    }
    side = "student" if kind == "instruction_tuned" else kind
    steps = getattr(config, f"{side}_steps")
    rate = config.teacher_learning_rate if is_teacher else config.learning_rate
    return fields | {"kind": kind, "seed": seed, "steps": steps, "peak": rate}


def _is_done(folder: Path, recipe: dict) -> bool:
    marker = folder / _DONE
    if not marker.exists():
        return False
    found = json.loads(marker.read_text())
    if found != json.loads(json.dumps(recipe)):
        changed = sorted(k for k in recipe if found.get(k) != recipe[k])
        raise ValueError(
            f"{folder}: holds a model of another configuration ({', '.join(changed)}). "
            "Delete the folder or choose another"
        )
    return True


def _train(
    model: PreTrainedModel, data: Iterator, recipe: dict, *, show: bool
) -> float:
    """Take the recipe's updates, clip 1, in bfloat16; return their seconds."""
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision="bf16")
    if not torch.cuda.is_available() and model.config.is_encoder_decoder:
        # T5's position bias keeps PyTorch's fused attention off its fast path.
        model.set_attn_implementation(IN_PLACE)
    optimizer = _optimizer(model, recipe["peak"])
    wrapped, optimizer = accelerator.prepare(model.train(), optimizer)
    began = time.monotonic()
    steps = range(recipe["steps"])
    for step in tqdm(steps, desc=recipe["kind"], disable=not show):
        batch = {k: v.to(accelerator.device) for k, v in next(data).items()}
        step_optimizer(
            accelerator,
            wrapped,
            optimizer,
            [lambda batch=batch: wrapped(**batch).loss],
            rate=recipe["peak"] * _schedule(step, recipe),
            max_grad_norm=1.0,
        )
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    model.to("cpu").eval()
    return time.monotonic() - began


def _optimizer(model: PreTrainedModel, rate: float) -> torch.optim.Optimizer:
    """AdamW for the teacher; Adafactor for T5, which was pretrained with it.

    Measured on 19,200 problems, 0.4M parameters: Adafactor (rate 0.05, relative to
    the parameter's size) ends at 0.20 nats per token, AdamW at 0.49.
    """
    if not model.config.is_encoder_decoder:
        return torch.optim.AdamW(
            model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01
        )
    return Adafactor(
        model.parameters(), lr=rate, scale_parameter=True, relative_step=False
    )


def _schedule(step: int, recipe: dict) -> float:
    """Linear warm-up; then constant (teacher) or a cosine to a twentieth (students).

    The teacher is stopped while it still errs, which needs no end to be planned for.
    """
    steps = recipe["steps"]
    warmup = min(_WARMUP_STEPS, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    if recipe["kind"] == "teacher":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def _save(model, tokenizer, recipe: dict, facts: dict, folder: Path) -> None:
    """Save in a temporary folder and rename, so that a folder is whole or absent."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    (temporary / _DONE).write_text(json.dumps(recipe, indent=1, sort_keys=True))
    (temporary / FACTS).write_text(json.dumps(facts, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    logger.info("saved %s", folder)
