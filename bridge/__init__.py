"""From a QCFS-trained network to a spiking one that every neuromorphic framework runs spike for spike alike."""

from bridge import loihi, zoo
from bridge.agreement import Agreement
from bridge.backends import registry  # noqa: F401
from bridge.errors import (
    BackendError,
    BridgeError,
    ConversionError,
    GraphError,
    InputError,
    LossyWarning,
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
    "replace_activations",
    "unregister_activation",
    "zoo",
]
