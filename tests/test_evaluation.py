"""Decoding, scoring and aggregating, with doubles that write what a test wants."""

import dataclasses
import itertools

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
from transformers.models.gpt2 import GPT2Config, GPT2LMHeadModel

from cotspec import decoding, evaluation
from cotspec.decoding import Generation, decode, make_batches, prompt_ids
from cotspec.evaluation import aggregate, evaluate, majority
from cotspec.models import Student, as_student
from cotspec.profiles import EvaluationConfig
from cotspec.prompts import Demonstration, TaskPrompts

CONFIG = EvaluationConfig(
    num_demonstrations=2,
    max_input_tokens=400,
    max_new_tokens=60,
    batch_tokens=1000,
    precision="float32",
)


def sampled(temperature, num_samples=1):
    changes = {"temperature": temperature, "num_samples": num_samples}
    return dataclasses.replace(CONFIG, **changes)


SHOTS = [Demonstration(f"What is {i} + 0?", f"{i} + 0 = {i}.", str(i)) for i in (7, 8)]


def byte_tokenizer(*, adds_end: bool) -> PreTrainedTokenizerFast:
    """One token per byte, decoded exactly; ids 0 and 1 are padding and end."""
    alphabet = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if adds_end:
        backend.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    named = {"pad_token": "<pad>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


BYTES = byte_tokenizer(adds_end=True)


class ScriptedBatch:
    """Rows of a student that writes ``write(prompt)``; "\\0" there is a NaN."""

    def __init__(self, model, prompts):
        self.model, self.step = model, 0
        texts = [BYTES.decode(ids, skip_special_tokens=True) for ids in prompts]
        self.scripts = [BYTES(model.write(text))["input_ids"] for text in texts]
        model.scripts += self.scripts

    def logits(self):
        self.model.rows_per_step.append(len(self.scripts))
        logits = torch.zeros(len(self.scripts), len(BYTES))
        for row, script in enumerate(self.scripts):
            token = script[min(self.step, len(script) - 1)]
            logits[row, token] = torch.nan if BYTES.decode(token) == "\0" else 9.0
        return logits

    def append(self, tokens):
        self.step += 1

    def keep(self, rows):
        self.scripts = [self.scripts[row] for row in rows.tolist()]


@pytest.fixture(autouse=True)
def _scripts_are_followed(monkeypatch):
    def start(model, prompts):
        return (ScriptedBatch if hasattr(model, "write") else real)(model, prompts)

    real = decoding.EncoderDecoderBatch
    monkeypatch.setattr(decoding, "EncoderDecoderBatch", start)


def scripted(write) -> Student:
    student = tiny_t5()
    student.model.write = write
    student.model.scripts, student.model.rows_per_step = [], []
    return student


def tiny_t5() -> Student:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    sizes |= {"vocab_size": 260, "initializer_factor": 1.5}
    config = T5Config(decoder_start_token_id=0, tie_word_embeddings=False, **sizes)
    return _tiny(T5ForConditionalGeneration, config, adds_end=True)


def tiny_gpt2() -> Student:
    sizes = {"vocab_size": 258, "n_positions": 256, "n_embd": 16, "n_layer": 2}
    sizes |= {"n_head": 2, "initializer_range": 0.2, "tie_word_embeddings": False}
    config = GPT2Config(bos_token_id=1, eos_token_id=1, **sizes)
    return _tiny(GPT2LMHeadModel, config, adds_end=False)


def _tiny(kind, config, *, adds_end) -> Student:
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        model.lm_head.weight[1] *= 3  # ends now and then
    return as_student("tiny", model, byte_tokenizer(adds_end=adds_end), start="raw")


def problems(task="toy", n=3, gold=None) -> Dataset:
    columns = {"problem_id": [f"{task}/{i}" for i in range(n)]}
    columns["question"] = [f"What is {i} + 1?" for i in range(n)]
    columns["answer"] = [gold or str(i + 1) for i in range(n)]
    return Dataset.from_dict(columns)


def answer_last_question(prompt: str) -> str:
    """Right for the toy problems."""
    number = int(prompt.rsplit("What is ", 1)[1].split(" ")[0])
    return f"{number} + 1 = {number + 1}. The answer is {number + 1}."


# --- batches -------------------------------------------------------------------------


def test_batches_hold_each_text_once_longest_first_under_the_budget():
    lengths = dict(enumerate([5, 50, 7, 300, 50]))
    config = dataclasses.replace(CONFIG, max_new_tokens=50, batch_tokens=210)
    assert make_batches(lengths, config, 1.0) == [[3], [1, 4], [2, 0]]
    assert make_batches(lengths, config, 0.1) == [[3], [1, 4, 2], [0]]
    assert make_batches({}, config, 1.0) == []


# --- decoding ------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_t5, tiny_gpt2])
@pytest.mark.parametrize("slots", [1, 2, 4, 9])
def test_greedy_decoding_equals_generate_on_each_text_alone(make, slots):
    student = make()
    config = dataclasses.replace(CONFIG, batch_tokens=slots * (33 + 60))
    texts = ["Q: one", "Q: a longer text with more in it", "x", "3 + 4?", "yes", "no"]
    ours = decode(student, prompt_ids(student, texts), config)
    lengths = [generation.num_tokens for generation in ours]
    assert len(set(lengths)) > 1, "rows leave the batch at different steps"
    for text, generation in zip(texts, ours, strict=True):
        inputs = student.tokenizer(text, return_tensors="pt")
        asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        options = {"max_new_tokens": CONFIG.max_new_tokens, "do_sample": False}
        ids = student.model.generate(**asked, **options, pad_token_id=0)[0]
        is_seq2seq = student.model.config.is_encoder_decoder
        start = 1 if is_seq2seq else inputs.input_ids.shape[1]
        expected = student.tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert generation.completion == expected.strip()


def test_a_batch_ends_at_the_answer_sentence_and_drops_finished_rows():
    def write(prompt):
        chain = "We count. " if prompt == "long" else ""
        return f"{chain}The answer is 3.50. Then it goes on and on for ever"

    student = scripted(write)
    done = decode(student, prompt_ids(student, ["long", "short"]), CONFIG)
    assert done[0].completion == "We count. The answer is 3.50."
    assert done[1].completion == "The answer is 3.50."
    assert {generation.finish_reason for generation in done} == {"stop"}
    rows = student.model.rows_per_step
    assert rows[0] == 2 and rows[-1] == 1
    assert len(rows) < CONFIG.max_new_tokens


def test_rows_leave_before_the_budget_is_exceeded_and_start_again():
    student = scripted(lambda prompt: "7" * 500)
    config = dataclasses.replace(CONFIG, batch_tokens=12 * (2 + 30))
    done = decode(student, prompt_ids(student, ["x"] * 12), config)
    assert done == [Generation("7" * 60, 60, "length")] * 12
    fitting = [config.batch_tokens // (2 + n) for n in range(1, 61)]
    expected = [min(12, n) for n in fitting] + [6] * 60
    assert student.model.rows_per_step == expected


@pytest.mark.parametrize(
    ("written", "done"),
    [
        ("Yes", Generation("Yes", 3, "stop")),  # the end token is not counted
        ("7" * 500, Generation("7" * 60, CONFIG.max_new_tokens, "length")),
        ("So 5\0", Generation("So 5", 4, "not_finite")),
    ],
)
def test_a_row_ends_for_one_reason_and_leaves_the_others_alone(written, done):
    student = scripted(lambda prompt: written if prompt == "this" else "Fine.")
    this, other = decode(student, prompt_ids(student, ["this", "other"]), CONFIG)
    assert this == done
    assert other == Generation("Fine.", 5, "stop")


def test_what_is_sampled_depends_on_the_seed_of_its_text_alone():
    student = tiny_t5()
    texts = ["Q: one", "Q: two three", "four"]

    def sample(some, seeds):
        done = decode(student, prompt_ids(student, some), sampled(1.0), seeds=seeds)
        return [g.completion for g in done]

    first = sample(texts, [3, 4, 5])
    assert first == sample(texts, [3, 4, 5])
    assert first[::-1] == sample(texts[::-1], [5, 4, 3])
    assert first[:1] == sample(texts[:1], [3])
    assert first != sample(texts, [4, 5, 6])
    assert sample(texts, None) == sample(texts, [0, 1, 2])
    state = torch.random.get_rng_state()
    sample(texts, [3, 4, 5])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_encoder_reads_a_few_long_prompts_at_a_time_to_the_same_texts(monkeypatch):
    student, texts = tiny_t5(), ["Q: one", "Q: two three", "four"]
    expected = decode(student, prompt_ids(student, texts), CONFIG)
    monkeypatch.setattr(decoding, "_PAIRS_AT_ONCE", 1)
    assert decode(student, prompt_ids(student, texts), CONFIG) == expected


def test_a_tokenizer_with_another_end_token_is_refused():
    student, backend = tiny_t5(), BYTES.backend_tokenizer
    swapped = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<pad>")
    with pytest.raises(ValueError, match=r"end token \[1\] for 0"):
        dataclasses.replace(student, tokenizer=swapped)


# --- evaluation ----------------------------------------------------------------------

TASKS = {"toy": problems(), "other": problems("other", 5)}
MODES = ("zero_shot_chain_of_thought", "zero_shot_answer_only")


def run(student, tasks=None, modes=("zero_shot_chain_of_thought",), **options):
    options = {"checkpoint": "step-0", **options}
    config, tasks = options.pop("config", CONFIG), tasks or {"toy": problems()}
    shown, said = options.pop("demonstrations", ()), options.pop("description", "")
    asked = {task: TaskPrompts(own, shown, said) for task, own in tasks.items()}
    return evaluate(student, asked, dict.fromkeys(tasks, modes), config, **options)


def test_predictions_carry_every_score_and_the_raw_completion():
    rows = run(scripted(answer_last_question)).to_list()
    assert rows[1] == {
        "problem_id": "toy/1",
        "task": "toy",
        "prompt_mode": "zero_shot_chain_of_thought",
        "checkpoint": "step-0",
        "completion": "1 + 1 = 2. The answer is 2.",
        "predicted_answer": "2",
        "is_correct": True,
        "no_answer": False,
        "tier": "answer_is",
        "reference_is_correct": True,
        "lm_eval_is_correct": True,
        "finish_reason": "stop",
        "num_demonstrations": 0,
        "num_dropped_demonstrations": 0,
        "is_answer_spellable": True,
        "samples": [],
    }


def test_form_and_reasoning_are_told_apart():
    said = [("answer_is", True), ("answer_is", False), ("last_number", True)]
    said += [("none", False), ("last_number", False), (None, True)]  # None: generic
    same = {"checkpoint": "step-0", "prompt_mode": "m"}
    rows = [same | {"tier": tier, "is_correct": right} for tier, right in said]
    [row] = evaluation.form_and_reasoning(Dataset.from_list(rows)).to_dict("records")
    shares = {"with_form": 0.4, "right": 0.4, "right_with_form": 0.5}
    assert row == same | shares | {"n": 5, "right_without": pytest.approx(1 / 3)}


def remembering(answer):
    """A student that answers always the same, and the prompts it has seen."""
    seen = []
    return scripted(lambda prompt: (seen.append(prompt), answer)[1]), seen


def test_in_context_modes_show_the_demonstrations_and_zero_shot_does_not():
    student, seen = remembering("The answer is 1.")
    modes = ["in_context_answer_only", "zero_shot_answer_only"]
    predictions = run(student, {"toy": problems(n=1)}, modes, demonstrations=SHOTS)
    assert predictions["num_demonstrations"][:] == [2, 0]
    assert [prompt.count("The answer is") for prompt in seen] == [2, 0]


def test_generic_modes_are_scored_by_the_task_and_begin_with_its_description():
    student, seen = remembering("So the answer is invalid.")
    task = "bbh/formal_fallacies"
    predictions = run(
        student,
        {task: problems(n=1, gold="valid")},
        ["answer_only", "chain_of_thought"],
        demonstrations=SHOTS,
        description="Is it valid?",
    )
    assert predictions["predicted_answer"][:] == ["invalid", "invalid"]
    assert predictions["is_correct"][:] == [False, False]
    assert predictions["reference_is_correct"][:] == [None, None]
    assert all(prompt.startswith("Is it valid?\n\nQ: ") for prompt in seen)


def test_prompts_too_long_lose_demonstrations_or_are_counted():
    long_one = {"problem_id": "toy/9", "question": "What is 9 + 1? " * 30}
    rows = [*problems(n=1).to_list(), long_one | {"answer": "10"}]
    predictions = run(
        scripted(answer_last_question),
        {"toy": Dataset.from_list(rows)},
        ["in_context_chain_of_thought"],
        demonstrations=SHOTS,
        config=dataclasses.replace(CONFIG, max_input_tokens=150),
    )
    assert predictions["finish_reason"][:] == ["stop", "prompt_too_long"]
    assert predictions["num_demonstrations"][:] == [1, 0]
    assert predictions["num_dropped_demonstrations"][:] == [1, 0]
    assert predictions["no_answer"][:] == [False, True]
    [lost] = evaluation.outcomes(predictions).to_dict("records")
    task = {"task": "toy", "prompt_mode": "in_context_chain_of_thought", "n": 2}
    reasons = {"length": 0, "not_finite": 0, "prompt_too_long": 1}
    others = {"no_answer": 1, "shortened_prompts": 1, "unspellable_answers": 0}
    assert lost == task | reasons | others


@pytest.mark.parametrize(
    ("written", "reason", "counts"),
    [("The answer is 2\0", "not_finite", False), ("7" * 500, "length", True)],
)
def test_a_row_that_breaks_is_counted_and_the_rest_kept(
    caplog, written, reason, counts
):
    def write(prompt):
        return written if "is 1 +" in prompt else answer_last_question(prompt)

    predictions = run(scripted(write))
    assert predictions["finish_reason"][:] == ["stop", reason, "stop"]
    assert predictions["is_correct"][:] == [True, False, True]
    assert predictions["no_answer"][:] == [False, not counts, False]
    assert written.startswith(predictions["completion"][1].strip())
    assert predictions["completion"][1]
    assert evaluation.outcomes(predictions)[reason].tolist() == [1]
    lost = f"1 of 3 counted as without answer: {reason}"
    assert (lost in caplog.text) != counts


def test_self_consistency_takes_the_majority_and_keeps_every_sample():
    said = ["I pass", "The answer is 4.", "The answer is 1.", "It is 1"]
    written = iter(said)
    student = scripted(lambda _: next(written))
    # The double's logits are sharp, so sampling writes the script.
    (row,) = run(student, {"toy": problems(n=1)}, config=sampled(0.01, 4)).to_list()
    assert row["samples"] == said
    assert (row["completion"], row["predicted_answer"]) == ("The answer is 1.", "1")
    assert row["is_correct"]


def test_a_majority_needs_answers_and_ties_go_to_the_first():
    assert majority([None, "4", "5", "5"]) == 2
    assert majority([None, "4", "5"]) == 1
    assert majority([None, None]) == 0


@pytest.mark.parametrize(
    ("tasks", "modes", "message"),
    [
        ({"toy": problems()}, ["answer_only"], "none for 'toy', which"),
        ({"toy": problems().select([])}, MODES[1:], "no problems"),
        ({"toy": problems(gold="3:2")}, MODES[1:], "'toy/0': gold: '3:2'"),
        ({"toy": problems()}, ["zero_shot"], "prompt mode: 'zero_shot'. Allowed"),
    ],
)
def test_what_cannot_be_evaluated_is_an_error_before_decoding(tasks, modes, message):
    student = scripted(answer_last_question)
    with pytest.raises(ValueError, match=message):
        run(student, tasks, modes)
    assert student.model.scripts == []


@pytest.mark.parametrize("options", [{}, {"config": sampled(1.0, 2)}])
def test_small_cells_are_decoded_together_and_give_what_each_gives_alone(options):
    student = scripted(answer_last_question) if not options else tiny_t5()
    together = run(student, TASKS, MODES, **options).to_list()
    if not options:
        assert max(student.model.rows_per_step) > 5  # rows of more than one task
    alone = [
        run(student, {task: rows}, (mode,), **options).to_list()
        for task, rows in TASKS.items()
        for mode in MODES
    ]
    assert together == list(itertools.chain(*alone))


def test_prompts_are_fitted_once_for_all_students_that_read_the_same_tokens(
    monkeypatch,
):
    fitted, real = [], evaluation.prompts.fit_prompts

    def fit(items, mode, tokenizer, **options):
        fitted.append(tokenizer)
        return real(items, mode, tokenizer, **options)

    monkeypatch.setattr(evaluation.prompts, "fit_prompts", fit)
    evaluation._ASKED.clear()
    counts = []
    for student in (tiny_t5(), tiny_t5(), tiny_gpt2()):  # gpt2's tokens lack an end
        run(student, {"toy": problems(n=3)}, ("zero_shot_chain_of_thought",))
        counts.append(len(fitted))
    assert counts == [1, 1, 2]


# --- what is kept --------------------------------------------------------------------


def test_finished_cells_are_not_decoded_again_unless_their_inputs_change(
    tmp_path, monkeypatch
):
    student = scripted(answer_last_question)
    first = run(student, work_dir=tmp_path)
    decoded = len(student.model.scripts)
    assert run(student, work_dir=tmp_path).to_list() == first.to_list()
    assert len(student.model.scripts) == decoded
    changed = [
        {"checkpoint": "step-1"},
        {"tasks": {"toy": problems(n=2)}},
        {"config": dataclasses.replace(CONFIG, max_new_tokens=50)},
        {"config": sampled(1.0)},
        {"code": "changed"},
    ]
    for options in changed:
        if digest := options.pop("code", None):
            monkeypatch.setattr(evaluation.stages, "code_of", lambda _: digest)
        before = len(student.model.scripts)
        run(student, work_dir=tmp_path, **options)
        assert len(student.model.scripts) > before, options


# --- aggregation ---------------------------------------------------------------------


def test_aggregate_is_tidy_with_wilson_intervals():
    def write(prompt):
        return answer_last_question(prompt) if "is 0 +" in prompt else "none"

    predictions = run(scripted(write), TASKS, MODES[:1])
    student, facts = tiny_t5(), {"step": 5, "seed": 1}
    table = aggregate(predictions, student, **facts, confidence=0.95)
    assert list(table.columns) == evaluation.TIDY_COLUMNS
    described = ["tiny", "raw", student.size, 5, 1]
    assert table.iloc[0, :5].tolist() == described
    assert table["n"].tolist() == [3, 5]
    assert table["accuracy"].tolist() == pytest.approx([1 / 3, 1 / 5])
    assert table["ci_low"].tolist() == pytest.approx([0.0615, 0.0362], abs=1e-4)
    assert table["ci_high"].tolist() == pytest.approx([0.7923, 0.6245], abs=1e-4)
    assert table["task"].tolist() == ["toy", "other"]
    narrow = aggregate(predictions, student, **facts, confidence=0.5)
    assert (narrow["ci_high"] < table["ci_high"]).all()
