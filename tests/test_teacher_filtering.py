"""What is kept, and that every other solution is counted once."""

import pytest
from test_teacher_store import completion

from cotspec.profiles import FilterConfig
from cotspec.teacher import filtering
from cotspec.teacher.traces import as_dataset, as_row

LENGTH = {"finish_reason": "length"}


def marked(*solutions, config=FilterConfig(), task="gsm8k"):  # noqa: B008
    """Filter (problem, text[, changes]) with the gold answer 12."""
    rows = []
    for sample_id, (problem_id, text, *changes) in enumerate(solutions):
        problem = {"problem_id": problem_id, "task": task}
        problem |= {"question": "?", "answer": "12"}
        rows.append(as_row(problem, sample_id, completion(text)))
        for change in changes:
            rows[-1] |= change
    return filtering.filter_traces(as_dataset(rows), config)


def test_each_reason_and_what_was_predicted():
    result = marked(
        ("a", "The answer is 12."),
        ("a", "The answer is 12.50."),
        ("a", "I do not know."),
        ("a", "The answer is 12", LENGTH),
        ("a", "The answer is 12.", {"token_bytes": [b"The answer is 12!"]}),
    )
    assert result["drop_reason"][:] == ["", "wrong", "no_answer", "truncated"] + [
        "unaligned"
    ]
    assert result["predicted_answer"][:] == ["12", "25/2", None, "12", "12"]
    assert result["is_correct"][:] == [True, False, False, True, True]


def test_nothing_is_dropped_for_redundancy_by_default():
    same = [("a", "The answer is 12.")] * 3
    assert marked(*same)["drop_reason"][:] == ["", "", ""]


def test_duplicates_are_of_one_question_and_ignore_case_and_spaces():
    config = FilterConfig(drop_duplicates=True)
    result = marked(
        ("a", "7 + 5 = 12. The answer is 12."),
        ("a", "7+5 = 12.  the answer is 12."),
        ("b", "7 + 5 = 12. The answer is 12."),
        ("a", "5 + 7 = 12. The answer is 12."),
        config=config,
    )
    assert result["drop_reason"][:] == ["", "duplicate", "", ""]


def test_near_duplicates_share_most_word_trigrams():
    texts = ("He buys 7 and 5 so 12. The answer is 12.",)
    texts += ("She buys 7 and 5 so 12. The answer is 12.",)
    near = FilterConfig(drop_duplicates=True, duplicate_similarity=0.7)
    pairs = [("a", text) for text in texts]
    assert marked(*pairs, config=near)["drop_reason"][:] == ["", "duplicate"]
    equal = FilterConfig(drop_duplicates=True)
    assert marked(*pairs, config=equal)["drop_reason"][:] == ["", ""]


def test_the_cap_counts_kept_solutions_only():
    config = FilterConfig(max_solutions_per_question=1)
    result = marked(
        ("a", "The answer is 3."),
        ("a", "7 + 5. The answer is 12."),
        ("a", "6 + 6. The answer is 12."),
        ("b", "The answer is 12."),
        config=config,
    )
    assert result["drop_reason"][:] == ["wrong", "", "over_cap", ""]


def test_kept_rows_are_those_without_a_reason():
    result = marked(("a", "The answer is 3."), ("a", "The answer is 12."))
    assert filtering.kept(result)["sample_id"][:] == [1]


def test_the_funnel_counts_every_solution_once():
    result = marked(
        ("a", "The answer is 12."),
        ("a", "The answer is 3."),
        ("b", "The answer is 4."),
        ("b", "Hm.", LENGTH),
    )
    table = filtering.funnel(result).set_index("stage")
    assert table["num_solutions"].to_dict() == {
        "sampled": 4,
        "truncated": 1,
        "no_answer": 0,
        "wrong": 2,
        "unaligned": 0,
        "duplicate": 0,
        "over_cap": 0,
        "kept": 1,
    }
    assert table.loc["wrong", "fraction"] == 0.5
    assert table.loc[["sampled", "wrong", "kept"], "num_questions"].tolist() == [
        2,
        2,
        1,
    ]
    assert table["num_solutions"].drop("sampled").sum() == 4


def test_pass_rate_and_majority_of_each_question():
    result = marked(
        ("a", "The answer is 12."),
        ("a", "The answer is 3."),
        ("a", "The answer is 3."),
        ("b", "The answer is 12."),
        ("b", "Hm."),
        ("c", "Hm."),
    )
    table = filtering.pass_rates(result).set_index("problem_id")
    assert table["num_samples"].tolist() == [3, 2, 1]
    assert table["pass_rate"].tolist() == pytest.approx([1 / 3, 1 / 2, 0])
    assert table["majority"].tolist()[:2] == ["3", "12"]
    assert table["majority"].isna().tolist() == [False, False, True]
    assert table["majority_is_correct"].tolist() == [False, True, False]


def test_generic_tasks_are_scored_by_their_own_rules():
    rows = [
        as_row(
            {"problem_id": "n", "task": "bbh/navigate", "question": "?"}
            | {"answer": "Yes"},
            0,
            completion("So the answer is Yes."),
        )
    ]
    result = filtering.filter_traces(as_dataset(rows), FilterConfig())
    assert result["drop_reason"][:] == [""]


def test_an_impossible_similarity_is_named():
    with pytest.raises(ValueError, match="duplicate_similarity"):
        marked(("a", "12"), config=FilterConfig(duplicate_similarity=0))


def test_contamination_is_a_shared_run_of_words():
    test_question = "Tom has 3 red apples and gives 2 of them to his sister Ann."
    texts = [
        "We know: Tom has 3 red apples, and gives 2 of them to his sister Ann. So 1.",
        "Tom has 3 green apples and gives 2 of them to his sister Ann.",
        "What is 7 + 5? It is 12.",
    ]
    assert filtering.contaminated(texts, [test_question]) == [True, False, False]
    assert filtering.contaminated(texts, ["What is 7 + 5?"]) == [False, False, True]


def test_similarity_is_symmetric_and_bounded():
    a = filtering.word_shingles("one two three four")
    b = filtering.word_shingles("one two three five")
    assert filtering.similarity(a, b) == filtering.similarity(b, a) == 1 / 3
    assert filtering.similarity(a, a) == 1
    assert filtering.similarity(a, filtering.word_shingles("no")) == 0
