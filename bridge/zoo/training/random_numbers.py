"""A run's random numbers: seeds of their own for every use, and the caller's left alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived(*parts: int | str) -> int:
    """A seed that depends on all `parts` and on nothing else."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


@contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """Leave the caller's random numbers alone."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
