"""A graph's layers as what they are, for tests that change or read one: types that a name alone does not give."""

from __future__ import annotations

from typing import TypeVar

from bridge import ForeignNetwork, SpikingNetwork
from bridge.graph import Affine, IntegrateFire, Layer, LayerGraph

Kind = TypeVar("Kind", bound=Layer)


def of_kind(graph: LayerGraph, name: str, kind: type[Kind]) -> Kind:
    """Layer `name` of `graph`, which is a `kind`."""
    layer = graph[name]
    assert isinstance(layer, kind)
    return layer


def neurons(graph: LayerGraph, name: str) -> IntegrateFire:
    """The layer of neurons called `name`."""
    return of_kind(graph, name, IntegrateFire)


def affine(graph: LayerGraph, name: str) -> Affine:
    """The layer with weights and a bias called `name`."""
    return of_kind(graph, name, Affine)


def theirs(network: SpikingNetwork | ForeignNetwork) -> ForeignNetwork:
    """What was loaded from a file, which holds another tool's network."""
    assert isinstance(network, ForeignNetwork)
    return network


def ours(network: SpikingNetwork | ForeignNetwork) -> SpikingNetwork:
    """What was loaded from a file, which holds one of our own networks."""
    assert isinstance(network, SpikingNetwork)
    return network
