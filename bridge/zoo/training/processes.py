"""Where a run happens: on this process alone, or on one of several that torchrun started."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Group:
    """One process among those that train together: the one that runs this."""

    rank: int
    size: int
    device: torch.device

    @property
    def writes(self) -> bool:
        return self.rank == 0


@contextmanager
def processes(device: str | torch.device | None) -> Iterator[Group]:
    """The process group that torchrun's variables in the environment describe, or this process alone.

    The group stays for the next run, until this process ends. torch cannot be relied on to make a second one: a process
    may find the first one's addresses instead, and wait there for ever.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen == torch.device("cuda"):  # no number
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if size > 1 else 0)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield Group(0, 1, chosen)
        return
    if not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        atexit.register(_end)
    yield Group(dist.get_rank(), dist.get_world_size(), chosen)
    dist.barrier()  # none leaves while another still waits for what it sent


def _end() -> None:
    if dist.is_initialized():  # whoever trains may have ended it
        dist.destroy_process_group()
