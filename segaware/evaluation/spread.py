"""An evaluation spread over processes that a launcher started: each measures its own images, the first reports."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segaware.errors import EvaluationError
from segaware.evaluation.cells import Cells
from segaware.evaluation.protocol import Protocol
from segaware.evaluation.results import Results
from segaware.evaluation.runner import evaluate
from segaware.evaluation.sources import Source
from segaware.inference.ranks import Ranks, gathered, own_device
from segaware.inference.shards import Shard, place_of

__all__ = ["evaluate_spread"]

_PARTS = ".ranks"


def evaluate_spread(
    source: Source,
    contestants: Sequence[Any],
    protocol: Protocol,
    *,
    ranks: Ranks,
    out: str | os.PathLike[str] | None = None,
    pictures: Sequence[str] = (),
    **options: Any,
) -> Results | None:
    """:func:`segaware.evaluation.runner.evaluate`, by all processes of a launch; the first gets the results, the others None.

    Images are split by the hash of their names (:mod:`segaware.inference.shards`). Each process keeps its
    finished cells in a folder of its own below ``out``; the first adds them to its own file, and reports
    from that. A launch that was cut short goes on, by however many processes.

    Args:
        ranks: this process among the others; alone it is a plain evaluation.
        out: a folder that all of them see.

    Raises:
        EvaluationError: several processes without ``out``, or that cannot find each other, and as ``evaluate``.
    """
    if ranks.count == 1:
        if out is not None:
            _bring_together(Path(out))  # of a launch of several that was cut short
        return evaluate(source, contestants, protocol, out=out, pictures=pictures, **options)
    if out is None:
        raise EvaluationError(f"{ranks.count} processes need a folder to bring their results together in: give -o DIR (out=), one that all of them see")
    out = Path(out)
    if ranks.first:
        _bring_together(out)  # of a launch that was cut short
    if len(gathered(None, ranks)) != ranks.count:
        raise EvaluationError("several processes cannot find each other (no MASTER_ADDR); start them by torchrun or accelerate launch")
    shard = Shard(rank=ranks.index, ranks=ranks.count)
    share = dataclasses.replace(source, items=tuple(item for item in source.items if shard.holds(place_of(item.name))))
    if len(share):
        own = {**options, "device": own_device(str(options.get("device", "auto")), ranks.local)}
        evaluate(share, contestants, protocol, out=out / _PARTS / str(ranks.index), known=out / "cells.jsonl", **own)
    gathered(None, ranks)
    if not ranks.first:
        return None
    _bring_together(out)
    return evaluate(source, contestants, protocol, out=out, pictures=pictures, **options)


def _bring_together(out: Path) -> None:
    """Add what is in the processes' own folders to ``cells.jsonl``, and take them away.

    Raises:
        EvaluationError: another launch is writing into one of them.
    """
    parts = sorted((out / _PARTS).glob("*/cells.jsonl"))
    if not parts:
        return
    with Cells(out) as cells:
        for part in parts:
            with Cells(part.parent):  # refused while another launch is at work there
                cells.absorb(part)
    for part in parts:
        shutil.rmtree(part.parent, ignore_errors=True)
    with contextlib.suppress(OSError):
        (out / _PARTS).rmdir()
