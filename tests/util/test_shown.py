"""What public objects show of themselves: one line, and in a notebook a small table."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from fuzz import mutants

import bridge
from bridge import loihi
from bridge._util.shown import Shown, Words, brief
from bridge.zoo.data import dataset


@pytest.fixture(scope="module")
def things():
    """Objects as a notebook shows them."""
    network, x = mutants.network(), mutants.images()
    whole = network.quantize(8, x)
    agreement = network.validate(x, 3, [mutants.Same()])
    staged = bridge.convert(mutants.model(), x, schedule="staged")
    twin = bridge.registry.get("lava-twin")
    found = [network, whole, network.graph, network.ann, *network.graph, agreement, agreement.reference]
    found += [agreement.rate_error, *agreement.backends.values(), network.run(x, 3), network.simulate(x, 3), staged]
    found += [
        staged.cost(),
        staged.validate(x, backends=[]).equals_ann,
        loihi.report(whole),
        twin.export(whole.to_nir()),
    ]
    return [*found, network.time_biased(x, 2), dataset("digits"), dataset("digits").train, *staged.graph]


def test_one_line_and_a_small_table(things):
    for thing in things:
        line = repr(thing)
        assert line.startswith(type(thing).__name__)
        assert "\n" not in line
        assert len(line) < 250
        if isinstance(thing, Shown):
            assert len(thing._repr_html_()) < 4000
            assert "tensor(" not in thing._repr_html_()


def test_what_the_lines_say(things):
    lines = [repr(thing) for thing in things]
    assert "LayerGraph(shapes=[1, 6, 6] -> [3], layers=8, spiking=2)" in lines
    assert "Agreement(agreed=True, steps=3, images=3, differing=same 0)" in lines
    assert any(line.startswith("SpikeRecord(backend='reference', steps=3, images=3, layers=2: ") for line in lines)
    assert any(line.startswith("Conv2d(name=") and "weight=float32 [3, 1, 3, 3]" in line for line in lines)
    loaded = bridge.network.SpikingNetwork(mutants.network().graph)
    assert repr(loaded).endswith("its ANN not known)")


@dataclass(repr=False)
class Thing(Shown):
    text: str = "<script>alert(1)</script>"
    values: object = None
    hidden: int = field(default=3, repr=False)


def test_html_is_escaped():
    shown = Thing()._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "hidden" not in shown


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.zeros((2, 3), np.float32), "float32 [2, 3]"),
        (torch.zeros(4, dtype=torch.uint8), "uint8 [4]"),
        (np.float64(1.5), "1.5"),
        ({}, "none"),
        ({"a": 1, "b": 2}, "2: a, b"),
        (dict.fromkeys("abcdef"), "6: a, b, c, d, …"),
        ((1, 2), "(1, 2)"),
        (list(range(9)), "9 values"),
        ([{}] * 3, "3 items"),
        ("text", "'text'"),
        (Words("-> x"), "-> x"),
        (Thing(), "Thing"),
        (object, "<class 'object'>"),
    ],
    ids=str,
)
def test_brief(value, expected):
    assert brief(value) == expected


def test_long_lines_are_cut():
    assert len(repr(Thing(text="x" * 9000, values=["y" * 500] * 3))) < 250
    assert repr(copy.copy(Thing(values=3))) == repr(Thing(values=3))
