"""Recorded traces as a backend."""

import json
import logging

import pytest
from datasets import Dataset
from test_teacher_store import completion

from cotspec import alignment, artifacts, teacher
from cotspec.alignment.table import targets_table
from cotspec.micro import tokenizers as micro_tokenizers
from cotspec.profiles import ALIGNMENT_METHODS, TeacherConfig
from cotspec.teacher import release as recorded
from cotspec.teacher.release import read_traces
from cotspec.teacher.traces import as_dataset, as_row


def problems() -> Dataset:
    """The recorded questions in another order, under other ids."""
    questions = ("2?", " 0?\n")
    return Dataset.from_list(
        [
            {"problem_id": f"other/{q.strip()}", "task": "gsm8k", "question": q}
            | {"answer": "7"}
            for q in questions
        ]
    )


def rows(num_questions: int = 3, num_samples: int = 2) -> list[dict]:
    made = []
    for i in range(num_questions):
        problem = {"problem_id": f"p/{i}", "task": "gsm8k"}
        problem |= {"question": f"{i}?", "answer": str(i)}
        made += [
            as_row(problem, s, completion(f"né {i}{s}.")) for s in range(num_samples)
        ]
    return made


def compact(made, path):
    return artifacts.write_dataset(path, as_dataset(made))


def draw(path, **changes) -> Dataset:
    config = TeacherConfig(backend="recorded", path=str(path), **changes)
    backend = teacher.load_backend(config)
    return teacher.sample(problems(), backend, num_samples=2, temperature=0.5, seed=0)


def as_json_line(row: dict) -> str:
    row = row | {"token_bytes": [b.decode("latin-1") for b in row["token_bytes"]]}
    tops = [[b.decode("latin-1") for b in step] for step in row["topk_bytes"]]
    return json.dumps(row | {"topk_bytes": tops}) + "\n"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_questions_are_found_by_their_text(tmp_path, kind):
    path = tmp_path / f"traces.{kind}"
    if kind == "jsonl":
        path.write_text("".join(map(as_json_line, rows())))
    else:
        compact(rows(), path)
    traces = draw(path)
    recorded = as_dataset(rows())
    expected = [recorded[i] for i in (4, 5, 0, 1)]
    assert [row["completion"] for row in traces] == [
        row["completion"] for row in expected
    ]
    assert list(traces["token_bytes"]) == [row["token_bytes"] for row in expected]
    assert list(traces["problem_id"]) == ["other/2?"] * 2 + ["other/0?"] * 2
    assert set(traces["answer"]) == {"7"}  # the problem's, not the recording's


def test_a_line_separator_in_a_text_and_a_byte_order_mark_are_read(tmp_path):
    made = rows()
    for row in made:
        row["question"] = row["question"].replace("?", "\u2028?\x85")
    lines = "\n".join(as_json_line(row).replace("\\u2028", "\u2028") for row in made)
    (tmp_path / "t.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert len(recorded.read_traces(tmp_path / "t.jsonl")) == len(made)


def test_a_torn_line_is_named_with_its_file(tmp_path):
    text = "".join(map(as_json_line, rows()))
    (tmp_path / "t.jsonl").write_text(text[:-20])
    with pytest.raises(ValueError, match="t.jsonl, line 6: not JSON"):
        draw(tmp_path / "t.jsonl")


def test_the_file_is_hashed_once(tmp_path, monkeypatch):
    path = compact(rows(), tmp_path / "traces.parquet")
    counted, checksum = [], artifacts.checksum
    monkeypatch.setattr(
        artifacts, "checksum", lambda p: counted.append(p) or checksum(p)
    )
    draw(path)
    assert counted == [path]


def test_fewer_alternatives_may_be_asked_for(tmp_path):
    traces = draw(compact(rows(), tmp_path / "traces.parquet"), top_k=1)
    assert {len(step) for row in traces["topk_ids"] for step in row} == {1}


def test_what_is_not_recorded_is_left_out_and_counted(tmp_path, caplog):
    path = compact([r for r in rows() if r["sample_id"] == 0], tmp_path / "t.parquet")
    with caplog.at_level(logging.WARNING):
        traces = draw(path)
    assert list(traces["sample_id"]) == [0, 0]
    assert "2 samples are not in it" in caplog.text


def test_a_missing_column_is_named(tmp_path):
    path = tmp_path / "traces.jsonl"
    row = rows()[0]
    del row["finish_reason"]
    path.write_text(as_json_line(row))
    with pytest.raises(ValueError, match="column 'finish_reason' is missing"):
        read_traces(path)


def test_another_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "traces.pkl"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"traces.pkl'. Allowed: \*.parquet, \*.jsonl"):
        draw(path)


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="teacher.path: .*nowhere.* does not exist"):
        draw(tmp_path / "nowhere.parquet")


# --- the data's own solutions ---------------------------------------------------------


def written(rationales, **changes) -> Dataset:
    asked = [
        {"problem_id": f"p/{i}", "task": "gsm8k", "question": f"{i}?"}
        | {"answer": str(i), "rationale": rationale}
        for i, rationale in enumerate(rationales)
    ]
    backend = teacher.load_backend(TeacherConfig(backend="dataset"))
    options = {"num_samples": 1, "temperature": 0.5, "seed": 0} | changes
    return teacher.sample(Dataset.from_list(asked), backend, **options)


def test_the_datas_own_solutions_are_words_that_join_to_the_text():
    [row] = written(["5 - 5\n= 0 clips"])
    assert row["completion"] == "5 - 5\n= 0 clips. The answer is 0."
    assert b"".join(row["token_bytes"]) == row["completion"].encode()
    assert row["token_bytes"][:4] == [b"5", b" -", b" 5", b"\n="]
    assert [step for step in row["topk_bytes"]] == [[b] for b in row["token_bytes"]]
    assert {p for step in row["topk_logprobs"] for p in step} == {0.0}


def test_a_written_solution_is_one_hot_in_the_students_tokens():
    traces = written(["She has 48 + 24 = 72 clips"])
    tokenizer = micro_tokenizers.load_student()
    for method in ALIGNMENT_METHODS:
        read = [alignment.TeacherTrace.from_row(row) for row in traces]
        done = alignment.align_all(read, tokenizer, method=method)
        [row] = targets_table(traces, done)
        steps = zip(row["student_ids"], row["topk_ids"], row["topk_probs"], strict=True)
        for token, candidates, probs in steps:
            assert probs[candidates.index(token)] == 1.0


def test_one_solution_a_question_and_a_changed_one_is_another_sample(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(written(["1 + 1 = 2", ""], num_samples=3, store=tmp_path)) == 1
    assert "5 samples are not there" in caplog.text
    [row] = written(["2 - 2 = 0", ""], store=tmp_path)
    assert row["completion"].startswith("2 - 2")


def test_a_task_without_solutions_cannot_teach():
    with pytest.raises(ValueError, match="none of 2 problems.*data.train_task"):
        written(["", ""])
