"""The errors a user can meet, each with a message that names the layer, what was expected and what to do."""


class BridgeError(Exception):
    """Base of every error this package raises on purpose."""


class ConversionError(BridgeError, ValueError):
    """The model cannot be converted exactly; the message lists every offending layer and its remedy."""


class GraphError(BridgeError, ValueError):
    """A layer graph or a NIR graph is malformed: a missing edge, mismatched shapes, an unknown node."""


class InputError(BridgeError, ValueError):
    """The data handed in does not fit the network: wrong shape, NaN, no images, too few steps."""


class FileError(InputError):
    """The system does not let a file be written: no space, no permission, a name too long. Exit status 3."""


class UnknownLayerError(InputError, KeyError):
    """No layer has that name; the message lists those there are."""

    __str__ = Exception.__str__  # KeyError would show the message in quotes


class BackendError(BridgeError, RuntimeError):
    """A backend is unknown, not installed, or failed while it ran."""


class ValidationError(BridgeError, RuntimeError):
    """Records cannot be compared: no layer in common, different images or steps, an empty record."""


class LossyWarning(UserWarning):
    """What was asked for is written, but it is another network than the one converted; the message says how."""


class RangeWarning(UserWarning):
    """Many values of the images lie outside the range of those that a network in integers was made for."""
