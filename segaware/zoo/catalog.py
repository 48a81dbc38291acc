"""Models of the zoo that are too large to ship: where on the Hub each one is, and what its files hash to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["COMMIT", "Entry", "catalog"]

#: A pinned revision: what it names never changes, so a cached one is used without asking the Hub.
COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE = Path(__file__).with_name("catalog.json")


@dataclass(frozen=True)
class Entry:
    """One model on the Hub.

    Args:
        repo: ``owner/name``.
        revision: the commit, 40 hexadecimal digits.
        sha256: of each file, by its name.
    """

    repo: str
    revision: str
    sha256: Mapping[str, str] = field(default_factory=dict)


def catalog() -> dict[str, Entry]:
    """The entries of ``catalog.json`` by zoo name: ``{NAME: {"repo", "revision", "sha256": {FILE: HEX}}}``."""
    entries = {name: Entry(**values) for name, values in json.loads(_FILE.read_text(encoding="utf-8")).items()}
    for name, entry in entries.items():
        assert COMMIT.fullmatch(entry.revision), f"{_FILE.name}: {name} is not pinned to a commit"
    return entries
