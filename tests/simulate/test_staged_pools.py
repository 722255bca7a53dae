"""Maximum pools in staged networks: exact, wherever an activation lies before or behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import nir_primitives
from torch import Tensor, nn

import bridge
from bridge import QCFS, ConversionError
from bridge.nir_graph import read


class Between(nn.Module):
    """A convolution, what `between` does with it, and a second convolution with its activation."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor], one_dimension: bool = False) -> None:
        super().__init__()
        conv: Any = nn.Conv1d if one_dimension else nn.Conv2d
        self.first, self.other, self.second = conv(3, 4, 3), conv(3, 2, 3), conv(4, 3, 1)
        self.act, self.more, self.last_act = QCFS(4, torch.rand(4) + 0.3), QCFS(3, 0.5), QCFS(5, 0.7)
        self.norm = (nn.BatchNorm1d if one_dimension else nn.BatchNorm2d)(4)
        with torch.no_grad():
            for tensor in (self.norm.weight, self.norm.bias, self.norm.running_mean):
                assert tensor is not None
                tensor.normal_()
        self.mix, self.readout = conv(6, 4, 1), nn.Linear(3, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y = self.last_act(self.second(self.between(self, x)))
        return self.readout(y.flatten(2).mean(2))


KINDS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "behind its activation": lambda n, x: F.max_pool2d(n.act(n.first(x)), 2),
    "before its activation": lambda n, x: n.act(F.max_pool2d(n.first(x), 2)),
    "padded": lambda n, x: F.max_pool2d(n.act(n.first(x)), 3, 2, 1),
    "dilated": lambda n, x: F.max_pool2d(n.act(n.first(x)), 2, 1, dilation=2),
    "goes on": lambda n, x: F.max_pool2d(n.act(n.first(x)), 3, 2, ceil_mode=True),
    "all of it, and padded": lambda n, x: F.max_pool2d(n.act(n.first(x)), 3, 2, 1, 2, ceil_mode=True),
    "adaptive": lambda n, x: F.adaptive_max_pool2d(n.act(n.first(x)), 1),
    "global": lambda n, x: n.act(n.first(x)).amax((2, 3), keepdim=True),
    "before a factor of either sign": lambda n, x: n.act(n.norm(F.max_pool2d(n.first(x), 3, 2, 1))),
    "behind a factor of either sign": lambda n, x: F.max_pool2d(n.norm(n.act(n.first(x))), 3, 2, 1),
    "of a concatenation": lambda n, x: n.mix(F.max_pool2d(torch.cat([n.act(n.first(x)), n.more(n.other(x))], 1), 2)),
    "of a pool": lambda n, x: F.max_pool2d(F.max_pool2d(n.act(n.first(x)), 2, 1), 2),
    "of the same three times": lambda n, x: n.mix(F.max_pool2d(torch.cat([n.more(n.other(x))] * 3, 1), 2)),
    "of a pool before a factor": lambda n, x: n.act(n.norm(F.max_pool2d(F.max_pool2d(n.first(x), 2, 1), 2))),
    "read by others too": lambda n, x: (lambda y: F.max_pool2d(y, 3, 1, 1) + y)(n.act(n.first(x))),
}


def expect_equal(model: nn.Module, x: Tensor, tmp_path: Any) -> None:
    """The output is the model's, and the file says the same to who knows NIR's primitives alone."""
    network = bridge.convert(model, x, schedule="staged")
    record = network.run(x)
    with torch.no_grad():
        np.testing.assert_allclose(record.outputs()[-1], model(x), rtol=1e-4, atol=1e-5)
    fast = network.simulate(x, record=True).record
    network.save(tmp_path / "net.nir")
    again = bridge.load(tmp_path / "net.nir").run(x, record.steps)
    values = nir_primitives.run(read(tmp_path / "net.nir"), x, record.steps)
    assert fast is not None
    for layer in network.layers:
        np.testing.assert_array_equal(values[layer] == 1, record.spikes(layer))
        np.testing.assert_array_equal(fast.packed[layer], record.packed[layer])
        np.testing.assert_array_equal(again.packed[layer], record.packed[layer])


@pytest.mark.parametrize("kind", KINDS)
def test_pools(kind, tmp_path):
    torch.manual_seed(1)
    expect_equal(Between(KINDS[kind]).eval(), torch.rand(4, 3, 9, 9), tmp_path)


def test_in_one_dimension(tmp_path):
    torch.manual_seed(2)
    for between in (
        lambda n, x: F.max_pool1d(n.act(n.first(x)), 3, 2, 1, ceil_mode=True),
        lambda n, x: n.act(F.adaptive_max_pool1d(n.first(x), 7)),
    ):
        expect_equal(Between(between, one_dimension=True).eval(), torch.rand(4, 3, 16), tmp_path)


@pytest.mark.parametrize(
    "between",
    [
        lambda n, x: F.max_pool2d(n.first(x), 2),
        lambda n, x: F.max_pool2d(n.act(n.first(x)) + n.first(x), 2),
        lambda n, x: F.max_pool2d(F.avg_pool2d(n.act(n.first(x)), 2), 2),
        lambda n, x: n.first(F.max_pool2d(x, 2)),
    ],
)
def test_a_pool_of_what_is_no_spikes_is_refused(between):
    model = Between(between).eval()
    with pytest.raises(ConversionError, match=r"max_pool2d.*put a bridge\.QCFS right before"):
        bridge.convert(model, torch.rand(2, 3, 9, 9), schedule="staged")


def test_the_plain_schedule_names_the_staged_one():
    with pytest.raises(ConversionError, match=r'average pooling.*schedule="staged"'):
        bridge.convert(Between(KINDS["padded"]).eval(), torch.rand(2, 3, 9, 9))


@pytest.mark.parametrize(
    "kind", ["before its activation", "padded", "goes on", "dilated", "global", "before a factor of either sign"]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_from_onnx_and_back(kind, tmp_path):
    pytest.importorskip("onnxscript")
    torch.manual_seed(1)
    model, x = Between(KINDS[kind]).eval(), torch.rand(4, 3, 9, 9)
    torch.onnx.export(model, (x,), tmp_path / "m.onnx", dynamo=False)
    network = bridge.convert(tmp_path / "m.onnx", schedule="staged")
    with torch.no_grad():
        np.testing.assert_allclose(network.run(x).outputs()[-1], model(x), rtol=1e-4, atol=1e-5)
    network.ann_to_onnx(tmp_path / "ann.onnx")
    again = bridge.convert(tmp_path / "ann.onnx", schedule="staged")
    np.testing.assert_allclose(again.run(x).outputs()[-1], network.run(x).outputs()[-1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ConversionError, match='schedule="staged"'):
        bridge.convert(tmp_path / "m.onnx")
