"""Claims about the report: verdicts follow their rules, tables say what is known."""

import math

import pandas as pd
import pytest

from cotspec import profiles, report
from cotspec.report import tables
from cotspec.report.pairing import TRAINING

DATA = profiles.DataConfig(
    train_task="gsm8k",
    out_of_distribution_tasks=("multiarith", "svamp"),
    generic_tasks=("bbh/navigate",),
)
MATH, COT = "in_context_chain_of_thought", "chain_of_thought"
GROUPS = report.task_groups(DATA)
PUBLISHED = report.load_published()


def predictions(task, mode, before, after, *, n=200, seeds=(0,), **cell):
    """`n` problems, of which the first `before` (`after`) are right."""
    fixed = dict.fromkeys(TRAINING, "x") | {"model": "s", "size": 1, "split": "test"}
    fixed |= {"start": "instruction_tuned", "data_formats": "all"}
    fixed |= {"reference_is_correct": None, "lm_eval_is_correct": None} | cell
    return pd.DataFrame(
        [
            fixed
            | {"step": step, "seed": seed, "task": task, "prompt_mode": mode}
            | {"problem_id": f"{task}/{i:03}", "is_correct": i < right}
            for step, right in ((0, before), (60, after))
            for seed in seeds
            for i in range(n)
        ]
    )


def table_of(*parts):
    students = report.students_table(pd.concat(parts), GROUPS, seed=0)
    return report.main_table(students, PUBLISHED)


def verdicts(found, **options):
    table = report.claims_table(found, PUBLISHED, scale="here", **options)
    return dict(zip(table["claim"], table["verdict"], strict=True))


def finding(**changes):
    values = {"ours": "x", "effect": 0.1, "ci_low": 0.05, "ci_high": 0.2}
    values |= {"p_value": 0.001, "is_met": True, "is_opposite": False}
    return report.Finding(**(values | changes))


def test_there_are_eight_claims_each_with_a_rule_and_a_source_notebook():
    assert [claim.id for claim in report.CLAIMS] == [f"C{i}" for i in range(1, 9)]
    assert all(claim.rule.startswith("Reproduced if") for claim in report.CLAIMS)
    assert all(claim.notebook[:2].isdigit() for claim in report.CLAIMS)


def test_verdicts_are_corrected_for_the_number_of_claims():
    weak = finding(p_value=0.03)
    assert verdicts({"C1": weak})["C1"] == "reproduced"
    both = {"C1": weak, "C2": finding(p_value=0.04)}
    assert verdicts(both)["C1"] == "not reproduced"


def test_a_claim_that_cannot_be_judged_does_not_count_in_the_correction():
    found = {"C1": finding(p_value=0.03), "C2": finding(p_value=0.5, reason="too few")}
    assert verdicts(found)["C1"] == "reproduced"


def test_a_scale_that_proves_nothing_withholds_every_verdict_and_says_why():
    table = report.claims_table(
        {"C1": finding()}, PUBLISHED, scale="toy", withheld="machinery only"
    )
    assert set(table["verdict"]) == {"not testable at this scale"}
    assert table["ours"][0] == "toy: x; not judged: machinery only"
    assert table["effect"][0] == 0.1


def test_the_ledger_has_the_designs_columns_and_the_papers_numbers():
    table = report.claims_table({}, PUBLISHED, scale="here")
    assert table.columns.tolist() == (
        "claim statement paper ours effect ci_low ci_high verdict".split()
    )
    assert table["paper"][0] == "FlanT5-11B gsm8k 16.1% → 27.1%"
    assert table["paper"][2] == "FlanT5-11B bbh 41.8% → 0.0%"
    assert (table["paper"][4:] == "").all()
    assert "10_scaling" in table["ours"][3]


def test_a_finding_for_an_unknown_claim_is_an_error():
    with pytest.raises(ValueError, match=r"unknown claims \['C9'\]"):
        report.claims_table({"C9": finding()}, PUBLISHED, scale="here")


def test_published_numbers_are_fractions_with_a_source_and_unknown_stay_empty():
    assert PUBLISHED["source"].str.len().gt(5).all()
    assert PUBLISHED["accuracy"].dropna().between(0, 1).all()
    unknown = PUBLISHED[PUBLISHED["kind"] == "generic large model"]
    assert unknown["accuracy"].isna().all() and len(unknown) == 4


def test_the_papers_teacher_has_its_accuracies_and_is_no_evidence_for_a_claim():
    teacher = PUBLISHED[PUBLISHED["kind"] == "paper's teacher"]
    assert teacher["accuracy"].tolist() == [0.6384, 0.8379]
    assert (teacher["claim"] == "").all()


def test_the_papers_effects_are_known_where_both_sides_are():
    effects = report.paper_effects(PUBLISHED)
    assert sorted(effects) == ["C1", "C2", "C3"]
    assert effects["C2"] == pytest.approx(0.255)


def test_the_main_table_has_our_students_before_and_after():
    table = table_of(predictions("gsm8k", MATH, 20, 80))
    ours = table[table["kind"] == "ours"].iloc[0]
    assert (ours["before"], ours["after"], ours["n"]) == (0.1, 0.4, 200)
    assert ours["change"] == pytest.approx(0.3)
    assert ours["change_low"] < 0.3 < ours["change_high"]
    assert ours["before_low"] == pytest.approx(0.0659, abs=1e-3)  # Wilson, 20 of 200
    assert ours["mcnemar_p"] < 1e-9


def test_seeds_are_averaged_and_sizes_and_starts_kept_apart():
    table = table_of(
        predictions("gsm8k", MATH, 20, 80, seeds=(0, 1), size=2, model="large"),
        predictions("gsm8k", MATH, 20, 40),
        predictions("gsm8k", MATH, 0, 10, start="raw", model="raw"),
    )
    ours = table[table["kind"] == "ours"]
    assert ours["model"].tolist() == ["raw", "s", "large"]
    assert ours["num_seeds"].tolist() == [1, 1, 2]


def test_mcnemar_is_tested_in_each_seed_and_the_smallest_p_corrected_for_the_seeds():
    level = [predictions("gsm8k", MATH, 20, 20, seeds=(s,)) for s in (0, 1)]
    table = table_of(*level, predictions("gsm8k", MATH, 20, 30, seeds=(2,)))
    ours = table[table["kind"] == "ours"]
    assert ours["mcnemar_p"].tolist() == pytest.approx([3 * 2 * 0.5**10])
    assert tables.our_rows(table)["McNemar p"].tolist() == ["0.006"]


def test_a_small_mcnemar_p_is_in_the_reports_table_as_a_bound():
    details = report_of("micro").split("## Every set and prompt")[1]
    assert "McNemar p" in details and "<0.001" in details


def test_published_models_keep_before_and_after_in_one_row_and_holes_empty():
    table = table_of(predictions("gsm8k", MATH, 20, 80))
    paper = table[(table["model"] == "FlanT5") & (table["task"] == "gsm8k")].iloc[0]
    assert (paper["before"], paper["after"]) == (0.161, 0.271)
    palm = table[table["model"] == "PaLM"].iloc[0]
    assert math.isnan(palm["before"]) and math.isnan(palm["after"])


def scored(task, before, after, **others):
    """Predictions in which other scorers call every answer right or wrong."""
    columns = {f"{name}_is_correct": value for name, value in others.items()}
    return predictions(task, MATH, before, after).assign(**columns)


def test_math_carries_the_reference_and_lm_eval_and_generic_tasks_do_not():
    math_rows = scored("gsm8k", 20, 80, reference=False, lm_eval=True)
    is_after = math_rows["step"] > 0
    math_rows.loc[is_after, "reference_is_correct"] = math_rows["is_correct"]
    table = table_of(math_rows, predictions("bbh/navigate", COT, 100, 0))
    ours = table[table["kind"] == "ours"].set_index("task")
    names = "before_reference after_reference before_lm_eval after_lm_eval".split()
    assert ours.loc["gsm8k", names].tolist() == pytest.approx([0, 0.4, 1, 1])
    assert ours.loc["bbh/navigate", names].isna().all()
    assert table.loc[table["kind"] != "ours", names].isna().all(axis=None)


def test_three_scorers_stand_side_by_side_for_math_in_the_table_and_the_report():
    rows = [
        scored("gsm8k", 20, 80, reference=True, lm_eval=False),
        scored("multiarith", 0, 50, reference=False, lm_eval=True),
        scored("svamp", 0, 0, reference=True, lm_eval=True),
        predictions("bbh/navigate", COT, 100, 0),
    ]
    main = table_of(*rows)
    shown = tables.scorer_rows(main, GROUPS)
    scorers = ["ours", "reference's regex", "lm-eval, flexible"]
    assert shown.set_index("set")[scorers].T.to_dict("list") == {
        "gsm8k": ["10.0 → 40.0", "100.0 → 100.0", "0.0 → 0.0"],
        "all out of distribution": ["0.0 → 12.5", "50.0 → 50.0", "100.0 → 100.0"],
    }
    claims = report.claims_table({}, PUBLISHED, scale="here")
    text = report.report_text("micro", main, claims, groups=GROUPS)
    section = text.split("## The same answers, three scorers")[1].split("## ")[0]
    assert tables.markdown_table(shown) in section


def test_groups_pool_their_problems():
    table = table_of(
        predictions("multiarith", MATH, 0, 60, n=60),
        predictions("svamp", MATH, 0, 0, n=180),
    )
    ours = table[table["kind"] == "ours"].set_index("task")["change"]
    assert ours.to_dict() == {
        "multiarith": 1.0,
        "svamp": 0.0,
        "all out of distribution": 0.25,
    }


def test_the_summary_has_one_line_a_student_and_empty_cells_for_the_unmeasured():
    table = table_of(
        predictions("gsm8k", MATH, 20, 80), predictions("bbh/navigate", COT, 100, 0)
    )
    line = tables.summary_rows(table, GROUPS).iloc[0]
    assert line["in-distribution"].startswith("10.0 → 40.0 (+30.0 [+2")
    assert line["generic, CoT"].startswith("50.0 → 0.0 (-50.0")
    assert line["out of distribution"] == line["generic, answer-only"] == ""


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_every_profile_says_what_it_proves_and_what_not(name):
    scale = report.scale_of(name)
    assert scale.proves and scale.cannot
    assert scale.is_paper == name.startswith("flan-t5-")


def test_only_scales_that_can_decide_do():
    assert report.scale_of("smoke").withheld and report.scale_of("rehearsal").withheld
    assert not report.scale_of("micro").withheld
    with pytest.raises(ValueError, match="profile: 'mega' has no scale"):
        report.scale_of("mega")


def report_of(profile):
    rows = predictions("gsm8k", MATH, 20, 80)
    found = report.specialization_findings(rows, DATA, seed=0)
    claims = report.claims_table(found, PUBLISHED, scale=report.scale_of(profile).name)
    facts = {"seed": 0}
    return report.report_text(
        profile, table_of(rows), claims, groups=GROUPS, facts=facts
    )


def test_the_same_input_gives_the_same_text():
    assert report_of("micro") == report_of("micro")


def test_micro_numbers_never_stand_in_one_table_with_the_papers():
    text = report_of("micro")
    ours = text.split("## Our students")[1].split("## ")[0]
    published = text.split("## Published numbers")[1].split("## ")[0]
    assert "10.0 → 40.0" in ours and "FlanT5" not in ours
    assert "cannot be compared number by number" in published
    assert "What it cannot prove:** the paper's numbers" in text


def test_the_report_states_every_rule():
    text = report_of("smoke")
    assert all(claim.rule in text for claim in report.CLAIMS)


def test_the_page_has_the_reports_tables_and_needs_nothing_beside_it():
    page = report.report_page(report_of("micro"), title="a < b")
    assert page.startswith("<!doctype html>") and "<title>a &lt; b</title>" in page
    assert page.count("<table>") == report_of("micro").count("| --- |\n") == 6
    assert "src=" not in page and "<script" not in page


def test_markdown_cells_escape_bars_and_leave_missing_empty():
    table = pd.DataFrame({"a": ["x|y", None], "b": [float("nan"), 1]})
    assert tables.markdown_table(table).splitlines()[2:] == [
        "| x\\|y |  |",
        "|  | 1.0 |",
    ]
