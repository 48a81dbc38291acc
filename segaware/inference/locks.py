"""Locks on a byte of an opened file: they end with the process, however that ends."""

from __future__ import annotations

import errno
import os

__all__ = ["LocksMissing", "lock", "unlock"]

_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class LocksMissing(OSError):
    """The file system has no locks."""


def lock(descriptor: int, byte: int, *, wait: bool) -> bool:
    """Take the byte, which may lie behind the end of the file, for this process; False if another has it.

    Closing any descriptor of that file gives all of its locks back: open it once.

    Raises:
        LocksMissing: a file system without locks.
    """
    try:
        try:
            import fcntl
        except ImportError:  # Windows
            return _lock_windows(descriptor, byte, wait)
        fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
    except OSError as error:
        if not wait and error.errno in _TAKEN:
            return False
        raise LocksMissing(error.errno, error.strerror) from error
    return True


def unlock(descriptor: int, byte: int) -> None:
    """Give the byte back."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        os.lseek(descriptor, byte, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, byte)


def _lock_windows(descriptor: int, byte: int, wait: bool) -> bool:
    import msvcrt

    while True:
        os.lseek(descriptor, byte, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            return True
        except OSError as error:
            if not wait or error.errno not in _TAKEN:  # LK_LOCK gives up after ten seconds
                raise
