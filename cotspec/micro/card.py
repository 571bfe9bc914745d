"""The model card of the shipped models, measured on the validation split.

Enters: the shipped weights and their manifest. Leaves: ``MODEL_CARD.md`` beside them.
Run as ``python -m cotspec.micro card``.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cotspec import evaluation, models, profiles, statistics, tasks, teacher
from cotspec.artifacts import markdown_table
from cotspec.micro import generic, shipped, world
from cotspec.teacher import filtering
from cotspec.teacher.studies import vote_curves

NUM_MATH, NUM_GENERIC = 200, 50  # validation problems per task
NUM_QUESTIONS, NUM_SAMPLES = 300, 10  # of the teacher, from the training split
CHAIN = "in_context_chain_of_thought"
MATH = tuple(f"micro/{family}" for family in world.FAMILIES)
GENERIC = tuple(f"micro/{family}" for family in generic.FAMILIES)
DECODING = profiles.EvaluationConfig(
    num_demonstrations=1, max_new_tokens=80, batch_tokens=32768, precision="float32"
)

_TEMPLATE = Path(__file__).with_name("card.md")


def student_row(size: str, start: str, base: int) -> dict[str, str]:
    """Measure one student on the validation split; fractions as percent, in words."""
    config = profiles.StudentConfig(model=f"micro-{size}", start=start)
    student = models.load_student(config, seed=base)
    problems = {task: tasks.load(task, "validation", num=NUM_MATH) for task in MATH}
    modes = dict.fromkeys(MATH, (CHAIN,))
    for task in GENERIC:
        problems[task] = tasks.load(task, "validation", num=NUM_GENERIC)
        modes[task] = ("chain_of_thought", "answer_only")
    shown = {task: tasks.demonstrations(task) for task in problems}
    found = evaluation.evaluate(
        student, problems, modes, DECODING, demonstrations=shown, checkpoint="shipped"
    ).to_pandas()
    row = {"model": config.model, "start": start, "base": str(base)}
    row["parameters"] = f"{student.size:,}"
    for label, names, mode in (
        ("math", MATH[:1], CHAIN),
        ("OOD", MATH[1:], CHAIN),
        ("generic CoT", GENERIC, "chain_of_thought"),
        ("generic answer-only", GENERIC, "answer_only"),
    ):
        chosen = found["task"].isin(names) & (found["prompt_mode"] == mode)
        right, n = found["is_correct"][chosen].sum(), chosen.sum()
        low, high = statistics.wilson_interval(right, n)
        row[label] = f"{right / n:.1%} [{low:.1%}, {high:.1%}]"
    return row


def teacher_sentence() -> str:
    """Measure the teacher: one solution, majority vote, any of the samples."""
    config = profiles.TeacherConfig(
        backend="huggingface", model=models.MICRO_TEACHER, max_new_tokens=96
    )
    traces = teacher.sample(
        tasks.load(MATH[0], "train", num=NUM_QUESTIONS),
        teacher.load_backend(config),
        num_samples=NUM_SAMPLES,
        temperature=0.5,
        seed=0,
        demonstrations=tasks.demonstrations(MATH[0]),
    )
    curves = vote_curves(filtering.filter_traces(traces, profiles.FilterConfig()))
    curves = curves.set_index(["series", "k"])["accuracy"]
    return (
        f"one solution right {curves['pass@k', 1]:.1%}, "
        f"majority of {NUM_SAMPLES} {curves['majority@k', NUM_SAMPLES]:.1%}, "
        f"at least one {curves['pass@k', NUM_SAMPLES]:.1%}"
    )


def write() -> Path:
    """Measure every shipped model and write the card beside the weights."""
    rows = []
    for name in shipped.names()[1:]:
        size, start, base = name.split("-")
        minutes = {"minutes": f"{shipped.facts(name)['seconds'] / 60:.1f}"}
        rows.append(student_row(size, start, int(base)) | minutes)
    config, facts = shipped.MicroConfig(), shipped.facts(shipped.TEACHER)
    math_share = 1 - config.generic_share
    text = _TEMPLATE.read_text("utf-8").format(
        config=config,
        facts=facts,
        shipped=shipped,
        all_steps=config.raw_steps + config.student_steps,
        one_in=1 / (math_share * (1 - config.out_of_distribution_share)),
        num_math=NUM_MATH,
        num_generic=NUM_GENERIC,
        students=markdown_table(pd.DataFrame(rows)),
        num_questions=NUM_QUESTIONS,
        num_samples=NUM_SAMPLES,
        teacher=teacher_sentence(),
        minutes=facts["seconds"] / 60,
    )
    path = shipped.FOLDER / "MODEL_CARD.md"
    path.write_text(text)
    return path
