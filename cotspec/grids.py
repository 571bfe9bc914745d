"""Which students are trained and what is measured on them: the grids, by name.

Enters: sections of a profile. Leaves: lists of `Cell`. Nothing is computed here; a cell
that several grids name is one cell, trained once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from cotspec import profiles
from cotspec.profiles import DATA_FORMATS, ExperimentsConfig, LossConfig, StudentConfig

Some = Annotated[tuple[str, ...], Field(min_length=1)]
# What a student may be trained on, as the column `data_formats` names it.
FORMAT_SETS: Mapping[str, tuple[str, ...]] = {
    name: tuple(f for f in DATA_FORMATS if name == "all" or name in f)
    for name in ("all", "in_context", "zero_shot", "answer_only", "chain_of_thought")
}
# What tells one training from another in the predictions.
TRAINING = (
    "model start size seed data_formats loss tail divergence cross_entropy_weight "
    "alignment"
).split()


@dataclass(frozen=True)
class Cell:
    """One student to be trained once.

    Attributes
    ----------
    model, start : str
        As in `profiles.StudentConfig`.
    seed : int
        Of batches and dropout; of the micro-world's bases it chooses one.
    data_formats : tuple of str
        Which training examples are used; kept in the order of `DATA_FORMATS`.
    loss : LossConfig
    alignment : str
        Which aligned targets are used: ``offsets`` or ``dtw``.
    tokenizer, revision : str, optional
        As in `profiles.StudentConfig`.
    """

    model: str
    start: str
    seed: int
    data_formats: profiles.Formats = DATA_FORMATS
    loss: LossConfig = LossConfig()
    alignment: profiles.AlignmentMethod = "offsets"
    tokenizer: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        ordered = tuple(f for f in DATA_FORMATS if f in self.data_formats)
        object.__setattr__(self, "data_formats", ordered)

    @property
    def student(self) -> StudentConfig:
        """What the cell starts from."""
        return StudentConfig(self.model, self.start, self.tokenizer, self.revision)

    @property
    def targets(self) -> str | None:
        """By which method its targets are aligned; None for sample matching."""
        return None if self.loss.name == "sample_matching" else self.alignment

    @property
    def formats_name(self) -> str:
        """A key of `FORMAT_SETS`, or the formats joined with commas."""
        names = {formats: name for name, formats in FORMAT_SETS.items()}
        return names.get(self.data_formats, ",".join(self.data_formats))

    def __str__(self) -> str:
        parts = [self.model, self.start, f"seed {self.seed}", self.formats_name]
        parts.append(self.loss.name)
        if self.loss.name == "distribution_matching":
            parts += [f"tail {self.loss.tail}", self.loss.divergence, self.alignment]
        return ", ".join(parts)


@dataclass(frozen=True)
class Measurement:
    """What is decoded of which checkpoints.

    Attributes
    ----------
    split : str
        ``validation`` or ``test``.
    tasks : tuple of str
    prompt_modes : tuple of str
        Math modes for math tasks, generic ones for generic tasks.
    steps : str
        ``last``; ``first_and_last``, where the first is step 0, the base model; or
        ``all``, the base model and every checkpoint.
    models, starts : tuple of str
        Students that are measured; empty: all.
    """

    split: Literal["validation", "test"]
    tasks: Some
    prompt_modes: Some
    steps: Literal["last", "first_and_last", "all"] = "last"
    models: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()

    def chosen(self, cell: Cell, steps: Sequence[int]) -> Sequence[int]:
        """Return which of a cell's checkpoints are measured; 0 is the base model."""
        is_model = not self.models or cell.model in self.models
        if not is_model or (self.starts and cell.start not in self.starts):
            return ()
        ends = {"last": steps[-1:], "first_and_last": (steps[0], steps[-1])}
        return ends.get(self.steps, steps)


def base_cells(profile: profiles.Profile, seeds: Iterable[int]) -> list[Cell]:
    """Return the profile's own student, one cell per seed; it is in all four grids."""
    given = vars(profile.student) | {"data_formats": profile.formats.data_formats}
    given |= {"loss": profile.loss, "alignment": profile.alignment.method}
    return [Cell(seed=seed, **given) for seed in seeds]


def ability_grid(base: Sequence[Cell], experiments: ExperimentsConfig) -> list[Cell]:
    """Notebook 07: `base` and the smallest student; what counts is the way there."""
    smallest = experiments.students[:1]
    others = [_sized(cell, model, cell.start) for model in smallest for cell in base]
    return list(dict.fromkeys([*others, *base]))


def format_grid(
    base: Sequence[Cell], parts: Sequence[str] = ("in_context", "zero_shot")
) -> list[Cell]:
    """Notebook 08: `base`, and the same student trained on some of the formats.

    Parameters
    ----------
    base : sequence of Cell
    parts : sequence of str
        Keys of `FORMAT_SETS`; the default two are the paper's figure 4.
    """
    if wrong := [name for name in parts if name not in FORMAT_SETS]:
        raise ValueError(f"parts: {wrong}. Allowed: {', '.join(FORMAT_SETS)}")
    chosen = [FORMAT_SETS[name] for name in parts]
    return [*base, *(replace(cell, data_formats=f) for f in chosen for cell in base)]


def loss_grid(
    base: Sequence[Cell], *, extra: Sequence[Mapping[str, object]] = ()
) -> list[Cell]:
    """Notebook 09: `base`, and the same student trained by the other loss.

    Parameters
    ----------
    base : sequence of Cell
    extra : sequence of mapping
        Variants of distribution matching: fields of `LossConfig`, or ``alignment``,
        such as ``{"tail": "paper"}``, ``{"divergence": "reverse_kl"}`` or
        ``{"alignment": "dtw"}``. Each adds one cell per seed.
    """
    variants = [{"name": name} for name in profiles.LOSSES]
    variants += [{"name": "distribution_matching", **variant} for variant in extra]
    cells = list(base)
    for variant in variants:
        fields = {name: v for name, v in variant.items() if name != "alignment"}
        for cell in base:
            alignment = variant.get("alignment", cell.alignment)
            loss = replace(cell.loss, **fields)
            cells.append(replace(cell, loss=loss, alignment=alignment))
    return list(dict.fromkeys(cells))


def scaling_grid(base: Sequence[Cell], experiments: ExperimentsConfig) -> list[Cell]:
    """Notebook 10: `base`, and the other sizes from both starts.

    Parameters
    ----------
    base : sequence of Cell
    experiments : ExperimentsConfig
        Its ``students`` and ``raw_students``.
    """
    named = [(model, "instruction_tuned") for model in experiments.students]
    named += [(model, "raw") for model in experiments.raw_students]
    others = [_sized(cell, model, start) for model, start in named for cell in base]
    return list(dict.fromkeys([*base, *others]))


def _sized(cell: Cell, model: str, start: str) -> Cell:
    """The same cell with another student; a revision belongs to one model only."""
    revision = cell.revision if model == cell.model else None
    return replace(cell, model=model, start=start, revision=revision)
