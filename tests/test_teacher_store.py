"""Shards that survive a kill."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from cotspec.teacher import segments
from cotspec.teacher import store as stores
from cotspec.teacher.store import SampleStore
from cotspec.teacher.traces import Completion, Request, SamplingOptions, sample_keys

OPTIONS = SamplingOptions(4, 0.5, seed=0, max_new_tokens=9, top_k=2)


def completion(text: str = "né 3.") -> Completion:
    pieces = [bytes([byte]) for byte in text.encode()]
    length = len(pieces)
    return Completion(
        text=text,
        token_ids=list(range(length)),
        token_bytes=pieces,
        token_logprobs=[-0.25 * i for i in range(length)],
        topk_ids=[[i, 7] for i in range(length)],
        topk_bytes=[[piece, b"\xff"] for piece in pieces],
        topk_logprobs=[[-0.25 * i, -9.5] for i in range(length)],
        finish_reason="stop",
    )


def test_a_sample_comes_back_as_it_went_in(tmp_path):
    SampleStore(tmp_path).append([("k1", completion()), ("k2", completion("2."))])
    store = SampleStore(tmp_path)
    assert list(store) == ["k1", "k2"]
    assert store.get("k1") == completion()
    assert store.get("k2") == completion("2.")


def test_a_key_is_stored_once(tmp_path):
    store = SampleStore(tmp_path)
    store.append([("k", completion("1."))])
    store.append([("k", completion("2.")), ("other", completion())])
    assert store.num_duplicates == 1
    assert len(SampleStore(tmp_path)) == 2
    assert SampleStore(tmp_path).get("k") == completion("1.")


def test_a_shard_torn_at_any_byte_loses_its_last_sample_only(tmp_path):
    store = SampleStore(tmp_path)
    store.append([("k1", completion("1.")), ("k2", completion("2."))])
    [shard] = tmp_path.glob("shard-*")
    whole = shard.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        shard.write_bytes(whole[:length])
        torn = SampleStore(tmp_path)
        assert list(torn) == ["k1"]
        assert shard.read_bytes() == whole[:first]
        assert torn.num_torn == (length > first)
    torn.append([("k2", completion("2."))])
    assert shard.read_bytes() == whole


def test_a_full_shard_is_followed_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "SHARD_BYTES", 100)
    store = SampleStore(tmp_path)
    for number in range(3):
        store.append([(f"k{number}", completion(f"{number}."))])
    assert len(list(tmp_path.glob("shard-*"))) == 3
    reopened = SampleStore(tmp_path)
    assert [reopened.get(f"k{i}").text for i in range(3)] == ["0.", "1.", "2."]


def test_compaction_keeps_all_samples_and_appending_goes_on(tmp_path):
    store = SampleStore(tmp_path)
    for number, keys in enumerate(("ab", "cd", "e")):
        store.append([(key, completion(f"né {key}.")) for key in keys])
        if number < 2:
            store.compact(reversed(keys))
        for opened in (store, SampleStore(tmp_path)):
            assert sorted(opened) == list("abcde"[: 2 * number + len(keys)])
            assert opened.num_duplicates == opened.num_torn == 0
            for key in opened:
                assert opened.get(key) == completion(f"né {key}.")
    names = ["samples-00000.parquet", "samples-00001.parquet", "shard-00002.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_compacting_what_is_compact_or_empty_does_nothing(tmp_path):
    store = SampleStore(tmp_path)
    store.compact()
    assert list(tmp_path.iterdir()) == []
    store.append([("k", completion())])
    store.compact()
    [segment] = tmp_path.iterdir()
    before = segment.stat()
    store.compact()
    assert [segment] == list(tmp_path.iterdir()) and segment.stat() == before


def test_samples_in_one_order_make_equal_bytes_however_they_came(tmp_path):
    keys = [f"k{number}" for number in range(300)]  # several row groups
    written = []
    for name, arrived in (("first", keys), ("second", keys[::-1])):
        store = SampleStore(tmp_path / name)
        for key in arrived:
            store.append([(key, completion(f"{key}."))])
        store.compact(keys)
        assert list(SampleStore(tmp_path / name)) == keys
        assert [store.get(key).text for key in keys] == [f"{key}." for key in keys]
        written += (tmp_path / name).glob("samples-*")
    assert written[0].read_bytes() == written[1].read_bytes()


def test_shards_left_by_a_kill_after_compaction_are_removed_not_read(tmp_path):
    """A kill between the segment's last byte and the shards' removal."""
    store = SampleStore(tmp_path)
    store.append([("k1", completion("1.")), ("k2", completion("2."))])
    [shard] = tmp_path.glob("shard-*")
    lines = shard.read_bytes()
    store.compact()
    for left in (lines, lines[:-9]):  # whole, or torn before that
        shard.write_bytes(left)
        reopened = SampleStore(tmp_path)
        assert sorted(reopened) == ["k1", "k2"]
        assert reopened.num_duplicates == reopened.num_torn == 0
        assert not shard.exists()


def test_a_kill_during_compaction_leaves_the_shards(tmp_path, monkeypatch):
    store = SampleStore(tmp_path)
    store.append([("k1", completion("1.")), ("k2", completion("2."))])

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(segments.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            store.compact()
    reopened = SampleStore(tmp_path)
    assert sorted(reopened) == ["k1", "k2"]
    reopened.compact()
    assert [path.name for path in tmp_path.iterdir()] == ["samples-00000.parquet"]


@pytest.mark.parametrize("key", ["plain", 'with "quotes" and \\', "né", "{}"])
def test_keys_are_read_without_their_samples(key):
    line = stores.encode_line(key, completion())
    assert stores._key_of(line) == key
    assert stores._key_of(line[:-1]) is None
    assert stores._key_of(line.replace(b"stop", b"\0\0\0\0")) is None


def test_opening_reads_the_keys_alone(tmp_path, monkeypatch):
    store = SampleStore(tmp_path)
    store.append([("k1", completion("1."))])
    store.compact()
    store.append([("k2", completion("2."))])

    def decoded(*_):
        raise AssertionError("a sample was read")

    monkeypatch.setattr(stores, "decode_line", decoded)
    monkeypatch.setattr(segments.Segment, "get", decoded)
    assert sorted(SampleStore(tmp_path)) == ["k1", "k2"]


def test_a_compacted_position_takes_less_than_seventy_bytes(tmp_path):
    """Random numbers and ids, five alternatives: nothing repeats by accident."""
    rng, length = np.random.default_rng(0), 60
    store = SampleStore(tmp_path)
    for number in range(400):
        ids = np.minimum(rng.zipf(1.3, (length, 5)), 50_256)
        logprobs = np.log(rng.dirichlet(np.ones(6), length)[:, :5]).astype(np.float16)
        pieces = [[b" t%d" % i for i in step] for step in ids]
        sampled = [step[0] for step in pieces]
        made = Completion(
            text=b"".join(sampled).decode(),
            token_ids=ids[:, 0].tolist(),
            token_bytes=sampled,
            token_logprobs=logprobs[:, 0].tolist(),
            topk_ids=ids.tolist(),
            topk_bytes=pieces,
            topk_logprobs=logprobs.tolist(),
            finish_reason="stop",
        )
        store.append([(f"{number:032x}", made)])
    store.compact()
    assert SampleStore(tmp_path).get(f"{399:032x}") == made
    [segment] = tmp_path.iterdir()
    assert segment.stat().st_size / (400 * length) < 70


def key_of(request: Request, model: str = "m", options=OPTIONS, sample_id: int = 0):
    return sample_keys(model, request, options, [sample_id])[0]


def test_a_key_is_the_hash_of_all_that_names_a_sample():
    """Written out: another formula would lose the samples of stores that exist."""
    identity = ["m", "p/0", "Q: né?", 0.5, 9, 2, 0, 3]
    expected = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    request = Request("p/0", "né?", "Q: né?")
    assert sample_keys("m", request, OPTIONS, range(4))[3] == expected


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 0.6}, {"seed": 1}, {"max_new_tokens": 8}, {"top_k": 3}],
)
def test_the_key_changes_with_every_option(changes):
    request = Request("p/0", "1?", "Q: 1?")
    key = key_of(request)
    other = dataclasses.replace(OPTIONS, **changes)
    assert key_of(request, options=other) != key
    assert key_of(request, "n") != key
    assert key_of(request, sample_id=1) != key
    assert key_of(Request("p/1", "1?", "Q: 1?")) != key
    assert key_of(Request("p/0", "1?", "Q:  1?")) != key


def test_the_key_does_not_change_with_the_number_of_samples():
    request = Request("p/0", "1?", "Q: 1?")
    more = dataclasses.replace(OPTIONS, num_samples=40)
    assert key_of(request, options=more) == key_of(request)
