"""ONNX Runtime as a backend: it runs the very model over T steps that users deploy, with the spikes as more outputs."""

from __future__ import annotations

import importlib.metadata

import nir
import numpy as np
from numpy.typing import NDArray

from bridge._util.neutral import neutral
from bridge.backends.protocol import Availability, exact, may_leave_exact, probe
from bridge.graph.ranges import largest_drives
from bridge.nir_graph import from_nir
from bridge.records import Recorder, SpikeRecord
from exporters.onnx_runtime.models import check
from exporters.onnx_runtime.names import MEMBRANES, READOUT, SPIKES
from exporters.onnx_runtime.network import OnnxNetwork

INSTALL = 'pip install "qcfs-bridge[onnxruntime]"'
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
"""All of them are imported as ``onnxruntime``, and all run on the processor."""


class OnnxRuntime:
    """Native object: an `OnnxNetwork`, which holds the ONNX models and sessions of them.

    >>> OnnxRuntime().export(network.to_nir()).save("spiking.onnx")
    """

    name = "onnxruntime"

    def available(self) -> Availability:
        return probe({"onnxruntime": _distribution(), "onnx": "onnx"}, INSTALL)

    @neutral()
    def export(self, graph: nir.NIRGraph) -> OnnxNetwork:
        network = from_nir(graph)
        check(network)
        return OnnxNetwork(network)

    @neutral()
    def run(self, native: OnnxNetwork, x: NDArray[np.float32], steps: int, *, membranes: bool = False) -> SpikeRecord:
        watched = may_leave_exact(largest_drives(native.source), steps)
        session = native.membranes_session if membranes or watched else native.spikes_session
        values = native.run(session, x, steps)
        layers = dict(zip(native.source.spiking, native.graph.spiking, strict=True))
        recorder = Recorder(self.name, {name: native.source.shapes[name] for name in layers}, native.source.staged)
        for t in range(steps):
            for name, called in layers.items():
                recorder.spikes(
                    name, values[called + SPIKES][t], values[called + MEMBRANES][t] if membranes or watched else None
                )
            recorder.readout(values[READOUT][t])
        record = recorder.finish()
        return exact(record, membranes=membranes) if watched else record


def _distribution() -> str:
    """The installed package that brings ``onnxruntime``."""
    for name in DISTRIBUTIONS:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name
    return DISTRIBUTIONS[0]
