"""An interpreter that knows NIR's primitives and nothing of the package: one step after another, in float32.

Nodes are visited from the Output backwards, in an order that the caller gives; where that comes back to a node that is
being visited, the edge closes a cycle and carries the value of the step before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import nir
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def run(
    graph: Any, x: Tensor, steps: int, order: Callable[[list[str]], Sequence[str]] = lambda names: names
) -> dict[str, NDArray[np.float32]]:
    """What each node gives at each step, ``[T, B, *shape]``; the Input gives `x` ``[B, ...]`` at every step."""
    before: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        before[target].append(source)
    plan: list[str] = []
    delayed: set[tuple[str, str]] = set()
    state: dict[str, str] = {}

    def visit(name: str) -> None:
        state[name] = "open"
        for source in order(before[name]):
            if source not in state:
                visit(source)
            elif state[source] == "open":
                delayed.add((source, name))
        state[name] = "done"
        plan.append(name)

    for name in order([*graph.nodes]):
        if name not in state:
            visit(name)
    sums: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    history: dict[str, list[NDArray[np.float32]]] = {name: [] for name in plan}
    for _ in range(steps):
        now: dict[str, Tensor] = {}
        for name in plan:
            node = graph.nodes[name]
            if isinstance(node, nir.Input):
                now[name] = x
                continue
            given = [last.get(source) if (source, name) in delayed else now[source] for source in order(before[name])]
            known = [each for each in given if each is not None]
            total = sum(known[1:], start=known[0]) if known else torch.zeros(1)
            if isinstance(node, nir.I):
                total = total * torch.from_numpy(np.array(node.r, np.float32))
                sums[name] = sums[name] + total if name in sums else total
                now[name] = sums[name]
            else:
                now[name] = stateless(node, total)
        last = now
        for name, value in now.items():
            history[name].append(value.numpy())
    return {name: np.stack([np.broadcast_to(v, rows[-1].shape) for v in rows]) for name, rows in history.items()}


def stateless(node: Any, x: Tensor) -> Tensor:
    """The equation of a node without state."""

    def tensor(values: Any) -> Tensor:
        return torch.from_numpy(np.array(values, np.float32))

    def pair(value: Any) -> Any:
        return tuple(int(v) for v in np.broadcast_to(value, 2))

    if isinstance(node, nir.Threshold):
        return (x > tensor(node.threshold)).float()
    if isinstance(node, nir.Scale):
        return x * tensor(node.scale)
    if isinstance(node, nir.Affine):
        return F.linear(x, tensor(node.weight), tensor(node.bias))
    if isinstance(node, nir.Conv2d):
        two = (pair(node.stride), pair(node.padding), pair(node.dilation), int(node.groups))
        return F.conv2d(x, tensor(node.weight), tensor(node.bias), *two)
    if isinstance(node, nir.Conv1d):
        one = [int(np.ravel(v)[0]) for v in (node.stride, node.padding, node.dilation, node.groups)]
        return F.conv1d(x, tensor(node.weight), tensor(node.bias), *one)
    if isinstance(node, nir.AvgPool2d | nir.SumPool2d):
        divisor = 1 if isinstance(node, nir.SumPool2d) else None
        sizes = (pair(node.kernel_size), pair(node.stride), pair(node.padding))
        return F.avg_pool2d(x, *sizes, divisor_override=divisor)
    if isinstance(node, nir.Flatten):
        return x.flatten(1)
    assert isinstance(node, nir.Output), type(node)
    return x
