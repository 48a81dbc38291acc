"""Which tiles an image is cut into: pure functions of sizes, no pixel is touched here.

A tile has a *core*, the pixels it is responsible for, and a *window*, the core with a halo that
the network sees. Cores cover the image exactly once. Windows are cut off at the image's border and
never padded, so that the network pads there as it would for the whole image; elsewhere the halo is
wide enough that no pixel of the core sees the window's edge. Cores and windows start at multiples
of the network's sub-sampling grid. So the tiled result is the whole one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from segaware.contracts import DenoiserInfo
from segaware.errors import InputError

__all__ = ["Box", "Tile", "halo", "spans", "tiles"]


@dataclass(frozen=True)
class Box:
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right``, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def within(self, outer: Box) -> Box:
        """The same pixels, counted from the corner of ``outer``."""
        return Box(self.top - outer.top, self.bottom - outer.top, self.left - outer.left, self.right - outer.left)


@dataclass(frozen=True)
class Tile:
    """What one piece answers for (``core``) and what the network is shown for it (``window``)."""

    core: Box
    window: Box


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def halo(info: DenoiserInfo) -> int:
    """Pixels to add on each side of a core, a multiple of ``info.size_multiple``.

    Half the receptive field, plus a multiple because on a sub-sampling grid the input window of
    a pixel may lie off-centre by up to ``size_multiple - 1``.
    """
    if info.receptive_field is None:
        raise InputError("a denoiser with an unknown receptive field cannot be tiled; leave tile at 'auto' or 'whole'")
    return _up(info.receptive_field // 2 + info.size_multiple, info.size_multiple)


def spans(size: int, *, core: int, halo: int, multiple: int = 1) -> list[tuple[int, int, int, int]]:
    """One axis, cut into the fewest cores of at most ``core`` pixels, about equally long.

    Args:
        size: pixels of the axis.
        core: longest core, rounded up to ``multiple``.
        halo: added on both sides where there is image; a multiple of ``multiple``.

    Returns:
        ``(core start, core stop, window start, window stop)`` for each piece.
    """
    if size < 1 or core < 1 or halo < 0 or multiple < 1 or halo % multiple:
        raise InputError(
            f"no tiles for size {size}, core {core}, halo {halo}, multiple {multiple}; sizes must be positive"
        )
    count = -(-size // _up(core, multiple))
    step = _up(-(-size // count), multiple)
    return [
        (start, min(start + step, size), max(start - halo, 0), min(start + step + halo, size))
        for start in range(0, size, step)
    ]


def tiles(height: int, width: int, *, core: int, halo: int, multiple: int = 1) -> Iterator[Tile]:
    """All tiles of an image, row by row. A core as long as a side leaves that side whole."""
    columns = spans(width, core=core, halo=halo, multiple=multiple)
    for top, bottom, high, low in spans(height, core=core, halo=halo, multiple=multiple):
        for left, right, first, last in columns:
            yield Tile(Box(top, bottom, left, right), Box(high, low, first, last))
