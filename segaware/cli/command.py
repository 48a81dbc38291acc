"""What all commands share: errors as one line, exit codes, ``--debug``.

Exit codes: 0 done, 1 some files failed, 2 the command was not meant so, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import click

from segaware.errors import SegawareError

__all__ = ["Command", "Failure", "Program", "terminable"]


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within: a SIGTERM or SIGHUP ends the program as an exception does, so that what it made for itself is taken away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows knows no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup
            before[number] = signal.signal(number, lambda which, _: sys.exit(128 + which))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Failure(click.ClickException):
    """An error that has been put into words for the user."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


class Program(click.Group):
    """All commands. A process that has met others of its launch ends without the interpreter's tear-down."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except SystemExit as end:
            ranks = sys.modules.get("segaware.inference.ranks")
            if ranks is None or not ranks.met():
                raise
            # Now and then a thread of gloo that comes back to a dying interpreter aborts a process whose work is done,
            # even with the group left before; the launcher would then kill the others.
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


class Command(click.Command):
    """A command with ``--debug``. What a command does file by file it reports itself (exit code 1);
    any other error of the library means that the call cannot be carried out as given: 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."))

    def invoke(self, ctx: click.Context) -> Any:
        debug = ctx.params.pop("debug")
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("\ninterrupted; finished files are kept", err=True)
            raise click.exceptions.Exit(130) from None
        except SegawareError as error:
            if debug:
                raise
            raise Failure(str(error), 2) from error
        except Exception as error:
            if debug or isinstance(error, BrokenPipeError):
                raise
            raise Failure(f"{type(error).__name__}: {error} (run again with --debug for the traceback)", 1) from error
