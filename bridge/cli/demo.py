"""The main job on real data: train on scikit-learn's handwritten digits, convert, run everywhere, compare. Twice: in
floating point, and in the whole numbers that Loihi computes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from bridge.backends import registry
from bridge.errors import InputError
from bridge.network import SpikingNetwork, convert
from bridge.prepare.qcfs import QCFS
from bridge.report.plot import plot_rate_error
from bridge.zoo.digits import LEVELS, load_digits, train_digits

STEPS = LEVELS
BACKENDS = ("spikingjelly", "snntorch", "onnxruntime")
LAVA = ("lava", "lava-fixed")
"""In floats and in integers: run where Lava is installed, which pip does not do by itself (docs/install.md)."""
LAVA_IMAGES = 60
"""Lava's process per layer makes it slow; these images stream through one run."""


def run(out: Path, console: Console) -> bool:
    """Do it all, write the results under `out`, and say whether all backends agreed.

    Raises:
        BackendError: a backend other than Lava is not usable; before anything is trained.
        InputError: `out` cannot be written; likewise.
    """
    for name in BACKENDS:
        registry.usable(name)
    lava, lava_fixed = ((name,) if registry.get(name).available().usable else () for name in LAVA)
    if not lava:
        console.print("Lava is not installed and is left out; qcfs-bridge doctor says how to get it")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: results cannot be written there: {error.strerror}") from error
    x, y, x_test, y_test = load_digits()
    model = train_digits(x, y)
    thresholds = [round(module.threshold.item(), 3) for module in model if isinstance(module, QCFS)]
    console.print(f"trained on {len(x)} digits; thresholds λ = {thresholds}")
    network = convert(model, x_test[:1])
    agreed = _compare(network, x_test, y_test, (*BACKENDS, *lava), dict.fromkeys(lava, LAVA_IMAGES), out, "", console)
    whole = network.quantize(8, calibration=x)
    pixels = whole.pixels(x_test)
    agreed_too = _compare(whole, pixels, y_test, (*BACKENDS, *lava_fixed), {}, out, "_8bit", console)
    report = whole.loihi(whole.run(pixels, STEPS))
    report.save(out / "loihi.json")
    console.print(
        f"an inference on Loihi: {report.synaptic_operations or 0:,.0f} synaptic operations, where the ANN has "
        f"{report.ann_macs:,} multiplications; wrote {out / 'loihi.json'}"
    )
    return agreed and agreed_too


def _compare(
    network: SpikingNetwork,
    x: Tensor,
    y: NDArray[np.int64],
    backends: tuple[str, ...],
    images: dict[str, int],
    out: Path,
    suffix: str,
    console: Console,
) -> bool:
    """Write `network`, run it on all `backends`, write and print what differs; say whether they agreed."""
    console.print(f"{network}")
    network.save(out / f"digits{suffix}.nir")
    agreement = network.validate(x, STEPS, backends, labels=y, images=images)
    console.print(agreement.table())
    agreement.save(out / f"agreement{suffix}.json")
    agreement.report(out / f"report{suffix}.html")
    plot_rate_error(agreement, out / f"rate_error{suffix}.png")
    console.print(
        f"wrote {out / f'digits{suffix}.nir'}, agreement{suffix}.json, report{suffix}.html, rate_error{suffix}.png"
    )
    return agreement.agreed
