"""What one process of a training refuses all refuse: else the others would wait for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from segaware.errors import TrainingError

__all__ = ["agreed"]


@contextlib.contextmanager
def agreed(accelerator: Any) -> Iterator[None]:
    """Run the block, which must not wait for other processes, on every process of ``accelerator``.

    Raises:
        TrainingError: on every process, what the block raised on the first of those where it did.
    """
    refused: str | None = None
    try:
        yield
    except TrainingError as error:
        if accelerator.num_processes == 1:
            raise
        refused = str(error)
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        for reason in filter(None, gather_object([refused])):
            raise TrainingError(reason)
