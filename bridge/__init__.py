"""From a QCFS-trained network to a spiking one that every neuromorphic framework runs spike for spike alike.

Nothing is imported before it is used: `import bridge` takes no time, and a backend's own Python, which has neither this
package's dependencies nor needs them, imports only what that backend asks for.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from bridge._util.lazy import lazily
from bridge.backends import registry

if TYPE_CHECKING:
    from bridge import loihi, report, zoo
    from bridge.agreement import Agreement
    from bridge.errors import (
        BackendError,
        BridgeError,
        ConversionError,
        GraphError,
        InputError,
        LossyWarning,
        RangeWarning,
        ValidationError,
    )
    from bridge.foreign import ForeignNetwork
    from bridge.network import SpikingNetwork, convert, load
    from bridge.prepare.adapters import register_activation, unregister_activation
    from bridge.prepare.checkpoints import load_checkpoint
    from bridge.prepare.qcfs import QCFS
    from bridge.prepare.replace import replace_activations
    from bridge.prepare.thresholds import fit_thresholds
    from bridge.records import SpikeRecord
    from bridge.reduction import Reduction, reduce
    from bridge.validation.tolerance import Tolerance, assert_agreement

    __version__: str

__all__ = [
    "QCFS",
    "Agreement",
    "BackendError",
    "BridgeError",
    "ConversionError",
    "ForeignNetwork",
    "GraphError",
    "InputError",
    "LossyWarning",
    "RangeWarning",
    "Reduction",
    "SpikeRecord",
    "SpikingNetwork",
    "Tolerance",
    "ValidationError",
    "assert_agreement",
    "convert",
    "fit_thresholds",
    "load",
    "load_checkpoint",
    "loihi",
    "reduce",
    "register_activation",
    "registry",
    "replace_activations",
    "report",
    "unregister_activation",
    "zoo",
]

sys.modules["bridge.registry"] = registry  # so that ``import bridge.registry`` finds it, as ``os.path`` is found

_get, _ = lazily(
    __name__,
    {
        "bridge.agreement": ("Agreement",),
        "bridge.errors": (
            "BackendError",
            "BridgeError",
            "ConversionError",
            "GraphError",
            "InputError",
            "LossyWarning",
            "RangeWarning",
            "ValidationError",
        ),
        "bridge.foreign": ("ForeignNetwork",),
        "bridge.network": ("SpikingNetwork", "convert", "load"),
        "bridge.prepare.adapters": ("register_activation", "unregister_activation"),
        "bridge.prepare.checkpoints": ("load_checkpoint",),
        "bridge.prepare.qcfs": ("QCFS",),
        "bridge.prepare.replace": ("replace_activations",),
        "bridge.prepare.thresholds": ("fit_thresholds",),
        "bridge.records": ("SpikeRecord",),
        "bridge.reduction": ("Reduction", "reduce"),
        "bridge.validation.tolerance": ("Tolerance", "assert_agreement"),
    },
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from bridge._util.environment import version

        return version("qcfs-bridge")
    return _get(name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
