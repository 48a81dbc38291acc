"""Processes that a launcher started with one command: ``torchrun``, ``accelerate launch``, ``mpirun`` wrappers.

Each is told its rank among how many by the environment, the same way by all of them.
"""

from __future__ import annotations

import atexit
import datetime
import os
from dataclasses import dataclass
from typing import Any

from segaware.errors import InputError

__all__ = ["Ranks", "gathered", "launched", "met", "own_device"]

#: Ranks wait for the slowest, however long that takes: the launcher ends them when one dies.
_FOREVER = datetime.timedelta(days=365)

_met = False


@dataclass(frozen=True)
class Ranks:
    """This process among those of one launch.

    Args:
        index: from 0.
        count: how many there are; 1 = not launched, or alone.
        local: from 0, among those on this machine; with several GPUs it takes its own.
    """

    index: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.index == 0


def launched() -> Ranks:
    """What the launcher says, alone where there is none.

    Raises:
        InputError: numbers that make no sense.
    """
    told = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if not told["RANK"] or not told["WORLD_SIZE"]:
        return Ranks()
    try:
        ranks = Ranks(int(told["RANK"]), int(told["WORLD_SIZE"]), int(told["LOCAL_RANK"] or 0))
    except ValueError:
        ranks = Ranks(-1)
    if not 0 <= ranks.index < ranks.count or ranks.local < 0:
        words = ", ".join(f"{name}={value}" for name, value in told.items())
        raise InputError(f"the environment says {words}, as a launcher of several processes would, but not so; unset them to run alone")
    return ranks


def gathered(value: Any, ranks: Ranks) -> list[Any]:
    """``value`` of every rank, in order, once all have come here.

    Without an address to meet at (``MASTER_ADDR``, which torchrun and accelerate set) each has only its own.
    """
    if ranks.count == 1 or not os.environ.get("MASTER_ADDR"):
        return [value]
    import torch.distributed as distributed

    global _met
    if not distributed.is_available():
        return [value]
    if not distributed.is_initialized():
        _met = True
        distributed.init_process_group("gloo", timeout=_FOREVER, rank=ranks.index, world_size=ranks.count)
        # Left to the interpreter's end, gloo's threads are still running when they are torn down, and now and then abort a process that is done.
        atexit.register(_left)
    values: list[Any] = [None] * ranks.count
    distributed.all_gather_object(values, value)
    return values


def met() -> bool:
    """Whether this process has joined the others: gloo's threads are there then."""
    return _met


def _left() -> None:
    import torch.distributed as distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def own_device(device: str, number: int) -> str:
    """One GPU for each process of a machine, where there are several and none is named."""
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available() and torch.cuda.device_count() > 1:
        return f"cuda:{number % torch.cuda.device_count()}"
    return device
