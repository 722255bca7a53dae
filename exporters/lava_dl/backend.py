"""The backend: a NIR graph as a module of SLAYER's, all time steps in one call, and what its neurons spike."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from bridge._util.neutral import neutral
from bridge.backends.protocol import Availability, check_input, probe
from bridge.errors import BackendError
from bridge.graph.ranges import EXACT
from bridge.nir_graph import from_nir
from bridge.records import Recorder, SpikeRecord
from bridge.simulate.ops import tensor
from exporters.lava.backend import INSTALL as LAVA_INSTALL
from exporters.lava_dl import compat
from exporters.lava_dl.network import build_network

PACKAGES = {"lava.lib.dl.slayer": "lava-dl", "lava": "lava-nc", "matplotlib": "matplotlib"}
INSTALL = f"{LAVA_INSTALL} && pip install matplotlib && pip install --no-deps --ignore-requires-python lava-dl==0.6.0"


class Slayer:
    """Native object: a `torch.fx.GraphModule` of SLAYER's layers, ``x [B, C, H, W, T] → readout [B, F, T]``.

    It starts afresh at each call, and SLAYER's surrogate gradient trains it. On a GPU, SLAYER compiles its own kernels.

    SLAYER's neurons keep the sum of all they have heard, in float32 whatever the module's type. While that stays below
    2^24, all is exact; `run` makes sure of it. Raises `BackendError` where lava-dl cannot be imported. Example:
    docs/loihi.md.
    """

    name = "slayer"

    def available(self) -> Availability:
        """Whether SLAYER can be imported with `exporters.lava_dl.compat`'s help."""
        try:
            compat.apply()
        except Exception as error:
            reason = f"import {compat.SLAYER} failed: {type(error).__name__}: {error}"
            return Availability(usable=False, reason=reason, install=INSTALL)
        return probe(PACKAGES, INSTALL)

    @neutral()
    def export(self, graph: nir.NIRGraph) -> fx.GraphModule:
        """SLAYER's module for `graph`. Raises `GraphError` unless it is in whole numbers, with one θ a layer."""
        try:
            compat.apply()
        except ImportError as error:
            raise BackendError(f"the SLAYER backend needs lava-dl ({error}): {INSTALL}") from error
        return build_network(from_nir(graph))

    @neutral()
    def run(
        self, native: fx.GraphModule, x: NDArray[np.float32], steps: int, *, membranes: bool = False
    ) -> SpikeRecord:
        """Run `native` for `steps` time steps on images `x` ``[B, *input]``, held constant, from a fresh state.

        Raises `InputError` if `x` does not fit, and `BackendError` if the numbers grow too large for SLAYER.
        """
        images = tensor(check_input(native.meta["input_shape"], x, steps, integer=native.meta["integer"])).to(
            next(native.parameters())
        )
        fired: dict[str, Tensor] = {}
        potentials: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(neuron: Any, inputs: tuple[Tensor], spikes: Tensor) -> None:
                _expect_exact(name, inputs[0], 2 * neuron.threshold)
                fired[name] = spikes.cpu()
                if membranes:
                    _, heard, _, taken_off = neuron.dynamics(*inputs)
                    potentials[name] = (heard - taken_off).cpu()

            return hook

        names = native.meta["neurons"]
        handles = [native.get_submodule(name).register_forward_hook(keep(name)) for name in names]
        try:
            with torch.no_grad():
                readout = native(images.unsqueeze(-1).expand(*images.shape, steps)).cpu()
        finally:
            for handle in handles:
                handle.remove()
        recorder = Recorder(self.name, {name: tuple(spikes.shape[1:-1]) for name, spikes in fired.items()})
        for t in range(steps):
            for name, spikes in fired.items():
                recorder.spikes(name, spikes[..., t].numpy(), potentials[name][..., t].numpy() if membranes else None)
            recorder.readout(readout[..., t].numpy())
        return recorder.finish()


def _expect_exact(name: str, heard: Tensor, threshold: int) -> None:
    """Raise `BackendError` unless float32 holds what the neurons sum up when they hear `heard` ``[B, ..., T]``."""
    largest = float(heard.double().cumsum(-1).abs().max()) + threshold
    if largest >= EXACT:
        raise BackendError(
            f"layer {name!r}: SLAYER's neurons sum up their input in float32, and in {heard.shape[-1]} time steps it "
            f"comes to {largest:.0f}, beyond 2^24, where whole numbers are lost: run fewer time steps"
        )
