"""Maximum pools move to where spikes are: behind an activation, where the maximum of spike trains is exact."""

from __future__ import annotations

from dataclasses import replace

from bridge.errors import ConversionError
from bridge.graph import BatchNorm, ClipFloorShift, Concat, Layer, LayerGraph, MaxPool, Scale


def lift_pools(graph: LayerGraph) -> LayerGraph:
    """The same ANN with every `MaxPool` right behind a `ClipFloorShift`, or behind another such pool.

    A maximum and what is monotone in each channel may change places: QCFS moves up through a pool, and so does a
    BatchNorm or a factor that a QCFS follows. (Where the factor is negative, the maximum becomes the minimum.) Other
    pools move up through factors and concatenations themselves.

    Raises:
        ConversionError: a pool is left whose input is no spikes: a sum, an average, the image.
    """
    while True:
        for layer in graph:
            if isinstance(layer, MaxPool):
                changed = _moved(graph, layer)
                if changed is not None:
                    graph = changed
                    break
        else:
            return _checked(graph)


def _moved(graph: LayerGraph, pool: MaxPool) -> LayerGraph | None:
    """The graph with something moved through `pool`; None if that is where it is to be."""
    (source,) = pool.inputs
    before, readers = graph[source], graph.consumers(pool.name)
    root = before
    while isinstance(root, MaxPool):
        root = graph[root.inputs[0]]
    if isinstance(root, ClipFloorShift):
        return None
    monotone = bool(readers) and all(_leads_to_activations(graph, reader) for reader in readers)
    if monotone:
        changes: dict[str, list[Layer]] = {pool.name: []}
        for reader in readers:
            behind = _over(pool, reader, graph.free(f"{reader.name}_pool"), reader.name)
            changes[reader.name] = [replace(reader, inputs=(source,)), behind]
        return graph.rewrite(changes)
    if isinstance(before, Concat):
        parts: list[Layer] = []
        for number, one in enumerate(before.inputs):
            start = sum(graph.shapes[each][0] for each in before.inputs[:number])
            some = None if pool.minimum is None else pool.minimum[start : start + graph.shapes[one][0]]
            parts.append(replace(pool, name=graph.free(f"{pool.name}_of_{number}"), inputs=(one,), minimum=some))
        joined = replace(before, name=pool.name, inputs=tuple(part.name for part in parts))
        return graph.rewrite({pool.name: [*parts, joined], **_unread(graph, pool)})
    if isinstance(before, BatchNorm | Scale) and before.scale.ndim == 1:
        first = _over(pool, before, graph.free(f"{pool.name}_first"), before.inputs[0])
        after = replace(before, name=pool.name, inputs=(first.name,))
        return graph.rewrite({pool.name: [first, after], **_unread(graph, pool)})
    return None


def _leads_to_activations(graph: LayerGraph, layer: Layer) -> bool:
    """Whether `layer` is an activation, or a factor per channel that only activations read."""
    if isinstance(layer, ClipFloorShift):
        return True
    if not (isinstance(layer, BatchNorm | Scale) and layer.scale.ndim == 1):
        return False
    readers = graph.consumers(layer.name)
    return bool(readers) and all(_leads_to_activations(graph, reader) for reader in readers)


def _over(pool: MaxPool, factor: Layer, name: str, source: str) -> MaxPool:
    """`pool`, called `name`, of `source`, when `factor` moves from the one side of it to the other."""
    minimum = pool.minimum
    if isinstance(factor, BatchNorm | Scale):
        turned = factor.scale < 0
        minimum = turned if minimum is None else minimum ^ turned
        minimum = minimum if minimum.any() else None
    return replace(pool, name=name, inputs=(source,), minimum=minimum)


def _unread(graph: LayerGraph, pool: MaxPool) -> dict[str, list[Layer]]:
    """The change that drops what only `pool` read."""
    (source,) = pool.inputs
    return {source: []} if graph.consumers(source) == [pool] else {}


def _checked(graph: LayerGraph) -> LayerGraph:
    for layer in graph:
        if isinstance(layer, MaxPool) and not isinstance(graph[layer.inputs[0]], ClipFloorShift | MaxPool):
            kind = type(graph[layer.inputs[0]]).__name__
            raise ConversionError(
                f"layer {layer.name!r}: a maximum pool of what is no spikes ({layer.inputs[0]!r}, {kind}), and no QCFS "
                "follows it with only factors per channel between; put a bridge.QCFS right before the pool or behind it"
            )
    return graph
