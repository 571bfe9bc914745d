"""The model card of the shipped models, measured on the validation split.

Enters: the shipped weights and their manifest. Leaves: ``MODEL_CARD.md`` beside them.
Run as ``python -m cotspec.micro card``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from cotspec import evaluation, models, statistics, tasks, teacher
from cotspec.artifacts import markdown_table
from cotspec.micro import generic, shipped, world
from cotspec.micro.shipped import (
    SHIPPED_MICRO,
    STUDENT_HEAD_SIZE,
)
from cotspec.profiles import (
    EvaluationConfig,
    FilterConfig,
    StudentConfig,
    TeacherConfig,
)
from cotspec.teacher import filtering
from cotspec.teacher.studies import vote_curves

NUM_MATH, NUM_GENERIC = 200, 50  # validation problems per task
NUM_QUESTIONS, NUM_SAMPLES = 300, 10  # of the teacher, from the training split
CHAIN = "in_context_chain_of_thought"
MATH = tuple(f"micro/{family}" for family in world.FAMILIES)
GENERIC = tuple(f"micro/{family}" for family in generic.FAMILIES)
DECODING = EvaluationConfig(
    num_demonstrations=1, max_new_tokens=80, batch_tokens=32768, precision="float32"
)

_CARD = """# The micro-world's models

Made by `python -m cotspec.micro build` and `pack`; this card by `card`.

- **Data**: the seeded generators of `cotspec.micro`, training and pretraining splits;
  no text from anywhere else. Students are pretrained on other questions than they
  are specialized on, of all families; one instruction example in {one_in:.0f} is of
  the training family, of any number of steps. A small model with many tasks learns
  each a little.
- **Teacher**: a Llama, byte-level BPE, trained on few-shot documents of the training
  family; {teacher_steps} steps of {teacher_batch} documents, AdamW.
- **Students**: T5 v1.1 (gated GELU, untied head, {layers} layers on each side,
  heads of {head_size}), Unigram vocabulary. *Raw*: span
  corruption over solved problems, {all_steps} steps. *Instruction-tuned*: {raw_steps}
  steps of that, then {student_steps} over all families in all four formats,
  {generic:.0%} generic: as many updates as raw.
  {batch} examples per step, Adafactor, rate {rate} relative, cosine.
- **Bases**: {bases} a size and start, of seeds of their own (weights and data); the
  student of seed s starts from base s mod {bases}. bfloat16 autocast,
  stored as float16, loaded as float32.
- **Use**: teaching and tests of cotspec. They speak a few hundred words; nothing they
  say is about the world outside.

## What they can do

Percent right on validation problems ({num_math} per math set, {num_generic} per generic
task), greedy, in-context; intervals are 95% Wilson. OOD: the three
out-of-distribution sets together. Minutes are wall-clock.

{students}

Teacher, {num_questions} training questions, {num_samples} solutions each at temperature
0.5, four demonstrations: {teacher}.
"""


def student_row(size: str, start: str, base: int) -> dict[str, str]:
    """Measure one student on the validation split; fractions as percent, in words."""
    config = StudentConfig(model=f"micro-{size}", start=start)
    student = models.load_student(config, seed=base)
    modes = dict.fromkeys(MATH, (CHAIN,))
    modes |= dict.fromkeys(GENERIC, ("chain_of_thought", "answer_only"))
    counts = dict.fromkeys(MATH, NUM_MATH) | dict.fromkeys(GENERIC, NUM_GENERIC)
    problems = {
        task: tasks.load(task, "validation").select(range(num))
        for task, num in counts.items()
    }
    shown = {task: tasks.demonstrations(task) for task in GENERIC}
    shown |= dict.fromkeys(MATH, tasks.demonstrations(MATH[0]))
    found = evaluation.evaluate(
        student, problems, modes, DECODING, demonstrations=shown, checkpoint="shipped"
    ).to_pandas()
    row = {
        "model": f"micro-{size}",
        "start": start,
        "base": str(base),
        "parameters": f"{student.size:,}",
    }
    for label, names, mode in (
        ("math", MATH[:1], CHAIN),
        ("OOD", MATH[1:], CHAIN),
        ("generic CoT", GENERIC, "chain_of_thought"),
        ("generic answer-only", GENERIC, "answer_only"),
    ):
        chosen = found["task"].isin(names) & (found["prompt_mode"] == mode)
        row[label] = _percent(found["is_correct"][chosen])
    return row


def _percent(is_correct: pd.Series) -> str:
    right, n = int(is_correct.sum()), len(is_correct)
    low, high = statistics.wilson_interval(right, n)
    return f"{right / n:.1%} [{low:.1%}, {high:.1%}]"


def teacher_sentence() -> str:
    """Measure the teacher: one solution, majority vote, any of the samples."""
    config = TeacherConfig(
        backend="huggingface", model=models.MICRO_TEACHER, max_new_tokens=96
    )
    traces = teacher.sample(
        tasks.load(MATH[0], "train").select(range(NUM_QUESTIONS)),
        teacher.load_backend(config),
        num_samples=NUM_SAMPLES,
        temperature=0.5,
        seed=0,
        demonstrations=tasks.demonstrations(MATH[0]),
    )
    curves = vote_curves(filtering.filter_traces(traces, FilterConfig()))
    curves = curves.set_index(["series", "k"])["accuracy"]
    return (
        f"one solution right {curves['pass@k', 1]:.1%}, "
        f"majority of {NUM_SAMPLES} {curves['majority@k', NUM_SAMPLES]:.1%}, "
        f"at least one {curves['pass@k', NUM_SAMPLES]:.1%}"
    )


def write(folder: Path = shipped.FOLDER) -> Path:
    """Measure every shipped model and write the card into `folder`."""
    manifest = json.loads((folder / shipped.MANIFEST).read_text())
    rows = []
    for name in shipped.names()[1:]:
        size, start, base = name.split("-")
        minutes = {"minutes": f"{manifest[name]['seconds'] / 60:.1f}"}
        rows.append(student_row(size, start, int(base)) | minutes)
    path = folder / "MODEL_CARD.md"
    path.write_text(_text(rows, teacher_sentence(), manifest))
    return path


def _text(rows: Sequence[dict], sentence: str, manifest: Mapping[str, dict]) -> str:
    config = SHIPPED_MICRO
    facts = manifest[shipped.TEACHER]
    sentence += f" ({facts['parameters']:,} parameters, {facts['seconds'] / 60:.1f} min"
    sentence += f", {facts['device']})"
    return _CARD.format(
        one_in=1
        / ((1 - config.generic_share) * (1 - config.out_of_distribution_share)),
        bases=shipped.NUM_BASES,
        all_steps=config.raw_steps + config.student_steps,
        teacher_steps=config.teacher_steps,
        teacher_batch=config.teacher_batch_size,
        raw_steps=config.raw_steps,
        layers=config.student_layers,
        head_size=STUDENT_HEAD_SIZE,
        student_steps=config.student_steps,
        generic=config.generic_share,
        batch=config.batch_size,
        rate=config.learning_rate,
        num_math=NUM_MATH,
        num_generic=NUM_GENERIC,
        students=markdown_table(pd.DataFrame(rows)),
        num_questions=NUM_QUESTIONS,
        num_samples=NUM_SAMPLES,
        teacher=sentence,
    )
