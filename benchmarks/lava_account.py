"""Where the time of a run of Lava in fixed point goes: the table of docs/lava_speed.md, for its ResNet-20.

    python benchmarks/lava_account.py

Processor time of all of Lava's processes, in seconds, by what they do; what waits takes none. The times of the parts
are taken inside the processes, which makes the run itself a little slower.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from lava_speed import STEPS, images, resnet20

from bridge.nir_graph import to_nir
from exporters.lava import LavaFixed
from exporters.lava.processes import shared_array

IMAGES = 128
SLOTS = 4096
"""More than there are processes: each writes in the place that its number says."""


def main() -> None:
    """Run, and print the table."""
    from lava.magma.compiler.channels.pypychannel import CspRecvPort, CspSendPort

    from exporters.lava.processes import neurons, streams, synapses

    parts: dict[str, tuple[type, str]] = {
        "convolutions: the sums": (synapses.AbstractPyTorchModelFixed, "accumulate"),
        "convolutions: all": (synapses.AbstractPyTorchModel, "run_spk"),
        "neurons: integrating": (neurons.PyIntegrateFireModelFixed, "integrate"),
        "neurons: all": (neurons.AbstractPyIntegrateFireModel, "run_spk"),
        "delays of skips": (streams.AbstractPyDelayModel, "run_spk"),
        "recording": (streams.PySinkModel, "run_spk"),
        "of these, copying messages out": (CspSendPort, "send"),
        "of these, copying messages in": (CspRecvPort, "recv"),
    }
    spent = shared_array((len(parts), SLOTS), np.float64)
    for row, (kind, method) in zip(spent, parts.values(), strict=True):
        setattr(kind, method, timed(getattr(kind, method), row))
    graph, backend = resnet20(), LavaFixed()
    native, x = backend.export(to_nir(graph)), images(graph, IMAGES)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    backend.run(native, x, STEPS)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{IMAGES} images, T = {STEPS}: {wall:.1f} s, {processor:.1f} s of processor time in Lava's processes\n")
    print("| part | seconds |\n|---|---:|")
    for part, row in zip(parts, spent, strict=True):
        print(f"| {part} | {row.sum():.2f} |")
    whole = ("all", "skips", "recording")  # the others are parts of these
    known = sum(row.sum() for part, row in zip(parts, spent, strict=True) if part.endswith(whole))
    print(f"| Lava itself: starting, and keeping its processes in step | {processor - known:.2f} |")


def timed(work: Callable[..., Any], row: np.ndarray) -> Callable[..., Any]:
    """`work`, adding the processor time that it takes to the place of its process in `row`."""

    def measured(*arguments: Any, **options: Any) -> Any:
        start = time.thread_time()
        result = work(*arguments, **options)
        row[os.getpid() % SLOTS] += time.thread_time() - start
        return result

    return measured


if __name__ == "__main__":
    main()
