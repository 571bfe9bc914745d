"""Trains the micro-world's teacher and students from nothing.

Enters: the name of a shipped model and a seed. Leaves: a folder that transformers
loads, with safetensors weights, its tokenizer, the recipe and what it took. A killed
build resumes from its last checkpoint and ends with the same weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save, save_file
from tqdm import tqdm
from transformers import Adafactor, PreTrainedModel, T5ForConditionalGeneration

from cotspec.micro import corpus, shipped, tokenizers
from cotspec.micro.architectures import new_model
from cotspec.micro.shipped import SHIPPED_MICRO, MicroConfig
from cotspec.t5 import IN_PLACE

logger = logging.getLogger(__name__)
_WARMUP_STEPS = 50
_DONE = "done.json"
FACTS = "facts.json"  # what the training took
_CHECKPOINT = "checkpoint"
_EXAMPLES = {
    "teacher": corpus.teacher_example,
    "raw": corpus.span_corruption_example,
    "instruction_tuned": corpus.instruction_example,
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
    """Train one model, or finish it, or do nothing if it is done.

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
    items = corpus.training_items(config, seed=seed)
    if not is_teacher:
        items = corpus.student_items(items, config, seed=seed)
    data = partial(
        corpus.batches,
        partial(_EXAMPLES[kind], items=items, config=config, tokenizer=tokenizer),
        partial(corpus.collate, pad_id=tokenizer.pad_token_id),
        batch_size=config.teacher_batch_size if is_teacher else config.batch_size,
        seed=seed,
    )
    seconds = _train(model, data, recipe, folder, show=show)
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": recipe["steps"],
        "seconds": round(seconds),
        "device": _device_name(),
    }
    _save(model, tokenizer, recipe, facts, folder)


def make(name: str, out_dir: Path, *, seed: int = 0, show: bool = True) -> Path:
    """Train one of the shipped models, and the raw one that it starts from.

    Parameters
    ----------
    name : str
        One of `shipped.names`.
    out_dir : Path
        Gets a folder `name`; complete ones are kept, interrupted ones resumed.
    seed : int
        Of weights and data.
    show : bool
        A progress bar on stderr.

    Raises
    ------
    ValueError
        Unknown name, or `out_dir` holds a model of another configuration.
    """
    if name not in shipped.names():
        raise ValueError(f"name: {name!r}. Allowed: {', '.join(shipped.names())}")
    if name == shipped.TEACHER:
        config, kind, source = SHIPPED_MICRO, shipped.TEACHER, None
    else:
        size, kind = name.split("-")
        config, source = shipped.config_of(size), None
        if kind != "raw":
            source = make(f"{size}-raw", out_dir, seed=seed, show=show)
    folder = Path(out_dir) / name
    train_model(folder, kind, config=config, seed=seed, show=show, source=source)
    return folder


def pack(out_dir: Path, folder: Path = shipped.FOLDER) -> int:
    """Write the models that `make` left in `out_dir` as float16, and the manifest.

    Returns
    -------
    int
        Bytes of all weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {}
    for name in shipped.names():
        weights = load((Path(out_dir) / name / "model.safetensors").read_bytes())
        packed = save({key: tensor.half() for key, tensor in weights.items()})
        (folder / f"{name}.safetensors").write_bytes(packed)
        facts = json.loads((Path(out_dir) / name / FACTS).read_text())
        checksum = {"sha256": hashlib.sha256(packed).hexdigest(), "bytes": len(packed)}
        manifest[name] = checksum | facts
    (folder / shipped.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
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
    model: PreTrainedModel, data, recipe: dict, folder: Path, *, show: bool
) -> float:
    """Run the loop: warm-up and cosine, clip 1, bfloat16; return its seconds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    if device.type == "cpu" and model.config.is_encoder_decoder:
        # T5's position bias keeps PyTorch's fused attention off its fast path.
        model.set_attn_implementation(IN_PLACE)
    steps, peak = recipe["steps"], recipe["peak"]
    optimizer = _optimizer(model, peak)
    first, seconds = _resume(model, optimizer, folder)
    began = time.monotonic() - seconds
    progress = tqdm(
        total=steps, initial=first, desc=f"{recipe['kind']}", disable=not show
    )
    stream: Iterator = data(first_step=first)
    for step in range(first, steps):
        batch = {key: value.to(device) for key, value in next(stream).items()}
        for group in optimizer.param_groups:
            group["lr"] = peak * _schedule(step, recipe)
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % recipe["checkpoint_every"] == 0 and step + 1 < steps:
            _checkpoint(model, optimizer, step + 1, time.monotonic() - began, folder)
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
        progress.update()
    progress.close()
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


def _checkpoint(model, optimizer, step: int, seconds: float, folder: Path) -> None:
    """Write weights, AdamW's moments and the step in one atomic file."""
    names = [name for name, _ in model.named_parameters()]
    tensors = {f"model/{n}": p.detach() for n, p in model.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer/{names[index]}/{key}"] = torch.as_tensor(value)
    tensors = {key: value.cpu().contiguous() for key, value in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_CHECKPOINT}.safetensors"
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"step": str(step), "seconds": str(seconds)})
    os.replace(temporary, path)


def _resume(model, optimizer, folder: Path) -> tuple[int, float]:
    """Load the last checkpoint, if there is one; return its step and seconds."""
    path = folder / f"{_CHECKPOINT}.safetensors"
    if not path.exists():
        return 0, 0.0
    tensors = load_file(path)
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    state = {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        parameter.data.copy_(tensors[f"model/{name}"])
        prefix = f"optimizer/{name}/"
        state[index] = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    made = header["__metadata__"]
    return int(made["step"]), float(made["seconds"])


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
