"""Which problems a run uses: the subsets that a profile asks for.

Enters: a `DataConfig`, the tasks. Leaves: one table of problems with their role (the
``split`` column) and one of demonstrations, both drawn with a seed.
"""

from random import Random

from datasets import Dataset, concatenate_datasets

from cotspec import tasks
from cotspec.profiles import DataConfig, EvaluationConfig
from cotspec.prompts import Demonstration, TaskPrompts


def select_problems(data: DataConfig, *, seed: int) -> Dataset:
    """Draw the problems of a run.

    Parameters
    ----------
    data : DataConfig
        Counts of ``None`` take every row.
    seed : int
        Draws the rows; the same seed draws the same rows.

    Returns
    -------
    Dataset
        Columns ``problem_id, task, split, question, rationale, answer``; ``split`` is
        ``train`` (the teacher samples these), ``validation`` or ``test``.
    """
    validated = validation_tasks(data)
    wanted = [(data.train_task, "train", data.num_train)]
    for task in (data.train_task, *data.out_of_distribution_tasks):
        if task in validated:
            wanted.append((task, "validation", data.num_validation))
        wanted.append((task, "test", data.num_test_math))
    wanted += [(task, "test", data.num_test_generic) for task in data.generic_tasks]
    parts = []
    for task, split, count in wanted:
        rows = tasks.load(task, split)
        if count is not None and count < len(rows):
            chosen = Random(f"{seed} {task} {split}").sample(range(len(rows)), count)
            rows = rows.select(sorted(chosen))
        parts.append(rows)
    return concatenate_datasets(parts)


def validation_tasks(data: DataConfig) -> tuple[str, ...]:
    """Return the math tasks that have validation problems: not ASDiv, not SVAMP."""
    math = (data.train_task, *data.out_of_distribution_tasks)
    real = ("gsm8k", "multiarith")
    return tuple(task for task in math if task in real or task.startswith("micro/"))


def select_demonstrations(data: DataConfig) -> Dataset:
    """Return the worked examples that prompts show before a question.

    The training task's are shown before every math question; each generic task has its
    own. See `tasks.demonstrations`.

    Returns
    -------
    Dataset
        Columns ``task, description, question, rationale, answer``; the description
        is the sentence a BBH prompt begins with.
    """
    rows = []
    for task in (data.train_task, *data.generic_tasks):
        shown = tasks.demonstrations(task)
        facts = {"task": task, "description": tasks.task_description(task)}
        rows += [facts | vars(demonstration) for demonstration in shown]
    return Dataset.from_list(rows)


def prompts_by_task(table: Dataset, problems: Dataset) -> dict[str, TaskPrompts]:
    """Return what every task in `problems` is asked with, in order of appearance.

    A task without demonstrations in `table` takes those of its first task, the training
    task.
    """
    shown: dict[str, list[Demonstration]] = {}
    for row in table:
        one = Demonstration(row["question"], row["rationale"], row["answer"])
        shown.setdefault(row["task"], []).append(one)
    shared = next(iter(shown.values()), [])
    said = dict(zip(table["task"][:], table["description"][:], strict=True))
    return {
        task: TaskPrompts(own, shown.get(task, shared), said.get(task, ""))
        for task, own in split_by_task(problems).items()
    }


def prompt_modes_by_task(
    data: DataConfig, config: EvaluationConfig
) -> dict[str, tuple[str, ...]]:
    """Return the prompt modes in which each task is tested, math tasks first."""
    math = (data.train_task, *data.out_of_distribution_tasks)
    modes = dict.fromkeys(math, config.math_prompt_modes)
    return modes | dict.fromkeys(data.generic_tasks, config.generic_prompt_modes)


def split_by_task(problems: Dataset) -> dict[str, Dataset]:
    """Return the problems of each task, tasks in order of appearance."""
    rows: dict[str, list[int]] = {}
    for index, task in enumerate(problems["task"][:]):
        rows.setdefault(task, []).append(index)
    return {task: problems.select(indices) for task, indices in rows.items()}
