"""Artifacts are whole or absent, and the same values give the same bytes."""

import os

import pandas as pd
import pytest
from datasets import Dataset

from cotspec import artifacts

ROWS = {
    "problem_id": ["a", "b"],
    "token_bytes": [[b"\xe2", b"\x82"], []],
    "topk_ids": [[[1, 2], [3, 4]], [[5, 6]]],
}


def test_a_dataset_comes_back_as_written_from_the_same_bytes(tmp_path, monkeypatch):
    whole = Dataset.from_dict(ROWS)
    for dataset in (whole, whole.select([1])):  # only the selected rows are written
        one, two = (
            artifacts.write_dataset(tmp_path / f"{name}.parquet", dataset)
            for name in ("one", "two")
        )
        for most in (1 << 20, 0):  # in memory, mapped
            monkeypatch.setattr(artifacts, "MOST_IN_MEMORY", most)
            assert artifacts.read_dataset(one).to_dict() == dataset.to_dict()
        assert one.read_bytes() == two.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"one.parquet", "two.parquet"}


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = artifacts.write_bytes(tmp_path / "f", b"old")

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        artifacts.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_published_folder_replaces_the_old_one_whole(tmp_path):
    sums = set()
    for name, file, text in (("a", "1", "x"), ("b", "1", "y"), ("c", "2", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
        artifacts.write_folder(tmp_path / "out", tmp_path / name)
        sums.add(artifacts.checksum(tmp_path / "out"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["2"]
    assert len(sums) == 3  # names and contents count


@pytest.mark.parametrize("most", [1 << 20, 0])
def test_a_truncated_parquet_file_is_named(most, tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "MOST_IN_MEMORY", most)
    path = artifacts.write_dataset(tmp_path / "d.parquet", Dataset.from_dict(ROWS))
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[:30] + b"\xff" * 20 + whole[50:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="d.parquet: not a readable Parquet"):
            artifacts.read_dataset(path)


def test_frames_are_written_with_stable_text(tmp_path):
    frame = pd.DataFrame({"task": ["gsm8k"], "accuracy": [1 / 3]})
    path = artifacts.write_frame(tmp_path / "t.csv", frame)
    assert path.read_text() == "task,accuracy\ngsm8k,0.333333\n"
