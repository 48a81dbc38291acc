"""Cut a folder into shards: each image belongs to exactly one, by a hash of its name.

A hash, and not its place in the sorted list: an image stays in its shard when others come, go or are
listed in another order, so shards that start hours apart, or again after a failure, still take each
image once. What that costs is balance: of N images in n shards, a shard gets N/n give or take about the
square root of that (1 % for 10,000 images a shard).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass

from segaware.errors import InputError

__all__ = ["Shard", "place_of"]


def place_of(name: str) -> int:
    """A number of 64 bits for a path below the folder, with ``/`` between its parts.

    Names are brought to one Unicode form first, for file systems of macOS list another than others do.
    """
    text = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


@dataclass(frozen=True)
class Shard:
    """Shard ``index`` of ``count``, counted from 1; of that the part of one of several processes that share it.

    Args:
        rank: of this process among ``ranks``, from 0 (see :mod:`segaware.inference.ranks`).
    """

    index: int = 1
    count: int = 1
    rank: int = 0
    ranks: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``"2/8"``.

        Raises:
            InputError: something else, or outside 1 to n.
        """
        found = re.fullmatch(r"\s*(\d{1,7})\s*/\s*(\d{1,7})\s*", text)
        if not found:
            raise InputError(f"shard {text!r}: give i/n, e.g. 2/8 for the second of eight")
        index, count = int(found[1]), int(found[2])
        if not 1 <= index <= count:
            hint = f" (where jobs count from 0, add one: {index + 1}/{count})" if 0 <= index < count else ""
            raise InputError(f"shard {text!r}: shards count from 1 to n{hint}")
        return cls(index, count)

    @property
    def all(self) -> bool:
        """Whether nothing is left to others."""
        return self.count == self.ranks == 1

    def holds(self, place: int) -> bool:
        """Whether the image at this place (:func:`place_of`) is this process's."""
        return place % self.count == self.index - 1 and place // self.count % self.ranks == self.rank

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
