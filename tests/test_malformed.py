"""A thousand malformed inputs: each is a sentence that says what is wrong, or is read.

Real inputs are changed at random, with a fixed seed: cut off, bytes flipped, keys gone
or of another type, numbers that are none. Nothing but a `ValueError` (or a server's
own kind) with a message may come out.
"""

import json
import math
import random

import pytest
from safetensors.torch import save_file
from teacher_server import choices_for
from test_teacher_recorded import as_json_line, rows
from test_training import tiny_student

from cotspec import artifacts, profiles, stages, training
from cotspec.run import overrides_of
from cotspec.teacher import openai, store
from cotspec.teacher.release import as_completion, read_traces

NONSENSE = (None, "", "x", -1, 1e400, math.nan, True, [], {}, [[]], 10**400, "\u2028")


def anywhere(value, rng):
    """Return a copy of nested lists and dicts with one place changed."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.1:
        return rng.choice(NONSENSE)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    chosen, act = rng.choice(keys), rng.random()
    copy = dict(value) if isinstance(value, dict) else list(value)
    if act < 0.15:
        del copy[chosen]
    elif act < 0.25 and isinstance(copy, list):
        copy.append(copy[chosen])
    else:
        copy[chosen] = anywhere(copy[chosen], rng)
    return copy


def damaged(content, rng):
    """Cut a file off, or change some of its bytes."""
    if rng.random() < 0.3:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def changed(value, rng, share):
    """Return JSON with one place changed, and a share of it damaged."""
    content = json.dumps(anywhere(value, rng)).encode()
    return damaged(content, rng) if rng.random() < share else content


def outcome(function, *arguments, **options):
    """Return "read", or the sentence of a refusal."""
    try:
        function(*arguments, **options)
    except (ValueError, openai.InvalidReply, openai.ServerError, openai.Busy) as error:
        said = str(error)
        assert said.strip() and "Traceback" not in said, repr(error)
        # What a library says for itself names no field and no file.
        assert type(error).__module__.startswith(("cotspec", "builtins")), repr(error)
        return said
    return "read"


@pytest.mark.parametrize("api", ("completions", "chat"))
def test_replies(api):
    body = {"n": 3, "seed": 1, "max_tokens": 9, "top_logprobs": 5, "logprobs": 5}
    body |= {"messages": [{"content": "Q"}]} if api == "chat" else {"prompt": "Q"}
    reply = {"choices": choices_for(body, ""), "usage": {"total_tokens": 40}}
    rng, said = random.Random(api), set()
    for _ in range(200):
        content = changed(reply, rng, 0.3)
        said.add(outcome(openai.read_reply, content, top_k=5, n=3)[:20])
    assert "read" in said and len(said) > 5


def test_settings(tmp_path):
    known = profiles.as_dict(profiles.resolve("micro"))
    rng = random.Random(0)
    values = [*map(str, NONSENSE), *"1e999 0x1 1,2, [1 None micro-".split()]
    for _ in range(200):
        section = rng.choice(list(known))
        name = rng.choice(list(known[section]))
        item = section + rng.choice([f".{name}", name, f".{name}s"])
        text = rng.choice([f"{item}={rng.choice(values)}", item])
        said = outcome(overrides_of, "micro", [text], tmp_path)
        assert said == "read" or name in said or section in said, (text, said)
    for value in NONSENSE:
        outcome(profiles.resolve, "micro", value)
        outcome(profiles.resolve, "micro", {"training.max_steps": value, 1: 2})


def test_recorded_traces(tmp_path):
    rng, path = random.Random(0), tmp_path / "traces.jsonl"
    lines = [as_json_line(row) for row in rows(1)]

    def read():
        for row in read_traces(path):
            as_completion(row, 5)

    for _ in range(200):
        row = json.dumps(anywhere(json.loads(lines[0]), rng))
        content = f"{row}\n{lines[1]}".encode()
        path.write_bytes(damaged(content, rng) if rng.random() < 0.4 else content)
        said = outcome(read)
        assert said == "read" or str(path) in said, said


def test_tables_of_traces_are_made_again_from_their_samples(tmp_path):
    """Arrow would end the process with a bus error, or read other solutions."""
    rng, path = random.Random(0), tmp_path / store.TRACES
    made = store.write_traces(rows(1), tmp_path, identity="a").to_dict()
    whole = path.read_bytes()
    for number in range(300):
        head = (len(whole) - 1_200) * (number % 3 > 0)  # mostly the footer
        content = whole[:head] + damaged(whole[head:], rng) if number else b""
        artifacts.write_bytes(path, content)
        kept = store.kept_traces(tmp_path, identity="a")
        assert kept is None or content == whole
    assert store.write_traces(rows(1), tmp_path, identity="a").to_dict() == made


def test_notebooks_and_markers(tmp_path):
    rng = random.Random(0)
    source = stages.artifacts.repository_root() / "notebooks/02_filtering.ipynb"
    notebook = json.loads(source.read_text())
    path = tmp_path / source.name
    for _ in range(100):
        path.write_bytes(changed(notebook, rng, 0.3))
        said = outcome(stages.load_notebook, path)
        assert said == "read" or source.stem in said, said
    marker = {"key_parts": {"seed": 0}, "artifacts": {"x": {"path": "x"}}}
    folder = tmp_path / "artifacts" / source.stem
    for _ in range(100):
        artifacts.write_bytes(folder / artifacts.SUCCESS, changed(marker, rng, 1))
        outcome(stages.read_marker, tmp_path, source.stem)


def test_checkpoints(tmp_path):
    student, rng = tiny_student(), random.Random(0)
    kept = {name: p.detach() for name, p in student.model.named_parameters()}
    save_file(kept, tmp_path / "whole", {"format": "pt"})
    whole, folder = (tmp_path / "whole").read_bytes(), tmp_path / "step-1"
    folder.mkdir()
    for number in range(100):
        # The header, where names, types and places stand, or all.
        head = 2_000 if number % 2 else len(whole)
        content = damaged(whole[:head], rng) + whole[head:]
        (folder / "model.safetensors").write_bytes(content)
        said = outcome(training.load_checkpoint, student, folder)
        assert said == "read" or str(folder) in said, said
