"""The client against a local server that answers, fails and lies."""

import dataclasses
import email.utils
import logging
import time

import pytest
from datasets import Dataset
from teacher_server import FAULTS, running, tokens_of

from cotspec import teacher
from cotspec.profiles import TeacherConfig
from cotspec.teacher import connection, openai, replies
from cotspec.teacher.traces import sample_seed

KEY = "sk-not-a-real-key-1234567890"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def backend(server, **changes) -> openai.OpenAIBackend:
    options = {
        "max_in_flight": 8,
        "samples_per_request": 3,
        "timeout": 0.5,
        "backoff": 0.01,
        "max_new_tokens": 64,
    }
    return openai.OpenAIBackend("fake", (server.url,), **(options | changes))


def problems(count: int = 6) -> Dataset:
    rows = [
        {"problem_id": f"p/{i}", "task": "gsm8k", "question": f"{i}?", "answer": "1"}
        for i in range(count)
    ]
    return Dataset.from_list(rows)


def draw(source, count: int = 6, **changes):
    options = {"num_samples": 5, "temperature": 0.5, "seed": 1} | changes
    return teacher.sample(problems(count), source, **options)


def expected_text(row: int, sample_id: int, *, first: int) -> str:
    prompt = teacher.build_requests(problems())[row].prompt
    seed = sample_seed(1, f"p/{row}", first) % 2**31
    return "".join(tokens_of(prompt, seed, sample_id - first, 64))


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_traces_have_all_columns_and_each_sample_its_own_text(api):
    with running() as server:
        traces = draw(backend(server, api=api))
    keys = list(zip(traces["problem_id"], traces["sample_id"], strict=True))
    assert keys == [(f"p/{i}", s) for i in range(6) for s in range(5)]
    for i, row in enumerate(traces):
        first = 0 if row["sample_id"] < 3 else 3  # chunks of three, then two
        assert row["completion"] == expected_text(i // 5, row["sample_id"], first=first)
        assert b"".join(row["token_bytes"]) == row["completion"].encode()
        assert row["token_ids"] == [-1] * len(row["token_bytes"])
        assert [top[0] for top in row["topk_bytes"]] == row["token_bytes"]
        assert all(top == sorted(top, reverse=True) for top in row["topk_logprobs"])
        assert row["finish_reason"] == "stop"


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("fault", FAULTS)
def test_no_sample_is_lost_or_doubled_by(fault, api):
    with running(0.3, faults=(fault,)) as server:
        traces = draw(backend(server, api=api))
    assert server.log[fault] > 0
    keys = list(zip(traces["problem_id"], traces["sample_id"], strict=True))
    assert keys == [(f"p/{i}", s) for i in range(6) for s in range(5)]
    numbers = [n for row in traces["topk_logprobs"] for step in row for n in step]
    assert all(n <= 0 for n in numbers)  # NaN is not


def test_a_sample_topped_up_under_another_index_is_asked_for_again():
    """One of three choices is left out; the single reply for it has index 1 first."""
    with running(0.6, faults=("short", "other_index")) as server:
        assert len(draw(backend(server, max_in_flight=1))) == 30
    assert server.log["short"] > 2 and server.log["other_index"] > 2


def test_a_server_that_stays_at_another_index_fails_and_says_so():
    with running(1.0, faults=("other_index",)) as server:
        message = "no choices of index 0 to 2, 3 times"
        with pytest.raises(teacher.ServerError, match=message):
            draw(backend(server, max_retries=2, max_in_flight=1))


def test_all_faults_together_change_no_sample():
    """One sample a request, so that no chunk is topped up with other seeds."""
    with running() as calm, running(0.4) as wild:
        plain = draw(backend(calm, samples_per_request=1), num_samples=12)
        shaken = draw(backend(wild, samples_per_request=1), num_samples=12)
    assert sum(wild.log[fault] for fault in FAULTS) >= 10
    assert shaken.to_dict() == plain.to_dict()


def test_length_is_a_result_not_a_failure():
    with running() as server:
        traces = draw(backend(server, max_new_tokens=5))
    assert set(traces["finish_reason"]) == {"length"}
    assert server.log["requests"] == 2 + 12  # the probe, then two chunks a question


def test_requests_in_flight_are_bounded():
    with running(always="slow") as server:
        draw(backend(server, max_in_flight=3, samples_per_request=1))
    assert 2 <= server.most_in_flight <= 3


def test_several_servers_share_the_work():
    with running() as first, running() as second:
        source = dataclasses.replace(backend(first), base_urls=(first.url, second.url))
        assert len(draw(source)) == 30
    assert first.log["requests"] == second.log["requests"] == 7


def test_a_server_that_ignores_n_is_asked_for_one_at_a_time():
    with running(always="ignores_n") as server:
        traces = draw(backend(server))
    assert len(traces) == 30
    assert {body["n"] for body in server.bodies[2:]} == {1}


def test_another_4xx_fails_at_once_and_without_the_key():
    with running(always="401") as server:
        with pytest.raises(teacher.ServerError, match="status 401: .*no, ") as raised:
            draw(backend(server))
    assert server.log["requests"] == 1
    assert "not-a-real-key" not in str(raised.value).casefold()


def test_a_server_that_stays_broken_fails_after_the_retries():
    with running(always="500") as server:
        with pytest.raises(teacher.ServerError, match="status 500, 3 times"):
            draw(backend(server, max_retries=2))
    assert server.log["requests"] == 3


def test_what_arrived_before_a_failure_is_kept_and_not_asked_again(tmp_path):
    with running(0.5, faults=("403",)) as server:
        with pytest.raises(teacher.ServerError, match="status 403"):
            draw(backend(server, max_in_flight=1), count=40, store=tmp_path)
    kept = len(teacher.SampleStore(tmp_path))
    with running() as server:
        assert len(draw(backend(server), count=40, store=tmp_path)) == 200
        assert server.log["requests"] <= 2 + 80 - kept // 3
    assert kept > 0


def test_the_probe_refuses_a_server_that_returns_no_logprobs():
    with running(always="no_logprobs") as server:
        with pytest.raises(teacher.ServerError, match="returns no logprobs"):
            draw(backend(server))
    assert server.log["requests"] == 1


def test_a_budget_stops_the_run_and_says_so(caplog):
    with running() as server, caplog.at_level(logging.WARNING):
        traces = draw(backend(server, max_total_tokens=200, max_in_flight=1))
    assert 0 < len(traces) < 30
    assert "teacher.max_total_tokens" in caplog.text


@pytest.mark.parametrize(("counted", "num_requests"), ((150, 2), (99, 3)))
def test_a_budget_counts_what_the_server_counts(counted, num_requests):
    with running() as server:
        server.more = {"usage": {"total_tokens": counted}}
        options = {"max_total_tokens": 200, "max_in_flight": 1}
        traces = draw(backend(server, samples_per_request=1, **options))
    assert len(traces) == num_requests


def test_the_key_is_sent_and_appears_nowhere_else(caplog, capfd):
    with running(0.3) as server, caplog.at_level(logging.DEBUG):
        source = backend(server)
        draw(source)
    assert server.headers[0]["authorization"] == f"bearer {KEY}"
    captured = capfd.readouterr()
    for text in (repr(source), caplog.text, captured.out, captured.err):
        assert KEY not in text


@pytest.mark.parametrize("url", ["http://user:pw@host/v1", "http://h/v1?key=1", "h/v1"])
def test_an_address_with_a_secret_is_refused_without_showing_it(url):
    with pytest.raises(ValueError, match="not a plain http") as raised:
        openai.OpenAIBackend("fake", (url,))
    assert "pw" not in str(raised.value)


def test_without_a_base_url_the_server_is_openais():
    config = TeacherConfig(backend="openai", model="m", api="chat", max_in_flight=3)
    loaded = teacher.load_backend(config)
    assert loaded.base_urls == ("https://api.openai.com/v1",)
    assert (loaded.model, loaded.api, loaded.max_in_flight) == ("m", "chat", 3)


def test_an_unknown_api_is_named():
    with pytest.raises(ValueError, match="teacher.api: 'grpc'. Allowed: completions"):
        openai.OpenAIBackend("fake", ("http://h/v1",), api="grpc")


def test_retry_after_is_seconds_or_a_date():
    assert connection.retry_after("2.5") == 2.5
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 28 < connection.retry_after(soon) <= 31
    assert connection.retry_after(None) == connection.retry_after("soon") == 0


def test_retry_after_is_waited_for():
    with running(1.0, faults=("429",)) as server:
        server.fault_rate, started = 1.0, time.monotonic()
        with pytest.raises(teacher.ServerError, match="status 429"):
            draw(backend(server, max_retries=2, max_in_flight=1))
    assert time.monotonic() - started > 0.4  # twice the 0.2 s asked for


def reply_with(**changes) -> dict:
    logprobs = {
        "tokens": [" a", "."],
        "token_logprobs": [-0.5, -0.1],
        "top_logprobs": [{" a": -0.5}, {".": -0.1}],
    }
    return {"text": " a.", "finish_reason": "stop", "logprobs": logprobs | changes}


def test_tokens_behind_the_text_are_cut():
    choice = reply_with(
        tokens=[" a", ".", "\n\nQ:"],
        token_logprobs=[-1, -1, -1],
        top_logprobs=[{" a": -1}, {".": -1}, {"x": -1}],
    )
    read = replies.read_choice(choice, chat=False, top_k=1)
    assert read.token_bytes == [b" a", b"."]
    assert len(read.token_logprobs) == len(read.topk_bytes) == 2


def test_split_characters_are_read_as_bytes():
    assert replies.token_bytes("bytes:\\xe2\\x82") == b"\xe2\x82"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_logprobs": [None, -0.1]}, "token_logprobs holds None"),
        ({"token_logprobs": [-0.5]}, "2 tokens, 1 log-probabilities"),
        ({"top_logprobs": None}, "no top_logprobs"),
        (
            {"top_logprobs": [{" a": -0.5}, {".": float("nan")}]},
            "top_logprobs holds nan",
        ),
        ({"top_logprobs": [{" a": None}, {".": -0.1}]}, "top_logprobs holds None"),
        ({"tokens": []}, "no logprobs"),
    ],
)
def test_a_choice_without_its_numbers_is_refused(changes, message):
    with pytest.raises(replies.InvalidReply, match=message):
        replies.read_choice(reply_with(**changes), chat=False, top_k=1)
