"""GSM8K, MultiArith, SVAMP, ASDiv and BIG-Bench Hard as they were published.

Enters: a task name. Leaves: its rows, counted against the published number, each with
its id; the worked problems its prompts show, and of BBH also the sentence a prompt
begins with.
"""

import hashlib
import re
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from cotspec import answers, artifacts
from cotspec.profiles import BBH_TASKS
from cotspec.prompts import COT_TRIGGER, Demonstration
from cotspec.tasks.sources import SHIPPED, data_folder, read_rows

NUM_GSM8K = {"train": 7_473, "test": 1_319}  # 200 of train are held out
NUM_MULTIARITH_TEST = 400
NUM_MATH_DEMONSTRATIONS = 4
# Unscorable golds included.
NUM_PUBLISHED = {"gsm8k": 8_792, "multiarith": 600, "asdiv": 2_305, "svamp": 1_000}
NUM_PUBLISHED |= dict.fromkeys(BBH_TASKS, 250) | {"bbh/penguins_in_a_table": 146}
NUM_PUBLISHED |= {"bbh/causal_judgement": 187, "bbh/snarks": 178}
# Questions that the published sets themselves have twice.
NUM_REPEATED = {"multiarith": 20, "asdiv": 1}
NUM_REPEATED |= {"bbh/causal_judgement": 2, "bbh/sports_understanding": 2}
# A BBH file does not name its task; the CRC-32 of its smallest question does.
_BBH_MARKS = "6757 90a4 6ac6 6fcc 1591 c851 f42d c522 b1ad face cd2a c225 4660 8506 "
_BBH_MARKS += "ad7d 341e 0080 57e2 72a4 ae7a b9a8 3afd 566b 463c 87c9 5bd1 f66c"

_CALCULATOR = re.compile(r"<<[^<>]*>>")  # notes that no student shall learn
_UNIT = re.compile(r"\s*\([^()]*[^\d()/][^()]*\)\s*\Z")  # "9 (apples)", not "-(1/3)"


class Row(NamedTuple):
    """A published problem."""

    split: str
    index: int  # in the published file; of MultiArith, in the order of its texts
    question: str
    answer: str
    rationale: str = ""
    reason: str = ""  # why the gold cannot be scored


def problems(name: str) -> list[dict]:
    """Read a task, count it, and give every row its task and id."""
    rows = list(_READ[name.split("/")[0]](name))
    published, num_repeated = NUM_PUBLISHED[name], NUM_REPEATED.get(name, 0)
    num_different = len({row.question for row in rows})
    if len(rows) != published or num_different < published - num_repeated:
        said = f"{name}: {len(rows)} problems, {num_different} of them different, in"
        where = data_folder() or "the hub"
        raise ValueError(f"{said} {where}; {published} were published")
    width = len(str(max(row.index for row in rows)))
    ids = (f"{name}/{row.split}/{row.index:0{width}d}" for row in rows)
    named = zip(ids, rows, strict=True)
    return [row._asdict() | {"problem_id": one, "task": name} for one, row in named]


def demonstrations(name: str) -> list[Demonstration]:
    """Return what a prompt shows; every math task shows GSM8K's."""
    if name.startswith("bbh/"):
        return list(bbh_prompt(name)[1])
    # PAPER: 4 demonstrations "from the training set", which ones is not known here.
    # HERE: the first four training rows, because that needs no choice.
    train = (row for row in _gsm8k(name) if row.split == "train")
    return [
        Demonstration(row.question, row.rationale, row.answer)
        for row in islice(train, NUM_MATH_DEMONSTRATIONS)
    ]


def _plain_number(published: str, where: str) -> str:
    """Return a gold as plain digits: no commas, no trailing ``.0``."""
    value = answers.parse_number(published)
    if value is None:
        raise ValueError(f"{where}: gold {published.strip()!r} is not one number")
    if value.denominator == 1:
        return str(value.numerator)
    return published.strip().replace(",", "")


def _gsm8k(name: str) -> Iterator[Row]:
    """Yield train, 200 of them as validation, and test."""
    held_out = {("train", index) for index in validation_index()}
    for published, count in NUM_GSM8K.items():
        file = f"gsm8k/{published}.jsonl"
        rows = read_rows(file, ("question", "answer"), [published], "main")
        if len(rows) != count:  # the two may stand in each other's place
            raise ValueError(f"{file}: {len(rows)} problems; {count} were published")
        for index, row in enumerate(rows):
            split = "validation" if (published, index) in held_out else published
            rationale, _, gold = row["answer"].rpartition("####")
            answer = _plain_number(gold, f"{file}, item {index}")
            rationale = _CALCULATOR.sub("", rationale).strip()
            yield Row(split, index, row["question"].strip(), answer, rationale)


def validation_index() -> list[int]:
    """Return the 200 rows of the training file that the paper's code holds out."""
    return artifacts.read_json(SHIPPED / "gsm8k_validation_index.json")


def _multiarith(name: str) -> Iterator[Row]:
    """Yield 400 test and 200 validation problems, split by their texts."""
    file, keys = "multiarith/MultiArith.json", ("sQuestion", "lSolutions")
    pairs = []
    for index, row in enumerate(read_rows(file, keys, ["train", "test"])):
        question = row.get("sQuestion") or row["question"]  # the hub's name
        golds = row.get("lSolutions") or [row["final_ans"]]
        answer = _plain_number(", ".join(map(str, golds)), f"multiarith row {index}")
        pairs.append((" ".join(question.split()), answer))
    # PAPER: 400 problems are tested on and 200 validate; which ones is not known here.
    # HERE: the first 400 in the order of their texts' SHA-256, because the published
    # file is sorted by kind and the hub's order is another.
    pairs.sort(key=lambda pair: (hashlib.sha256(pair[0].encode()).digest(), pair[1]))
    for index, pair in enumerate(pairs):
        yield Row("test" if index < NUM_MULTIARITH_TEST else "validation", index, *pair)


def _svamp(name: str) -> Iterator[Row]:
    """Yield the 1,000 problems; ids are the published numbers."""
    keys = ("ID", "Body", "Question", "Answer")
    rows = read_rows("svamp/SVAMP.json", keys, ["train", "test"])
    by_id = {row["ID"]: row for row in rows}
    for number in range(1, len(rows) + 1):
        row = by_id.get(f"chal-{number}")
        if row is None:
            raise ValueError(f"svamp: no ID chal-{number} among {len(rows)} problems")
        question = f"{row['Body'].strip()} {row['Question'].strip()}"
        answer = _plain_number(str(row["Answer"]), f"svamp, chal-{number}")
        yield Row("test", number, question, answer)


def _asdiv(name: str) -> Iterator[Row]:
    """Yield the 2,305 problems, `reason` saying why a gold cannot be scored."""
    rows = read_rows("asdiv/ASDiv.xml", ("body", "question", "answer"), ["validation"])
    for index, row in enumerate(rows, start=1):  # as in the published "nluds-0001"
        question = f"{row['body'].strip()} {row['question'].strip()}"
        answer, reason = _asdiv_gold(row["answer"])
        yield Row("test", index, question, answer, reason=reason)


def _asdiv_gold(published: str) -> tuple[str, str]:
    """Return (gold, why it cannot be scored): ``9 (apples)`` gives ``("9", "")``."""
    if ";" in published:
        return published, "several numbers"
    if ":" in published:
        return published, "ratio or time"
    gold = _UNIT.sub("", published).strip()
    value = answers.parse_number(gold)
    if re.search(r"[A-Za-z]", gold) or value is None:
        return published, "words"
    return str(value) if "/" in gold else gold, ""


def _bbh(name: str) -> Iterator[Row]:
    """Yield the problems of one of the 27 tasks in published order."""
    stem, keys = name.removeprefix("bbh/"), ("input", "target")
    file = f"bbh/tasks/{stem}.json"
    rows = read_rows(file, keys, ["test"], stem)
    first = min((row["input"].strip() for row in rows), default="")
    known = dict(zip(_BBH_MARKS.split(), BBH_TASKS, strict=True))
    if (found := known.get(f"{zlib.crc32(first.encode()) % 2**16:04x}", name)) != name:
        raise ValueError(f"{file}: has the problems of {found}; fetch it again")
    for index, row in enumerate(rows):
        question, target = row["input"].strip(), row["target"].strip()
        answers.score_bbh(stem, "", target, prompt_mode="answer_only")  # checks it
        yield Row("test", index, question, target)


_READ = dict(gsm8k=_gsm8k, multiarith=_multiarith, svamp=_svamp, asdiv=_asdiv, bbh=_bbh)
_BBH_DEMONSTRATION = re.compile(
    rf"(?s)\n+Q: (.+?)\nA: {re.escape(COT_TRIGGER)}"
    r"(.+?answer is ([^\n]+?)\.?\s*)(?=\n+Q: |\Z)"
)


def bbh_prompt(name: str) -> tuple[str, tuple[Demonstration, ...]]:
    """Return (task description, demonstrations) of a published CoT prompt."""
    file = SHIPPED / "bbh-cot-prompts" / f"{name.removeprefix('bbh/')}.txt"
    # The first line is the canary, which must never reach a model; then "-----".
    _, _, prompt = file.read_text("utf-8").partition("\n-----\n")
    shown = tuple(
        Demonstration(question.strip(), chain.strip(), answer.strip())
        for question, chain, answer in _BBH_DEMONSTRATION.findall(prompt)
    )
    return re.split(r"\n+Q: ", prompt)[0].strip(), shown
