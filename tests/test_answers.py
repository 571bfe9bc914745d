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

from cotspec import answers
from cotspec.answers import (
    cut_at_next_question,
    lm_eval_flexible_score,
    parse_number,
    reference_score,
    score_bbh,
    score_math,
)
from cotspec.profiles import BBH_TASKS, GENERIC_PROMPT_MODES

DISAGREEMENTS = Path(__file__).with_name("disagreements.csv")
BBH_STEMS = [task.removeprefix("bbh/") for task in BBH_TASKS]


# --- math: which number, how it is read ----------------------------------------------

NO_ANSWERS = ("", "I do not know.", "so 9*2", "9 × 2 eggs", "3:2", "10^6", "10²")
NO_ANSWERS += ("at 7:30", "It is not 18", "2*3*4", "He buys 6 / 2")
# A part of an expression, one that breaks off, one of two, or not the number itself.
LAST_OPEN = (
    "3 + 18 | 7 - 3 | 5–7 | 3 + 18 = | So 5 apples + 3 apples + 18 | 5 apples - 3 kids "
    "| apples + 18 | apples x 18 | (5 + 3) * 2 | 5% - 2 | 2 * (3 | 2(18 | 10^-6 | 1e3 "
    "| 18 cm^2 | 1 : 18 | 60% of 240 | 3 kg of 18 | divide 36 by 18 | 36 eggs by 18 "
    "| 5 from 18 | 5 times 18 | 5 eggs plus 18 | 3 = 18 + | 18 -. | 18 eggs = | 18, "
    "| 18: | 18 ( | 18 dollars and | 18 or | 18 eggs by | 18 to | 17 or 18 | 17 to 18 "
    "| 17 eggs or 18 | between 17 and 18 eggs | 17 hours to 18 hours | 17 ~ 18 | 17-18 "
    "| neither 17 nor 18 | at least 18 | He has more than 18 | 20 > 18 | almost 18 eggs"
    " | nearly 18 | half of 18 | It can't be 18 | 18? | 18 or so | So 18. No, wait"
)
LAST_NUMBERS = (
    "3 + 15 = 18 | so 20 - 2 =18 | 9*2=<<9*2=18>>18 eggs | 20 + -2 = 18 | 20 - 2 is 18 "
    "| about 18 | approximately 18 miles | the 18th | 18.000 Euro | 18 times "
    "| 18 km/h | 18 eggs (in all) | Step 2: 18 | Total - 18 | - 18 eggs | * 18 eggs "
    "| It is *18* | 2 + 3\n18 | 10.5 kg or 18 | 36/2 or 18 | Those who cannot are 18 "
    "| He never did and has 18 | 18 more than he used to | a total of 18 "
    "| 9 more than Bob in 18 | not 17 but 18 | Rs18 | USD18 | in 2023 18 | in 7 18"
)


@pytest.mark.parametrize(
    ("completion", "predicted", "tier"),
    [
        ("2 + 3 = 5. The answer is 5.", 5, "answer_is"),
        ("The answer is 4. No: the answer is 7, not 4.", 7, "answer_is"),
        ("The answer is 18", 18, "answer_is"),
        ("THE ANSWER IS: 18", 18, "answer_is"),
        ("The answer is 12 apples, that is 4 for 2 kids.", 12, "answer_is"),
        ("She has 3 left.\n#### 3", 3, "hashes"),
        ("#### 3\nThe answer is 4.", 4, "answer_is"),
        ("She has 5, eats 2 and keeps 3", 3, "last_number"),
        ("He has 5. The answer is unknown.", 5, "last_number"),
        ("He pays 3 x 2 = 6 for the eggs, and 6 + 1 = 7", 7, "last_number"),
        ("mixed 3:2, that is 6", 6, "last_number"),
        ("Week 3:210", 210, "last_number"),
        *((text, 18, "last_number") for text in LAST_NUMBERS.split(" | ")),
        *((text, None, "none") for text in (*NO_ANSWERS, *LAST_OPEN.split(" | "))),
    ],
)
def test_the_tier_says_where_the_number_was_found(completion, predicted, tier):
    score = score_math(completion, "1")
    assert (score.predicted, score.tier) == (predicted, tier)
    assert score.no_answer == (predicted is None)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("10,000", 10000),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("10\u202f000", 10000),
        ("10\u2009000", 10000),
        ("-5", -5),
        ("\u22125", -5),
        ("-$5", -5),
        ("$-5", -5),
        ("-**5**", -5),
        ("**18**", 18),
        ("$29.00", 29),
        ("€ 7.50", Fraction(15, 2)),
        ("50%", 50),
        (".5", Fraction(1, 2)),
        ("0.1", Fraction(1, 10)),
        ("3/4", Fraction(3, 4)),
        ("-(1/3)", Fraction(-1, 3)),
        ("2 1/2", Fraction(5, 2)),
        ("2½", Fraction(5, 2)),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        (r"\frac34", Fraction(3, 4)),
        (r"\frac{-3}{4}", Fraction(-3, 4)),
        (r"18\;000", 18000),
        ("½", Fraction(1, 2)),
        ("\uff11\uff18", 18),
        ("25 m²", 25),
        *((f"{sign}3", -3) for sign in ("negative ", "minus ", "Negative ", "- ")),
        ("9 (apples)", 9),
        *((f"-{mark}", -18) for mark in r"\$18 `18` US$18 ₩18".split()),
        ("007", 7),
    ],
)
def test_a_number_is_read_exactly(written, number):
    assert score_math(f"The answer is {written}.", str(number)).is_correct
    if not written.startswith("- "):  # alone it may be an item of a list
        assert parse_number(written) == number


@pytest.mark.parametrize(
    "written", ["", "none", "3:2", "5; 7", "1/0", "7-5", "1,2", "9" * 5000]
)
def test_what_is_not_one_number_is_none(written):
    assert parse_number(written) is None


@pytest.mark.parametrize(
    ("completion", "numbers"),
    [
        ("7-5", [7, 5]),
        ("7 - 5", [7, 5]),
        ("7 -5", [7, 5]),
        ("x=-5", [-5]),
        ("(-5)", [-5]),
        ("(2)-5", [2, 5]),
        ("1,2,3", [1, 2, 3]),
        ("1,0000", [1, 0]),
        ("1,200,30", [1, 200, 30]),
        ("0,500", [0, 500]),
        ("$3-$5", [3, 5]),
        ("5$3", [5, 3]),
        ("2.5.", [Fraction(5, 2)]),
        ("the end ...5", [5]),
    ],
)
def test_a_minus_is_a_sign_only_where_no_digit_precedes(completion, numbers):
    text = answers._normalise_number_text(completion)
    assert [number for number, _ in answers._numbers(text)] == numbers


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        ("10,000", "0"),
        ("-5.", "5"),
        ("The answer is 29.0", "29.5"),
        ("1,0", "10"),
        ("The answer is 9007199254740993", "9007199254740992"),  # equal as floats
        ("The answer is 0.3333333333333333", "1/3"),
    ],
)
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


# What people's models write, and what it means.
WRITTEN = [
    ("The answer is $4536 - $702 = $3834.", 3834),
    ("The answer is 5 + 3 = 8.", 8),
    ("The answer is 4 apples + 5 apples = 9 apples.", 9),
    ("The answer is (4 + 5) * 2 = 18.", 18),
    ("The answer is 2 * 3 = 6 + 1 = 7.", 7),
    ("The answer is 18 = 9 * 2.", 18),
    ("The answer is 9 eggs * $2 = $<<9*2=18>>18 a day", 18),
    ("The answer is 12, because 3 * 5 = 15.", 12),
    ("The answer is 12 apples, that is 3 * 4 = 12 for 2 kids.", 12),
    ("the answer (arabic numerals) is 3,834.", 3834),
    ("The answer to the question is 7. Then 9 more", 7),
    ("I gave my answer, and 5 is more. So 7", 7),
    ("The answer is 18.\n\nQuestion: How?\nAnswer: 2. The answer is 3.", 18),
    ("The answer is 18.</s><s>[INST] More [/INST] The answer is 4.", 18),
    ("<s> The answer is 18.<|im_end|>\n<|im_start|>user The answer is 4.", 18),
    ("The answer is 18.\n\n### Problem 2: The answer is 3.", 18),
    ("The answer is 18.\n\nNext question: How? The answer is 4.", 18),
    ("The answer is 18.\n\nTask 2: How? The answer is 4.", 18),
    ("Question: how many? 2.\nQuestion: in all? 2 + 3 = 5. The answer is 5.", 5),
    ("#### Step 1: x\n\n#### Step 2: Money\n9 x $2 = $18\n\nShe makes $18 a day.", 18),
    ("#### 2. Money\n9 x $2 = $18.", 18),
    ("It is so.\n#### $18 dollars", 18),
    ("It is so.\n#### 18\nThat is it, after 5 steps.", 18),
    ("The answer is –3 degrees.", -3),
    ("The answer is −3 degrees.", -3),
    ("The answer is - 3.", -3),
    ("The answer is: -$3", -3),
    (r"The answer is - \boxed{18}", -18),
    ("- 4 eggs\n- 3 eggs", 3),
    ("The answer is 29\u00a0000.", 29000),
    ("The answer is 1'250'000.", 1250000),
    ("in\u00a02023\u00a0100", 100),
    ("The answer is 1\u200b8.", 18),
    ("The answer is \u2066-3\u2069.", -3),
]


@pytest.mark.parametrize(("completion", "number"), WRITTEN)
def test_what_models_write_is_read_as_it_is_meant(completion, number):
    assert score_math(completion, "1").predicted == number


OPEN = (
    "18 or 19. | either 18 or 19. | 18 dollars or 19. | between 18 and 19. | 18 to 20. "
    "| 18-20. | not 18. | 18 + 1. | 18 eggs + 1 egg. | 18 * 1. | x = 18 * 1. | 18 / 7. "
    "| 18 000. | 1,8. | 18e3. | 18:30. | 18 and 19. | 18 and a half. | :\n\n18 or 19 "
    "| 18 dollars and 50 cents. | 18 hours 30 minutes. | 18 feet 3 inches. "
    "| 18 remainder 2. | 18 R 2. | 18 plus 3. | 18 times 2. | 18 eggs divided by 3. "
    "| 18^2. | 18\u00b2. | more than 18. | fewer than 18. | > 18. | <18. "
    "| certainly not 18. | at most 18. | half of 18. | \u221a18. | \u226018. "
    "| ~~18~~ 9. | 18, 19. | 18; 19. | 18 & 19. | 18~20. | 18, or maybe 19. "
    "| 18 or nineteen. | 18.5.2. | 18.000.000. | 18, 000. | 18 \u00b1 2. "
    "| 18 \u22c5 2. | $18 \\cdot 2$. | $18 \\times 2$. "
    "| 18 kg 300 g. | 18 hours, 30 minutes. | 18h30. | 18'3\". | 18 and one half. "
    "| 18 tenths. | 18 less than 20. | 18% of 50. | 18 mod 5. | 18 squared. | 18x + 3. "
    "| 18\u03c0. | 18\u4e07. | x=18, y=7. | 18 is wrong. | 18? No. | 18, no wait, 20. "
    "| -(-18). | 18 million. | 18 dozen. | 18 minus two. | 18 is not it. | 18. No, 20. "
    "| 18, and 2 more. | 18 from 20. | 18? | 18 in x 4 in. | 18 in and 4 in. "
    "| 18 in + 3. | 18...20. | 18 vs. 20. | 18 eggs each + 3 eggs. | 18 minus 3. "
    "| 18 + | 18 x | 18 / | 18 = | 18, | 18: | 18^ | 18 and | 18 to | 18 hours and "
    "| 9 * 2 = 18 + | 18+. | 18 k. | 18 lakh. | 18 trillion. | 18bn. | 18 thousands. "
    "| 18-million. | 18 \u4e07. | 18\\pi. | 18 x. | 10**18. | a 18 \\cdot 2. "
    "| almost 18. | \\frac{x}{18}. | \\ln(18). | greater than or equal to 18. "
    "| less than about 18. | a maximum of 18. | one third of 18. | the square of 18. "
    "| unlikely 18. | x - 18. | 18 (or 19). | 18 weeks (and 3 days). | 18 in base 8. "
    "| 18 (base 8). | boys: 18, girls: 20. | 18. Actually, it is 20. "
    "| 18. Oops. It is 20. | 18. Hmm, 20. | 18, correction: 20. | :\n18 boys\n4 girls "
    "| as follows:\n* Tom: 18\n* Ann: 4 | mp18. | #18. | covid-18. | x18. "
    "| 18\u2076. | 18\u207b\u2076. | 18 out of 20. | 18. Actually it is 20. "
    "| 18. Wait no, 20."
)


@pytest.mark.parametrize("statement", OPEN.split(" | "))
def test_a_statement_that_leaves_its_number_open_is_no_answer(statement):
    for before in ("", "9 * 2 = 18. "):
        text = f"{before}The answer is {statement}"
        assert answers.final_number(text) == (None, "none")
        assert not answers.score_math(text, "18").is_correct


TAKEN_BACK = {
    "snarks": ("(A)", "(A) is wrong. | (A) or b. | (A), or rather (B). | (A); (B). "
               "| (A) as well as (B). | (A) cannot be. | (A)? | (A). No, (B). | A; B. "
               "| (A). Wait, (B). | (A) isn't it. | (A) can't be. | A. Actually, B."),
    "navigate": ("No", "No idea. | No way to tell. | no one knows | no problem: yes "
                 "| no clue | no longer clear | No matter what, yes | No, or Yes. "
                 "| No. Actually Yes. "
                 "| No? | no conclusion follows | No. Wait, yes. | no unless so"),
    "formal_fallacies": ("valid", "valid is wrong. | valid? no. | ~valid | valid if P "
                         "| valid only if P | valid can't be | valid isn't right"),
    "boolean_expressions": ("True", "True and not True | True xor True | \u00acTrue "
                            "| True != True | True ^ True | True nand True"),
}  # fmt: skip


@pytest.mark.parametrize("task", TAKEN_BACK)
def test_a_choice_that_is_taken_back_is_no_answer(task):
    target, said = TAKEN_BACK[task]
    for text in said.split(" | "):
        assert bbh(task, f"So the answer is {text}", target).no_answer, text


DENIALS = (
    "The answer isn't {}. | I don't think the answer is {}. | The wrong answer is {}. "
    "| If the answer is {}, so be it. | It is false that the answer is {}."
)


@pytest.mark.parametrize("text", DENIALS.split(" | "))
def test_a_denial_is_no_answer(text):
    assert answers.final_number(text.format(18)) == (None, "none")
    for task, said in (("navigate", "Yes"), ("snarks", "(B)"), ("word_sorting", "a b")):
        assert bbh(task, text.format(said), said).no_answer


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("12 - 3 = 9", "9"),
        ("- 9", "-9"),
        ("-(9)", "-9"),
        ("at least 9", None),
        ("not 9", None),
        ("9 or 10", None),
        ("9.5", None),
    ],
)
def test_bbh_numbers_are_read_as_math_is(said, number):
    for task in ("multistep_arithmetic_two", "object_counting"):
        assert bbh(task, f"So the answer is {said}.", "9").predicted == number


CLOSED = (
    "18 eggs. | 18:00. | 18 (9 * 2). | 18, not 19. | 18, because 9 + 9 = 18. "
    "| 18 to the nearest dollar. | 9 + 9 = 18. | 18 - that is all. | -18 + 36 = 18. "
    "| 36/2. | 17 1/1. | 18 cm\u00b2. | 18 eggs and a hen. | 18 after 3 days. "
    "| 18 times as many. | \\boxed{18}. | \\frac{36}{2}. | 2 \\times 9 = 18. "
    "| \u0661\u0668. | 18 dollars to buy two. | 9 x 2 = $18. "
    "| 18 #### 18 | 18 dollars #### 18 | 18 m^2. | 18 ft2. | 18 by the end of day 2. "
    "| 18 dollars, leaving 2 dollars. | 18 people who are 5 years old. "
    "| 18 dollars left at the end of week 2. | 18 at 5 pm. | 18 eggs every 2 days. "
    "| 18\n\nExample 2:\nThe answer is 4. | 18\n\nQ2: The answer is 4. "
    "| 18\n\n## Question 2\nThe answer is 4. | 18\n\nExercise 4. The answer is 4. "
    "| :\n9 + 9 = 18. | <answer>18</answer>. | \\frac{-36}{-2} = 18. | 17\\frac{1}{1}. "
    "| 9 + \\frac91 = 18. | 18 left over | *18* | about 18. "
    "| Ann has more than Bob by 18."
)


@pytest.mark.parametrize("statement", CLOSED.split(" | "))
def test_a_statement_with_more_than_its_number_is_an_answer(statement):
    assert answers.score_math(f"The answer is {statement}", "18").is_correct


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
    reference_score(completion, str(gold))
    lm_eval_flexible_score(completion, str(gold))


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
    theirs = verify(
        parse(gold.replace(",", ""), parsing_timeout=None),
        parse(completion, parsing_timeout=None),
        float_rounding=9,
        timeout_seconds=None,
    )
    assert score_math(completion, gold).is_correct == theirs


@given(st.integers(1, 10**7), st.integers(1, 10**7))
def test_lm_eval_agrees_where_the_last_word_is_a_plain_integer(written, gold):
    completion = f"We get 3 + 4. The answer is {written}"
    ours = score_math(completion, str(gold)).is_correct
    assert lm_eval_flexible_score(completion, str(gold)) == ours


# --- the scores of others, and where they differ -------------------------------------


def disagreements():
    with DISAGREEMENTS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", disagreements(), ids=lambda row: row["completion"])
def test_each_listed_disagreement_is_what_the_table_says(row):
    completion, gold = row["completion"].replace("\\n", "\n"), row["gold"]
    theirs = verify(
        parse(gold, parsing_timeout=None),
        parse(completion, parsing_timeout=None),
        timeout_seconds=None,
    )
    found = {
        "cotspec": score_math(completion, gold).is_correct,
        "reference": reference_score(completion, gold),
        "lm_eval_flexible": lm_eval_flexible_score(completion, gold),
        "math_verify": theirs,
    }
    assert found == {name: row[name] == "right" for name in found}
    assert len(set(found.values())) == 2, "no disagreement: the row does not belong"
    assert row["explanation"]


def test_the_reference_counts_an_unparsable_gold_as_right():
    assert reference_score("The answer is 5.", "They are equal")
    assert not reference_score("no number", "5")


def test_lm_eval_strips_the_gold_before_it_drops_the_dollar_not_after():
    assert lm_eval_flexible_score("so 5", " 5 ")
    assert not lm_eval_flexible_score("so 5", "$ 5")


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


@pytest.mark.parametrize("stem", BBH_STEMS)
def test_every_published_demonstration_scores_its_own_answer_right(data_dir, stem):
    text = (data_dir / "bbh" / "cot-prompts" / f"{stem}.txt").read_text()
    blocks = text.split("\nA: ")[1:]
    chains = [re.split(r"\n\nQ: ", block)[0] for block in blocks]
    assert len(chains) == 3
    for chain in chains:
        stated = re.findall(r"answer is (.*)\.\s*$", chain.strip())[-1]
        score = score_bbh(stem, chain, stated, prompt_mode="chain_of_thought")
        assert score.is_correct, (stated, score)


# --- BigBench-Hard: typed answers ----------------------------------------------------


def bbh(task, completion, target, mode="chain_of_thought"):
    score = score_bbh(task, completion, target, prompt_mode=mode)
    assert score.no_answer == (score.predicted is None)
    return score


@pytest.mark.parametrize(
    ("task", "completion", "predicted"),
    [
        ("navigate", "So the answer is No.", "No"),
        ("navigate", "So the answer is no, since (0, 1) is not (0, 0).", "No"),
        ("navigate", "So the answer is Yes or No.", None),
        ("navigate", "So the answer is nothing.", None),
        ("navigate", "So the answer is 5.", None),
        ("navigate", "Nobody knows", None),
        ("navigate", "Yes.", "Yes"),
        ("sports_understanding", "So the answer is Yes.", "yes"),
        ("boolean_expressions", "not False = True. So the answer is **True**.", "True"),
        ("boolean_expressions", "The answer is not True.", None),
        ("snarks", "Above, it is (A). So the answer is (B).", "(B)"),
        ("snarks", "So the answer is B.", "(B)"),
        ("snarks", "So the answer is (b)", "(B)"),
        ("snarks", "So the answer is (A) or (B).", None),
        ("snarks", "So the answer is A dog.", None),
        ("snarks", "So the answer is not (A).", None),
        ("date_understanding", "So the answer is (D) 12/14/1937.", "(D)"),
        ("multistep_arithmetic_two", "So the answer is \u2212219.", "-219"),
        ("multistep_arithmetic_two", "So the answer is 1,234.", "1234"),
        ("object_counting", "So the answer is 6 fruits.", "6"),
        ("object_counting", "So the answer is 2.5.", None),
        ("multistep_arithmetic_two", "So the answer is –15.", "-15"),
        ("snarks", "So the answer is option (B).", "(B)"),
        ("snarks", "So the answer is the correct option B.", "(B)"),
        ("snarks", 'So the answer is "(B)".', "(B)"),
        ("snarks", "So the answer is “B”.", "(B)"),
        ("snarks", "So the answer is \\boxed{B}.", "(B)"),
        ("snarks", "So the answer is [B].", "(B)"),
        ("snarks", r"So the answer is $\boxed{\text{B}}$.", "(B)"),
        ("navigate", "So the answer is <answer>Yes</answer>", "Yes"),
        ("snarks", "The correct answer is (B). Here's why: option (A) is kind.", "(B)"),
        ("snarks", "So the answer is B, because it is ironic.", "(B)"),
        ("snarks", "So the answer is (B), since (A) is not.", "(B)"),
        ("snarks", "So the answer is (B), not (A).", "(B)"),
        ("snarks", "So the answer is (B) rather than (A).", "(B)"),
        ("snarks", "So the answer is (B) instead of (A).", "(B)"),
        ("snarks", "So the answer is A or B.", None),
        ("snarks", "So the answer is A, B.", None),
        ("snarks", "So the answer is (B), (A).", None),
        ("snarks", "So the answer is (B) No, you misunderstand.", "(B)"),  # its text
        ("snarks", "So the answer is (A) Isn't it just the best?", "(A)"),
        ("reasoning_about_colored_objects", "So the answer is (B) no.", "(B)"),
        ("snarks", "So the answer is both A and B.", None),
        ("snarks", "So the answer is option A dog.", None),
        ("navigate", "The answer is No.\n\nQuestion: So the answer is Yes.", "No"),
        ("navigate", "The answer is that it is Yes.", "Yes"),
        ("formal_fallacies", "The answer is that the argument is invalid.", "invalid"),
        ("formal_fallacies", "The answer is that the argument is not valid.", None),
        ("formal_fallacies", "The answer is valid or invalid.", None),
        ("word_sorting", "So the answer is ['apple', 'bee', 'cat'].", "apple bee cat"),
        ("word_sorting", "The answer is:\n1. apple\n2. bee\n\n3. cat", "apple bee cat"),
        ("word_sorting", "The answer is:\n- apple\n- bee\nThat is it.", "apple bee"),
        ("dyck_languages", 'So the answer is "] } ]".', "] } ]"),
        ("dyck_languages", "So the answer is ]}].", "] } ]"),
        ("dyck_languages", "So the answer is ] ] and then }.", None),
        ("word_sorting", "So the answer is Apple,  bee, cat.", "apple bee cat"),
        ("word_sorting", 'The answer is ["apple", "bee"]', "apple bee"),
        ("word_sorting", "The answer is a c b.", "a c b"),
        # Without an answer sentence a chain has an answer only if its last line is one.
        ("navigate", "Yes, we turn left and then right", None),
        ("word_sorting", "a b c", None),
        ("snarks", "(A)\n(B)", "(B)"),
        ("snarks", "It is ironic.\nFinal answer: (B)", "(B)"),
        # Of an unknown task the text is compared.
        ("last_letters", 'The answer is "ABC".', "abc"),
        ("last_letters", "The answer is .", None),
        *(
            ("formal_fallacies", said, "invalid")
            for said in ("invalid", "The answer is invalid.", "answer is: Invalid")
        ),
    ],
)
def test_answers_are_read_by_the_type_of_the_task(task, completion, predicted):
    target = TARGETS.get(task, "(A)")
    assert bbh(task, completion, target).predicted == predicted


TARGETS = {
    "object_counting": "6",
    "multistep_arithmetic_two": "5",
    "dyck_languages": "]",
    "boolean_expressions": "True",
    "navigate": "Yes",
    "sports_understanding": "yes",
    "word_sorting": "a b",
    "formal_fallacies": "valid",
    "causal_judgement": "Yes",
    "web_of_lies": "Yes",
}


@pytest.mark.parametrize(
    ("task", "completion", "predicted"),
    [
        ("formal_fallacies", "invalid", "invalid"),
        ("word_sorting", "a b c", "a b c"),
        ("word_sorting", "apple\nbee", "apple bee"),
        ("snarks", "(A)\n(B)", "(A)"),
        ("snarks", "Answer: (B)", "(B)"),
        ("last_letters", "abc", "abc"),
    ],
)
def test_answer_only_reads_the_first_line_without_its_label(
    task, completion, predicted
):
    score = bbh(task, completion, TARGETS.get(task, "(A)"), "answer_only")
    assert score.predicted == predicted


def test_targets_that_are_an_options_text_compare_as_text():
    completion = "So the answer is Monsters, Inc."
    assert bbh("movie_recommendation", completion, "Monsters, Inc").is_correct
    assert not bbh(
        "movie_recommendation", "The answer is (A).", "Monsters, Inc"
    ).is_correct


def test_bbh_errors_name_the_field_and_the_value():
    with pytest.raises(ValueError, match="prompt_mode: 'zero_shot'"):
        score_bbh("navigate", "Yes", "Yes", prompt_mode="zero_shot")
    with pytest.raises(ValueError, match="target: 'maybe' is no answer"):
        score_bbh("navigate", "Yes", "maybe", prompt_mode="answer_only")
    with pytest.raises(ValueError, match="target: ''"):
        score_bbh("last_letters", "abc", "", prompt_mode="answer_only")


@given(st.sampled_from([*BBH_STEMS, "last_letters"]), st.text(max_size=120))
def test_any_text_scores_as_bbh_without_an_error(stem, completion):
    target = TARGETS.get(stem, "(A)")
    for mode in GENERIC_PROMPT_MODES:
        bbh(stem, completion, target, mode)
        assert bbh(stem, f"The answer is {target}.", target, mode).is_correct
