"""NIR graphs as other tools write them, and what NIR says of them: its equations by forward Euler, in a plain loop."""

from __future__ import annotations

import itertools
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from support import networks, oracle

Values = NDArray[Any]
Edge = tuple[str, str]


def naive(graph: nir.NIRGraph, x: Values, dt: float, late: dict[Edge, Any] | None = None) -> dict[str, Values]:
    """Every node's output ``[T, B, ...]``: NIR's equations by forward Euler, in float64, whichever node can go next.

    `late` are edges that deliver one step later, and what they deliver at first.
    """
    late = dict(late or {})
    v: dict[str, Any] = {}
    i: dict[str, Any] = {}
    past: dict[str, list[Values]] = {}
    history: dict[str, list[Values]] = {name: [] for name in graph.nodes}
    for now in x.astype(np.float64):
        value: dict[str, Values] = {}
        while len(value) < len(graph.nodes):
            ready = len(value)
            for name, node in graph.nodes.items():
                edges = [edge for edge in graph.edges if edge[1] == name]
                if name in value or any(edge not in late and edge[0] not in value for edge in edges):
                    continue
                heard = [late[edge] if edge in late else value[edge[0]] for edge in edges]
                value[name] = one_node(name, node, now if isinstance(node, nir.Input) else sum(heard), dt, v, i, past)
            assert len(value) > ready, "stuck in a loop"
        late = {edge: value[edge[0]] for edge in late}
        for name in graph.nodes:
            history[name].append(value[name])
    return {name: np.stack(values) for name, values in history.items()}


def one_node(
    name: str,
    node: nir.NIRNode,
    total: Any,
    dt: float,
    v: dict[str, Any],
    i: dict[str, Any],
    past: dict[str, list[Values]],
) -> Any:
    """The output of one node in one step; v, i and past are all nodes' states."""
    if isinstance(node, nir.CubaLI | nir.CubaLIF):
        i[name] = i.get(name, 0.0) + dt / node.tau_syn * (node.w_in * total - i.get(name, 0.0))
        total, tau = i[name], node.tau_mem
    elif isinstance(node, nir.LI | nir.LIF):
        tau = node.tau
    old = v.get(name, 0.0)
    if isinstance(node, nir.CubaLI | nir.CubaLIF | nir.LI | nir.LIF):
        v[name] = old + dt / tau * (node.v_leak - old + node.r * total)
    elif isinstance(node, nir.I | nir.IF):
        v[name] = old + dt * node.r * total
    elif isinstance(node, nir.Threshold):
        return (total > node.threshold).astype(float)
    elif isinstance(node, nir.Scale):
        return node.scale * total
    elif isinstance(node, nir.Delay):
        past.setdefault(name, []).append(total)
        out = np.zeros_like(total)
        for at, seconds in np.ndenumerate(node.delay):
            back = round(float(seconds) / dt)
            if back < len(past[name]):
                out[(slice(None), *at)] = past[name][-1 - back][(slice(None), *at)]
        return out
    elif isinstance(node, nir.Flatten):
        return total.reshape(len(total), -1)
    elif isinstance(node, nir.Affine | nir.Linear):
        return total @ np.asarray(node.weight, float).T + getattr(node, "bias", 0.0)
    elif isinstance(node, nir.Conv2d):
        out, per_group, *kernel = node.weight.shape
        made = nn.Conv2d(per_group, out, tuple(kernel), node.stride, node.padding, node.dilation)
        assert made.bias is not None
        made.weight.data, made.bias.data = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
        return oracle.transform(made, total)
    elif isinstance(node, nir.SumPool2d | nir.AvgPool2d):
        kernel, stride, padding = (oracle.pair(o) for o in (node.kernel_size, node.stride, node.padding))
        pooled = oracle.pool(nn.AvgPool2d(kernel, stride, padding), total)
        return pooled * (kernel[0] * kernel[1] if isinstance(node, nir.SumPool2d) else 1)
    else:
        return total
    if not hasattr(node, "v_threshold"):
        return v[name]
    fired = v[name] > node.v_threshold
    v[name] = np.where(fired, node.v_reset, v[name])
    return fired.astype(float)


def dyadic(*shape: int, seed: int = 0) -> Values:
    values: Values = networks.dyadic(shape, 1 / 8, 6, torch.Generator().manual_seed(seed)).numpy()
    return values


def like(value: float, *shape: int) -> Values:
    return np.full(shape, value)


def graph_of(
    edges: list[Edge], size: tuple[int, ...] = (6,), out: tuple[int, ...] = (3,), **nodes: nir.NIRNode
) -> nir.NIRGraph:
    last = {"output": nir.Output(output_type={"output": np.array(out)})}
    return nir.NIRGraph({"input": nir.Input(input_type={"input": np.array(size)}), **nodes, **last}, edges, {}, False)


def chain(*nodes: nir.NIRNode, size: tuple[int, ...] = (6,), out: tuple[int, ...] = (3,)) -> nir.NIRGraph:
    names = ["input", *(f"n{number}" for number in range(len(nodes))), "output"]
    return graph_of([*itertools.pairwise(names)], size, out, **dict(zip(names[1:], nodes, strict=False)))


def lif(size: int = 3, **changes: float) -> nir.LIF:
    values = {"tau": 4e-4, "r": 4.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0} | changes
    return nir.LIF(**{name: like(value, size) for name, value in values.items()})


def recurrent() -> nir.NIRGraph:
    return graph_of(
        [("input", "fc"), ("fc", "lif"), ("lif", "rec"), ("rec", "lif"), ("lif", "output")],
        fc=nir.Linear(dyadic(3, 6)),
        lif=lif(),
        rec=nir.Affine(dyadic(3, 3, seed=3), dyadic(3, seed=4)),
    )
