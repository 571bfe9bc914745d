"""A store that survives a kill, and its table."""

import copy
import hashlib
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
from datasets import Dataset

from cotspec.teacher import store as stores
from cotspec.teacher import traces
from cotspec.teacher.store import SampleStore
from cotspec.teacher.traces import FEATURES, Completion, Request, SamplingOptions

OPTIONS = SamplingOptions(4, 0.5, seed=0)
TEACHER = SimpleNamespace(model="m", max_new_tokens=9, top_k=2)


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


def problems(questions) -> Dataset:
    names = {"task": "gsm8k", "answer": "1"}
    rows = [{"problem_id": f"p/{i}", "question": q} for i, q in enumerate(questions)]
    return Dataset.from_list([row | names for row in rows])


def test_a_sample_comes_back_as_it_went_in_and_is_stored_once(tmp_path):
    with SampleStore(tmp_path) as store:
        store.update([("k1", completion()), ("k2", completion("2."))])
        store.update([("k1", completion("1.")), ("k3", completion("3."))])
    with SampleStore(tmp_path) as store:
        assert list(store.offsets) == ["k1", "k2", "k3"]
        found = [store[key] for key in store.offsets]
        assert found == [completion(), completion("2."), completion("3.")]


def test_a_file_torn_at_any_byte_loses_its_last_sample_only(tmp_path):
    with SampleStore(tmp_path) as store:
        store.update([("k1", completion("1.")), ("k2", completion("2."))])
    path = tmp_path / stores.SAMPLES
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        with SampleStore(tmp_path) as torn:
            assert list(torn.offsets) == ["k1"]
            torn.update([("k2", completion("2."))])
        assert path.read_bytes() == whole


def sample_into(folder, number):
    """Module-level, so that a process can import it."""
    with SampleStore(folder) as store:
        for i in range(20):
            store.update([(f"{number} {i}", completion(f"{number} {i}."))])


def test_two_at_a_time_never_exchange_or_lose_a_sample(tmp_path):
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        list(pool.map(sample_into, [tmp_path] * 4, range(4)))
    with SampleStore(tmp_path) as store:
        assert len(store.offsets) == 80
        assert all(store[key].text == f"{key}." for key in store.offsets)


def rows_of(count):
    [problem] = problems(["q"])
    return [traces.as_row(problem, i, completion(f"né {i}.")) for i in range(count)]


def test_the_table_is_what_was_written_and_is_written_again_only_for_others(tmp_path):
    rows = rows_of(2_500)  # several batches
    table = stores.write_traces(iter(rows), tmp_path, identity="a")
    assert table.to_dict() == traces.as_dataset(rows).to_dict()
    assert table.features == FEATURES
    kept = stores.kept_traces(tmp_path, identity="a")
    assert kept.to_dict() == table.to_dict()
    assert kept.filter(lambda row: row["sample_id"] < 3).num_rows == 3
    assert stores.kept_traces(tmp_path, identity="b") is None

    def torn():
        yield rows_of(1)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stores.write_traces(torn(), tmp_path, identity="b")
    assert stores.kept_traces(tmp_path, identity="b") is None
    # No part of a table, and no cache of filter().
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {stores.TRACES, stores.MADE_OF}


REQUEST = Request("p/0", "né?", "Q: né?")
KEYS = traces.sample_keys(TEACHER, REQUEST, OPTIONS)


def test_a_key_is_the_hash_of_all_that_names_a_sample():
    """Written out: another formula would lose the samples of stores that exist."""
    identity = ["m", "p/0", "Q: né?", 0.5, 9, 2, 0, 3]
    expected = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    assert KEYS[3] == expected and len(set(KEYS)) == len(KEYS) == 4


KEYED = [(TEACHER, name) for name in ("model", "max_new_tokens", "top_k")]
KEYED += [(REQUEST, name) for name in ("problem_id", "prompt")]
KEYED += [(OPTIONS, name) for name in ("temperature", "seed", "num_samples")]


@pytest.mark.parametrize(("changed", "name"), KEYED)
def test_the_key_changes_with_everything_but_the_number_of_samples(changed, name):
    other = copy.copy(changed)
    vars(other)[name] = 40
    named = [other if it is changed else it for it in (TEACHER, REQUEST, OPTIONS)]
    keys = traces.sample_keys(*named)
    assert keys[:4] == KEYS if name == "num_samples" else not {*keys} & {*KEYS}


DAMAGED = [b"\n", b"garbage\n", b'{"key": 1}\n', b"\0\0\n"]
DAMAGED += [b'{"key":"torn"\n', b'{"key":"torn",\0\0}\n']


@pytest.mark.parametrize("between", DAMAGED)
def test_a_damaged_line_costs_no_other_sample(tmp_path, between, caplog):
    first, last = (stores.encode_line(key, completion("a")) for key in "kl")
    content = b"\xef\xbb\xbf" + first.replace(b"\n", b"\r\n") + between + last
    (tmp_path / stores.SAMPLES).write_bytes(content + b'{"key":"torn')
    with SampleStore(tmp_path) as samples:
        assert [samples[key].text for key in samples.offsets] == ["a", "a"]
        assert list(samples.offsets) == ["k", "l"]
    assert (tmp_path / stores.SAMPLES).read_bytes() == content
    assert "1 damaged lines" in caplog.text


@pytest.mark.parametrize("line", [b'{"key":"k",garbage}\n', b'{"key":"k","text":1}\n'])
def test_a_sample_that_cannot_be_read_is_named(tmp_path, line):
    (tmp_path / stores.SAMPLES).write_bytes(line)
    with SampleStore(tmp_path) as samples:
        with pytest.raises(ValueError, match="samples.jsonl: the sample at byte 0 is"):
            samples["k"]
