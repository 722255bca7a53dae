"""The integer ANN as an ONNX file: ONNX Runtime computes the staged and the grouped network's output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.backends import require
from torch import nn

import bridge


def model(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(2, 5, 3, padding=1), bridge.QCFS(4, torch.rand(5) + 0.3), nn.BatchNorm2d(5), nn.MaxPool2d(3, 2, 1)),
        *(
            nn.Conv2d(5, 4, 2),
            bridge.QCFS(7, 0.4),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 6),
            bridge.QCFS(5, 0.2),
        ),
        nn.Linear(6, 3),
    ).eval()


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("schedule", ["staged", "grouped"])
def test_every_output_is_the_spiking_networks(tmp_path, schedule, bits):
    require("onnxruntime")
    import onnxruntime

    for seed in range(3):
        net = model(seed)
        with torch.no_grad():  # a minimum where the gain is negative
            net.get_parameter("2.weight").copy_(torch.tensor([1.0, -0.8, 0.6, -0.7, 0.9]))
        x = torch.rand(40, 2, 10, 10)
        network = bridge.convert(net, x, schedule=schedule).quantize(bits, x)
        pixels = network.pixels(x)
        network.ann_to_onnx(tmp_path / "ann.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "ann.onnx")
        (output,) = session.run(None, {session.get_inputs()[0].name: pixels.float().numpy()})
        np.testing.assert_array_equal(output, network.run(pixels).outputs()[-1])
        np.testing.assert_array_equal(output, network.simulate(pixels).outputs[-1])
        assert len(np.unique(output)) > 3
