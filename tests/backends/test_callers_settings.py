"""Autocast, the default type and the default device of whoever calls: no result depends on them, and they stay."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from support import layers
from support.backends import BACKENDS, require
from support.nir_graphs import recurrent
from test_reduce import Wrapped
from torch import Tensor, nn

import bridge
from bridge import QCFS, InputError, SpikeRecord, loihi
from bridge._util.neutral import neutral
from bridge.foreign import ForeignNetwork
from bridge.reduction import reduce

STEPS = 4
WHOLE = ("lava-fixed", "lava-twin", "slayer")
"""Backends that take integer networks only."""
TORCH = ("norse", "sinabs", "snntorch", "spikingjelly")


@contextmanager
def set_to(*, dtype: torch.dtype = torch.float32, device: str | None = None) -> Iterator[None]:
    """As scripts begin, with ``torch.set_default_dtype`` and ``torch.set_default_device``."""
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@contextmanager
def all_at_once() -> Iterator[None]:
    with set_to(dtype=torch.float64, device="meta"), torch.autocast("cpu", torch.bfloat16):
        yield


SETTINGS: dict[str, Callable[[], Any]] = {
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16": lambda: torch.autocast("cpu", torch.float16),
    "float64": lambda: set_to(dtype=torch.float64),
    "device": lambda: set_to(device="meta"),  # stands for "cuda": what is made there is not on the CPU
}


def settings() -> tuple[Any, ...]:
    """What the caller can see of them."""
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return *autocast, torch.get_default_dtype(), torch.get_default_device(), torch.ones(1).device


@contextmanager
def unchanged() -> Iterator[None]:
    before = settings()
    yield
    assert settings() == before


@cache
def model_and_images() -> tuple[nn.Sequential, Tensor]:
    """Weights that bfloat16 cannot hold."""
    torch.manual_seed(0)
    first: list[nn.Module] = [nn.Conv2d(1, 4, 3), QCFS(4, torch.ones(4)), nn.AvgPool2d(2), nn.Flatten()]
    model = nn.Sequential(*first, nn.Linear(36, 8), QCFS(4), nn.Linear(8, 3))
    return model, torch.rand(20, 1, 8, 8)


@cache
def network() -> bridge.SpikingNetwork:
    return bridge.convert(*model_and_images())


@cache
def integers() -> bridge.SpikingNetwork:
    return network().quantize(8, calibration=model_and_images()[1], scheme="per_layer")


theirs = cache(recurrent)


def assert_same(one: SpikeRecord | None, other: SpikeRecord | None) -> None:
    assert one is not None
    assert other is not None
    for layer in other.layers:
        np.testing.assert_array_equal(one.spikes(layer), other.spikes(layer), err_msg=layer)
        assert one.membranes.keys() == other.membranes.keys()
    np.testing.assert_array_equal(one.readout, other.readout)


def with_one_weight_off() -> Wrapped:
    class Off(Wrapped):
        def export(self, graph: nir.NIRGraph) -> Any:
            native = super().export(graph)
            with torch.no_grad():
                native.get_parameter("layer_4.bias")[1] += 0.5
            return native

    return Off("snntorch")


def results(folder: Path) -> dict[str, Any]:
    """What a network's methods return, in numpy or as text."""
    (_, x), plain, whole = model_and_images(), network(), integers()
    pixels = whole.pixels(x)
    fitted, biased = plain.calibrate(x, 2), plain.time_biased(x, 2)
    quantized = plain.quantize(8, calibration=x)
    smallest = reduce(plain, x[:2], STEPS, with_one_weight_off())
    with pytest.warns(bridge.LossyWarning) as caught:
        plain.to_nir("if", measured_on=x)
    quantized.save(folder / "net.nir")
    plain.ann_to_onnx(folder / "net.onnx")
    agreement = plain.validate(x, STEPS, ["snntorch"], labels=[0] * len(x))
    foreign = ForeignNetwork(theirs()).run(np.ones((2, 6), np.float32), STEPS)
    return {
        "run": plain.run(x, STEPS),
        "integers": whole.run(pixels, STEPS),
        "simulate": plain.simulate(x, STEPS, record=True).record,
        "simulate integers": whole.simulate(pixels, STEPS, record=True).record,
        "calibrate": fitted.run(x, 2),
        "quantize": quantized.run(pixels, STEPS),
        "load": layers.ours(bridge.load(folder / "net.nir")).run(pixels, STEPS),
        "onnx": (folder / "net.onnx").read_bytes(),
        "foreign": foreign,
        "time_biased": biased.simulate(x),
        "pixels": pixels.numpy(),
        "smallest": smallest.images,
        "first": str(smallest.first),
        "lost": str(caught[0].message),
        "validate": repr({name: vars(found) for name, found in agreement.backends.items()}),
        "loihi": loihi.report(whole, whole.run(pixels, STEPS)).to_dict(),
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    require("snntorch")
    theirs()
    return results(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_network_gives_the_same(name, expected, tmp_path):
    with SETTINGS[name](), unchanged():
        found = results(tmp_path)
    for what, value in expected.items():
        if isinstance(value, SpikeRecord):
            assert_same(found[what], value)
        else:
            np.testing.assert_equal(found[what], value, err_msg=what)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.lava] if n in ("lava", "lava-fixed") else []) for n in (*BACKENDS, *WHOLE)],
)
def test_a_backend_by_itself_gives_the_same(name):
    backend = require(name)
    _, x = model_and_images()
    graph = (integers() if name in WHOLE else network()).to_nir()
    images = (integers().pixels(x) if name in WHOLE else x)[:2].numpy()
    plain = backend.run(backend.export(graph), images, STEPS, membranes=True)
    with all_at_once(), unchanged():
        found = backend.run(backend.export(graph), images, STEPS, membranes=True)
    assert_same(found, plain)


@pytest.mark.parametrize("name", TORCH)
def test_what_is_exported_goes_on_in_the_users_type(name):
    """It is float32 at first, whatever the default, and then what the user makes of it."""
    backend = require(name)
    _, x = model_and_images()

    def trained(images: Tensor) -> torch.dtype:
        out = native(images)
        out = out[0] if isinstance(out, tuple) else out
        out.sum().backward()
        assert any(one.grad is not None for one in native.parameters())
        return out.dtype

    with set_to(dtype=torch.float64), unchanged():
        native = backend.export(network().to_nir())
        assert {one.dtype for one in native.parameters()} == {torch.float32}
        assert trained(x[:1]) == torch.float32
    native = backend.export(network().to_nir())
    with torch.autocast("cpu", torch.bfloat16):
        assert trained(x[:1]) == torch.bfloat16
    if name in ("norse", "spikingjelly"):  # the surrogates of the others give float32
        native = backend.export(network().to_nir()).double()
        with set_to(dtype=torch.float64):
            assert trained(x[:1].double()) == torch.float64


def test_thresholds_and_checkpoints(tmp_path):
    def fitted() -> Tensor:
        model = nn.Sequential(nn.Linear(6, 5), QCFS(4, per_channel=True))
        model[0].load_state_dict(weights)
        bridge.fit_thresholds(model, data)
        torch.save(model.state_dict(), tmp_path / "model.pt")
        again = nn.Sequential(nn.Linear(6, 5), QCFS(4, torch.ones(5)))
        bridge.load_checkpoint(again, tmp_path / "model.pt")
        return again.state_dict()["1.threshold"]

    data, weights = torch.randn(64, 6), nn.Linear(6, 5).state_dict()
    plain = fitted()
    for name in ("bfloat16", "float16"):
        with SETTINGS[name](), unchanged():
            torch.testing.assert_close(fitted(), plain, rtol=0, atol=0)


def test_settings_are_back_after_an_exception():
    with all_at_once(), unchanged():
        with pytest.raises(InputError):
            network().run(np.ones((1, 5)), STEPS)
        with pytest.raises(InputError):
            require("snntorch").run(require("snntorch").export(network().to_nir()), np.ones((1, 5), np.float32), STEPS)
        with pytest.raises(ZeroDivisionError), neutral(), neutral():
            raise ZeroDivisionError


def test_threads_share_the_default_type():
    """The first to leave does not take it from the other, and the caller's is back when both have left."""
    entered, may_leave = threading.Event(), threading.Event()

    def other() -> None:
        with neutral():
            entered.set()
            may_leave.wait(10)

    with set_to(dtype=torch.float64):
        thread = threading.Thread(target=other)
        with ExitStack() as stack:
            stack.enter_context(neutral())
            thread.start()
            assert entered.wait(10)
            stack.close()
            assert torch.get_default_dtype() == torch.float32
        may_leave.set()
        thread.join()
        assert torch.get_default_dtype() == torch.float64


def test_what_another_thread_sets_meanwhile_stays():
    with set_to():
        with neutral():
            torch.set_default_dtype(torch.float64)
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_starts_with_the_callers_type():
    with set_to(dtype=torch.float64), neutral():
        if (child := os.fork()) == 0:
            os._exit(torch.get_default_dtype() != torch.float64)
        assert os.waitpid(child, 0)[1] == 0


def test_loihis_connections_are_counted_without_gradients_too():
    plain = loihi.report(integers()).to_dict()
    with torch.no_grad():
        assert loihi.report(integers()).to_dict() == plain
    with torch.inference_mode():
        assert loihi.report(integers()).to_dict() == plain
