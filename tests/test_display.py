"""Claims about the coloured text that notebooks show."""

import pytest

from cotspec import display


def test_sure_tokens_are_white_and_doubtful_ones_dark_and_underlined():
    tokens = [b"sure", b"doubt", b"\xe2\x82"]
    shown = display.confidence_text(tokens, [1.0, 0.0, 0.4]).data
    assert '<span style="background:#ffffff;color:#000" title="sure 1.000">' in shown
    assert 'background:#56b4e9;color:#000;border-bottom:2px solid #000"' in shown
    assert "\\xe2\\x82" in shown  # half a character
    with pytest.raises(ValueError, match="shorter"):
        display.confidence_text(["a", "b"], [0.5])
