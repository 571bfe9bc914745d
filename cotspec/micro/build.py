"""Trains the micro-world's teacher and students from nothing.

Enters: the name of a shipped model. Leaves: a folder that transformers loads, with
safetensors weights, its tokenizer, the recipe and what it took; from all of them the
package's weights. Of a build that was killed, the models that were done are kept. What
the models read is an endless stream of batches that depends on the seed alone, hence no
epochs, checkpoints and batches of `cotspec.training` but its step.
"""

import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from tqdm import trange
from transformers import Adafactor, PreTrainedModel, PreTrainedTokenizerBase
from transformers.data import DataCollatorForSeq2Seq
from transformers.models.t5 import T5ForConditionalGeneration

from cotspec import artifacts, prompts
from cotspec.batching import IGNORED
from cotspec.micro import shipped, tokenizers, world
from cotspec.micro.shipped import Recipe
from cotspec.prompts import Demonstration
from cotspec.t5 import IN_PLACE
from cotspec.training import step_optimizer

_POOL_BATCHES = 16  # drawn at once and sorted by length, so that padding is rare
_CORRUPTED_SHARE = 0.15  # T5's, with spans of three tokens on average
_MEAN_SPAN = 3
_WARMUP_STEPS = 50
_DONE = "done.json"  # the recipe, and what the training took; written last

Problems = dict[str, list[Demonstration]]  # by family
Example = tuple[list[int], list[int]]  # input ids, label ids


def solved_problems(size: int, *, seed: int) -> Problems:
    """Return `size` problems of every math family, a quarter of every generic one."""
    found = {}
    for family in world.FAMILIES:
        num = size if family in world.MATH else size // 4
        items = world.generate(family, "pretraining", num, seed=seed)
        found[family] = world.solved(items)
    return found


@dataclass(frozen=True)
class Corpus:
    """What examples are drawn from; there is a method for every kind of model."""

    problems: Problems
    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase

    def teacher(self, rng: Random) -> Example:
        """Draw a few-shot CoT document; the solutions and the end are the labels.

        Learning to write questions would take most of a small model's capacity.
        """
        family = self._math_family(rng)
        num = rng.randint(0, self.recipe.num_demonstrations)
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
        family = rng.choice(world.GENERIC + world.MATH * 2)
        problem = rng.choice(self.problems[family])
        text = prompts.demonstration_block(problem, chain_of_thought=True)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        marks = tokenizer.convert_tokens_to_ids(list(tokenizers.SENTINELS))
        return corrupt_spans(rng, ids, marks, tokenizer.eos_token_id)

    def instruction_tuned(self, rng: Random) -> Example:
        """Draw a problem of any family in one of the four data formats."""
        recipe = self.recipe
        is_generic = rng.random() < recipe.generic_share
        family = rng.choice(world.GENERIC) if is_generic else self._math_family(rng)
        is_in_context = rng.random() < recipe.in_context_share
        is_chain_of_thought = rng.random() < recipe.chain_of_thought_share
        mode = "in_context" if is_in_context else "zero_shot"
        mode += "_chain_of_thought" if is_chain_of_thought else "_answer_only"
        num = rng.randint(1, recipe.num_demonstrations) if is_in_context else 0
        *shown, asked = rng.sample(self.problems[family], num + 1)
        inputs = prompts.build_inputs(asked.question, mode, shown)
        solution = prompts.solution(asked.rationale, asked.answer)
        targets = prompts.build_target(mode, completion=solution, answer=asked.answer)
        return tuple(self.tokenizer([inputs, targets], verbose=False)["input_ids"])

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield batches for ever; each depends on the recipe's seed and its number.

        Examples are drawn a pool at a time and sorted by length within it. A batch is
        ``input_ids, attention_mask`` (B, S) and ``labels`` (B, T), -100 ignored; a
        causal model's labels are as long as its inputs, T = S.
        """
        draw, size = getattr(self, self.recipe.kind), self.recipe.batch_size
        collate = DataCollatorForSeq2Seq(self.tokenizer)
        for pool in itertools.count():
            rng = Random(f"{self.recipe.seed}/{pool}")
            drawn = [draw(rng) for _ in range(_POOL_BATCHES * size)]
            drawn.sort(key=lambda example: len(example[0]) + len(example[1]))
            rows = [{"input_ids": ids, "labels": labels} for ids, labels in drawn]
            for position in rng.sample(range(_POOL_BATCHES), _POOL_BATCHES):
                yield collate(rows[position * size : (position + 1) * size])

    def _math_family(self, rng: Random) -> str:
        """Draw the training family, or one of the other three."""
        first, *others = world.MATH
        is_other = rng.random() < self.recipe.out_of_distribution_share
        return rng.choice(others) if is_other else first


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


def make(name: str, out_dir: Path) -> Path:
    """Train one of the shipped models, or do nothing if it is done.

    The number at a student's end is its seed, of weights and data. A tuned one starts
    from a raw one of fewer steps, which is made first.

    Parameters
    ----------
    name : str
        One of `shipped.names`, or ``<size>-pretrained-<seed>``.
    out_dir : Path
        Gets a folder `name`: weights, tokenizer, the recipe and what it took.

    Raises
    ------
    ValueError
        The folder holds a model of another recipe.
    """
    folder, recipe = out_dir / name, shipped.recipe_of(name)
    if (folder / _DONE).exists():
        if artifacts.read_json(folder / _DONE)["recipe"] != asdict(recipe):
            said = f"{folder}: holds a model of another recipe"
            raise ValueError(f"{said}. Delete it, or choose another --out")
        return folder
    model, tokenizer = shipped.new_model(recipe)
    if recipe.kind == "instruction_tuned":
        base = make(name.replace(recipe.kind, "pretrained"), out_dir)
        model = T5ForConditionalGeneration.from_pretrained(base)
    problems = solved_problems(recipe.pool_size, seed=recipe.seed)
    data = Corpus(problems, recipe, tokenizer).batches()
    device = f"{torch.get_num_threads()} CPU threads"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    began = time.monotonic()
    _train(model, data, recipe)
    facts = {"parameters": model.num_parameters(), "steps": recipe.steps}
    facts |= {"seconds": round(time.monotonic() - began), "device": device}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    artifacts.write_json(folder / _DONE, {"recipe": asdict(recipe), "facts": facts})
    return folder


def _train(model: PreTrainedModel, data: Iterator, recipe: Recipe) -> None:
    """Take the recipe's updates, clip 1, in bfloat16."""
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision="bf16")
    if not torch.cuda.is_available() and model.config.is_encoder_decoder:
        # T5's position bias keeps PyTorch's fused attention off its fast path.
        model.set_attn_implementation(IN_PLACE)
    # AdamW for the teacher; Adafactor for T5, which was pretrained with it. Measured on
    # 19,200 problems, 0.4M parameters: Adafactor (rate 0.05, relative to the
    # parameter's size) ends at 0.20 nats per token, AdamW at 0.49.
    new, options = Adafactor, {"scale_parameter": True, "relative_step": False}
    if recipe.kind == shipped.TEACHER:
        new, options = torch.optim.AdamW, {"betas": (0.9, 0.98), "weight_decay": 0.01}
    optimizer = new(model.parameters(), lr=recipe.learning_rate, **options)
    model, optimizer = accelerator.prepare(model.train(), optimizer)
    for step in trange(recipe.steps, desc=recipe.kind):
        batch = {k: v.to(accelerator.device) for k, v in next(data).items()}
        loss = [lambda batch=batch: model(**batch).loss]
        rate = recipe.learning_rate * _schedule(step, recipe)
        step_optimizer(accelerator, model, optimizer, loss, rate=rate, max_grad_norm=1)


def _schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up; then constant (teacher) or a cosine to a twentieth (students).

    The teacher is stopped while it still errs, which needs no end to be planned for.
    """
    steps = recipe.steps
    warmup = min(_WARMUP_STEPS, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    if recipe.kind == shipped.TEACHER:
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def pack(out_dir: Path) -> int:
    """Write the models that `make` left in `out_dir` as float16, and the manifest.

    What `out_dir` lacks stays as it is in the package.

    Returns
    -------
    int
        Bytes of all weights.
    """
    shipped.FOLDER.mkdir(exist_ok=True)
    path = shipped.FOLDER / shipped.MANIFEST
    manifest = artifacts.read_json(path) if path.exists() else {}
    for name in shipped.names():
        built, packed = out_dir / name, shipped.FOLDER / f"{name}.safetensors"
        if (built / _DONE).exists():
            weights = load_file(built / "model.safetensors")
            save_file({key: tensor.half() for key, tensor in weights.items()}, packed)
            files = {"sha256": artifacts.checksum(packed)}
            files["bytes"] = packed.stat().st_size
            manifest[name] = files | artifacts.read_json(built / _DONE)["facts"]
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    return sum(entry["bytes"] for entry in manifest.values())
