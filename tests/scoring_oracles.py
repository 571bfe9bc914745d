"""Other scorers of math answers, and the real texts on which they meet ours.

No test by itself: ``test_answers_real.py`` uses it. A disagreement is explained by an
edit: one that takes its cause out of the text, after which both scorers say the truth.
"""

import csv
import functools
import json
import re
from collections import Counter
from pathlib import Path

from math_verify import parse, verify

from cotspec import answers
from cotspec.answers import parse_number, score_math

EXPLAINED = Path(__file__).with_name("disagreements_real.csv")


@functools.lru_cache(maxsize=8)
def _math_verify_parse(text):
    return parse(text, parsing_timeout=None)


def math_verify_score(completion, gold):
    expected, predicted = _math_verify_parse(gold), _math_verify_parse(completion)
    return verify(expected, predicted, timeout_seconds=None)


SCORERS = {
    "reference": answers.reference_score,
    "lm_eval_flexible": answers.lm_eval_flexible_score,
    "math_verify": math_verify_score,
}


NO_FRACTION = r"\d+/\d+(?= pound)", "some"
NO_ANSWER_SENTENCE = "answer is", "result is"
NO_OPEN_NUMBER = r" < | of \$?\d+", ", "
LAST_GROUP = r"(?<=\d)[ ,](?=\d{3}(?!\d))", ""
NO_ANSWER = "(?i)answer", "solve"
# Per scorer, in order: what the disagreement comes from, and the edit that removes it.
CAUSES = {
    "reference": {
        "its pattern reads the last group of 2,000, 000": (r"(?<=\d),(?=\d{3})", ""),
        "the policy takes the first number after the sentence": NO_ANSWER_SENTENCE,
        "it reads 000 on both sides, of 100 000 and of 100,000": LAST_GROUP,
        "a denominator is the gold by luck; ours reads 1/3": NO_FRACTION,
        "ours takes no number behind < or of": NO_OPEN_NUMBER,
    },
    "lm_eval_flexible": {
        "it compares text: 990.00 is not 990": (r"(?<=\d)\.0+(?!\d)", ""),
        "it compares text: 0730 is not 730": (r"(?<![\d.,])0+(?=\d)", ""),
        "the policy takes the first number after the sentence": NO_ANSWER_SENTENCE,
        "a denominator is the gold by luck; ours reads 1/3": NO_FRACTION,
        "ours takes no number behind < or of": NO_OPEN_NUMBER,
    },
    "math_verify": {
        "it prefers what follows the word answer, in answered too": NO_ANSWER,
        "ours reads the minutes of 7:00 pm": (r"(?<=\d):00", ""),
        "ours takes no group of 80 000": (r"(?<=\d) (?=\d{3}(?!\d))", ""),
        "ours takes no digit of a name: mp3, D3, #12": (r"\b(mp|D)3\b|#\d+", ""),
        "it reads Week 3:210 as a ratio": (r"Week \d:", ""),
        "ours takes no number behind < or of": NO_OPEN_NUMBER,
    },
}


def real_texts(data_dir):
    """Name of a kind of text to pairs of (completion, its problem's gold)."""
    texts = {"solution": [], "without its last line": [], "answer sentence": []}
    for solution in gsm8k_solutions(data_dir):
        chain, gold = solution.rsplit("#### ", 1)
        texts["solution"].append((solution, gold))
        texts["without its last line"].append((chain, gold))
        sentence = f"{chain.strip()} The answer is {gold}."
        texts["answer sentence"].append((sentence, gold))
    samples = json.loads((data_dir / "codex/per_step_probs_question0.json").read_text())
    texts["Codex"] = [("".join(step[0][0] for step in s), "72") for s in samples]
    return texts


def gsm8k_solutions(data_dir):
    for split in ("train", "test"):
        with (data_dir / "gsm8k" / f"{split}.jsonl").open() as file:
            yield from (json.loads(line)["answer"] for line in file)


@functools.lru_cache(maxsize=1)
def real_cases(data_dir):
    """List (kind, whose gold, completion, gold): its own, and the next problem's."""
    cases = []
    for kind, pairs in real_texts(data_dir).items():
        others = [gold for _, gold in pairs[1:] + pairs[:1]]
        for (completion, gold), other in zip(pairs, others, strict=True):
            cases.append((kind, "own", completion, gold))
            if parse_number(other) != parse_number(gold):
                cases.append((kind, "another's", completion, other))
    return cases


@functools.lru_cache(maxsize=1)
def our_verdicts(data_dir):
    return [score_math(*case[2:]).is_correct for case in real_cases(data_dir)]


def explain(scorer, whose, completion, gold):
    """Return what a disagreement comes from, None if no listed cause does."""
    for explanation, edit in CAUSES[scorer].items():
        case = re.sub(*edit, completion), re.sub(*edit, gold)
        verdicts = {score_math(*case).is_correct, SCORERS[scorer](*case)}
        if verdicts == {whose == "own"}:
            return explanation
    return None


def disagreements_with(scorer, data_dir):
    """Count disagreements by the key columns of `EXPLAINED`; print the unexplained."""
    found = Counter()
    cases = zip(real_cases(data_dir), our_verdicts(data_dir), strict=True)
    for (kind, whose, completion, gold), ours in cases:
        if SCORERS[scorer](completion, gold) != ours:
            cause = explain(scorer, whose, completion, gold)
            found[scorer, kind, whose, cause] += 1
            if cause is None:
                print(f"{scorer}, {whose} gold {gold}: {completion[-120:]!r}")
    return found


def explained(scorer):
    """Return the committed table's counts of one scorer."""
    with EXPLAINED.open(newline="", encoding="utf-8") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    return {tuple(key): int(count) for *key, count in rows if key[0] == scorer}
