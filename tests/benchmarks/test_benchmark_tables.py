"""The script behind the speed tables: its sums by hand, and one small run of all of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import contenders
import numpy as np
import pytest
import simulation
import simulation_page
from contenders import ANN, FLOAT32, INT8
from support.backends import require

from bridge.simulate.reference import simulate

SECONDS = {INT8: [1.0, 2.0, 4.0], FLOAT32: [2.0, 2.0, 2.0], "snnTorch": [8.0, 10.0, 12.0]}


@pytest.fixture(scope="module")
def digits():
    return contenders.networks(contenders.SUBJECTS["digits"], 2)


def entry(steps, batch, seconds=SECONDS, left_out=()):
    return simulation.case(steps, batch, seconds, dict(left_out))


def results(*cases, **more):
    checked = {
        "spikes compared": 1000,
        "int8 spikes that differ": 0,
        "float spikes that differ": 3,
        "of these by themselves": 2,
        "largest distance from the level": 2.1e-7,
        "mean rate": 0.25,
    }
    row = {"title": "a net", "parameters": 1_500_000, "neurons": 4321, "skipped": {"Sinabs": "not installed"}}
    facts = {"date": "2026-01-02", "threads": 2, "cpu capability": "AVX2", "int8 operators": True, "numba": False}
    return {
        "machine": {**facts, "versions": {"torch": "2.0"}},
        "settings": {"rounds": 3, "limit": 30.0},
        "networks": {"net": {**row, "check": checked, "cases": cases, **more}},
        "missing": {"another": "torchvision is not installed"},
    }


def test_speed_is_the_median_of_the_rounds_and_their_spread():
    # 32 images in 4, 1 and 2 seconds: 8, 32 and 16 a second
    assert simulation.speed([4.0, 1.0, 2.0], 32) == {"median": 16, "low": 8, "high": 32}
    assert simulation.speed([1.0, 2.0], 3) == {"median": 2.25, "low": 1.5, "high": 3}


def test_ratios_are_taken_within_a_round():
    # beside int8: 2/1, 2/2, 2/4 and 8/1, 10/2, 12/4; beside float32: 1/2, 2/2, 4/2 and 8/2, 10/2, 12/2
    assert simulation.ratios(SECONDS, INT8) == {FLOAT32: 1, "snnTorch": 5}
    assert simulation.ratios(SECONDS, FLOAT32) == {INT8: 1, "snnTorch": 5}
    # one slow round for both: the ratios within rounds are 3, 3, 1, and that of the medians would be 3/2
    assert simulation.ratios({INT8: [1.0, 2.0, 9.0], ANN: [3.0, 6.0, 9.0]}, INT8) == {ANN: 3}
    assert simulation.ratios({ANN: [1.0]}, INT8) == {}


def test_estimates_grow_from_the_largest_case_below():
    past = [(1, 0.5), (32, 2.0), (8, 1.0)]
    assert simulation.estimate(past, 256) == 16
    assert simulation.estimate(past, 32) == 2
    assert simulation.estimate(past, 16) == 2
    assert simulation.estimate(past[1:2], 16) is None
    assert simulation.estimate([], 16) is None


def test_short_runs_are_timed_as_several():
    assert simulation.calls_for(0.2) == 1
    assert simulation.calls_for(0.05) == 1
    assert simulation.calls_for(0.02) == 3
    assert simulation.calls_for(0.0) == simulation.MOST_CALLS


def test_what_is_too_slow_is_left_out(monkeypatch):
    asked = []

    def timed(run, steps, batch, calls=1):
        asked.append((run, steps * batch))
        return {"quick": 0.001, "slow": 0.5, "one pass": 1.0 / steps}[run] * steps * batch

    monkeypatch.setattr(simulation, "timed", timed)
    runs: Any = {"a": "quick", "b": "slow", ANN: "one pass"}  # what `timed` here makes of a run
    past: dict[str, list[tuple[int, float]]] = {}
    seconds, left_out = simulation.race(runs, 1, 8, 2, 10.0, past)
    assert seconds == {"a": [0.008, 0.008], "b": [4.0, 4.0], ANN: [8.0, 8.0]}
    assert left_out == {}
    seconds, left_out = simulation.race(
        runs, 4, 8, 2, 10.0, past
    )  # b would take 4 s · 32 / 8; one pass still takes 8 s
    assert seconds == {"a": [0.032, 0.032], ANN: [32.0, 32.0]}
    assert left_out == {"b": "about 16 s a run"}
    assert ("slow", 32) not in asked
    seconds, left_out = simulation.race({"b": runs["b"]}, 4, 8, 2, 10.0, {})  # known only once it has run
    assert seconds == {}
    assert left_out == {"b": "16 s a run"}
    assert asked.count(("slow", 32)) == 1


def test_cases_come_in_order_of_work(monkeypatch):
    met = []

    def race(runs, steps, batch, *_):
        met.append((steps, batch, [*runs]))
        return {}, {}

    monkeypatch.setattr(simulation, "race", race)
    options = simulation.parsed(["--steps", "8", "1", "--batches", "32", "1"])
    runs: Any = {"lava-fixed": None, INT8: None}
    simulation.speeds("digits", runs, options)
    assert met == [(1, 1, [INT8]), (8, 1, [INT8]), (1, 32, [INT8]), (8, 32, ["lava-fixed", INT8])]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (0.5, "0.500"), (1.2345, "1.23"), (99.44, "99.4"), (1234.6, "1,235")],
)
def test_three_digits(value, text):
    assert simulation_page.short(value) == text


def test_speed_table():
    slow = entry(8, 4, {INT8: [2.0, 1.0, 4.0]}, {FLOAT32: "about 40 s a run", "snnTorch": "41 s a run"})
    assert simulation_page.speed_table([slow, entry(1, 4)]) == [
        "| images/s | T = 1 | T = 8 |",
        "| --- | ---: | ---: |",
        f"| {INT8} | 2.00 (1.00–4.00) | 2.00 (1.00–4.00) |",
        f"| {FLOAT32} | 2.00 (2.00–2.00) | — |",
        "| snnTorch | 0.400 (0.333–0.500) | — |",
    ]


def test_ratio_table():
    assert simulation_page.ratio_table([entry(1, 4)]) == [
        "| faster than | T = 1, int8 | T = 1, float32 |",
        "| --- | ---: | ---: |",
        f"| {INT8} |  | 1.00 × |",
        f"| {FLOAT32} | 1.00 × |  |",
        "| snnTorch | 5.00 × | 5.00 × |",
    ]


def test_memory_table():
    assert simulation_page.memory_table({INT8: {"8": 25.51, "32": 56.9}, "snnTorch": {"8": 109.4}}) == [
        "| MiB | T = 8 | T = 32 |",
        "| --- | ---: | ---: |",
        f"| {INT8} | 25.5 | 56.9 |",
        "| snnTorch | 109 | — |",
    ]


def test_conversion_table():
    rows: dict[str, dict[str, Any]] = {
        "one": {"title": "One", "conversion_seconds": {"convert": [0.3, 0.1, 0.2], "read": [1.0, 1.0, 1.0]}},
        "other": {"title": "Other", "conversion_seconds": {"convert": [2.0]}},
        "none": {"title": "None"},
    }
    assert simulation_page.conversion_table(rows) == [
        "| seconds | convert | read |",
        "| --- | ---: | ---: |",
        "| One | 0.200 (0.100–0.300) | 1.00 (1.00–1.00) |",
        "| Other | 2.00 (2.00–2.00) | — |",
    ]


def test_page_has_every_part_and_says_what_is_missing():
    page = simulation_page.page(
        results(
            entry(1, 1),
            entry(1, 32, {INT8: [1.0]}, {FLOAT32: "31 s a run"}),
            memory_mib={INT8: {"8": 1.0}},
            conversion_seconds={"bridge.convert": [0.5]},
        )
    )
    for text in (
        "2026-01-02, 2 threads,\nAVX2, int8 operators used, numba missing. torch 2.0.",
        "## a net",
        "1.50 M weights, 4,321 neurons, mean rate 0.250. Of 1,000",
        "0 differ from the reference's in int8 and 3 in float32, which follow from 2 at most 2e-07 from the",
        "### 1 image at a time",
        "### 32 images at a time",
        "### Peak memory of one run of 32 images",
        "| a net | 0.500 (0.500–0.500) |",
        "takes, or would take, more than 30 s",
        "- Sinabs is not in the tables: not installed.",
        "- another is not in the tables: torchvision is not installed.",
    ):
        assert text in page
    assert ANN not in page
    alone = simulation_page.page(results(entry(1, 1)))
    assert "left out" not in alone
    assert "Conversion" not in alone
    assert "memory" not in alone.lower()


def test_peak_is_what_was_held_at_once():
    np.ones(2**27, np.uint8).sum()  # an earlier, larger peak must not hide the one that is measured
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system keeps one peak for the whole process")
    peak = simulation.peak_of(lambda: [np.ones(2**26, np.uint8).sum() for _ in range(3)])
    assert 0.9 < peak / 2**26 < 1.25  # the system counts pages in bunches


def test_every_layer_fires_and_the_engine_is_right(digits):
    found = simulation.check(digits, {})
    assert found["int8 spikes that differ"] == 0
    assert found["silent layers"] == []
    assert found["spikes compared"] == 2 * 4 * digits.floating.graph.neurons


def test_a_float_tie_is_told_from_what_follows(digits):
    x = digits.images[:2]
    right = digits.floating.run(x, 4)
    assert simulation.origins(digits.floating, x, right) == (0, 0.0)
    first = digits.floating.layers[0]
    packed = {name: bits.copy() for name, bits in right.packed.items()}
    packed[first][3, 1, 0] ^= 0b10000000  # one neuron of the first layer, at the last step
    graph = digits.floating.graph
    for _ in graph.spiking:  # all others do as they must, one layer after the other
        heard = simulate(graph, x, 4, heard=dataclasses.replace(right, packed=packed))
        packed |= {name: bits for name, bits in heard.packed.items() if name != first}
    exact = simulate(graph, x.double(), 4, membranes=True, heard=right).membranes[first][3, 1, 0, 0, 0]
    count, distance = simulation.origins(digits.floating, x, dataclasses.replace(right, packed=packed))
    assert (count, distance) == (1, pytest.approx(abs(exact - 0.5)))


def test_wrong_spikes_are_not_timed(digits):
    other = SimpleNamespace(run=lambda x, steps: digits.whole.run(255 - x, steps), simulate=digits.whole.simulate)
    with pytest.raises(simulation.WrongSpikesError, match=r"engine, int8: [1-9]"):
        simulation.check(dataclasses.replace(digits, whole=other), {})


def test_networks_come_back_from_files(digits, tmp_path):
    digits.save(tmp_path)
    again = contenders.Networks.load(contenders.SUBJECTS["digits"], tmp_path)
    for name in (INT8, FLOAT32, ANN):
        make = contenders.CONTENDERS[name]
        np.testing.assert_array_equal(np.asarray(make(again)(2, 2)), np.asarray(make(digits)(2, 2)))


@pytest.mark.filterwarnings("ignore")  # of the frameworks
def test_all_of_it_on_a_small_network(tmp_path, capsys):
    for name in ("spikingjelly", "snntorch"):
        require(name)
    out, markdown = tmp_path / "speed.json", tmp_path / "speed.md"
    arguments = ["--networks", "digits", "--steps", "1", "--batches", "1", "--rounds", "2"]
    simulation.main([*arguments, "--out", str(out), "--markdown", str(markdown)])
    written = json.loads(out.read_text(encoding="utf-8"))
    page = markdown.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == page.strip()
    network = written["networks"]["digits"]
    (case,) = network["cases"]
    expected = {INT8, FLOAT32, "SpikingJelly, single-step", "SpikingJelly, multi-step", "snnTorch", ANN}
    assert expected <= case["seconds"].keys()
    assert case["seconds"].keys() | network["skipped"].keys() == contenders.CONTENDERS.keys()
    assert all(len(values) == 2 and min(values) > 0 for values in case["seconds"].values())
    assert network["check"]["largest difference of an output"].keys() >= expected - {INT8, ANN}
    assert set(network["conversion_seconds"]) >= {"bridge.convert", "network.save", "bridge.load"}
    assert str(tmp_path) not in page + out.read_text(encoding="utf-8")
    for name in expected:
        assert f"| {name} |" in page


@pytest.mark.filterwarnings("ignore")
def test_memory_is_measured_in_other_processes(digits):
    options = simulation.parsed(["--steps", "8"])
    network = dataclasses.replace(digits, pixels=digits.pixels[:1].repeat(32, 1, 1, 1))
    cases = [entry(8, 32, {INT8: [1.0]}, {FLOAT32: "too slow"})]
    runs: Any = dict.fromkeys([INT8, FLOAT32])
    found = simulation.memory("digits", network, runs, cases, options)
    assert found.keys() == {INT8}
    assert 0 < found[INT8]["8"] < 1000
