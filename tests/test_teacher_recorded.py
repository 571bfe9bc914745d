"""Recorded traces as a backend."""

import json
import logging

import pytest
from datasets import Dataset
from test_teacher_compaction import rows

from cotspec import teacher
from cotspec.profiles import TeacherConfig
from cotspec.teacher.compaction import compact
from cotspec.teacher.recorded import read_traces
from cotspec.teacher.traces import as_dataset


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
