"""The client against a local server that answers, fails and lies."""

import dataclasses
import json
import logging
import math
import time

import pytest
from teacher_server import FAULTS, running, tokens_of
from test_teacher_store import problems

from cotspec import teacher
from cotspec.profiles import TeacherConfig
from cotspec.prompts import teacher_prompt
from cotspec.teacher import openai, traces
from cotspec.teacher.traces import Completion, sample_seed

KEY = "sk-not-a-real-key-1234567890"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def backend(server, *others, **changes) -> openai.OpenAIBackend:
    # A busy machine must not turn a reply into a second request.
    client = {"timeout": 30.0, "backoff": 0.01, "max_retries": 8}
    client |= {name: changes.pop(name) for name in client if name in changes}
    limits = {"max_in_flight": 8, "samples_per_request": 3, "max_new_tokens": 64}
    options = {"base_urls": [one.url for one in (server, *others)]} | limits | changes
    config = TeacherConfig(backend="openai", model="fake", **options)
    made = openai.OpenAIBackend(config)
    vars(made).update(client)
    return made


def draw(source, count: int = 6, **changes):
    options = {"num_samples": 5, "temperature": 0.5, "seed": 1} | changes
    return teacher.sample(problems(f"{i}?" for i in range(count)), source, **options)


ALL = [(f"p/{i}", sample_id) for i in range(6) for sample_id in range(5)]


def names(traces) -> list[tuple[str, int]]:
    return list(zip(traces["problem_id"], traces["sample_id"], strict=True))


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_traces_have_all_columns_and_each_sample_its_own_text(api):
    with running() as server:
        traces = draw(backend(server, api=api))
    assert names(traces) == ALL
    for row in traces:
        problem_id, sample_id = row["problem_id"], row["sample_id"]
        first = 0 if sample_id < 3 else 3  # chunks of three, then two
        prompt = teacher_prompt(row["question"], ())
        seed = sample_seed(1, problem_id, first) % 2**31
        written = tokens_of(prompt, seed, sample_id - first, 64)
        assert row["completion"] == "".join(written)
        assert b"".join(row["token_bytes"]) == row["completion"].encode()
        assert row["token_ids"] == [-1] * len(row["token_bytes"])
        assert [top[0] for top in row["topk_bytes"]] == row["token_bytes"]
        assert all(top == sorted(top, reverse=True) for top in row["topk_logprobs"])
        assert row["finish_reason"] == "stop"


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("fault", FAULTS)
def test_no_sample_is_lost_or_doubled_by(fault, api):
    options = {"timeout": 0.5} if fault == "hang" else {}
    with running(0.3, faults=(fault,)) as server:
        traces = draw(backend(server, api=api, **options))
    assert server.log[fault] > 0
    assert names(traces) == ALL


def test_a_reply_that_is_malformed_each_time_costs_its_samples_not_the_run(caplog):
    with running(1.0, faults=("other_index",)) as server:
        with caplog.at_level(logging.WARNING):
            assert len(draw(backend(server, max_retries=1))) == 0
    assert "no choices of index 0 to 2" in caplog.text
    assert "fake: 30 of 30 solutions are missing" in caplog.text


def test_all_faults_together_change_no_sample():
    """One sample a request, so that no chunk is topped up with other seeds."""
    with running() as calm, running(0.4) as wild:
        plain = draw(backend(calm, samples_per_request=1), num_samples=12)
        shaken = draw(backend(wild, samples_per_request=1), num_samples=12)
    assert sum(wild.log[fault] for fault in FAULTS) >= 10
    assert shaken.to_dict() == plain.to_dict()


def test_requests_in_flight_are_bounded():
    with running(always="slow") as server:
        draw(backend(server, max_in_flight=3, samples_per_request=1))
    assert 2 <= server.most_in_flight <= 3


def test_several_servers_share_the_work_and_length_is_a_result():
    with running() as first, running() as second:
        traces = draw(backend(first, second, max_new_tokens=5))
    assert traces["finish_reason"][:] == ["length"] * 30
    # The probe, then two chunks a question.
    assert first.log["requests"] == second.log["requests"] == 1 + 6


def test_a_server_that_ignores_n_is_asked_again_for_each():
    with running(always="ignores_n") as server:
        assert names(draw(backend(server))) == ALL
    assert server.log["requests"] == 2 + 6 * (3 + 2)


@pytest.mark.parametrize(
    ("fault", "server", "options", "message", "num_requests"),
    [
        ("401", {}, {}, r"status 401: .*no, Bearer \[key\]", 1),
        ("500", {}, {"max_retries": 2}, "status 500: .*, 3 times", 3),
        ("429", {}, {"max_retries": 2}, r"asks to wait 0 s\): .*, 3 times", 3),
        ("429", {"said": "insufficient_quota"}, {}, "insufficient_quota", 1),
        ("429", {"retry_after": "86400"}, {}, "asks to wait 86400 s", 1),
        ("no_logprobs", {}, {}, "returns no logprobs", 1),  # found out by the probe
        ("", {}, {}, "more than 0 MiB", 1),
        ("drip", {}, {"max_retries": 1, "timeout": 0.3}, ": TimeoutError, 2 times", 2),
    ],
)
def test_a_server_that_is_always_at_fault(
    fault, server, options, message, num_requests, monkeypatch
):
    if not fault:
        monkeypatch.setattr(openai, "MAX_BODY", 100)
    started = time.monotonic()
    with running(always=fault) as faulty:
        vars(faulty).update(server)
        with pytest.raises(openai.ServerError, match=message) as raised:
            draw(backend(faulty, **options))
    assert faulty.log["requests"] == num_requests
    assert "not-a-real-key" not in str(raised.value).casefold()
    if "asks to wait 0 s" in message:
        assert time.monotonic() - started > 0.4  # twice the 0.2 s asked for


def test_what_arrived_before_a_failure_is_kept_and_not_asked_again(tmp_path):
    with running(0.5, faults=("403",)) as server:
        with pytest.raises(openai.ServerError, match="status 403"):
            draw(backend(server, max_in_flight=1), count=40, store=tmp_path)
    with teacher.SampleStore(tmp_path) as store:
        kept = len(store.offsets)
    with running() as server:
        assert len(draw(backend(server), count=40, store=tmp_path)) == 200
        assert server.log["requests"] <= 2 + 80 - kept // 3
    assert kept > 0


def test_the_key_is_sent_and_appears_nowhere_else(caplog, capfd):
    with running(0.3) as server, caplog.at_level(logging.DEBUG):
        source = backend(server)
        draw(source)
    assert server.headers["Authorization"] == f"Bearer {KEY}"
    captured = capfd.readouterr()
    for text in (repr(source), caplog.text, captured.out, captured.err):
        assert KEY not in text


def test_a_key_of_one_letter_and_a_proxy_change_no_reply(monkeypatch):
    with running() as server:
        plain = draw(backend(server))
        monkeypatch.setenv("OPENAI_API_KEY", "e")
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens
        # This machine is never reached by one.
        assert draw(backend(server)).to_dict() == plain.to_dict()


def reply_with(**changes) -> dict:
    logprobs = {"tokens": [" a", "."], "token_logprobs": [-0.5, -0.1]}
    logprobs |= {"top_logprobs": [{" a": -0.5}, {".": -0.1}]}
    return {"text": " a.", "finish_reason": "stop", "logprobs": logprobs | changes}


def test_tokens_behind_the_text_are_cut():
    tops = [{" a": -1}, {".": -1}, {"x": -1}]
    tokens = {"tokens": [" a", ".", "\n\nQ:"], "token_logprobs": [-1] * 3}
    choice = reply_with(top_logprobs=tops, **tokens)
    read = openai.read_choice(choice, top_k=1)
    assert read.token_bytes == [b" a", b"."]
    assert len(read.token_logprobs) == len(read.topk_bytes) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_logprobs": [None, -0.1]}, "token_logprobs holds None"),
        ({"token_logprobs": [-0.5]}, r"malformed reply \(ValueError\)"),
        ({"top_logprobs": None}, "no top_logprobs"),
        (dict.fromkeys(("tokens", "token_logprobs", "top_logprobs")), "no logprobs"),
    ],
)
def test_a_choice_without_its_numbers_is_refused(changes, message):
    reply = json.dumps({"choices": [reply_with(**changes)]}).encode()
    with pytest.raises(openai.InvalidReply, match=message):
        openai.read_reply(reply, top_k=1, n=1)


@pytest.mark.parametrize(
    ("value", "read"),
    [(value, []) for value in (None, math.nan, "x", 0.5, 10**400)]
    + [(-math.inf, [-1e4]), (-(10**400), [-1e4])],
)
def test_an_impossible_alternative_leaves_its_slot_to_the_tail(value, read):
    choice = reply_with(top_logprobs=[{" a": -0.5, " o3": value}, {".": -0.1}])
    assert openai.read_choice(choice, top_k=2).topk_logprobs[0] == [-0.5, *read]


@pytest.mark.parametrize(
    ("changes", "num_alternatives"),
    [
        ({}, 2),  # the sampled token is listed twice
        ({"bytes": 3_000_000_000}, 1),  # bytes that are no list are not believed
    ],
)
def test_an_entry_of_chat_names_its_token_once(changes, num_alternatives):
    entry = {"token": " a", "logprob": -0.5}
    step = entry | changes | {"top_logprobs": [entry] * num_alternatives}
    choice = {"text": " a", "finish_reason": "stop", "logprobs": {"content": [step]}}
    read = openai.read_choice(choice, top_k=5)
    assert read.token_bytes == [b" a"] and read.topk_bytes == [[b" a"]]


@pytest.mark.parametrize(
    ("reason", "text", "read"),
    [
        ("stop", " a.", "stop"),
        ("length", " a.", "length"),
        ("abort", "9 * 2 = 18", "length"),
        ("content_filter", " a.", "length"),
        (None, " a.", "length"),
        ("abort", "The answer is 18.", "stop"),
        ("abort", "The answer is 18", "length"),  # perhaps of 180
    ],
)
def test_anything_but_stop_is_no_end_unless_the_answer_came(reason, text, read):
    choice = reply_with(tokens=[text], token_logprobs=[-1], top_logprobs=[{text: -1}])
    choice |= {"text": text, "finish_reason": reason}
    assert openai.read_choice(choice, top_k=1).finish_reason == read


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b'{"error": {"message": "Rate limit exceeded"}}', openai.Busy),
        (b'{"object": "error", "message": "too long"}', openai.Busy),
        (b'{"detail": "Model not found"}', openai.Busy),
        (b'{"error": {"code": "insufficient_quota"}}', openai.ServerError),
        (b'{"choices": null, "error": "Provider down"}', openai.Busy),
        (b'{"choices": [{"text": "", "error": "torn"}]}', openai.Busy),
        (b"[" * 100_000, openai.InvalidReply),
        (b"null", openai.InvalidReply),
        (b'{"choices": [3]}', openai.InvalidReply),
    ],
)
def test_the_servers_own_words_are_quoted_and_nonsense_is_malformed(reply, error):
    with pytest.raises(error) as raised:
        openai.read_reply(reply, top_k=1, n=1)
    if error is not openai.InvalidReply:
        assert reply.decode().split('"')[-2] in str(raised.value)


def test_the_server_is_openais_and_a_key_over_plain_http_is_warned_of(caplog):
    urls = ("http://example.invalid/v1",)
    with caplog.at_level(logging.WARNING):
        loaded = teacher.load_backend(TeacherConfig(backend="openai", model="m"))
        assert next(loaded.urls) == "https://api.openai.com/v1/completions"
        assert not caplog.text
        openai.OpenAIBackend(TeacherConfig(backend="openai", base_urls=urls))
    assert "example.invalid unencrypted" in caplog.text and KEY not in caplog.text


@pytest.mark.parametrize("key", ["sk-A\nsk-B", "sk-é"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match="OPENAI_API_KEY") as raised:
        openai.OpenAIBackend(TeacherConfig(backend="openai"))
    assert "sk-" not in str(raised.value)


def test_another_api_s_samples_are_others():
    asked = traces.Request("a", "?", "Q: ?"), traces.SamplingOptions(1, 0.5, 0)
    configs = [TeacherConfig(backend="openai", api=api) for api in openai.PATHS]
    keys = [traces.sample_keys(openai.OpenAIBackend(c), *asked) for c in configs]
    assert keys[0] != keys[1]


# --- is a server fit to teach? --------------------------------------------------------

GOOD = Completion(
    text="4 + 1",
    token_ids=[-1, -1],
    token_bytes=[b"4", b" + 1"],
    token_logprobs=[math.log(0.6), math.log(0.2)],
    topk_ids=[[-1, -1], [-1]],
    topk_bytes=[[b"4", b"If"], [b" - 1"]],
    topk_logprobs=[[math.log(0.6), math.log(0.3)], [math.log(0.7)]],
    finish_reason="length",
)


def test_a_token_may_lack_an_alternative_where_two_have_one_text():
    openai.check(GOOD, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "4 + 2"}, r"\[b'4', b' \+ 1'\] … that do not join to '4 \+ 2'"),
        (dict.fromkeys(("token_bytes", "topk_logprobs"), []), "returns no tokens"),
        ({"topk_logprobs": [[-1.0], [-1.0]]}, "at most 1 alternatives a token, of 2"),
        ({"topk_logprobs": [[-1.0, -2.0], []]}, "at most 2 alternatives"),
        ({"topk_logprobs": [[0.6, 0.3], [0.7]]}, "alternatives that sum to 3.172"),
    ],
)
def test_what_a_reply_lacks_is_named(changes, message):
    with pytest.raises(openai.ServerError, match=message):
        openai.check(dataclasses.replace(GOOD, **changes), 2)


def test_logprobs_must_not_follow_the_temperature():
    squared = [0.36 / 0.45, 0.09 / 0.45]  # 0.6 and 0.3 at temperature 1/2
    cold = [[math.log(p) for p in squared], [0.0]]
    openai.check_temperature(GOOD, GOOD)
    cold = dataclasses.replace(GOOD, topk_logprobs=cold)
    with pytest.raises(openai.ServerError, match="differ by 0.41 nats between"):
        openai.check_temperature(GOOD, cold)
