"""Servers' replies, kept as they came."""

import gzip
import json

import pytest
from teacher_server import running
from test_teacher_openai import KEY, backend, draw

from cotspec.teacher import connection, replies
from cotspec.teacher.archive import ReplyArchive, read_archive


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_a_reply_comes_back_byte_by_byte(tmp_path):
    contents = [b'{"choices": []}\n', b"\x00\xff torn \xe2", b""]
    with ReplyArchive(tmp_path) as archive:
        for number, content in enumerate(contents):
            archive.append(f"p/{number}", (number, 7), content)
    kept = list(read_archive(tmp_path))
    assert [r["reply"] for r in kept] == contents
    assert [r["problem_id"] for r in kept] == ["p/0", "p/1", "p/2"]
    assert kept[2]["sample_ids"] == [2, 7]


def test_each_run_has_its_own_file(tmp_path):
    for number in range(3):
        with ReplyArchive(tmp_path) as archive:
            archive.append(f"p/{number}", (0,), b"{}")
    assert len(list(tmp_path.iterdir())) == 3
    assert [r["problem_id"] for r in read_archive(tmp_path)] == ["p/0", "p/1", "p/2"]


def test_a_file_torn_at_any_byte_loses_at_most_its_last_reply(tmp_path):
    with ReplyArchive(tmp_path) as archive:
        archive.append("p/0", (0,), b"first")
        archive.append("p/1", (0,), b"second")
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    first = len(whole) - len(whole.split(b"\x1f\x8b")[2]) - 2
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        kept = [r["reply"] for r in read_archive(tmp_path)]
        assert kept[:1] == [b"first"] and kept[1:] in ([], [b"second"])


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_the_samples_can_be_read_again_from_the_kept_replies(api, tmp_path):
    with running(0.2, faults=("500", "torn")) as server:
        traces = draw(backend(server, api=api), store=tmp_path)
    again = {}
    for record in read_archive(tmp_path):
        try:
            asked = {"top_k": 5, "n": len(record["sample_ids"])}
            reply = replies.read_reply(record["reply"], chat=api == "chat", **asked)
        except replies.InvalidReply:  # torn ones are kept too, and were asked again
            continue
        for index, completion in reply.completions.items():
            place = record["problem_id"], record["sample_ids"][index]
            again[place] = completion.text
    stored = zip(traces["problem_id"], traces["sample_id"], strict=True)
    assert again == dict(zip(stored, traces["completion"], strict=True))


def test_a_reply_that_repeats_the_key_is_kept_without_it(tmp_path):
    content = json.dumps({"you sent": f"Bearer {KEY}"}).encode()
    link = connection.Connection([], [], [], KEY, 1.0, 0, 0.1)
    assert link.without_key(content) == b'{"you sent": "Bearer [key]"}'


def test_no_key_and_no_header_is_in_the_folder(tmp_path):
    with running(0.2, faults=("500",)) as server:
        draw(backend(server), store=tmp_path)
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        assert KEY.encode() not in content
        assert b"uthorization" not in content


def test_nothing_is_kept_without_a_store():
    with running() as server:
        assert len(draw(backend(server))) == 30
