"""docs/conversion.md is of the rules and of the results that it shows."""

from __future__ import annotations

import capture
import draw_conversion
import ways_of_writing


def test_the_tables_are_those_of_the_rules():
    """If this fails: python docs/draw_conversion.py."""
    text = draw_conversion.PAGE.read_text(encoding="utf-8")
    assert draw_conversion.page(text) == text


def test_every_list_of_the_rules_is_in_the_tables():
    shown = draw_conversion.with_a_rule() + draw_conversion.refused()
    for name in ("conv2d", "einsum", "cat", "permute", "clone", "gelu", "interpolate", "addcmul", "tolist"):
        assert f"`{name}`" in shown


def test_the_ways_to_capture_are_those_that_were_measured():
    """If this fails: python benchmarks/capture.py."""
    text = capture.PAGE.read_text(encoding="utf-8")
    assert capture.page(text) == text
    assert all(title in text for title in ways_of_writing.WAYS)


def test_three_ways_capture_what_the_page_says():
    for title, way in ways_of_writing.WAYS.items():
        if "`self.gain" in title or "stride" in title:
            assert capture.written(way) == capture.measured()["written"][title]
