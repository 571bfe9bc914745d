"""Prompts: the exact wording, the four formats, fitting, and what T5 cannot spell."""

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from cotspec import prompts, tasks
from cotspec.profiles import DATA_FORMATS, FormatsConfig
from cotspec.prompts import Demonstration

TWO = Demonstration("What is 1 + 1?", "One and one make two.", "2")
FOUR = Demonstration("What is 2 + 2?", "2 + 2 = 4. The answer is 4.", "4")


class WordTokenizer:
    """One token a word and an end token; braces are unknown."""

    unk_token_id = 0

    def __call__(self, text, add_special_tokens=True, verbose=True):
        if isinstance(text, list):
            return {"input_ids": [self(one)["input_ids"] for one in text]}
        ids = [0 if set(word) & set("{}") else 2 for word in text.split()]
        return {"input_ids": ids + [1] * add_special_tokens}


def kept_traces(num_questions=5, samples_each=2):
    rows = []
    for i in range(num_questions):
        row = {"problem_id": f"toy/train/{i}", "question": f"What is {i} + {i}?"}
        row |= {"answer": str(2 * i), "drop_reason": ""}
        for j in range(samples_each):
            said = f" Way {j}: {i} + {i}. The answer is {2 * i}.\n"
            rows.append(row | {"sample_id": j, "completion": said})
    return Dataset.from_list(rows)


def problems_of(kept):
    return Dataset.from_dict({"problem_id": sorted(set(kept["problem_id"]))})


def build(kept, *, problems=None, seed=0, **config):
    given = kept, problems or problems_of(kept), FormatsConfig(**config)
    return prompts.build_examples(*given, seed=seed, tokenizer=WordTokenizer())


def only(examples, data_format):
    return [row for row in examples if row["data_format"] == data_format]


def num_words(text):
    return len(WordTokenizer()(text)["input_ids"])


@pytest.mark.parametrize(
    "mode, shown, expected",
    [
        ("zero_shot_answer_only", [TWO], "Q: Q1?\nA:"),
        ("zero_shot_chain_of_thought", [TWO], f"Q: Q1?\nA: {prompts.COT_TRIGGER}"),
        (
            "in_context_chain_of_thought",
            [TWO, FOUR],
            "Q: What is 1 + 1?\nA: Let's think step by step.\n"
            "One and one make two. The answer is 2.\n\n"
            "Q: What is 2 + 2?\nA: Let's think step by step.\n"
            "2 + 2 = 4. The answer is 4.\n\n"
            "Q: Q1?\nA: Let's think step by step.",
        ),
        (  # of a chain, answer-only keeps the question and the final answer
            "in_context_answer_only",
            [FOUR],
            "Q: What is 2 + 2?\nA: The answer is 4.\n\nQ: Q1?\nA:",
        ),
    ],
)
def test_each_mode_has_the_documented_wording(mode, shown, expected):
    assert prompts.build_inputs("Q1?", mode, shown) == expected


def test_generic_modes_begin_with_the_task_description():
    text = prompts.build_inputs("Q1?", "answer_only", [TWO], description="Add. ")
    assert text == "Add.\n\nQ: What is 1 + 1?\nA: The answer is 2.\n\nQ: Q1?\nA:"


def test_the_teacher_prompt_is_the_in_context_prompt_and_a_newline():
    student = prompts.build_inputs("Q1?", "in_context_chain_of_thought", [TWO])
    assert prompts.teacher_prompt("Q1?", [TWO]) == student + "\n"


def test_a_demonstration_of_the_question_itself_is_left_out():
    text = prompts.teacher_prompt("what is  1 + 1?", [TWO, FOUR])
    assert "The answer is 2." not in text
    assert "The answer is 4." in text


def test_an_unknown_mode_is_named_with_the_allowed_ones():
    with pytest.raises(ValueError, match="'few_shot'.*in_context_answer_only"):
        prompts.build_inputs("Q1?", "few_shot")


@pytest.mark.parametrize(
    "rationale, answer, expected",
    [
        ("1 + 1 = 2", "2", "1 + 1 = 2. The answer is 2."),
        ("1 + 1 = 2 (pears)", "2", "1 + 1 = 2 (pears). The answer is 2."),
        ("It said 'two.'", "2", "It said 'two.' The answer is 2."),
        ("So the answer is (A).", "(A)", "So the answer is (A)."),
        ("The answer is $1,000.", "1000", "The answer is $1,000."),
        ("The answer is near.\n5", "4", "The answer is near.\n5. The answer is 4."),
        ("", "4", "The answer is 4."),
    ],
)
def test_a_solution_states_its_answer_exactly_once(rationale, answer, expected):
    assert prompts.solution(rationale, answer) == expected


@given(st.text(max_size=60), st.integers(-9999, 9999))
def test_completing_a_solution_twice_changes_nothing(rationale, answer):
    once = prompts.solution(rationale, str(answer))
    assert prompts.solution(once, str(answer)) == once


def test_targets_are_the_completion_as_it_is_or_the_answer_sentence():
    said = {"completion": " Half of 8.\nThe answer is 4.\n", "answer": "4"}
    cot, short = (prompts.build_target(mode, **said) for mode in DATA_FORMATS[::3])
    assert (cot, short) == (said["completion"], "The answer is 4.")


def fit(question, mode, shown, **options):
    items, tokenizer = [(question, shown)], WordTokenizer()
    (fitted,) = prompts.fit_prompts(items, mode, tokenizer, **options)
    return fitted


@pytest.mark.parametrize(("room", "num_kept"), [(0, 2), (-1, 1)])
def test_whole_demonstrations_are_dropped_until_the_prompt_fits(room, num_kept):
    mode, about = "chain_of_thought", {"description": "Add."}
    whole = prompts.build_inputs("Q1?", mode, [TWO, FOUR], **about)
    limit = num_words(whole) + room
    fitted = fit("Q1?", mode, [TWO, FOUR], max_input_tokens=limit, **about)
    text = prompts.build_inputs("Q1?", mode, [TWO, FOUR][:num_kept], **about)
    assert fitted == prompts.FittedPrompt(text, num_kept, 2 - num_kept)


def test_a_question_longer_than_the_window_is_none_and_an_error_in_training():
    assert fit("why " * 20, "zero_shot_answer_only", [], max_input_tokens=10) is None
    kept = kept_traces().map(lambda row: {"question": row["question"] + " why" * 64})
    with pytest.raises(ValueError, match="max_input_tokens: 64.*'toy/train/0' needs"):
        build(kept, max_input_tokens=64)


def test_fitting_many_prompts_equals_fitting_each():
    items = [(f"Q{i} " + "word " * i, [TWO, FOUR]) for i in range(25)]
    mode = "in_context_chain_of_thought"
    many = prompts.fit_prompts(items, mode, WordTokenizer(), max_input_tokens=60)
    assert many == [fit(q, mode, shown, max_input_tokens=60) for q, shown in items]
    assert len({fitted.num_demonstrations for fitted in many}) > 1


def test_cot_keeps_every_solution_and_answer_only_one_example_a_question():
    kept = kept_traces(num_questions=5, samples_each=3)
    examples = build(kept)
    # In context and zero-shot, each with reasoning and without.
    assert [len(only(examples, name)) for name in DATA_FORMATS] == [15, 5, 15, 5]
    assert len(set(examples["example_id"])) == 40
    assert {r["sample_id"] for r in only(examples, "zero_shot_answer_only")} == {-1}
    first = only(examples, "zero_shot_chain_of_thought")[1]
    assert first["targets"] == kept[1]["completion"]


def test_demonstrations_are_other_questions_with_a_kept_solution():
    kept = kept_traces(num_questions=6).to_list()
    twin = kept[0] | {"problem_id": "toy/train/twin"}  # the question, another id
    examples = build(Dataset.from_list([*kept, twin]), seed=3)
    for row in only(examples, "in_context_chain_of_thought"):
        *shown, asked = row["inputs"].split("\n\n")
        assert row["num_demonstrations"] == len(shown) == 4
        questions = {block.split("\n")[0] for block in shown}
        assert len(questions) >= 3
        assert asked.split("\n")[0] not in questions
        assert all("The answer is" in block for block in shown)


def test_examples_depend_on_the_seed_alone():
    kept = kept_traces(num_questions=9)
    first, again, other = (build(kept, seed=seed).to_list() for seed in (0, 0, 50))
    assert first == again != other


def test_dropped_solutions_are_not_trained_on():
    rows = kept_traces(num_questions=3, samples_each=2).to_list()
    kept = [row | {"drop_reason": ["", "wrong"][row["sample_id"]]} for row in rows]
    examples = build(Dataset.from_list(kept), data_formats=DATA_FORMATS[2:3])
    assert examples["sample_id"] == [0, 0, 0]


def test_training_examples_fit_the_window():
    examples = build(kept_traces(), max_input_tokens=64)
    assert max(map(num_words, examples["inputs"])) <= 64
    shown = {row["data_format"]: row["num_demonstrations"] for row in examples}
    assert shown["in_context_chain_of_thought"] < shown["in_context_answer_only"]


@pytest.mark.parametrize(
    "num_questions, change, message",
    [
        (5, {"drop_reason": "wrong"}, "0 of 10 solutions were kept"),
        (5, {"problem_id": "gsm8k/1"}, "gsm8k/1.*Allowed: the training problems"),
        (1, {}, "only 1 has a kept solution"),  # none to be shown
    ],
)
def test_what_cannot_be_trained_on_is_an_error(num_questions, change, message):
    kept = kept_traces(num_questions)
    changed = Dataset.from_list([row | change for row in kept])
    with pytest.raises(ValueError, match=message):
        build(changed, problems=problems_of(kept))


def test_braces_are_a_loss_and_folded_newlines_are_not():
    tokenizer = WordTokenizer()
    assert prompts.spellable("one\n\ttwo", tokenizer)
    assert prompts.count_unspellable(["a {", "b", "} {"], tokenizer) == 2


def test_t5_cannot_spell_seven_printable_ascii_characters(t5):
    printable = map(chr, range(33, 127))
    lost = [c for c in printable if not prompts.spellable(c, t5)]
    assert lost == ["<", "\\", "^", "`", "{", "}", "~"]


def test_t5_loses_99_dyck_answers_and_no_other_bbh_answer(t5, data_dir):
    lost = {}
    for name in tasks.BBH_TASKS:
        answers = tasks.load(name)["answer"]
        lost[name] = prompts.count_unspellable(answers, t5)
    assert {name: n for name, n in lost.items() if n} == {"bbh/dyck_languages": 99}


def test_every_published_bbh_prompt_is_rebuilt_word_for_word(data_dir):
    for name in tasks.BBH_TASKS:
        file = data_dir / "bbh/cot-prompts" / f"{name.removeprefix('bbh/')}.txt"
        published = file.read_text("utf-8").split("-----\n", 1)[1]
        about = {"description": tasks.task_description(name)}
        asked = "Next?", "chain_of_thought", tasks.demonstrations(name)
        rebuilt = prompts.build_inputs(*asked, **about)
        expected = f"{published} Q: Next? A: Let's think step by step."
        assert rebuilt.split() == expected.split(), name


def test_newlines_of_a_prompt_are_spaces_to_t5(t5):
    text = prompts.build_inputs("Q1?", "in_context_chain_of_thought", [TWO, FOUR])
    assert t5(text)["input_ids"] == t5(" ".join(text.split()))["input_ids"]
    assert t5.unk_token_id not in t5(text)["input_ids"]


@pytest.mark.parametrize("chain_of_thought", (True, False))
def test_a_decoder_only_student_reads_a_demonstrations_own_separator(chain_of_thought):
    opened = prompts.question_block(FOUR.question, chain_of_thought=chain_of_thought)
    target = "2 + 2 = 4. The answer is 4." if chain_of_thought else "The answer is 4."
    joined = "".join(prompts.separate(opened, target))
    shown = prompts.demonstration_block(FOUR, chain_of_thought=chain_of_thought)
    assert joined == shown
