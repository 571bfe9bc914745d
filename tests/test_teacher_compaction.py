"""One compact file of traces."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_teacher_store import completion

from cotspec.teacher.compaction import TraceFile, compact, map_once, write_mapped
from cotspec.teacher.traces import FEATURES, as_dataset, as_row


def rows(num_questions: int = 3, num_samples: int = 2) -> list[dict]:
    made = []
    for i in range(num_questions):
        problem = {"problem_id": f"p/{i}", "task": "gsm8k"}
        problem |= {"question": f"{i}?", "answer": str(i)}
        made += [
            as_row(problem, s, completion(f"né {i}{s}.")) for s in range(num_samples)
        ]
    return made


def test_a_question_is_read_alone_and_whole(tmp_path):
    file = TraceFile(compact(rows(), tmp_path / "traces.parquet"))
    assert file.problem_ids == ["p/0", "p/1", "p/2"]
    assert len(file) == 6
    solutions = file.solutions("p/1")
    assert solutions.features == FEATURES
    assert solutions.to_list() == as_dataset(rows()[2:4]).to_list()
    assert file.question("p/1") == "1?"


def test_ids_are_int32_and_logprobs_float16(tmp_path):
    schema = pq.read_schema(compact(rows(), tmp_path / "traces.parquet"))
    assert str(schema.field("token_ids").type.value_type) == "int32"
    assert str(schema.field("token_logprobs").type.value_type) == "halffloat"
    assert str(schema.field("topk_logprobs").type.value_type.value_type) == "halffloat"


def test_equal_traces_make_equal_bytes_from_rows_or_dataset(tmp_path):
    first = compact(rows(), tmp_path / "first.parquet")
    second = compact(as_dataset(rows()), tmp_path / "second.parquet")
    assert first.read_bytes() == second.read_bytes()


def test_half_precision_costs_less_than_a_thousandth(tmp_path):
    row = rows(1, 1)[0]
    row["token_logprobs"] = [-0.123456, -1.23456, -5.4321, -9.87654, -0.001234, -20.5]
    file = TraceFile(compact([row], tmp_path / "traces.parquet"))
    read = np.array(file.dataset()[0]["token_logprobs"])
    assert np.max(np.abs(read / row["token_logprobs"] - 1)) < 1e-3


def test_traces_that_are_scattered_or_doubled_are_refused(tmp_path):
    mixed = rows()
    with pytest.raises(ValueError, match="problem_id: 'p/0' has a trace twice, or"):
        compact([*mixed, mixed[0]], tmp_path / "traces.parquet")
    with pytest.raises(ValueError, match="problem_id: 'p/0' has a trace twice"):
        compact([mixed[0], mixed[0]], tmp_path / "traces.parquet")
    assert not (tmp_path / "traces.parquet").exists()


def test_a_foreign_parquet_file_is_refused(tmp_path):
    as_dataset(rows()).to_parquet(str(tmp_path / "foreign.parquet"))
    with pytest.raises(ValueError, match="row group 0 holds several questions"):
        TraceFile(tmp_path / "foreign.parquet")


def test_a_mapped_table_holds_what_was_written_and_takes_no_memory(tmp_path):
    before = pa.total_allocated_bytes()
    mapped = write_mapped(iter(rows(40, 8)), tmp_path / "traces.parquet")
    assert pa.total_allocated_bytes() - before < mapped.data.nbytes / 10
    assert mapped.to_list() == as_dataset(rows(40, 8)).to_list()


def test_a_filtered_table_leaves_no_file_beside_the_samples(tmp_path):
    mapped = write_mapped(iter(rows()), tmp_path / "traces.parquet")
    assert len(mapped.filter(lambda row: row["sample_id"] == 0)) == 3
    assert len(mapped.map(lambda row: {"length": len(row["completion"])})) == 6
    assert [file.name for file in tmp_path.iterdir()] == ["traces.parquet"]


def test_a_mapped_table_is_written_again_only_for_other_traces(tmp_path):
    path = tmp_path / "traces.parquet"
    first = map_once(iter(rows()), path, identity="a")
    unread = iter(rows(1, 1))
    again = map_once(unread, path, identity="a")
    assert again.to_list() == first.to_list() and len(list(unread)) == 1
    other = map_once(iter(rows(1, 1)), path, identity="b")
    assert other.to_list() == as_dataset(rows(1, 1)).to_list()
    assert first.to_list() == as_dataset(rows()).to_list()  # still mapped


def test_a_table_whose_writing_broke_off_is_written_again(tmp_path):
    path = tmp_path / "traces.parquet"
    map_once(iter(rows()), path, identity="a")

    def broken():
        yield rows()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_once(broken(), path, identity="b")
    assert len(map_once(iter(rows()), path, identity="b")) == 6
