"""Final answers are read, normalised and compared as the scoring policy says."""

import csv
import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from math_verify import parse, verify
from scoring_oracles import SCORERS

from cotspec import answers
from cotspec.answers import cut_at_next_question, parse_number, score_bbh, score_math
from cotspec.profiles import BBH_TASKS, GENERIC_PROMPT_MODES

DISAGREEMENTS = Path(__file__).with_name("disagreements.csv")
# Texts with what is read from them; nearly all are what some model wrote.
CASES = json.loads(Path(__file__).with_name("answer_cases.json").read_text("utf-8"))
BBH_STEMS = [task.removeprefix("bbh/") for task in BBH_TASKS]


# --- math: which number, how it is read ----------------------------------------------


def number(written):
    return None if written is None else Fraction(written)


@pytest.mark.parametrize(("completion", "predicted", "tier"), CASES["tiers"])
def test_the_tier_says_where_the_number_was_found(completion, predicted, tier):
    score = score_math(completion, "1")
    assert (score.predicted, score.tier) == (number(predicted), tier)
    assert score.no_answer == (predicted is None)


@pytest.mark.parametrize(("written", "gold"), CASES["numbers"])
def test_a_number_is_read_exactly(written, gold):
    assert score_math(f"The answer is {written}.", gold).is_correct
    if not written.startswith("- "):  # alone it may be an item of a list
        assert parse_number(written) == number(gold)


@pytest.mark.parametrize(
    "written", ["", "none", "3:2", "5; 7", "1/0", "7-5", "1,2", "9" * 5000]
)
def test_what_is_not_one_number_is_none(written):
    assert parse_number(written) is None


@pytest.mark.parametrize(("completion", "numbers"), CASES["signs"])
def test_a_minus_is_a_sign_only_where_no_digit_precedes(completion, numbers):
    text = answers._normalise_number_text(completion)
    assert [found for found, _ in answers._numbers(text)] == list(map(number, numbers))


@pytest.mark.parametrize(("completion", "gold"), CASES["wrong"])  # two: equal as floats
def test_a_wrong_number_is_wrong(completion, gold):
    assert not score_math(completion, gold).is_correct


@pytest.mark.parametrize("gold", ["", "three", "3:2", "8; 40", "Mrs. Hilt"])
def test_an_unparsable_gold_is_an_error_that_names_it(gold):
    with pytest.raises(ValueError, match=f"gold: {re.escape(repr(gold))}"):
        score_math("The answer is 3.", gold)


def test_the_gold_may_be_a_whole_gsm8k_solution():
    assert score_math("The answer is 72.", "48/2 = <<48/2=24>>24\n#### 72").is_correct


@pytest.mark.parametrize(
    "continuation",
    ["\n\nQ: How many?\nA: The answer is 9.", "\nQ: 9", "\r\nQ: 9", " Q: 9 A: 9"],
)
def test_what_follows_the_next_question_does_not_count(continuation):
    assert score_math("The answer is 5." + continuation, "5").is_correct


@pytest.mark.parametrize(("completion", "predicted"), CASES["written"])
def test_what_models_write_is_read_as_it_is_meant(completion, predicted):
    assert score_math(completion, "1").predicted == number(predicted)


@pytest.mark.parametrize("statement", CASES["open"])
def test_a_statement_that_leaves_its_number_open_is_no_answer(statement):
    for before in ("", "9 * 2 = 18. "):
        text = f"{before}The answer is {statement}"
        assert answers.final_number(text) == (None, "none")
        assert not score_math(text, "18").is_correct


@pytest.mark.parametrize("statement", CASES["closed"])
def test_a_statement_with_more_than_its_number_is_an_answer(statement):
    assert score_math(f"The answer is {statement}", "18").is_correct


@pytest.mark.parametrize("task", CASES["taken back"])
def test_a_choice_that_is_taken_back_is_no_answer(task):
    case = CASES["taken back"][task]
    for text in case["texts"]:
        assert bbh(task, f"So the answer is {text}", case["target"]).no_answer, text


@pytest.mark.parametrize("text", CASES["denials"])
def test_a_denial_is_no_answer(text):
    assert answers.final_number(text.format(18)) == (None, "none")
    for task, said in (("navigate", "Yes"), ("snarks", "(B)"), ("word_sorting", "a b")):
        assert bbh(task, text.format(said), said).no_answer


@pytest.mark.parametrize(("said", "predicted"), CASES["bbh numbers"])
def test_bbh_numbers_are_read_as_math_is(said, predicted):
    for task in ("multistep_arithmetic_two", "object_counting"):
        assert bbh(task, f"So the answer is {said}.", "9").predicted == predicted


def test_a_chain_with_a_q_in_it_is_not_cut():
    chain = "Q has 3, and the shelf Q: has 4. The answer is 7."
    assert cut_at_next_question(chain) == chain


@given(
    st.fractions(max_denominator=10**6),
    st.sampled_from(["The answer is {}.", "so {}", "x\n#### {}", "answer is ${}"]),
)
def test_every_written_fraction_reads_back(number, sentence):
    assert score_math(sentence.format(number), str(number)).is_correct


@given(st.text(max_size=200), st.integers(-(10**9), 10**9))
@example("1/0", 1)
@example("answer is", 1)
def test_any_text_scores_without_an_error(completion, gold):
    score = score_math(completion, str(gold))
    assert score.no_answer == (score.predicted is None) == (score.tier == "none")
    assert score.is_correct == (score.predicted == gold)
    for score in (answers.reference_score, answers.lm_eval_flexible_score):
        assert score(completion, str(gold)) in (True, False)


@given(st.text(max_size=100), st.integers(-(10**6), 10**6), st.booleans())
def test_the_last_answer_sentence_decides(before, number, grouped):
    written = f"{number:,}" if grouped else str(number)
    completion = f"{cut_at_next_question(before)}. The answer is {written}."
    assert score_math(completion, str(number)).is_correct


plain_numbers = st.one_of(
    st.integers(0, 10**7).map(str),
    st.integers(1000, 10**7).map("{:,}".format),
    st.decimals(0, 10**5, places=2).map(str),
)


@settings(max_examples=150, deadline=None)
@given(plain_numbers, plain_numbers)
def test_math_verify_agrees_on_plain_numbers(written, gold):
    completion = f"First we add them up. The answer is {written}."
    texts = gold.replace(",", ""), completion
    sides = (parse(text, parsing_timeout=None) for text in texts)
    theirs = verify(*sides, float_rounding=9, timeout_seconds=None)
    assert score_math(completion, gold).is_correct == theirs


@given(st.integers(1, 10**7), st.integers(1, 10**7))
def test_lm_eval_agrees_where_the_last_word_is_a_plain_integer(written, gold):
    completion = f"We get 3 + 4. The answer is {written}"
    ours = score_math(completion, str(gold)).is_correct
    assert answers.lm_eval_flexible_score(completion, str(gold)) == ours


# --- the scores of others, and where they differ -------------------------------------


ROWS = list(csv.DictReader(DISAGREEMENTS.read_text("utf-8").splitlines()))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["completion"])
def test_each_listed_disagreement_is_what_the_table_says(row):
    completion, gold = row["completion"].replace("\\n", "\n"), row["gold"]
    scorers = {"cotspec": lambda *case: score_math(*case).is_correct} | SCORERS
    found = {name: score(completion, gold) for name, score in scorers.items()}
    assert found == {name: row[name] == "right" for name in found}
    assert len(set(found.values())) == 2, "no disagreement: the row does not belong"
    assert row["explanation"]


def test_the_faults_of_others_are_theirs():
    assert answers.reference_score("The answer is 5.", "They are equal")
    assert not answers.reference_score("no number", "5")
    # It strips the gold before it drops the dollar, not after.
    assert answers.lm_eval_flexible_score("so 5", " 5 ")
    assert not answers.lm_eval_flexible_score("so 5", "$ 5")


# --- BigBench-Hard's own targets and chains ------------------------------------------


@pytest.mark.parametrize("stem", BBH_STEMS)
def test_every_bbh_target_scores_itself_right_and_others_wrong(data_dir, stem):
    published = json.loads((data_dir / "bbh" / "tasks" / f"{stem}.json").read_text())
    targets = sorted({item["target"] for item in published["examples"]})
    for mode in GENERIC_PROMPT_MODES:
        for target in targets:
            sentence = f"We think. So the answer is {target}."
            assert score_bbh(stem, sentence, target, prompt_mode=mode).is_correct
            right = [
                other
                for other in {target, *targets[:20]}
                if score_bbh(stem, sentence, other, prompt_mode=mode).is_correct
            ]
            assert right == [target]
    for target in targets:
        assert score_bbh(stem, target, target, prompt_mode="answer_only").is_correct


# --- BigBench-Hard: typed answers ----------------------------------------------------


def bbh(task, completion, target, mode="chain_of_thought"):
    score = score_bbh(task, completion, target, prompt_mode=mode)
    assert score.no_answer == (score.predicted is None)
    return score


@pytest.mark.parametrize("mode", GENERIC_PROMPT_MODES)
def test_answers_are_read_by_the_type_of_the_task(mode):
    cases = CASES["bbh" if mode == "chain_of_thought" else "answer only"]
    for task, completion, predicted in cases:
        target = CASES["targets"].get(task, "(A)")
        found = bbh(task, completion, target, mode).predicted
        assert found == predicted, (task, completion)


def test_targets_that_are_an_options_text_compare_as_text():
    task, target = "movie_recommendation", "Monsters, Inc"
    assert bbh(task, f"So the answer is {target}.", target).is_correct
    assert not bbh(task, "The answer is (A).", target).is_correct


def test_bbh_errors_name_the_field_and_the_value():
    with pytest.raises(ValueError, match="prompt_mode: 'zero_shot'"):
        score_bbh("navigate", "Yes", "Yes", prompt_mode="zero_shot")
    with pytest.raises(ValueError, match="target: 'maybe' is no answer"):
        score_bbh("navigate", "Yes", "maybe", prompt_mode="answer_only")
    with pytest.raises(ValueError, match="target: ''"):
        score_bbh("last_letters", "abc", "", prompt_mode="answer_only")


@given(st.sampled_from([*BBH_STEMS, "last_letters"]), st.text(max_size=120))
def test_any_text_scores_as_bbh_without_an_error(stem, completion):
    target = CASES["targets"].get(stem, "(A)")
    for mode in GENERIC_PROMPT_MODES:
        bbh(stem, completion, target, mode)
        assert bbh(stem, f"The answer is {target}.", target, mode).is_correct
