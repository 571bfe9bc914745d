"""The paper's own path, from one command: hub, server, FlanT5, twelve notebooks.

The hub and the server stand in on 127.0.0.1; data and the T5 vocabulary are real, the
students random. It shows that the path holds from end to end, and no accuracy.
"""

import json
import subprocess
import sys

import hub_server
import pytest
import teacher_server
import torch
from transformers import T5ForConditionalGeneration

from cotspec import models

SMALLEST = {
    "data.num_train": 24,
    "data.num_validation": 2,
    "data.num_test_math": 2,
    "data.num_test_generic": 2,
    "data.generic_tasks": "bbh/navigate",
    "formats.num_demonstrations": 1,
    "training.max_steps": 2,
    "training.num_checkpoints": 2,
    "training.batch_tokens": 4096,
    "training.gradient_accumulation_steps": 1,
    "evaluation.num_demonstrations": 1,
    "evaluation.max_new_tokens": 12,
}


def random_student(folder, tokenizer) -> None:
    """Write a tiny T5 with the real vocabulary as its repository holds it."""
    torch.manual_seed(0)
    config = models.flan_t5_config("google/flan-t5-small")
    config.update({"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2})
    config.update({"num_layers": 1, "num_decoder_layers": 1})
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def a_teacher_that_knows(data_dir):
    """Return `teacher_server.tokens_of`, right in every second sample."""
    lines = (data_dir / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    golds = {row["question"]: row["answer"].split("#### ")[-1] for row in rows}
    guess = teacher_server.tokens_of

    def tokens_of(prompt: str, seed: int, index: int, num_tokens: int) -> list[str]:
        tokens = guess(prompt, seed, index, num_tokens)
        asked = max(golds, key=prompt.rfind)  # the demonstrations are of GSM8K, too
        return [*tokens[:-2], f" {golds[asked]}", "."] if index % 2 else tokens

    return tokens_of


@pytest.mark.slow
def test_from_hub_and_server_to_the_report(data_dir, t5, tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    hub_server.data_sets(data_dir, hub)
    for name in ("flan-t5-small", "t5-v1_1-small"):
        random_student(hub / "models" / "google" / name, t5)
    monkeypatch.setattr(teacher_server, "tokens_of", a_teacher_that_knows(data_dir))
    faulty = teacher_server.running(0.1, ("429", "500", "torn"))
    with hub_server.serving(hub) as environment, faulty as server:
        sets = SMALLEST | {"teacher.model": "davinci", "teacher.base_urls": server.url}
        command = [sys.executable, "-m", "cotspec.run", "--profile", "flan-t5-small"]
        command += [word for n, v in sets.items() for word in ("--set", f"{n}={v}")]
        environment |= {"COTSPEC_RUNS": str(tmp_path / "runs")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "12 stages ran, nothing failed" in done.stdout
    report = (tmp_path / "runs/flan-t5-small/report/REPORT.md").read_text("utf-8")
    assert "google/t5-v1_1-small" in report
    assert "; 2 problems a set." in report
    assert "8 not testable here" in report
