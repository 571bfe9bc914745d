"""What is kept, and that every other solution is counted once."""

import pytest
from test_teacher_store import completion

from cotspec.profiles import FilterConfig
from cotspec.teacher import filtering
from cotspec.teacher.traces import as_dataset, as_row

LENGTH = {"finish_reason": "length"}


def marked(*solutions, config=FilterConfig(), task="gsm8k", answer="12"):  # noqa: B008
    """Filter (problem, text[, changes])."""
    problem = {"question": "?", "task": task, "answer": answer}
    rows = []
    for sample_id, (problem_id, text, *changes) in enumerate(solutions):
        row = as_row(problem | {"problem_id": problem_id}, sample_id, completion(text))
        rows.append(row | (changes[0] if changes else {}))
    return filtering.filter_traces(as_dataset(rows), config)


def test_each_reason_and_what_was_predicted():
    result = marked(
        ("a", "The answer is 12."),
        ("a", "The answer is 12.50."),
        ("a", "I do not know."),
        ("a", "The answer is 12", LENGTH),
        ("a", "The answer is 12", {"finish_reason": "abort"}),
        ("a", "The answer is 12.\n\nQ: More?\nA: The answer is 3."),
        ("a", "The answer is 12.</s> next"),
        ("a", "The answer is 12.", {"token_bytes": [b"The answer is 12!"]}),
    )
    reasons = ["", "wrong", "no_answer", *["truncated"] * 4, "unaligned"]
    assert result["drop_reason"][:] == reasons
    assert filtering.kept(result)["sample_id"][:] == [0]
    assert result["predicted_answer"][:] == ["12", "25/2", None, *["12"] * 5]
    assert result["is_correct"][:] == [True, False, False, *[True] * 5]


SUMS = "7 + 5 = 12. The", "7+5 = 12.  the", "7 + 5 = 12. The", "5 + 7 = 12. The"
ONE_DUPLICATE = [
    (q, f"{text} answer is 12.") for q, text in zip("aaba", SUMS, strict=True)
]
TWINS = [("a", f"{who} buys 7 and 5 so 12. The answer is 12.") for who in ("He", "She")]
NEAR = {"drop_duplicates": True, "duplicate_similarity": 0.7}
CAPPED = [(p[0], f"The answer is {p[1:]}.") for p in ("a3", "a12", "a12", "b12")]


@pytest.mark.parametrize(
    ("solutions", "config", "reasons"),
    [
        # Nothing is dropped for redundancy by default.
        ([("a", "The answer is 12.")] * 3, {}, ["", "", ""]),
        # Duplicates are of one question and ignore case and spaces.
        (ONE_DUPLICATE, {"drop_duplicates": True}, ["", "duplicate", "", ""]),
        # Near-duplicates share most word trigrams.
        (TWINS, {"drop_duplicates": True}, ["", ""]),
        (TWINS, NEAR, ["", "duplicate"]),
        # The cap counts kept solutions only.
        (CAPPED, {"max_solutions_per_question": 1}, ["wrong", "", "over_cap", ""]),
    ],
)
def test_redundant_solutions(solutions, config, reasons):
    result = marked(*solutions, config=FilterConfig(**config))
    assert result["drop_reason"][:] == reasons


def test_the_funnel_counts_every_solution_once():
    solutions = [(p[0], f"The answer is {p[1:]}.") for p in ("a12", "a3", "b4")]
    result = marked(*solutions, ("b", "Hm.", LENGTH))
    table = filtering.funnel(result).set_index("stage")
    reasons = dict.fromkeys(filtering.DROP_REASONS, 0) | {"truncated": 1, "wrong": 2}
    counts = {"sampled": 4} | reasons | {"kept": 1}
    assert list(table["num_solutions"].items()) == list(counts.items())
    assert table.loc["wrong", "fraction"] == 0.5
    questions = table.loc[["sampled", "wrong", "kept"], "num_questions"]
    assert questions.tolist() == [2, 2, 1]


def test_generic_tasks_are_scored_by_their_own_rules():
    solutions = [("a", "So the answer is Yes."), ("a", "So the answer is 12.")]
    result = marked(*solutions, task="bbh/navigate", answer="Yes")
    assert result["drop_reason"][:] == ["", "no_answer"]


def test_contamination_is_a_shared_run_of_words():
    test_question = "Tom has 3 red apples and gives 2 of them to his sister Ann."
    texts = [
        "We know: Tom has 3 red apples, and gives 2 of them to his sister Ann. So 1.",
        "Tom has 3 green apples and gives 2 of them to his sister Ann.",
        "What is 7 + 5? It is 12.",
    ]
    assert filtering.contaminated(texts, [test_question]) == [True, False, False]
    assert filtering.contaminated(texts, ["What is 7 + 5?"]) == [False, False, True]


def test_twins_differ_in_names_and_in_what_they_count_only():
    asked = "Lily has 5 cakes. Leo has 2 more than Lily. How many cakes has Leo?"
    twin = "Mia has 5 pears. Zoe has 2 more than Mia. How many pears has Zoe?"
    other = "Mia has 5 pears. Zoe has 2 more than Mia. How many pears has Mia?"
    assert filtering.masked(asked) == filtering.masked(twin)
    assert filtering.masked(asked) != filtering.masked(other)
    assert filtering.masked(asked) != filtering.masked(twin.replace("5", "6"))
