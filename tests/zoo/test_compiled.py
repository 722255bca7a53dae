"""Training in compiled steps. The compiler takes long, so `make test` has a network of two small layers for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.training import (
    FINE,
    STEPS,
    TINY,
    Interruption,
    interrupted_at,
    patterns,
    same,
    small_train,
    steps_that_spike,
    stopping,
)
from torch import nn

import bridge
from bridge.zoo.recipes import Recipe
from bridge.zoo.training import train as training
from bridge.zoo.training.run_files import WEIGHTS
from bridge.zoo.training.train import train

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's compiler uses what torch has deprecated
]


@pytest.mark.slow
def test_a_small_network_resumed_and_fine_tuned(tmp_path, monkeypatch):
    """ReLU's steps are not taken for those of QCFS, and steps that spike are not compiled."""
    from torch._inductor import config as inductor  # which takes seconds

    # Without vector instructions, so that none is looked for: that takes as long as all of this network does.
    with inductor.patch({"cpp.simdlen": 1, "cpp.vec_isa_ok": True}):
        _resumed_and_fine_tuned(tmp_path, monkeypatch)


def _resumed_and_fine_tuned(tmp_path, monkeypatch):
    def run(out: str, recipe: Recipe, *, compile: bool, initial: str | None = None) -> training.Result:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), bridge.QCFS(TINY.levels, 3.0), nn.Linear(16, 10))
        return train(
            model,
            patterns(),
            recipe,
            tmp_path / out,
            device="cpu",
            compile=compile,
            checkpoint_minutes=0.0,
            initial=tmp_path / initial / WEIGHTS if initial else None,
        )

    recipe = replace(TINY, epochs=2, relu_epochs=1)
    whole = run("whole", recipe, compile=True)
    with monkeypatch.context() as patched:
        patched.setattr(training, "learning_rate", stopping(STEPS + 2))
        with pytest.raises(Interruption):
            run("parts", recipe, compile=True)
    assert same(run("parts", recipe, compile=True).model, whole.model)
    plain = run("plain", recipe, compile=False)
    for line, other in zip(whole.metrics, plain.metrics, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=0.01)
    seen = steps_that_spike(monkeypatch)
    compiled, uncompiled = (run(f"fine {on}", FINE, compile=on, initial="whole") for on in (True, False))
    assert seen[len(seen) // 2 :] == seen[: len(seen) // 2] != []
    for name, value in uncompiled.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], value, rtol=0.05, atol=0.02)


@pytest.mark.long
def test_the_zoos_digits_network_resumed(tmp_path, monkeypatch):
    whole = small_train(tmp_path / "whole", compile=True)
    interrupted_at(2 * STEPS + 2, tmp_path / "parts", monkeypatch, compile=True, checkpoint_minutes=0.0)
    assert same(small_train(tmp_path / "parts", compile=True).model, whole.model)
    uncompiled = small_train(tmp_path / "uncompiled")
    for line, other in zip(whole.metrics, uncompiled.metrics, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=0.1)  # dropout has other random numbers


@pytest.mark.long
def test_the_zoos_digits_network_fine_tuned(tmp_path, monkeypatch):
    first = small_train(tmp_path / "first").weights
    seen = steps_that_spike(monkeypatch)
    plain = small_train(tmp_path / "plain", FINE, initial=first)
    compiled = small_train(tmp_path / "compiled", FINE, initial=first, compile=True)
    assert seen[len(seen) // 2 :] == seen[: len(seen) // 2] != []
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], value, rtol=0.05, atol=0.02)
