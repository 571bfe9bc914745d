"""Claims about the coloured text that notebooks show."""

import pytest

from cotspec import display


def test_sure_tokens_are_white_and_doubtful_ones_dark_and_underlined():
    shown = display.confidence_text([b"sure", b"doubt"], [1.0, 0.0])._repr_html_()
    assert '<span style="background:#ffffff;color:#000" title="sure 1.000">' in shown
    assert 'background:#56b4e9;color:#000;border-bottom:2px solid #000"' in shown


def test_half_a_character_is_shown_as_bytes():
    assert "\\xe2\\x82" in display.confidence_text([b"\xe2\x82"], [0.4]).data


def test_tokens_and_probabilities_must_match():
    with pytest.raises(ValueError, match="shorter"):
        display.confidence_text(["a", "b"], [0.5])
