"""Recorded traces as a backend."""

import json
import logging
import math
import os

import pytest
from datasets import Dataset
from test_teacher_store import completion, problems

from cotspec import alignment, artifacts, teacher
from cotspec.alignment.table import targets_table
from cotspec.micro import tokenizers as micro_tokenizers
from cotspec.profiles import TeacherConfig
from cotspec.teacher.release import _LISTS, _TOPS, read_traces
from cotspec.teacher.traces import FEATURES, as_dataset, as_row


def rows(num_questions: int = 3, num_samples: int = 2) -> list[dict]:
    asked = problems(f"{i}?" for i in range(num_questions))
    return [
        as_row(problem, s, completion(f"né {i}{s}."))
        for i, problem in enumerate(asked)
        for s in range(num_samples)
    ]


@pytest.fixture
def recorded(tmp_path):
    """A file as notebook 01 writes it."""
    return artifacts.write_dataset(tmp_path / "traces.parquet", as_dataset(rows()))


def draw(path, **changes) -> Dataset:
    """Ask for the recorded questions in another order, under other ids."""
    config = TeacherConfig(backend="recorded", path=str(path), **changes)
    backend = teacher.load_backend(config)
    asked = problems(["2?", " 0?\n"])
    return teacher.sample(asked, backend, num_samples=2, temperature=0.5, seed=0)


def as_json_line(row: dict) -> str:
    row = row | {"token_bytes": [b.decode("latin-1") for b in row["token_bytes"]]}
    tops = [[b.decode("latin-1") for b in step] for step in row["topk_bytes"]]
    return json.dumps(row | {"topk_bytes": tops}) + "\n"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_questions_are_found_by_their_text(recorded, kind):
    path = recorded.with_suffix(f".{kind}")
    if kind == "jsonl":
        path.write_text("".join(map(as_json_line, rows())))
    traces = draw(path)
    whole = as_dataset(rows())
    expected = [whole[i] | {"problem_id": f"p/{i < 2:d}"} for i in (4, 5, 0, 1)]
    asked = {"question": ["2?"] * 2 + [" 0?\n"] * 2}  # the problem's own
    assert traces.to_dict() == Dataset.from_list(expected).to_dict() | asked


def test_a_line_separator_in_a_text_and_a_byte_order_mark_are_read(tmp_path):
    made = rows()
    for row in made:
        row["question"] = row["question"].replace("?", "\u2028?\x85")
    lines = "\n".join(as_json_line(row).replace("\\u2028", "\u2028") for row in made)
    (tmp_path / "t.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert len(read_traces(tmp_path / "t.jsonl")) == len(made)


def test_a_file_is_read_by_its_own_name_and_as_it_is_now(tmp_path):
    # As a pattern the second name means the first; then another file at the same time.
    for text, name in enumerate(["t1", "t[1]", "t[1]"]):
        path, made = tmp_path / f"{name}.parquet", rows()[0] | {"completion": str(text)}
        artifacts.write_dataset(path, as_dataset([made]))
        os.utime(path, (1e9, 1e9))
        artifacts._checksum_of.cache_clear()  # another process
        assert read_traces(path)["completion"][:] == [str(text)]


def test_the_file_is_hashed_once(recorded, monkeypatch):
    counted, checksum = [], artifacts.checksum
    monkeypatch.setattr(
        artifacts, "checksum", lambda p: counted.append(p) or checksum(p)
    )
    draw(recorded)
    assert counted == [recorded]


def test_of_more_alternatives_the_best_are_taken_each_once(recorded):
    def worst_first(row):  # and the best again, as where it was sampled
        return {name: [[*step[::-1], step[0]] for step in row[name]] for name in _TOPS}

    made = [row | worst_first(row) for row in rows()]
    artifacts.write_dataset(recorded, as_dataset(made))
    for top_k in (1, 3):
        given = draw(recorded, top_k=top_k)["topk_ids"][0]
        assert given == [[i, 7][:top_k] for i in range(len(given))]


def test_what_is_not_recorded_is_left_out_and_counted(recorded, caplog):
    first = as_dataset([*rows(num_samples=1), *rows(num_samples=1)])
    artifacts.write_dataset(recorded, first)
    with caplog.at_level(logging.WARNING):
        traces = draw(recorded)
    assert list(traces["sample_id"]) == [0, 0]
    assert "3 traces repeat a sample_id" in caplog.text
    assert "2 of 4 solutions are missing" in caplog.text


LINES = "".join(map(as_json_line, rows()))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", LINES[:-20], "line 6: "),
        ("t.jsonl", LINES.replace("finish_reason", "x"), "line 1: 'finish_r"),
        ("t.pkl", "", "Parquet or .jsonl"),
        ("nowhere.parquet", None, "teacher.path: .*nowhere.* does not exist"),
        ("", None, "teacher.path: '' does not exist"),
    ],
)
def test_a_file_without_traces_is_named(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
        message = f"{name}: no traces .*{message}"
    with pytest.raises(ValueError, match=message):
        draw(name and tmp_path / name)


ODD = {"sample_id": "x", "question": 3, "finish_reason": [1], "topk_bytes": None}
ODD |= {"token_bytes": [1], "token_ids": ["x"] * 7, "token_logprobs": ["x"] * 7}


@pytest.mark.parametrize(("name", "value"), ODD.items())
def test_an_odd_row_costs_its_solution_alone(tmp_path, name, value):
    *whole, last = LINES.splitlines()
    lines = [*whole[:2], json.dumps(json.loads(last) | {name: value}), whole[-1]]
    (tmp_path / "t.jsonl").write_text("\n\n".join(lines))
    assert draw(tmp_path / "t.jsonl")["completion"][:] == ["né 20.", "né 00.", "né 01."]


# --- the data's own solutions ---------------------------------------------------------


def written(rationales, **changes) -> Dataset:
    asked = problems(rationales).add_column("rationale", rationales)
    backend = teacher.load_backend(TeacherConfig(backend="dataset"))
    options = {"num_samples": 1, "temperature": 0.5, "seed": 0} | changes
    return teacher.sample(asked, backend, **options)


def test_the_datas_own_solutions_are_words_that_join_to_the_text():
    [row] = written(["5 - 5\n= 0 clips"])
    assert row["completion"] == "5 - 5\n= 0 clips. The answer is 1."
    assert b"".join(row["token_bytes"]) == row["completion"].encode()
    assert row["token_bytes"][:4] == [b"5", b" -", b" 5", b"\n="]
    assert [step for step in row["topk_bytes"]] == [[b] for b in row["token_bytes"]]
    assert {p for step in row["topk_logprobs"] for p in step} == {0.0}


def test_a_written_solution_is_one_hot_in_the_students_tokens():
    traces = written(["She has 48 + 24 = 72 clips"])
    tokenizer = micro_tokenizers.load_student()
    for method in ("offsets", "dtw"):
        done = alignment.align_all(traces, tokenizer, method=method)
        [row] = targets_table(traces, done)
        steps = zip(row["student_ids"], row["topk_ids"], row["topk_probs"], strict=True)
        for token, candidates, probs in steps:
            assert probs[candidates.index(token)] == 1.0


def test_one_solution_a_question_and_a_changed_one_is_another_sample(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(written(["1 + 1 = 2", ""], num_samples=3, store=tmp_path)) == 1
    assert "5 of 6 solutions are missing" in caplog.text
    [row] = written(["2 - 2 = 0", ""], store=tmp_path)
    assert row["completion"].startswith("2 - 2")


BAD_LISTS = {
    "token_logprobs": [[0.5] * 7, [math.nan] * 7, [None] * 7, [-1.0]],
    "topk_logprobs": [[[-0.1, -0.1]] * 7, [[-0.1]] * 7, [None] * 7],
    "topk_bytes": [[]],
    "token_bytes": [[None] * 7],
}


@pytest.mark.parametrize("name", ["completion", *_LISTS, *_TOPS])
def test_what_holds_no_log_probabilities_is_left_out(tmp_path, name):
    [row] = rows(1, 1)
    for value in (row[name], None, *BAD_LISTS.get(name, ())):
        columns = {c: [value if c == name else row[c]] for c in row}
        Dataset.from_dict(columns, features=FEATURES).to_parquet(tmp_path / "t.parquet")
        assert len(draw(tmp_path / "t.parquet")) == (value is row[name])


@pytest.mark.parametrize("at", [0, 30, 400, -20])
def test_a_damaged_parquet_file_is_named(recorded, at):
    content = bytearray(recorded.read_bytes())
    content[at : at + 20 or None] = b"\xff" * 20
    recorded.write_bytes(content)
    with pytest.raises(ValueError, match="traces.parquet: no traces"):
        read_traces(recorded)
