"""Keep freed pages for a while: activations are freed and asked for again with every layer.

By default glibc hands large blocks back to the kernel at once and gets fresh, zeroed pages for the
next layer: a third of the time of a DnCNN on a processor goes into page faults. Elsewhere
(macOS, Windows, musl) nothing happens here.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["keep_pages"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>
_KEPT = 1 << 30
# glibc cannot go back to its moving threshold; this is where the moving one ends up at the latest.
_MMAP_AFTER, _TRIM_AFTER = 32 << 20, 64 << 20

_lock = threading.Lock()
_depth = 0


@cache
def _glibc() -> Any:
    """The C library, if it is glibc and the user has not set its allocator up already."""
    if platform.libc_ver()[0] != "glibc":
        return None
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")):
        return None
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt.argtypes, library.mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
        library.malloc_trim.argtypes, library.malloc_trim.restype = (ctypes.c_size_t,), ctypes.c_int
    except (OSError, AttributeError):
        return None
    return library


@contextmanager
def keep_pages() -> Iterator[bool]:
    """Within: freed memory stays with the process. At the end it goes back to the system.

    Process-wide, may be nested and entered from several threads; yields whether it has an effect.
    """
    global _depth
    library = _glibc()
    with _lock:
        _depth += 1
        if library is not None and _depth == 1:
            library.mallopt(_MMAP_THRESHOLD, _KEPT)
            library.mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield library is not None
    finally:
        with _lock:
            _depth -= 1
            if library is not None and _depth == 0:
                library.mallopt(_MMAP_THRESHOLD, _MMAP_AFTER)
                library.mallopt(_TRIM_THRESHOLD, _TRIM_AFTER)
                library.malloc_trim(0)
