"""What the values in the models are called: a layer's output has the layer's name, all else is derived from it."""

from __future__ import annotations

from dataclasses import replace

from bridge.graph import LayerGraph, Shape

X, STEPS, READOUT, OUTPUT = "x", "steps", "readout", "output"
SIZE, WHOLE = ".size", ".shape"
"""Of what is made in a size that depends on the images or on T: the rest of it, and all."""
BATCH_SIZE, LOOP, READOUT_NOW = "batch_size", "time_steps", "readout_now"
ITERATION, GO_ON, GOES_ON = "iteration", "go_on", "goes_on"
"""Of the loop; a staged network's model of one step takes the number of the step, from 0, as ITERATION, too."""
NEXT_ITERATION, ONE_ITERATION, OVER_TIME = "iteration_next", "one_iteration", "over_time"
TIMES = "times"
"""T as a shape of one dimension: how often a network without state gives the same."""
RESERVED = {
    *(TIMES, READOUT + SIZE, READOUT + WHOLE),
    *(X, STEPS, READOUT, OUTPUT, BATCH_SIZE, LOOP, READOUT_NOW, ITERATION, GO_ON, GOES_ON),
    *(NEXT_ITERATION, ONE_ITERATION, OVER_TIME),
}
"""Values, and the one node without a value of its name, that belong to no layer."""

MEMBRANE = "_membrane"
"""u at one step: after integration, before reset."""
FIRED = "_fired"
TAKEN = "_taken"
"""What the reset takes off where a neuron fired, unless that is 1; in a staged network, at this step."""
DRIVEN = "_driven"
"""u in a staged network after integration, before the reset, which comes before the test there; in a grouped one u."""
MERGED, EACH = "_merged", "_each"
"""Of a layer that is done to each level of groups: what it takes and what it gives, with the levels as images."""
ABOVE = "_above"
"""Whether u has reached the level; a neuron of a staged network fires only in its window."""
OPEN, BEFORE_END, IN_WINDOW = "_open", "_before_end", "_in_window"
FIRST, FIRST_BIAS = "_first", "_first_bias"
"""Whether this is the first step; and the bias that enters there alone."""
POTENTIAL = "_potential"
"""What a step leaves to the next: u after reset, 0 at first."""
NEXT = "_potential_next"
FINAL = "_potential_final"
SPIKES, MEMBRANES = "_spikes", "_membranes"
"""Of all steps."""
INPUT_BYTES, SUMS_INT32, SUMS = "_input_uint8", "_sums_int32", "_sums"
PARTS = (
    *(MEMBRANE, FIRED, TAKEN, POTENTIAL, NEXT, FINAL, SPIKES, MEMBRANES, INPUT_BYTES, SUMS_INT32, SUMS),
    *(DRIVEN, ABOVE, OPEN, BEFORE_END, IN_WINDOW, FIRST, FIRST_BIAS, MERGED, EACH),
    *(name + part for name in (SPIKES, MEMBRANES) for part in (SIZE, WHOLE)),
)
BYTES = "_int8"
"""Parameters as the file stores them, before they are widened."""
PARAMETERS = (
    *(".weight", ".bias", ".scale", ".level", ".threshold", ".opens", ".end", ".first", ".zero"),
    *(".axes", ".before", ".after"),
)


def zeros(shape: Shape) -> str:
    """The first potentials of all layers of this shape."""
    return f"zeros_{'x'.join(map(str, shape))}"


def unambiguous(graph: LayerGraph) -> LayerGraph:
    """`graph` with its input called ``x``, and underscores behind a layer's name where two values would share one.

    The layers keep their order. ONNX allows no name twice, not even in the body of a loop and around it.
    """
    taken = {*RESERVED, *(zeros(graph.shapes[name]) + part for name in graph.spiking for part in ("", SIZE, WHOLE))}
    new = {graph.input.name: X}
    for layer in graph.layers[1:]:
        name = layer.name
        while not taken.isdisjoint(_values(name)):
            name += "_"
        taken.update(_values(name))
        new[layer.name] = name
    return LayerGraph(
        tuple(
            replace(layer, name=new[layer.name], inputs=tuple(new[source] for source in layer.inputs))
            for layer in graph
        )
    )


def _values(layer: str) -> set[str]:
    """All names that `layer` may need."""
    parameters = {name + part for name in (layer, layer + EACH) for part in PARAMETERS}
    return {layer, *(layer + part for part in PARTS), *parameters, *(name + BYTES for name in parameters)}
