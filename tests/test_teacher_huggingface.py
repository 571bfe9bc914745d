"""The decode loop against plain forward passes of tiny random models."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from test_teacher_store import problems
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.gemma2 import Gemma2Config
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig

import cotspec.models
from cotspec import decoding, teacher
from cotspec.models import Teacher
from cotspec.profiles import TeacherConfig
from cotspec.prompts import Demonstration
from cotspec.teacher import huggingface, studies
from cotspec.teacher.huggingface import HuggingFaceBackend

VOCABULARY = 102  # 97 ASCII characters and 5 merges
DEMONSTRATIONS = (
    Demonstration("What is 1 + 1?", "1 + 1 = 2.", "2"),
    Demonstration("What is 2 + 3?", "2 + 3 = 5.", "5"),
)
QUESTIONS = ("How many legs have 3 cats?", "What is 2 + 3?", "Two and two?", "Why not?")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of ASCII with a few merges, among them ``.\\n``."""
    printable = {*range(32, 127), ord("\t"), ord("\n")}
    alphabet = sorted(c for b, c in bytes_to_unicode().items() if b in printable)
    merges = [("Ġ", "a"), ("Ġa", "n"), ("t", "h"), (".", "Ċ"), ("Ċ", "Q")]
    vocabulary = {token: i for i, token in enumerate(alphabet)}
    vocabulary |= {a + b: 97 + i for i, (a, b) in enumerate(merges)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


LLAMA = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48}
LLAMA |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA |= {"head_dim": 8, "initializer_range": 0.3}
WINDOW = LLAMA | {"sliding_window": 20}
CONFIGS = {
    "llama": LlamaConfig(**LLAMA),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4),
    "mistral": MistralConfig(**WINDOW),  # the window is in all layers
    "gemma2": Gemma2Config(**WINDOW, attn_logit_softcapping=0.5),  # in every other one
}


def tiny_teacher(kind: str = "llama") -> Teacher:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[kind])
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    return Teacher(f"tiny-{kind}", model.eval(), tiny_tokenizer())


PROBLEMS = problems(QUESTIONS)
REQUESTS = teacher.build_requests(PROBLEMS, DEMONSTRATIONS)


def plain_logprobs(source: Teacher, prompt: str, token_ids: list[int]):
    """Of one whole forward pass: shape (T', V), and those of the tokens, shape (T')."""
    prompt_ids = source.tokenizer(prompt)["input_ids"]
    with torch.inference_mode():
        logits = source.model(torch.tensor([prompt_ids + token_ids])).logits[0]
    logprobs = logits[len(prompt_ids) - 1 : -1].float().log_softmax(-1)
    return logprobs, logprobs[range(len(token_ids)), token_ids]


def assert_as_computed(source: Teacher, prompt: str, row: dict) -> None:
    """Compare with one whole forward pass."""
    expected, chosen = plain_logprobs(source, prompt, row["token_ids"])
    within = {"atol": 1e-3, "rtol": 2**-11}  # half a unit of float16
    found = {"token_logprobs": chosen, "topk_logprobs": expected.topk(5).values}
    for name, value in found.items():
        torch.testing.assert_close(torch.tensor(row[name]), value, **within)


def draw(backend, asked=PROBLEMS, **changes):
    options = {"num_samples": 3, "temperature": 1.0, "seed": 5} | changes
    options = {"demonstrations": DEMONSTRATIONS} | options
    return teacher.sample(asked, backend, **options)


@pytest.fixture(scope="module")
def llama():
    return tiny_teacher()


@pytest.fixture(scope="module")
def backend(llama):
    return HuggingFaceBackend(llama, 5, max_new_tokens=20)


@pytest.fixture(scope="module")
def traces(backend):
    return draw(backend)


def without_model(backend: HuggingFaceBackend) -> HuggingFaceBackend:
    """The same by name; to sample anything is an error."""
    empty = dataclasses.replace(backend.teacher, model=None)
    return dataclasses.replace(backend, teacher=empty)


@pytest.mark.parametrize("kind", CONFIGS)
def test_recorded_logprobs_are_those_of_a_plain_forward_pass(kind):
    source = tiny_teacher(kind)
    traces = draw(HuggingFaceBackend(source, 5, max_new_tokens=20))
    assert len(traces) == 12
    for index, row in enumerate(traces):
        assert_as_computed(source, REQUESTS[index // 3].prompt, row)
    assert source.model.config._attn_implementation != decoding._SHARED


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_shared_prefix_is_used_where_it_is_exact_and_only_there(kind):
    is_exact = kind in ("llama", "gpt2")
    assert decoding.shares_prefixes(tiny_teacher(kind).model) is is_exact


def test_the_shared_prefix_is_refused_where_the_logits_differ(llama, monkeypatch):
    def capped(module, query, key, value, mask, **kwargs):
        return attend(module, query * 0.5, key, value, mask, **kwargs)

    attend = decoding.attend
    monkeypatch.setattr(decoding, "attend", capped)
    assert not decoding.shares_prefixes(llama.model)


def test_joined_bytes_are_the_completion(traces):
    assert max(map(len, traces["completion"])) > 10
    for row in traces:
        assert b"".join(row["token_bytes"]) == row["completion"].encode()
        lists = [c for c in traces.column_names if c.startswith(("token_", "topk"))]
        assert len({len(row[name]) for name in lists}) == 1
    expected = [(f"p/{i}", s) for i in range(4) for s in range(3)]
    assert list(zip(traces["problem_id"], traces["sample_id"], strict=True)) == expected


def test_a_sample_does_not_depend_on_the_batch_it_is_drawn_in(llama, traces):
    alone = draw(HuggingFaceBackend(llama, 1, max_new_tokens=20))
    assert list(alone["token_ids"]) == list(traces["token_ids"])


@pytest.mark.parametrize("num_threads", (1, 4))
def test_batches_side_by_side_give_the_same_samples(
    backend, traces, num_threads, monkeypatch
):
    monkeypatch.setattr(cotspec.models, "batches_at_once", lambda model: num_threads)
    assert draw(backend).to_dict() == traces.to_dict()


def test_more_samples_extend_fewer_and_another_seed_draws_others(backend, traces):
    two = draw(backend, num_samples=2)
    first_two = traces.filter(lambda row: row["sample_id"] < 2)
    assert list(two["token_ids"]) == list(first_two["token_ids"])
    assert list(draw(backend, seed=6)["completion"]) != list(traces["completion"])


def test_temperature_zero_is_greedy(backend):
    for row in draw(backend, temperature=0.0):
        assert [ids[0] for ids in row["topk_ids"]] == row["token_ids"]


def test_a_resumed_run_redoes_whole_batches_and_equals_an_unbroken_one(
    backend, traces, tmp_path
):
    draw(backend, store=tmp_path)
    (tmp_path / "traces.arrow").unlink()
    samples = tmp_path / "samples.jsonl"
    samples.write_bytes(samples.read_bytes()[: samples.stat().st_size // 2])
    assert draw(backend, store=tmp_path).to_dict() == traces.to_dict()


def test_a_finished_run_asks_neither_the_model_nor_the_samples(
    backend, traces, tmp_path, monkeypatch
):
    draw(backend, store=tmp_path)
    states = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    broken = without_model(backend)
    with monkeypatch.context() as patched:
        patched.setattr(teacher, "SampleStore", None)  # no sample is looked at
        again = draw(broken, store=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == states
    assert again.to_dict() == traces.to_dict()
    (tmp_path / "traces.arrow").unlink()
    assert draw(broken, store=tmp_path).data.table.equals(again.data.table)


def test_a_changed_answer_reaches_the_traces_of_samples_drawn_before(llama, tmp_path):
    backend = HuggingFaceBackend(llama, 5, max_new_tokens=4)
    draw(backend, store=tmp_path)
    corrected = PROBLEMS.map(lambda row: {"answer": "corrected"})
    traces = draw(without_model(backend), corrected, store=tmp_path)
    assert set(traces["answer"]) == {"corrected"}


def test_a_question_among_the_demonstrations_does_not_shorten_the_prefix():
    assert huggingface.group_by_context(REQUESTS) == [[0, 2, 3], [1]]


def test_prompts_without_a_common_token_are_sampled_too(llama):
    backend = HuggingFaceBackend(llama, 4, max_new_tokens=4)
    texts = {"x": "x: ", "y": "y is longer: "}
    asked = [teacher.Request(q, q, prompt) for q, prompt in texts.items()]
    options = teacher.SamplingOptions(1, 1.0, 0)
    done = [s for b in backend.complete(asked, options, {0: {0}, 1: {0}}) for s in b]
    assert sorted((i, s) for i, s, _ in done) == [(0, 0), (1, 0)]
    for index, _, completion in done:
        assert_as_computed(llama, asked[index].prompt, vars(completion))


def test_choose_inverts_the_cumulative_distribution():
    logprobs = torch.tensor([[0.5, 0.25, 0.25]]).log().expand(4, 3)
    uniforms = torch.tensor([0.0, 0.49, 0.51, 0.99])
    assert decoding.choose(logprobs, 1.0, uniforms).tolist() == [0, 0, 1, 2]
    # At temperature 1/2 the probabilities are squared: 2/3, 1/6, 1/6.
    uniforms = torch.tensor([0.66, 0.67, 0.82, 0.84])
    assert decoding.choose(logprobs, 0.5, uniforms).tolist() == [0, 1, 1, 2]


def test_a_number_at_the_limit_may_be_torn():
    for text, end in ((b"The answer is 18", "length"), (b"The answer is 1.", "stop")):
        decoding._advance(row := decoding.Row(), 0, [text], frozenset(), True)
        assert row.finish_reason == end


def test_problem_ids_must_be_unique():
    twice = PROBLEMS.select([0, 0])
    with pytest.raises(ValueError, match="problem_id: 'p/0' occurs more than once"):
        teacher.build_requests(twice)


def test_more_alternatives_than_tokens_are_refused(llama):
    with pytest.raises(ValueError, match="teacher.top_k: 1024. Allowed: 1 to "):
        draw(HuggingFaceBackend(llama, top_k=1024))


def test_a_question_beyond_the_window_is_named_before_anything_is_sampled(llama):
    window = llama.model.config.max_position_embeddings
    table = problems((*QUESTIONS, "Why? " * window))
    with pytest.raises(ValueError, match=rf"'p/4': .* reads {window}\."):
        draw(HuggingFaceBackend(llama), table)


def test_auto_loads_the_model_in_bfloat16_and_names_it(monkeypatch, llama, tmp_path):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    llama.model.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    options = {"model": str(tmp_path), "max_new_tokens": 8}
    config = TeacherConfig(backend="huggingface", precision="auto", **options)
    backend = teacher.load_backend(config)
    assert backend.teacher.model.dtype == torch.bfloat16
    name, precision = backend.model.split(" ")
    assert name.startswith(f"{tmp_path}-") and precision == "(bfloat16)"
    plain = dataclasses.replace(config, precision="float32")
    assert teacher.load_backend(plain).model == name


def test_bfloat16_samples_have_logprobs_near_those_of_a_forward_pass(llama):
    """Its eight bits of mantissa, not the sharing of prompts, set the distance."""
    model = copy.deepcopy(llama.model).bfloat16()
    source = dataclasses.replace(llama, model=model)
    traces = draw(HuggingFaceBackend(source, 5, max_new_tokens=12))
    distances = []
    for index, row in enumerate(traces):
        prompt, token_ids = REQUESTS[index // 3].prompt, row["token_ids"]
        _, chosen = plain_logprobs(source, prompt, token_ids)
        distances += (torch.tensor(row["token_logprobs"]) - chosen).abs().tolist()
    assert len(distances) > 50
    assert sum(distances) / len(distances) < 0.05


# --- the study of temperatures --------------------------------------------------------

STUDY = {"study_temperatures": (0.0, 1.0), "study_questions": 2, "study_samples": 3}
CONFIG = TeacherConfig(backend="huggingface", **STUDY)


def test_a_study_spreads_its_questions_and_samples_at_each_temperature(llama, tmp_path):
    backend = HuggingFaceBackend(llama, 6, max_new_tokens=12)
    options = {"seed": 0, "store": tmp_path}
    study = teacher.sample_study(PROBLEMS, backend, CONFIG, **options)
    assert study["temperature"] == [0.0] * 6 + [1.0] * 6
    assert study["problem_id"] == (["p/0"] * 3 + ["p/2"] * 3) * 2
    table = studies.compare_temperatures(study)
    different = table[table["measure"] == "different texts"].set_index("temperature")
    assert different["value"].tolist() == [pytest.approx(1 / 3), 1.0]
    again = teacher.sample_study(PROBLEMS, without_model(backend), CONFIG, **options)
    assert again.to_dict() == study.to_dict()


def test_recorded_solutions_have_the_temperature_they_were_drawn_at():
    asked = []

    def complete(requests, options, missing):
        asked.append(options.temperature)
        return ()

    limits = {"max_new_tokens": 12, "top_k": 5}
    source = SimpleNamespace(model="recorded", complete=complete, **limits)
    config = dataclasses.replace(CONFIG, backend="recorded")
    teacher.sample_study(PROBLEMS, source, config, seed=0)
    assert asked == [config.temperature]
