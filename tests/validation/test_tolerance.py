"""The tolerance contract: what passes, what fails and says why, and the least tolerance that would pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import networks

import bridge
from bridge import InputError, ValidationError
from bridge.agreement import Agreement
from bridge.backends.recorded import Recorded
from bridge.report.outcome import BackendAgreement, Divergence
from bridge.validation.tolerance import Tolerance, assert_agreement, check

NEURONS = {"conv.act[0]": 10, "conv.act[1]": 7, "fc": 3}


def backend(differing=None, steps=2, images=4, **changes) -> BackendAgreement:
    """One without a fault, but for the `changes`."""
    zeros = {name: [0.0] * steps for name in NEURONS}
    counts = {name: [0] * steps for name in NEURONS} | (differing or {})
    values = {
        "images": images,
        "versions": {},
        "differing": counts,
        "rate_error": zeros,
        "rate_error_max": zeros,
        "cosine": {name: [1.0] * steps for name in NEURONS},
        "within": {name: [1.0] * steps for name in NEURONS},
        "top1_reference": [1.0] * steps,
        "top1_ann": [1.0] * steps,
        "accuracy": None,
        "unexplained": sum(map(sum, counts.values())),
    }
    return BackendAgreement(**{**values, **changes})


def agreement(steps=2, **backends) -> Agreement:
    return Agreement(steps, dict(NEURONS), None, backend(steps=steps), backends)


def test_the_default_passes_what_agreed():
    """Differences that all follow from ties pass, one spike or readout that is wrong by itself does not."""
    ties = backend({"fc": [0, 2]}, unexplained=0, ties=2)
    for result in (backend(), ties, backend({"fc": [0, 2]}), backend(readouts_wrong=1)):
        verdict = check(agreement(a=backend(), b=result))
        assert verdict.passed == result.agreed
    assert check(agreement(b=ties)).least_passing_tolerance == Tolerance()


def test_failures_say_what_and_where():
    both = agreement(
        good=backend(),
        bad=backend(
            {"conv.act[0]": [0, 8], "fc": [3, 1]},
            readouts_wrong=2,
            rate_error={"conv.act[0]": [0.9, 0.25], "conv.act[1]": [0.9, 0.05], "fc": [0.9, 0.5]},
            top1_ann=[0.0, 0.75],
        ),
    )
    verdict = check(both, Tolerance(spikes=0.1, readouts=0.125, rate=0.3, top1=0.8))
    assert not verdict.passed
    assert [(f.backend, f.what, f.layer, f.step, f.limit, f.value) for f in verdict.failures] == [
        ("bad", "spikes", "fc", 1, 0.1, 3 / (3 * 4)),
        ("bad", "spikes", "conv.act[0]", 2, 0.1, 8 / (10 * 4)),
        ("bad", "readouts", None, None, 0.125, 2 / (2 * 4)),
        ("bad", "rate", "fc", 2, 0.3, 0.5),
        ("bad", "top1", None, 2, 0.8, 0.75),
    ]
    assert verdict.least_passing_tolerance == Tolerance(spikes=0.25, readouts=0.25, rate=0.5, top1=0.75)
    assert check(both, Tolerance(spikes=0.25, readouts=0.25)).least_passing_tolerance == Tolerance(0.25, 0.25)


def test_the_last_pattern_that_matches_decides():
    bad = agreement(bad=backend({"conv.act[0]": [8, 0], "conv.act[1]": [7, 0]}))
    limits = {"*": Tolerance(0.0), "conv*": Tolerance(0.1), "conv.act[1]": Tolerance(0.5)}  # itself, not "act1"
    verdict = check(bad, limits)
    assert [(failure.layer, failure.limit) for failure in verdict.failures] == [("conv.act[0]", 0.1)]
    least = {"*": Tolerance(), "conv*": Tolerance(8 / 40), "conv.act[1]": Tolerance(7 / 28)}
    assert verdict.least_passing_tolerance == least
    assert [failure.layer for failure in check(bad, {"conv.act[0]": Tolerance(1.0)}).failures] == ["conv.act[1]"]


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"pool*": Tolerance()}, r"pattern 'pool\*' decides nothing"),
        ({"fc": Tolerance(), "*": Tolerance()}, "pattern 'fc' decides nothing"),
        ({"fc": Tolerance(top1=0.5)}, 'only "\\*" decides'),
        ({"fc": Tolerance(readouts=0.5)}, 'only "\\*" decides'),
    ],
)
def test_a_pattern_must_decide_something(limits, says):
    with pytest.raises(ValidationError, match=says):
        check(agreement(a=backend()), limits)


NAN = {name: [0.0, math.nan] for name in NEURONS}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (agreement(), "0 backends"),
        (agreement(steps=0, a=backend(steps=0)), "0 time steps"),
        (replace(agreement(a=backend()), neurons={}), "0 spiking layers"),
        (agreement(a=backend(images=0)), "no image"),
        *((agreement(a=backend(**{what: NAN})), f"a: {what} of .* holds NaN") for what in ("rate_error", "cosine")),
        *((agreement(a=backend(**{what: NAN})), f"a: {what} of .* holds NaN") for what in ("within", "rate_error_max")),
        (agreement(a=backend(top1_ann=[1.0, math.nan])), "top1_ann holds NaN"),
        (agreement(a=backend(top1_reference=[1.0, math.nan])), "top1_reference holds NaN"),
        (agreement(a=backend(accuracy=[1.0, math.nan])), "accuracy holds NaN"),
        (agreement(a=backend(readout_error=math.nan)), "readout_error is nan"),
        (agreement(a=backend(top1_reference=[])), "top1_reference has 0 time steps instead of 2"),
        (agreement(a=backend({"fc": [0]})), "differing of 'fc' has 1 time steps"),
        (agreement(a=backend(differing={"other": [0, 0]})), "differing is of the layers"),
        (agreement(a=backend(unexplained=1)), "yet none differs"),
    ],
)
def test_nothing_passes_that_was_not_measured(bad, says):
    with pytest.raises(ValidationError, match=says):
        check(bad, Tolerance(1.0, 1.0))


def test_without_an_ann():
    """Rates have nothing to be held against; the largest output is the reference's."""
    alone = agreement(
        a=backend(
            rate_error=None, rate_error_max=None, cosine=None, within=None, top1_ann=None, top1_reference=[1.0, 0.5]
        )
    )
    assert [failure.value for failure in check(alone, Tolerance(top1=0.6)).failures] == [0.5]
    with pytest.raises(ValidationError, match="no ANN"):
        check(alone, Tolerance(rate=1.0))


@pytest.mark.parametrize("limit", [-0.1, 1.5, 3, math.nan, math.inf, True, "0.1"])
@pytest.mark.parametrize("name", ["spikes", "readouts", "rate", "top1"])
def test_a_limit_is_a_share(name, limit):
    with pytest.raises(InputError, match=f"{name}: expected a share from 0 to 1"):
        Tolerance(**{name: limit})


@pytest.mark.parametrize("wrong", [0.1, {"fc": 0.1}, {3: Tolerance()}, None])
def test_a_tolerance_is_one(wrong):
    with pytest.raises(InputError, match="expected a Tolerance"):
        check(agreement(a=backend()), wrong)


def test_the_message_can_be_acted_on():
    divergence = Divergence("fc", 2, 1, (2,), 0.5, 0.4999, 0.5, 0.5, 1e-6, tie=False)
    listed = [replace(divergence, tie=True, step=1), replace(divergence, image=3), divergence]
    bad = backend({"conv.act[0]": [0, 0], "fc": [3, 6]}, divergences=listed)
    assert_agreement(agreement(good=backend()))
    with pytest.raises(AssertionError) as caught:
        assert_agreement(agreement(good=backend(), bad=bad, worse=backend(readouts_wrong=4)))
    first, found, other, least = str(caught.value).splitlines()
    assert first == "bad: spikes in layer 'fc' at time step 1 is 0.25, expected at most 0 (and 1 more)"
    assert "time step 2, layer 'fc', image 1, neuron (2,): u = 0.4999, the reference's is 0.5, and" in found
    assert other == "worse: readouts is 0.5, expected at most 0"
    assert least == f"The least tolerance that would pass: {Tolerance(spikes=0.5, readouts=0.5)!r}"
    assert_agreement(agreement(bad=bad), eval(least.rpartition(": ")[2]))


shares = st.floats(0, 1)


@st.composite
def agreements(draw):
    """Any faults in up to three backends."""
    steps = draw(st.integers(1, 3))

    def one() -> BackendAgreement:
        images = draw(st.integers(1, 5))
        differing = {
            name: draw(st.lists(st.integers(0, neurons * images), min_size=steps, max_size=steps))
            for name, neurons in NEURONS.items()
        }
        rows = st.lists(shares, min_size=steps, max_size=steps)
        changes = {"rate_error": {name: draw(rows) for name in NEURONS}, "top1_ann": draw(rows)}
        changes |= {"readouts_wrong": draw(st.integers(0, images * steps))}
        if draw(st.booleans()):
            changes |= {"unexplained": 0}
        return backend(differing, steps, images, **changes)

    names = draw(st.lists(st.sampled_from("abc"), min_size=1, unique=True))
    return agreement(steps, **{name: one() for name in names})


limits = st.builds(Tolerance, spikes=shares, rate=st.none() | shares)
whole = st.builds(Tolerance, spikes=shares, readouts=shares, rate=st.none() | shares, top1=st.none() | shares)
mappings = st.fixed_dictionaries({}, optional={"*": whole, "conv*": limits, "conv.act[1]": limits, "fc": limits}).map(
    lambda given: {pattern: given[pattern] for pattern in ("*", "conv*", "conv.act[1]", "fc") if pattern in given}
)


def tighter(given: Tolerance):
    """Every tolerance that is the least bit tighter in one limit."""
    for name in ("spikes", "readouts", "rate"):
        value = getattr(given, name)
        if value:
            yield replace(given, **{name: float(np.nextafter(value, 0))})
    if given.top1 is not None and given.top1 < 1:
        yield replace(given, top1=float(np.nextafter(given.top1, 1)))


@settings(max_examples=200, deadline=None)
@given(found=agreements(), tolerance=whole | mappings)
def test_the_least_passing_tolerance_passes_and_nothing_tighter_does(found, tolerance):
    verdict = check(found, tolerance)
    least = verdict.least_passing_tolerance
    assert check(found, least).passed
    if isinstance(least, Tolerance):
        assert not any(check(found, one).passed for one in tighter(least))
        given_limits: Mapping[str, Tolerance] = {"*": tolerance}
        least_limits: Mapping[str, Tolerance] = {"*": least}
    else:
        for pattern, given_here in least.items():
            assert not any(check(found, {**least, pattern: one}).passed for one in tighter(given_here))
        given_limits, least_limits = {"*": Tolerance(), **tolerance}, least
    # What was given passes exactly if it is nowhere tighter than the least.
    passes = True
    for pattern, low in least_limits.items():
        high = given_limits[pattern]
        assert (high.rate is None, high.top1 is None) == (low.rate is None, low.top1 is None)
        passes &= high.spikes >= low.spikes and high.readouts >= low.readouts
        passes &= high.rate is None or low.rate is None or high.rate >= low.rate
        passes &= high.top1 is None or low.top1 is None or high.top1 <= low.top1
    assert verdict.passed == passes


def test_a_real_network():
    """Against numbers worked out from the two records themselves."""
    model, shape = networks.mlp()
    x = networks.dyadic_images(20, shape)
    network = bridge.convert(model, x)
    right, wrong = network.run(x, 4), network.run(x.flip(0), 4)
    result = network.validate(x, 4, [Recorded(wrong, "flipped")])
    share = max((right.spikes(name) != wrong.spikes(name)).mean(axis=(1, 2)).max() for name in network.layers)
    least = check(result, Tolerance(rate=0.0)).least_passing_tolerance
    assert isinstance(least, Tolerance)
    assert least.spikes == pytest.approx(share)
    assert_agreement(result, least)
    with pytest.raises(AssertionError, match=r"flipped: spikes in layer .*\n  the first spike wrong by itself: "):
        assert_agreement(result)
    assert_agreement(network.validate(x, 4, [Recorded(right)]))
