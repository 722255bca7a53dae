"""docs/exact.md and its picture are of this code."""

from __future__ import annotations

import re
from dataclasses import fields

import draw_exact

import bridge
from bridge.simulate.cost import Cost
from bridge.zoo.pretrained import pretrained

PAGE = (draw_exact.PICTURE.parent / "exact.md").read_text(encoding="utf-8")
COSTS = PAGE.partition("## What it costs")[2].partition("## Measured")[0]


def test_the_picture_is_of_this_code():
    """If this fails: python docs/draw_exact.py."""
    assert draw_exact.PICTURE.read_text(encoding="utf-8") == draw_exact.picture()


def test_the_picture_shows_three_wrong_counts_and_all_of_them_plain():
    assert draw_exact.picture().count('<text class="wrong"') == 3


def test_every_field_of_a_price_is_explained():
    rows = re.findall(r"^\| (`[^|]*) \|", COSTS, re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {field.name for field in fields(Cost)} | {"units"} == explained


def test_the_table_is_filled_between_two_marks():
    assert PAGE.count("<!-- exact table -->") == 2


def test_the_prices_of_resnet20_are_what_cost_returns():
    model = pretrained("resnet20-cifar10")
    found = re.findall(r"^\| (\d+) \| (.*) \|$", COSTS, re.MULTILINE)
    assert [row[0] for row in found] == ["8", "4", "2", "1"]
    for steps, row in found:
        price = bridge.convert(model, schedule="staged", steps=int(steps)).cost()
        shown = (price.latency, price.interval, price.interval_of_one_potential, price.images_in_flight)
        assert [int(cell.replace(",", "")) for cell in row.split(" | ")] == [*shown, price.delayed_steps]
    assert f"{price.neurons:,} neurons" in COSTS
    grouped = bridge.convert(model, schedule="grouped").cost()
    assert (grouped.latency, grouped.interval, grouped.delayed_steps) == (1, 1, 0)
    assert f"{grouped.neurons:,} neurons" in COSTS
    assert grouped.synapses == 8 * price.synapses
