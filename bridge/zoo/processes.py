"""Where a run happens: on this process alone, or on one of several that torchrun started."""

from __future__ import annotations

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
    """The process group that torchrun's variables in the environment describe, or this process alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen == torch.device("cuda"):  # no number
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if size > 1 else 0)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield Group(0, 1, chosen)
        return
    already: bool = dist.is_initialized()
    if not already:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size(), chosen)
        dist.barrier()  # none leaves while another still waits for what it sent
    finally:
        if not already:
            dist.destroy_process_group()
