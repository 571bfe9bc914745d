"""On real texts the scorer agrees with others, but for disagreements with a cause.

`disagreements_real.csv` counts them by cause. One oracle is lm-eval itself where it can
be imported, e.g. from a folder of ``pip install --target`` on PYTHONPATH.
"""

import importlib
import re
from collections import Counter
from pathlib import Path

import jinja2
import pytest
import scoring_oracles
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cotspec.answers import cut_at_next_question, lm_eval_flexible_score, score_math

slow_math_verify = pytest.param("math_verify", marks=pytest.mark.slow)


def test_gsm8k_solutions_score_themselves_right(data_dir):
    solutions = list(scoring_oracles.gsm8k_solutions(data_dir))
    scores = [score_math(solution, solution) for solution in solutions]
    assert all(score.is_correct for score in scores)
    assert Counter(s.tier for s in scores) == {"answer_is": 4, "hashes": 8_788}


@pytest.mark.parametrize("scorer", ["reference", "lm_eval_flexible", slow_math_verify])
def test_every_disagreement_on_real_texts_has_a_listed_cause(data_dir, scorer):
    found = scoring_oracles.disagreements_with(scorer, data_dir)
    assert found == scoring_oracles.explained(scorer)


def test_a_cause_explains_only_what_its_edit_repairs():
    completion = "She pays 1,000 + 1,000 = 2,000"
    cause = scoring_oracles.explain("reference", "own", completion, "2000")
    assert cause == "its pattern reads the last group of 2,000, 000"
    assert scoring_oracles.explain("reference", "own", "so -5", "5") is None


# --- lm-eval itself ------------------------------------------------------------------


@pytest.fixture(scope="module")
def lm_eval():
    """Score with lm-eval's own filters, metric and configuration of gsm8k_cot."""
    filters = pytest.importorskip("lm_eval.filters", reason="lm_eval is not installed")
    metrics = pytest.importorskip(
        "lm_eval.api.metrics", reason="lm_eval lacks what its metrics import"
    )
    folder = Path(importlib.import_module("lm_eval").__file__).parent
    config = yaml.safe_load((folder / "tasks/gsm8k/gsm8k-cot.yaml").read_text())
    named = {filters["name"]: filters["filter"] for filters in config["filter_list"]}
    steps = [
        filters.get_filter(step.pop("function"))(**step)
        for step in named["flexible-extract"]
    ]
    metric = config["metric_list"][0]
    options = ("regexes_to_ignore", "ignore_case", "ignore_punctuation")
    target = jinja2.Template(config["doc_to_target"])
    stop = re.compile("|".join(map(re.escape, config["generation_kwargs"]["until"])))

    def score(completion, gold, *, is_cut=False):
        text = completion if is_cut else stop.split(completion, maxsplit=1)[0]
        answers = [[text]]
        for step in steps:
            answers = step.apply(answers, [{}])
        found = metrics.exact_match_hf_evaluate(
            predictions=list(answers),
            references=[target.render(answer=gold)],
            **{name: metric[name] for name in options},
        )
        return bool(found["exact_match"])

    return score


def test_lm_eval_itself_agrees_with_our_copy_on_real_texts(data_dir, lm_eval):
    for _, _, completion, gold in scoring_oracles.real_cases(data_dir):
        ours = lm_eval_flexible_score(completion, gold)
        assert lm_eval(completion, gold) == ours, (completion, gold)


written = st.lists(
    st.sampled_from([*"0123456789.,$-# \n", "####", "The answer is ", " 4 ", "x", "½"])
).map("".join)


@settings(max_examples=1_000, deadline=None)
@given(st.one_of(written, st.text(max_size=60)), written)
def test_lm_eval_itself_agrees_with_our_copy_on_any_text(lm_eval, completion, gold):
    cut = cut_at_next_question(completion)
    theirs = lm_eval(cut, gold, is_cut=True)
    assert theirs == lm_eval_flexible_score(completion, gold)
