"""Steps of weights, against the orthogonal matrix that the singular value decomposition gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bridge.passes.calibration.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(5, 5), (3, 40), (40, 3), (1, 9), (10, 1)])
def test_orthogonal(shape):
    """Singular vectors are the matrix's, and the values of all directions that it has are nearly 1."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, v = np.linalg.svd(matrix.numpy().astype(float), full_matrices=False)
    found = u.T @ orthogonal(matrix).numpy() @ v.T
    assert np.abs(found - np.diag(found.diagonal())).max() < 1e-3
    assert (found.diagonal()[values > 0.05 * np.linalg.norm(values)] > 0.65).all()
    assert (found.diagonal() < 1.25).all()


def test_of_nothing_comes_nothing():
    assert (orthogonal(torch.zeros(3, 4)) == 0).all()


def test_steps():
    """Down the mean gradient, by the rate in the root mean square if the directions are as many as can be."""
    weight, other = nn.Parameter(torch.zeros(8, 2, 2, 2)), nn.Parameter(torch.zeros(4))
    optimiser = Muon([weight, other], lr=0.01)
    gradient = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0].view_as(weight)
    weight.grad = 1000 * gradient
    optimiser.step()
    assert (other == 0).all()  # which had no gradient
    step = weight.detach().clone()
    assert 0.006 < step.square().mean().sqrt() < 0.013
    cosine = -(step * gradient).sum() / step.norm() / gradient.norm()
    assert cosine > 0.99
    weight.grad = torch.zeros_like(gradient)
    optimiser.step()
    assert ((weight - step) * step).sum() > 0  # momentum
