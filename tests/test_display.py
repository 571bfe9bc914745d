"""Claims about the coloured text that notebooks show."""

import pandas as pd
import pytest

from cotspec import display, report

CLAIMS = pd.DataFrame(
    {
        "claim": ["C1", "C4"],
        "statement": ["a < b", "c"],
        "ours": ["0.1 → 0.3", ""],
        "condition": ["small", ""],
        "effect": [0.2, float("nan")],
        "ci_low": [0.1, float("nan")],
        "ci_high": [0.3, float("nan")],
        "unit": "points",
        "verdict": ["reproduced", "not testable here"],
        "former_verdict": ["not reproduced", ""],
    }
)


def test_sure_tokens_are_white_and_doubtful_ones_dark_and_underlined():
    shown = display.confidence_text([b"sure", b"doubt"], [1.0, 0.0])._repr_html_()
    assert '<span style="background:#ffffff;color:#000" title="sure 1.000">' in shown
    assert 'background:#56b4e9;color:#000;border-bottom:2px solid #000"' in shown


def test_half_a_character_is_shown_as_bytes():
    assert "\\xe2\\x82" in display.confidence_text([b"\xe2\x82"], [0.4]).data


def test_tokens_and_probabilities_must_match():
    with pytest.raises(ValueError, match="probabilities: 1 for 2 tokens"):
        display.confidence_text(["a", "b"], [0.5])
    with pytest.raises(ValueError, match="probabilities: 1.5 must be from 0 to 1"):
        display.confidence_text(["a"], [1.5])


def test_the_claims_table_marks_verdicts_by_sign_and_leaves_unknown_empty():
    shown = display.claims_table(report.ledger_columns(CLAIMS)).data
    assert "✔ reproduced" in shown and "– not testable here" in shown
    assert "small: +20.0 [+10.0, +30.0] points" in shown
    assert "nan" not in shown.lower()
    assert "a &lt; b" in shown
