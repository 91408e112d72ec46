"""The command line: one verb a function, which parses, calls, writes, and prints where it went.

Exit 0 done; 2 the user's input is wrong, said in one sentence; 130 Ctrl-C; 1 our own bug. Nothing heavy is imported before a
verb runs, so that --help answers at once.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable

import typer

from ..errors import InputError
from ..forecasting.processes import let_others_speak, processes
from . import comparing, engines, forecasts, inspecting, storing, weights  # noqa: F401 (they add their verbs to the app)
from .app import app
from .speaking import note

__all__ = ["main", "share_cores"]


def share_cores() -> None:
    """Let OpenMP's threads give their core away after a short wait, before torch loads OpenMP.

    They spin by default, and a training beside any other busy program then takes up to seventy times longer
    (docs/log.md). Whoever has set a policy keeps it; elsewhere than with GNU's OpenMP the variable has no effect.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def main(arguments: Iterable[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    share_cores()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "×" or "≥" gets "?"
    try:
        arguments = sys.argv[1:] if arguments is None else list(arguments)
        code = app(arguments, obj=arguments, standalone_mode=False)  # obj: for a verb that runs itself again
    except InputError as error:
        if not processes().first:
            let_others_speak()
        note(f"stormcell: {' '.join(str(error).split())}")
        return 2
    except BrokenPipeError:  # the reader of our output went away; what we write to files is written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        note("stormcell: stopped")
        return 130
    except Exception as error:
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        error.show()  # wrong usage; typer brings its own click, whose exceptions cannot be imported by one name
        return int(error.exit_code)
    return int(code or 0)
