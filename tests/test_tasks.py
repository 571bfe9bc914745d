"""Tasks: one schema, checked counts and golds, and errors that name the place."""

import json
import random
import re
import subprocess
import sys
from collections import Counter

import datasets
import httpx
import hub_server
import pytest
from huggingface_hub import constants

from cotspec import answers, tasks
from cotspec.tasks import readers, sources

FILES = {
    "gsm8k": "gsm8k/test.jsonl",
    "multiarith": "multiarith/MultiArith.json",
    "bbh/navigate": "bbh/tasks/navigate.json",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder that ``COTSPEC_DATA`` names."""
    monkeypatch.setenv("COTSPEC_DATA", str(tmp_path))
    return tmp_path


def write(path, content):
    """Write JSON, or text as it is."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def made_up(folder):
    """The same in the published layouts and counts, with made-up problems."""
    for name, count in readers.NUM_GSM8K.items():
        rows = (
            {"question": f"{name} {i}?", "answer": f"It is <<{i}={i}>>{i}.\n#### {i:,}"}
            for i in range(count)
        )
        lines = "\n".join(map(json.dumps, rows)) + "\n"
        write(folder / "gsm8k" / f"{name}.jsonl", lines)
    rows = [{"sQuestion": f" q{i}? ", "lSolutions": [float(i)]} for i in range(600)]
    examples = [{"input": f"q{i}", "target": "Yes"} for i in range(250)]
    write(folder / FILES["multiarith"], rows)
    write(folder / FILES["bbh/navigate"], {"examples": examples})
    return folder


def test_a_task_has_the_documented_columns_unique_ids_and_golds_without_commas(made_up):
    train, test = tasks.load("gsm8k", "train"), tasks.load("gsm8k", "test")
    assert tuple(train.column_names) == tasks.COLUMNS
    assert len(set(train["problem_id"])) == len(train) == 7_273
    first = ("gsm8k/train/0000", "gsm8k", "train", "train 0?", "It is 0.", "0")
    assert tuple(train[0].values()) == first
    assert test[1_318]["answer"] == "1318"  # published as 1,318


def test_the_200_rows_that_the_paper_holds_out_come_with_the_package(made_up):
    validation = tasks.load("gsm8k", "validation")
    index = readers.validation_index()
    assert len(set(index)) == 200 and set(index) <= set(range(7_473))
    rows = sorted(int(name.rpartition("/")[2]) for name in validation["problem_id"])
    assert rows == sorted(index)
    counts = {"train": 7_273, "validation": 200, "test": 1_319}
    assert Counter(tasks.load("gsm8k")["split"]) == counts


def test_the_shipped_index_is_the_published_one(data_dir):
    published = json.loads((data_dir / "gsm8k" / "validation_index.json").read_text())
    assert readers.validation_index() == published


@pytest.mark.parametrize(
    ("name", "other"), [("snarks", "navigate"), ("ruin_names", "hyperbaton")]
)
def test_a_file_of_another_task_is_noticed(data_dir, folder, name, other):
    content = json.loads((data_dir / f"bbh/tasks/{other}.json").read_text())
    random.Random(0).shuffle(content["examples"])
    write(folder / f"bbh/tasks/{name}.json", content)
    with pytest.raises(ValueError, match=f"{name}.json: .* of bbh/{other};"):
        tasks.load(f"bbh/{name}")


def test_multiarith_is_split_by_its_texts_whatever_the_order_of_the_file(made_up):
    test = tasks.load("multiarith", "test").to_list()
    validation = tasks.load("multiarith", "validation").to_list()
    assert (len(test), len(validation)) == (400, 200)
    path = made_up / FILES["multiarith"]
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]))
    assert tasks.load("multiarith", "test").to_list() == test


@pytest.mark.parametrize(
    "name, pattern, new, message",
    [
        ("gsm8k", r".{20}\Z", "", r"/test\.jsonl: damaged .*line 1319"),
        ("gsm8k", r"[^\n]+\n\Z", "", "gsm8k/test.jsonl: 1318 problems; 1319 were"),
        ("gsm8k", "#### 17", "#### many", "item 17: gold 'many' is not one"),
        ("multiarith", r"\[.*", '[\n{"a": 1},\n{"b', ".json: damaged .*line 3"),
        ("multiarith", ".*", "[" * 100_000, "MultiArith.json: damaged"),  # no end
        ("multiarith", ".*", f'[{{"ID": {"9" * 5000}}}]', "Arith.json: damaged"),
        ("multiarith", ".*", "null", r"MultiArith\.json, item 0: 'examples'"),
        ("multiarith", '" q3\\? "', "null", "item 3: 'sQuestion' is 'None'"),
        ("bbh/navigate", '(q7"), "target": "Yes"', r"\1", "item 7: 'target' is"),
        ("bbh/navigate", r', {"input": "q9".*\]', "]", "9 problems, .* 250 were"),
        ("bbh/navigate", "examples", "x", ".json, item 0: 'examples' is"),
        ("bbh/navigate", '"Yes"', '"maybe"', "'maybe' is no answer of task 'navigate'"),
        ("bbh/navigate", '"q9"', '"q8"', "249 of them different"),
    ],
)
def test_what_is_damaged_is_named(made_up, name, pattern, new, message):
    path = made_up / FILES[name]
    path.write_text(re.sub(pattern, new, path.read_text(), count=1, flags=re.DOTALL))
    with pytest.raises(ValueError, match=message):
        tasks.load(name)


def test_two_files_in_each_others_place_are_noticed(made_up):
    train, test = (made_up / f"gsm8k/{name}.jsonl" for name in readers.NUM_GSM8K)
    train.write_bytes(test.read_bytes())
    with pytest.raises(ValueError, match="gsm8k/train.jsonl: 1319 problems; 7473"):
        tasks.load("gsm8k")


def test_a_missing_file_or_folder_or_half_of_xml_is_named(made_up):
    write(made_up / "asdiv" / "ASDiv.xml", "<ProblemSet>\n<Problem><Body>Half a")
    with pytest.raises(ValueError, match=r"ASDiv\.xml: damaged .* line 2"):
        tasks.load("asdiv")
    with pytest.raises(ValueError, match=r"svamp/SVAMP\.json: no such file"):
        tasks.load("svamp")
    (made_up / "svamp/SVAMP.json").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"svamp/SVAMP\.json: is a directory"):
        tasks.load("svamp")


@pytest.mark.parametrize(
    "name, split, message",
    [
        ("gsm9k", None, "task: 'gsm9k'. Allowed: gsm8k, multiarith, asdiv, svamp"),
        ("bbh/chess", None, "task: 'bbh/chess'"),
        ("micro/chess", None, "task: 'micro/chess'.*micro/math"),
        ("bbh/navigate", "dev", "split: 'dev'. Allowed: train, validation, test"),
        ("bbh/navigate", "train", "split: bbh/navigate has no 'train' split"),
    ],
)
def test_unknown_names_are_errors_that_list_the_known(made_up, name, split, message):
    with pytest.raises(ValueError, match=message):
        tasks.load(name, split)


def test_missing_names_what_is_wrong_and_only_that(made_up, monkeypatch):
    assert tasks.missing(["gsm8k", "bbh/navigate"]) == []
    (problem,) = tasks.missing(["gsm8k", "svamp", "bbh/navigate"])
    assert "SVAMP.json: no such file" in problem
    monkeypatch.setenv("COTSPEC_DATA", "/nowhere")
    (problem,) = tasks.missing(["gsm8k", "svamp"])
    assert problem.startswith("COTSPEC_DATA: no folder /nowhere; see README.md")


@pytest.mark.parametrize("is_offline", [False, True])
def test_a_hub_that_does_not_answer_is_noticed_before_retries(monkeypatch, is_offline):
    """In offline mode the network is never touched, only the hub's cache."""
    touched = []

    def refuse(*args, **options):
        touched.append(args[0])
        raise httpx.ConnectError("no route")

    monkeypatch.delenv("COTSPEC_DATA", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    for module, name in ((httpx, "head"), (httpx, "get"), (datasets, "load_dataset")):
        monkeypatch.setattr(module, name, refuse)
    with pytest.raises(ValueError, match="lukaemon/bbh.*ConnectError.*COTSPEC_DATA"):
        tasks.load("bbh/snarks")
    assert touched == ["lukaemon/bbh" if is_offline else constants.ENDPOINT]
    assert not sources.is_reachable()
    assert len(touched) == (1 if is_offline else 2)


LOAD_ALL = """
import os, sys
from cotspec import tasks
served = {name: tasks.load(name).to_list() for name in sys.argv[2:]}
os.environ["COTSPEC_DATA"] = sys.argv[1]
for name, rows in served.items():
    assert rows == tasks.load(name).to_list(), name
"""


def test_the_hubs_rows_give_the_same_problems_as_the_folder(data_dir, tmp_path):
    hub_server.data_sets(data_dir, tmp_path)
    names = ["gsm8k", "multiarith", "svamp", "asdiv", "bbh/snarks", "bbh/navigate"]
    hub_server.Hub.asked.clear()
    with hub_server.serving(tmp_path) as env:
        env["HF_HUB_OFFLINE"] = "0"
        command = [sys.executable, "-c", LOAD_ALL, str(data_dir), *names]
        subprocess.run(command, check=True, env=env)
    env["HF_HUB_OFFLINE"] = "1"  # from the hub's cache
    subprocess.run(command, check=True, env=env)
    asked = {one for one in hub_server.Hub.asked if "/" in one[0]}  # of repositories
    assert asked == set(sources.HUB.values())  # at the pinned revisions


@pytest.mark.parametrize("name", sources.HUB)
def test_the_hub_has_sets_at_their_revisions_with_published_counts(name, monkeypatch):
    revision = sources.HUB[name][1]
    assert len(revision) == 40 and int(revision, 16)
    if not sources.is_reachable():
        pytest.skip("the Hugging Face hub cannot be reached")
    task = "bbh/navigate" if name == "bbh" else name
    monkeypatch.delenv("COTSPEC_DATA", raising=False)
    rows = readers.problems(task)
    assert len(rows) == readers.NUM_PUBLISHED[task]
    assert all(row["question"] and row["answer"] for row in rows)


def test_lines_end_at_newlines_only_and_marks_and_blank_lines_are_no_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"k": "one\u2028line\u2029still\u0085one"}, {"k": "two"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes(("\ufeff" + "\r\n\n".join(lines) + "\n\n").encode())
    assert sources.read_file(path) == rows


@pytest.mark.parametrize("task", FILES)
def test_a_file_that_is_damaged_anywhere_is_one_sentence_or_loads(made_up, task):
    generator = random.Random(0)
    kinds = (b"", b"{", b'"', b"\xff", b"null", b"\n", b"9" * 30, b"[1]")
    path = made_up / FILES[task]
    whole = path.read_bytes()
    for _ in range(40):
        start = generator.randrange(len(whole))
        end = start + generator.choice((0, 1, 7, 900))
        path.write_bytes(whole[:start] + generator.choice(kinds) + whole[end:])
        try:
            tasks.load(task)
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 500


def test_overlap_finds_exact_and_near_repeats_and_nothing_else():
    cows = "A farmer has {} cows and sells half of them at the fair on Sunday."
    train = [
        cows.format(10),
        "Tom has 3 red apples, and he buys 4 more red apples at the market.",
        "How many legs do 7 spiders have?",
    ]
    test = [
        "how many legs do 7 spiders have",
        "Tom has 3 red apples, and he buys 4 more red pears at the shop.",
        "Ann sells 9 books on Monday and 12 books on Tuesday. How many in all?",
        cows.format(12),  # another number is another question
    ]
    found = tasks.overlap(train, test, ngram=5)
    assert found.values.tolist() == [
        [0, 2, "exact", 1.0],
        # 11 runs of five words, seven of them before the changed word.
        [1, 1, "near", pytest.approx(7 / 11)],
        [3, 0, "near", pytest.approx(7 / 11)],
    ]


def test_the_micro_world_loads_in_the_same_schema(monkeypatch):
    sizes = {"train": 5, "validation": 4, "test": 3}
    monkeypatch.setattr(tasks, "NUM_MICRO", sizes)
    problems = tasks.load("micro/word_sorting")
    assert tuple(problems.column_names) == tasks.COLUMNS
    assert problems["problem_id"][3] == "micro/word_sorting/train/000003"
    assert Counter(problems["split"]) == sizes


@pytest.mark.parametrize(
    "name, counts",
    [
        ("gsm8k", {"train": 7_273, "validation": 200, "test": 1_319}),
        ("multiarith", {"validation": 200, "test": 400}),
        ("asdiv", {"test": 2_093}),
        ("svamp", {"test": 1_000}),
    ],
)
def test_published_counts_and_every_gold_scores_itself_right(data_dir, name, counts):
    problems = tasks.load(name)
    assert Counter(problems["split"]) == counts
    assert len(problems) == len(set(problems["problem_id"]))
    for gold in problems["answer"]:
        assert answers.score_math(f"The answer is {gold}.", gold).is_correct, gold
    assert all(problems["question"])


def test_multiarith_has_20_repeated_questions_none_of_them_across_splits(data_dir):
    test = tasks.load("multiarith", "test")["question"]
    validation = tasks.load("multiarith", "validation")["question"]
    assert len(set(test) | set(validation)) == 580
    assert not set(test) & set(validation)


def test_the_212_asdiv_golds_that_are_not_one_number_are_listed(data_dir):
    left_out = tasks.unscorable("asdiv")
    reasons = {"several numbers": 90, "ratio or time": 61, "words": 61}
    assert Counter(left_out["reason"]) == reasons
    scored = tasks.load("asdiv")
    assert len(scored) + len(left_out) == 2_305
    assert not set(scored["problem_id"]) & set(left_out["problem_id"])
    assert len(tasks.unscorable("svamp")) == 0
    fractions = "-1/3 1/6 25/3 3/7 4/7 5/13 5/2 5/2 7/9".split()  # these are scored
    assert sorted(gold for gold in scored["answer"] if "/" in gold) == fractions


@pytest.mark.parametrize("name", tasks.BBH_TASKS)
def test_bbh_demonstrations_are_three_right_ones_without_canary(name):
    shown, description = tasks.demonstrations(name), tasks.task_description(name)
    assert len(shown) == 3 and description
    text = description + "".join(one.question + one.rationale for one in shown)
    assert "canary" not in text.lower() and "Let's think" not in text
    for one in shown:
        case = name.removeprefix("bbh/"), one.rationale, one.answer
        assert answers.score_bbh(*case, prompt_mode="chain_of_thought").is_correct


def test_gsm8k_has_no_calculator_notes_and_shows_four_training_problems(data_dir):
    train, test = tasks.load("gsm8k", "train"), tasks.load("gsm8k", "test")
    assert not any("<<" in text or "####" in text for text in train["rationale"])
    assert train["rationale"][0].startswith("Natalia sold 48/2 = 24 clips in May.\n")
    shown = tasks.demonstrations("gsm8k")
    assert tasks.demonstrations("svamp") == shown and len(shown) == 4
    assert {one.question for one in shown} <= set(train["question"])
    found = tasks.overlap(train["question"][:], test["question"][:])
    assert found["kind"].tolist() == ["near"]  # no test question word for word


def test_the_preflight_finds_nothing_missing_in_the_real_folder(data_dir):
    assert tasks.missing(tasks.REAL_TASKS) == []


SVAMP = {"ID": "chal-1", "Body": "b", "Question": "q", "Answer": 5.0}
MULTIARITH = {"sQuestion": "q", "lSolutions": [5.0]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Answer": {"a": 1}}, "Answer"),
        ({"Answer": True}, "Answer"),
        ({"Body": ["b"]}, "Body"),
        ({"ID": 5}, "ID"),
        ({"ID": "chal--1"}, "no ID chal-1"),
        ({"ID": "chal-" + "9" * 5000}, "no ID chal-1"),
        ({"lSolutions": "51"}, "lSolutions"),
        ({"lSolutions": []}, "lSolutions"),
        ({"lSolutions": [5, 6]}, "gold"),
        *(({"sQuestion": text}, "sQuestion") for text in ("", " \n", "a \ud800")),
    ],
)
def test_a_value_of_another_form_is_refused(folder, monkeypatch, change, said):
    name, file, row = "svamp", "svamp/SVAMP.json", SVAMP
    if not change.keys() <= SVAMP.keys():
        name, file, row = "multiarith", FILES["multiarith"], MULTIARITH
    monkeypatch.setitem(readers.NUM_PUBLISHED, name, 1)
    write(folder / file, [row | change])
    with pytest.raises(ValueError, match=said):
        readers.problems(name)
