"""GSM8K, MultiArith, SVAMP, ASDiv and BIG-Bench Hard as they were published.

Enters: a task name and a folder, None for the hub. Leaves: rows with ``split, index,
question, answer``, GSM8K's with a ``rationale``, ASDiv's with the ``reason`` why a gold
cannot be scored ("" where it can); of BBH also the sentence a prompt begins with and
its three published demonstrations.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

from cotspec import answers
from cotspec.profiles import BBH_TASKS
from cotspec.prompts import COT_TRIGGER, Demonstration
from cotspec.tasks.sources import (
    SHIPPED,
    check_keys,
    from_hub,
    plain_number,
    read_json,
    read_json_lines,
    read_text,
)

NUM_GSM8K = {"train": 7_473, "test": 1_319}
NUM_VALIDATION = 200
NUM_MULTIARITH_TEST = 400
NUM_MATH_DEMONSTRATIONS = 4

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_UNIT = re.compile(r"\s*\([^()]*[^\d()/][^()]*\)\s*\Z")  # "9 (apples)", not "-(1/3)"


def gsm8k(name: str, folder: Path | None) -> Iterator[dict]:
    """Yield train, validation and test; ids are rows of the published files."""
    for published in ("train", "test"):
        yield from _gsm8k_file(published, folder)


def gsm8k_demonstrations(folder: Path | None) -> list[Demonstration]:
    """Return the first training problems; the test set is not read."""
    # PAPER: 4 demonstrations "from the training set", which ones is not known here.
    # HERE: the first four training rows, because that needs no choice.
    train = (r for r in _gsm8k_file("train", folder) if r["split"] == "train")
    return [
        Demonstration(row["question"], row["rationale"], row["answer"])
        for row in islice(train, NUM_MATH_DEMONSTRATIONS)
    ]


def _gsm8k_file(published: str, folder: Path | None) -> Iterator[dict]:
    """Yield the problems of one published file, 200 of train as validation."""
    held_out = set(validation_index()) if published == "train" else set()
    rows = _gsm8k_rows(published, folder)
    if len(rows) != NUM_GSM8K[published]:
        raise ValueError(
            f"gsm8k/{published}: {len(rows)} problems in {folder or 'the hub'}, "
            f"{NUM_GSM8K[published]} were published"
        )
    for index, row in enumerate(rows):
        rationale, _, gold = row["answer"].rpartition("####")
        yield {
            "split": "validation" if index in held_out else published,
            "index": index,
            "question": row["question"].strip(),
            "rationale": clean_rationale(rationale),
            "answer": plain_number(gold, f"gsm8k/{published} row {index}"),
        }


def clean_rationale(published: str) -> str:
    """Return a GSM8K solution without calculator notes, which no student shall learn.

    Examples
    --------
    >>> clean_rationale("Half of 48 is 48/2 = <<48/2=24>>24 clips.")
    'Half of 48 is 48/2 = 24 clips.'
    """
    return _CALCULATOR.sub("", published).strip()


def _gsm8k_rows(published: str, folder: Path | None) -> list[dict]:
    if folder is None:
        return from_hub("gsm8k", published, "main")
    path = folder / "gsm8k" / f"{published}.jsonl"
    return read_json_lines(path, ("question", "answer"))


def validation_index() -> list[int]:
    """Return the 200 rows of the training file that the paper's code holds out."""
    return read_json(SHIPPED / "gsm8k_validation_index.json")


def multiarith(name: str, folder: Path | None) -> Iterator[dict]:
    """Yield 400 test and 200 validation problems, split by their texts."""
    if folder is None:
        published = [
            (row["question"], row["final_ans"])
            for split in ("train", "test")
            for row in from_hub("multiarith", split)
        ]
    else:
        path = folder / "multiarith" / "MultiArith.json"
        rows = check_keys(read_json(path), ("sQuestion", "lSolutions"), path)
        published = [(row["sQuestion"], row["lSolutions"][0]) for row in rows]
    # PAPER: 400 problems are tested on and 200 validate; which ones is not known here.
    # HERE: the first 400 in the order of their texts' SHA-256, because the published
    # file is sorted by kind and the hub's order is another.
    pairs = [
        (" ".join(question.split()), plain_number(str(gold), f"multiarith row {index}"))
        for index, (question, gold) in enumerate(published)
    ]
    for index, (question, answer) in enumerate(sorted(pairs, key=_digest)):
        split = "test" if index < NUM_MULTIARITH_TEST else "validation"
        yield {"split": split, "index": index, "question": question, "answer": answer}


def _digest(row: tuple[str, str]) -> tuple[str, str]:
    return hashlib.sha256(row[0].encode("utf-8")).hexdigest(), row[1]


def svamp(name: str, folder: Path | None) -> Iterator[dict]:
    """Yield the 1,000 problems; ids are the published numbers."""
    keys = ("ID", "Body", "Question", "Answer")
    if folder is None:
        rows = [row for split in ("train", "test") for row in from_hub("svamp", split)]
    else:
        path = folder / "svamp" / "SVAMP.json"
        rows = check_keys(read_json(path), keys, path)
    for row in sorted(rows, key=lambda row: int(row["ID"].removeprefix("chal-"))):
        yield {
            "split": "test",
            "index": int(row["ID"].removeprefix("chal-")),
            "question": f"{row['Body'].strip()} {row['Question'].strip()}",
            "answer": plain_number(str(row["Answer"]), f"svamp {row['ID']}"),
        }


def asdiv(name: str, folder: Path | None) -> Iterator[dict]:
    """Yield the 2,305 problems, `reason` saying why a gold cannot be scored."""
    if folder is None:
        rows = from_hub("asdiv", "validation")
    else:
        rows = _asdiv_xml(folder / "asdiv" / "ASDiv.xml")
    for index, row in enumerate(rows, start=1):  # as in the published "nluds-0001"
        answer, reason = _asdiv_gold(row["answer"])
        yield {
            "split": "test",
            "index": index,
            "question": f"{row['body'].strip()} {row['question'].strip()}",
            "answer": answer,
            "reason": reason,
        }


def _asdiv_xml(path: Path) -> list[dict]:
    try:
        root = ElementTree.fromstring(read_text(path))
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not complete XML: {error}") from None
    rows = [
        {child.tag.lower(): child.text for child in problem if child.text}
        for problem in root.iter("Problem")
    ]
    return check_keys(rows, ("body", "question", "answer"), path)


def _asdiv_gold(published: str) -> tuple[str, str]:
    """Return (gold, why it cannot be scored): ``9 (apples)`` gives ``("9", "")``."""
    if ";" in published:
        return published, "several numbers"
    if ":" in published:
        return published, "ratio or time"
    gold = _UNIT.sub("", published).strip()
    if re.search(r"[A-Za-z]", gold) or answers.parse_number(gold) is None:
        return published, "words"
    return str(answers.parse_number(gold)) if "/" in gold else gold, ""


_TRIGGER = f"\nA: {COT_TRIGGER}"
_BBH_ANSWER = re.compile(r"answer is (.+?)\.?\s*\Z")


def bbh(name: str, folder: Path | None) -> Iterator[dict]:
    """Yield the problems of one of the 27 tasks in published order."""
    stem = name.removeprefix("bbh/")
    if folder is None:
        rows = from_hub("bbh", "test", stem)
    else:
        path = folder / "bbh" / "tasks" / f"{stem}.json"
        content = check_keys([read_json(path)], ("examples",), path)[0]
        rows = check_keys(content["examples"], ("input", "target"), path)
    for index, row in enumerate(rows):
        yield {
            "split": "test",
            "index": index,
            "question": row["input"].strip(),
            "answer": row["target"].strip(),
        }


@lru_cache(maxsize=len(BBH_TASKS))
def bbh_prompt(name: str) -> tuple[str, tuple[Demonstration, ...]]:
    """Return (task description, demonstrations) of a published CoT prompt."""
    origin = SHIPPED / "bbh-cot-prompts" / f"{name.removeprefix('bbh/')}.txt"
    text = read_text(origin)
    # The first line is the canary, which must never reach a model; then "-----".
    _, _, prompt = text.partition("\n-----\n")
    description, *blocks = re.split(r"\n+Q: ", prompt.strip())
    shown = tuple(_bbh_demonstration(block, origin) for block in blocks)
    if len(shown) != 3:
        raise ValueError(f"{origin}: {len(shown)} demonstrations, 3 were published")
    return description.strip(), shown


def _bbh_demonstration(block: str, origin: Path) -> Demonstration:
    question, trigger, chain = block.partition(_TRIGGER)
    stated = _BBH_ANSWER.search(chain)
    if not trigger or not stated:
        raise ValueError(f"{origin}: no answer after {question[:50]!r}")
    return Demonstration(question.strip(), chain.strip(), stated[1].strip())
