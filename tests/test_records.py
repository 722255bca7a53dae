"""Spike records: packing, rates, joining."""

from __future__ import annotations

import numpy as np
import pytest

from bridge import SpikeRecord, ValidationError
from bridge.records import Recorder


def make(images: int = 3, steps: int = 4, backend: str = "test", seed: int = 0) -> tuple[SpikeRecord, np.ndarray]:
    spikes = np.random.default_rng(seed).random((steps, images, 3, 5)) < 0.4
    recorder = Recorder(backend, {"act": (3, 5)})
    for t in range(steps):
        recorder.spikes("act", spikes[t].astype(np.float32), membrane=spikes[t] * 0.5)
        recorder.readout(spikes[t].sum(axis=2))
    return recorder.finish(), spikes


def test_round_trip_and_rates():
    record, spikes = make()
    assert (record.steps, record.images, record.layers) == (4, 3, ("act",))
    np.testing.assert_array_equal(record.spikes("act"), spikes)
    assert record.packed["act"].nbytes == 4 * 3 * 2  # 15 neurons in 2 bytes
    for t in range(4):
        np.testing.assert_allclose(record.rates("act")[t], spikes[: t + 1].mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(record.outputs()[t], spikes[: t + 1].sum(axis=3).mean(axis=0), rtol=1e-6)


def test_concatenate():
    one, first = make(2, seed=1)
    two, second = make(5, seed=2)
    both = SpikeRecord.concatenate([one, two])
    np.testing.assert_array_equal(both.spikes("act"), np.concatenate([first, second], axis=1))
    assert both.membranes["act"].shape == (4, 7, 3, 5)
    for other in (make(steps=3)[0], make(backend="else")[0]):
        with pytest.raises(ValidationError, match="can be joined"):
            SpikeRecord.concatenate([one, other])


def test_a_missing_step_is_an_error():
    recorder = Recorder("test", {"act": (2,)})
    with pytest.raises(ValidationError):
        recorder.finish()
    recorder.readout(np.zeros((1, 2)))
    with pytest.raises(ValidationError, match="act"):
        recorder.finish()
