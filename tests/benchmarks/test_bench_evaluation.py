"""Decoding GSM8K: sorted batches that rows leave against fixed, unsorted ones.

Where bfloat16 is native, a step of this student reads weights most of the time: 20 ms
for one row, 31 for twenty. So what counts is the number of steps more than that of rows
in them.

This takes minutes on one core; set ``OMP_NUM_THREADS=1`` where others compute. The
ratio is of processor seconds, which do not depend on what else the machine does.
"""

import dataclasses
import functools
import time

import pytest
import torch

from cotspec import prompts, tasks
from cotspec.decoding import decode, prompt_ids
from cotspec.models import device
from cotspec.profiles import EvaluationConfig

NUM_QUESTIONS = 96
CONFIG = EvaluationConfig(batch_tokens=4096)  # ten to twenty rows: takes little time


@pytest.fixture
def lifelike(data_dir, random_flan_t5):
    """A student with random weights, real questions, real lengths.

    Random weights never end. So that rows end as solutions do, the end token wins once
    a row has the length of its question's published solution; everything is computed
    as usual. A row is recognised by its encoder states, whatever its batch.
    """
    model, tokenizer = random_flan_t5.model, random_flan_t5.tokenizer
    rows = tasks.load("gsm8k", "test").shuffle(seed=0)
    rows = rows.select(range(NUM_QUESTIONS))
    mode = "zero_shot_chain_of_thought"
    texts = [prompts.build_inputs(question, mode) for question in rows["question"]]
    solutions = map(prompts.solution, rows["rationale"], rows["answer"])
    lengths = [len(ids) for ids in tokenizer(list(solutions))["input_ids"]]
    with torch.inference_mode():
        ids = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
        states = [model.get_encoder()(one.to(model.device))[0][:, 0] for one in ids]
    lengths = torch.tensor(lengths, device=model.device)
    model.forward = _ending_at(model.forward, lengths, torch.cat(states))
    return random_flan_t5, texts


def _ending_at(plain, lengths, first_states):
    @functools.wraps(plain)
    def forward(*args, **kwargs):
        output = plain(*args, **kwargs)
        encoded = kwargs["encoder_outputs"][0][:, 0].float()
        row = torch.cdist(encoded, first_states).argmin(dim=1)
        has_ended = kwargs["past_key_values"].get_seq_length() >= lengths[row]
        output.logits[:, -1, 1] = torch.where(has_ended, 1e4, -1e4)
        return output

    return forward


def decode_fixed(student, texts):
    """What one writes first: unsorted batches of one size, `generate` to the limit.

    The size is the largest that keeps the longest question, written to the limit, under
    the same budget: no row of `generate` can leave.
    Returns the number of tokens of each text.
    """
    longest = max(len(ids) for ids in student.tokenizer(texts)["input_ids"])
    size = CONFIG.batch_tokens // (longest + CONFIG.max_new_tokens)
    num_tokens = []
    for start in range(0, len(texts), size):
        some = texts[start : start + size]
        inputs = student.tokenizer(some, padding=True, return_tensors="pt")
        limits = {"max_new_tokens": CONFIG.max_new_tokens, "do_sample": False}
        with torch.autocast(student.model.device.type, dtype=torch.bfloat16):
            ids = student.model.generate(**inputs.to(student.model.device), **limits)
        is_before_end = (ids[:, 1:] == 1).cumsum(dim=1) == 0
        num_tokens += is_before_end.sum(dim=1).tolist()
    return num_tokens


def test_decoding_is_one_and_a_half_times_as_fast_as_fixed_unsorted_batches(
    benchmark, lifelike
):
    student, texts = lifelike
    few = dataclasses.replace(CONFIG, max_new_tokens=4)
    decode(student, prompt_ids(student, texts[:2]), few)  # warm
    timer = time.process_time if device().type == "cpu" else time.perf_counter
    begun = timer()
    fixed = decode_fixed(student, texts)
    between = timer()
    ours = benchmark.pedantic(
        lambda: decode(student, prompt_ids(student, texts), CONFIG), rounds=1
    )
    ratio = (between - begun) / (timer() - between)
    benchmark.extra_info["ratio"] = ratio
    print(f"\n{ratio:.2f} x the examples per second")
    assert [generation.num_tokens for generation in ours] == fixed
    assert ratio >= 1.5
