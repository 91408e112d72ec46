"""Calls in a process of its own, with limits on time and memory: a damaged file ends them with a sentence, not this program.

The C libraries behind HDF5 and GRIB can take the interpreter down, and ecCodes brings a PROJ of its own, with which pyproj
no longer finds its database. So each module whose functions are called here has a process to itself. It starts with the first
call, waits for the next, and ends with this program.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

from ..errors import InputError, reason

SECONDS = 8.0  # for one call; STORMCELL_READ_SECONDS says otherwise, for slow disks
MEGABYTES = 1536  # of address space that a call may add, where the system can limit it
_LENGTH = struct.Struct("<Q")
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

P = ParamSpec("P")
R = TypeVar("R")


class ChildError(Exception):
    """The call ended without a result; the message says how."""


class _Child:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def call(self, request: bytes, seconds: float) -> Any:
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
                self.process = subprocess.Popen(
                    [sys.executable, "-c", "from stormcell.data.child import serve; serve()"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, **_THREADS, "PYTHONPATH": path},
                )
                self._receive()  # it is there; only what follows counts for the limit
            ended = threading.Event()

            def end(process: subprocess.Popen[bytes] = self.process) -> None:
                ended.set()
                process.kill()

            timer = threading.Timer(seconds, end)
            timer.daemon = True
            timer.start()
            try:
                assert self.process.stdin is not None
                _write(self.process.stdin, request)
                return self._receive()
            except (OSError, EOFError, struct.error):
                self.close()
                what = f"took longer than {seconds:g} s" if ended.is_set() else "came to a sudden end"
                raise ChildError(f"the library that reads it {what}") from None
            except BaseException:  # Ctrl-C: an answer that nobody waits for would be taken for the next one's
                self.close()
                raise
            finally:
                timer.cancel()

    def _receive(self) -> Any:
        assert self.process is not None
        assert self.process.stdout is not None
        return pickle.loads(_read(self.process.stdout))

    def close(self) -> None:
        if self.process is not None:
            with contextlib.suppress(OSError):
                self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(OSError):
                    assert stream is not None
                    stream.close()
            self.process = None


_children: dict[tuple[int, str], _Child] = {}  # by process, since a fork must not share one, and by module


@atexit.register
def _close() -> None:
    for (owner, _), child in _children.items():
        if owner == os.getpid():
            child.close()


def call(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """`function(*args)`, a function of a module, in the process of that module.

    Raises InputError as the function does; ChildError if it raises anything else, takes too long or too much memory, or ends
    its process.
    """
    room = function.__module__
    child = _children.setdefault((os.getpid(), room), _Child())
    seconds = float(os.environ.get("STORMCELL_READ_SECONDS", SECONDS))
    kind, answer = child.call(pickle.dumps((room, function.__qualname__, os.getcwd(), args, kwargs)), seconds)
    if kind == "result":
        return answer
    raise InputError(answer) if kind == "input" else ChildError(answer)


def apart(function: Callable[P, R]) -> Callable[P, R]:
    """A function that is called as `call` does it."""

    def there(*args: P.args, **kwargs: P.kwargs) -> R:
        return call(function, *args, **kwargs)

    return there


def serve() -> None:
    """The other side: answers calls until its input ends."""
    incoming, outgoing = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    _write(outgoing, pickle.dumps(None))
    with contextlib.suppress(EOFError, struct.error):
        while True:
            _write(outgoing, _answer(_read(incoming)))
    os._exit(0)  # ecCodes would end it with a signal


def _answer(request: bytes) -> bytes:
    room, name, here, args, kwargs = pickle.loads(request)
    try:
        os.chdir(here)  # paths may be relative, and this program may have moved since
        function = getattr(importlib.import_module(room), name)
        _limit_memory()
        return pickle.dumps(("result", function(*args, **kwargs)), protocol=pickle.HIGHEST_PROTOCOL)
    except InputError as error:
        return pickle.dumps(("input", str(error)))
    except MemoryError:
        return pickle.dumps(("error", "it would take too much memory"))
    except Exception as error:
        return pickle.dumps(("error", reason(error)))


def _limit_memory() -> None:
    """Of this process, once its libraries are there."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        statm = Path("/proc/self/statm")  # pages of address space, on Linux
        own = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 2**32
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (own + MEGABYTES * 2**20, hard))


def _write(stream: IO[bytes], data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(header)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data
