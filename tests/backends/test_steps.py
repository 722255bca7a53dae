"""What every backend says of a number of steps that is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import networks

import bridge
from bridge import InputError


def test_numpys_whole_numbers_and_no_others(torch_backend):
    model, shape = networks.mlp()
    network = bridge.convert(model, torch.zeros(1, *shape))
    native, x = torch_backend.export(network.to_nir()), networks.dyadic_images(2, shape).numpy()
    plain = torch_backend.run(native, x, 3)
    np.testing.assert_array_equal(torch_backend.run(native, x, np.int64(3)).readout, plain.readout)
    for steps in (3.0, True, np.float32(3), "3", None, 0):
        with pytest.raises(InputError, match="steps: expected a whole number of at least 1, got"):
            torch_backend.run(native, x, steps)
