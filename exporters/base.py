"""The protocol of a backend, for whoever writes one: the face of `bridge.backends.protocol`."""

from bridge.backends.protocol import Availability, Backend, check_input, expect_plain, probe

__all__ = ["Availability", "Backend", "check_input", "expect_plain", "probe"]
