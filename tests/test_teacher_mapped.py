"""A Parquet file behind a `Dataset`: equal to a table in memory, read when asked."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, concatenate_datasets
from test_teacher_store import completion

from cotspec.teacher import compaction
from cotspec.teacher.mapped import MappedTable
from cotspec.teacher.traces import FEATURES, as_dataset, as_row

NUM_ROWS = 12


def rows() -> list[dict]:
    made = []
    for i in range(NUM_ROWS):
        problem = {"problem_id": f"p/{i // 3}", "task": "gsm8k", "answer": str(i)}
        problem["question"] = f"{i // 3}?"
        made.append(as_row(problem, i % 3, completion("né " + "9" * i)))
    return made


@pytest.fixture
def traces(tmp_path, monkeypatch) -> Dataset:
    monkeypatch.setattr(compaction, "ROWS", 5)  # two row groups, and a part of one
    return compaction.write_mapped(iter(rows()), tmp_path / "traces.parquet")


@pytest.mark.parametrize(
    "key", [0, -1, 4, 5, slice(3, 11), slice(0, 0), slice(None, None, 4), [11, 0, 5, 5]]
)
def test_any_rows_are_those_of_a_table_in_memory(traces, key):
    assert traces.features == FEATURES
    assert traces[key] == as_dataset(rows())[key]


def test_columns_selections_and_filters_are_those_of_a_table_in_memory(traces):
    expected = as_dataset(rows())
    assert list(traces) == list(expected)
    assert traces["completion"][:] == expected["completion"][:]
    assert traces["sample_id"][7] == expected["sample_id"][7]
    for chosen in (range(2, 9), [9, 1, 10]):
        assert traces.select(chosen).to_list() == expected.select(chosen).to_list()
    later = traces.select(range(2, 9)).select(range(4, 6)).select_columns(["answer"])
    assert later.to_dict() == {"answer": ["6", "7"]}
    assert traces.select(range(2, 9))[[6, 0]]["answer"] == ["8", "2"]
    kept = traces.filter(lambda row: row["sample_id"] == 1)
    assert kept["answer"][:] == ["1", "4", "7", "10"]
    assert traces.to_pandas()["answer"].tolist() == expected["answer"][:]
    assert traces.remove_columns(["answer"]).column_names == [
        name for name in FEATURES if name != "answer"
    ]


def test_a_mapped_table_takes_a_column_and_others_rows(traces):
    marked = traces.add_column("length", list(range(NUM_ROWS)))
    assert marked[7] == as_dataset(rows())[7] | {"length": 7}
    assert len(concatenate_datasets([traces, as_dataset(rows())])) == 2 * NUM_ROWS
    assert traces.map(lambda row: {"n": len(row["answer"])})["n"][:].count(2) == 2


def test_only_what_is_asked_for_is_read(traces, monkeypatch):
    read = []

    def watched(self, group, columns, **options):
        read.append((group, list(columns)))
        return real(self, group, columns, **options)

    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", watched)
    assert len(traces) == NUM_ROWS and traces.column_names == list(FEATURES)
    answers = traces.select_columns(["answer"])
    assert read == []
    assert answers[6] == {"answer": "6"} and answers[9] == {"answer": "9"}
    assert read == [(1, ["answer"])]
    assert answers[[11, 0, 10, 1]]["answer"] == ["11", "0", "10", "1"]
    assert read[1:] == [(0, ["answer"]), (2, ["answer"])]


def test_reading_all_by_and_by_keeps_little(traces):
    batches = traces.with_format("arrow").iter(batch_size=3)
    assert [len(batch) for batch in batches] == [3, 3, 3, 3]


def test_reading_all_row_by_row_keeps_a_row_group(tmp_path):
    traces = compaction.write_mapped(iter(rows() * 200), tmp_path / "traces.parquet")
    whole = traces.data.table.nbytes
    before = pa.total_allocated_bytes()
    used = [pa.total_allocated_bytes() - before for _ in traces]
    assert len(used) == len(traces) and max(used) < whole / 4


def test_a_mapped_table_can_be_sent_to_another_process(traces):
    table = pickle.loads(pickle.dumps(traces.data.slice(4, 3)))
    assert isinstance(table, MappedTable)
    assert table.table.column("answer").to_pylist() == ["4", "5", "6"]


def test_log_probabilities_are_float16_on_disk_and_float32_in_hand(traces):
    stored = pq.read_schema(traces.data.path)
    assert stored.field("topk_logprobs").type == pa.list_(pa.list_(pa.float16()))
    assert traces.data.schema.field("token_logprobs").type == pa.list_(pa.float32())
    numbers = np.array(traces[11]["token_logprobs"])
    assert np.array_equal(numbers, numbers.astype(np.float16))
