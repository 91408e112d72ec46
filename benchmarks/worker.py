"""One peer in a process of its own, told over stdin what to do, a JSON object a line, and answering so on stdout.

It computes only while it is asked to: between requests it waits for a line. What libraries print goes to stderr.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .cases import from_json
from .peers import PEERS, NotHere, Run

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def environment(threads: int, backend: str | None = None) -> dict[str, str]:
    """Variables that every peer runs under; they must be set before its process starts."""
    n = str(threads)
    chosen = {
        "OMP_NUM_THREADS": n,
        "MKL_NUM_THREADS": n,
        "OPENBLAS_NUM_THREADS": n,
        "VECLIB_MAXIMUM_THREADS": n,
        "TF_NUM_INTRAOP_THREADS": n,
        "TF_NUM_INTEROP_THREADS": n,
        "NPROC": n,  # size of XLA's thread pool on a CPU
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}",
        # Threads spin a little at a barrier and sleep well before the next peer's turn (run.SETTLE_SECONDS). As fast as
        # the default where nothing else runs; the default, and never spinning, are measured in docs/log.md.
        "GOMP_SPINCOUNT": "10000",
        "KMP_BLOCKTIME": "10",  # ms; the default of LLVM's and Intel's OpenMP is 200
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of compilers beside the clock
        "PYTHONHASHSEED": "0",
    }
    if backend is not None:
        chosen["KERAS_BACKEND"] = backend
    return chosen


def _limit_threads(threads: int) -> None:
    """What variables cannot say. After the libraries are imported, before they compute."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) > threads:
            os.sched_setaffinity(0, cores[:threads])
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    if "tensorflow" in sys.modules:
        threading = sys.modules["tensorflow"].config.threading
        threading.set_intra_op_parallelism_threads(threads)
        threading.set_inter_op_parallelism_threads(threads)


def timed(compute: Callable[[], Any], seconds: float) -> list[float]:
    """Durations in seconds of runs that take `seconds` together, at least one. A short run is preceded by one that does
    not count: the peer before has had the caches."""
    begin = time.perf_counter()
    compute()
    first = time.perf_counter() - begin
    if first >= seconds:
        return [first]
    durations: list[float] = []
    while sum(durations) < seconds:
        begin = time.perf_counter()
        compute()
        durations.append(time.perf_counter() - begin)
    return durations


def _status_mb(field: str) -> float | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return None


def _peak_mb() -> float | None:
    """Highest resident memory of this process so far, in MiB; None where nothing says so."""
    peak = _status_mb("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _forget_peak() -> bool:
    """Let the peak begin anew at what is resident now (Linux)."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


class Worker:
    """Answers requests; each method is one."""

    def __init__(self, peer: str, threads: int) -> None:
        self.peer = PEERS[peer]
        self.imported_mb: float | None = None
        missing = [name for name in self.peer.needs if find_spec(name) is None]
        if missing:
            raise ModuleNotFoundError(", ".join(missing))
        self.module = importlib.import_module(f"benchmarks.peers.{self.peer.module}")
        _limit_threads(threads)
        self.imported_mb = _status_mb("VmRSS") or _peak_mb()
        self.run: Run | None = None

    def build(self, case: dict) -> dict:
        self.run = None
        gc.collect()
        begin = time.perf_counter()
        self.run = self.module.build(from_json(case), self.peer.variant)
        return {"seconds": [time.perf_counter() - begin]}

    def time(self, kind: str, seconds: float) -> dict:
        compute = self.run.forward if kind == "forward" else self.run.training_step
        gc.collect()
        gc.disable()
        try:
            return {"seconds": timed(compute, seconds)}
        finally:
            gc.enable()

    def first(self, kind: str) -> dict:
        """The first run, compilation included."""
        begin = time.perf_counter()
        (self.run.forward if kind == "forward" else self.run.training_step)()
        return {"seconds": [time.perf_counter() - begin]}

    def memory(self, kind: str, once: bool) -> dict:
        """Peak over import in MiB of a run that is not the first, so that compilation does not count where the peak
        can be forgotten; with `once`, for runs that take long, of the first."""
        compute = self.run.forward if kind == "forward" else self.run.training_step
        if not once:
            compute()
        gc.collect()
        resident = _status_mb("VmRSS")
        forgot = _forget_peak()
        compute()
        peak = _peak_mb()
        if peak is None or self.imported_mb is None:
            return {"peak_mb": None}
        between = resident - self.imported_mb if resident is not None else None
        return {
            "peak_mb": peak - self.imported_mb,
            "between_runs_mb": between,
            "without_compilation": forgot and not once,
        }

    def chosen(self, case: dict) -> dict:
        """The engine behind "auto"; ours alone can say."""
        return {"engine": self.module.chosen(from_json(case))}

    def numbers(self, path: str) -> dict:
        import numpy as np

        np.savez(path, **self.run.numbers())
        return {}


def _answer(worker: Worker, request: dict) -> dict:
    do = request.pop("do")
    if do not in ("build", "time", "first", "memory", "numbers", "chosen"):
        raise ValueError(f"unknown request: {do}")
    return getattr(worker, do)(**request)


def main(arguments: list[str]) -> None:
    peer, threads = arguments
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed must not be taken for an answer

    def reply(values: dict) -> None:
        replies.write(json.dumps(values) + "\n")
        replies.flush()

    try:
        worker = Worker(peer, int(threads))
    except ModuleNotFoundError as error:
        return reply({"status": "not installed", "why": str(error)})
    reply({"status": "ok"})
    for line in sys.stdin:
        try:
            values = {"status": "ok", **_answer(worker, json.loads(line))}
        except NotHere as reason:
            values = {"status": "not available", "why": str(reason)}
        except Exception as error:  # said in the table, and with all lines on stderr
            import traceback

            traceback.print_exc()
            text = " ".join(str(error).split())
            values = {"status": "failed", "why": f"{type(error).__name__}: {text}"[:300]}
        reply(values)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
