"""Fixtures shared by the tests: where the real data lies, if anywhere."""

import os
from pathlib import Path

# Two threads that wait for each other on a busy machine make a tiny T5 a hundred times
# slower; processes that a test starts take this over.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """`COTSPEC_DATA`, or `../shared/data` beside the checkout; without, a skip."""
    configured = os.environ.get("COTSPEC_DATA")
    folder = Path(configured) if configured else REPOSITORY.parent / "shared" / "data"
    if not (folder / "gsm8k" / "train.jsonl").exists():
        pytest.skip("no real data: set COTSPEC_DATA to a folder laid out as in README")
    os.environ["COTSPEC_DATA"] = str(folder.resolve())
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """As a grid's workers have, else floats differ; a forked child has no others."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def t5(data_dir):
    """T5's real tokenizer."""
    from transformers import T5Tokenizer

    return T5Tokenizer.from_pretrained(data_dir / "t5")


@pytest.fixture(scope="session")
def gpt2(data_dir):
    """GPT-2's real tokenizer."""
    from transformers import GPT2TokenizerFast

    return GPT2TokenizerFast.from_pretrained(data_dir / "gpt2")


@pytest.fixture(scope="session")
def rationales(data_dir):
    """GSM8K training rationales as a teacher would write them."""
    from cotspec import tasks

    rows = tasks.load("gsm8k", "train")
    return [f"{row['rationale']}\nThe answer is {row['answer']}." for row in rows]


@pytest.fixture
def random_flan_t5(t5):
    """A student of FlanT5-small's shape with random weights, and T5's tokenizer."""
    import torch

    from cotspec.models import as_student, device, flan_t5_config
    from cotspec.t5 import new_t5

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = new_t5(flan_t5_config("google/flan-t5-small"))
    return as_student("flan-t5-small", model.to(device()), t5)
