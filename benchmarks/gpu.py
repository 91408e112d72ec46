"""ConvLSTM on a GPU: milliseconds and memory of our engines and of everybody else's, in float32, TF32 and bfloat16.

    python -m benchmarks.gpu                              all cases on the GPU; JSON into benchmarks/results/gpu
    python -m benchmarks.gpu --limit 540 --out gpu.json   stop after so many seconds; what has been measured is in the file
    python -m benchmarks.gpu --resume --out gpu.json      go on with what is missing there
    python -m benchmarks.gpu --device cpu --quick         a tiny case without a GPU, to see that all works

One peer after the other, in one process, and in a new one for the rest where a peer has ended it or lost the GPU. The plain
loop is measured again after the others of each case and precision, so that a machine that has become slower shows.
torch.compile takes a minute or two for the loops of a net, max-autotune longer: they have rounds of their own after all else.
Before a peer is timed its output and input gradient are compared with `reference` in float64; what is off by more than 16
times the error of the plain loop in the same precision is said, and not timed.

A time is that of a synchronised clock around a run. `pipelined_ms` is the mean of many runs with one synchronisation after the
last, as a training loop has it. `peak_mib` is what torch has allocated at most in a run, weights and frames included, and
`held_mib` what it has taken from the GPU for that: CUDA graphs hold memory that they do not allocate anew. For JAX, which has
an allocator of its own, `peak_mib` is what XLA has planned. The fastest of the convolutions alone is the floor.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks import cases as all_cases
from benchmarks.agreement import PEER_FACTOR
from benchmarks.cases import CASES, QUICK, Case, arrays
from benchmarks.peers import NotHere, ours
from benchmarks.peers.autograd import autocast
from benchmarks.run import git, versions
from stormcell.engine.graphs import graphs
from stormcell.provenance import machine
from stormcell.writing import whole_file

RESULTS = Path(__file__).parent / "results" / "gpu"
FEWEST_RUNS, WARM_RUNS, MOST_PIPELINED = 10, 5, 500
PRECISIONS = ("float32", "tf32", "bfloat16")
NO_TIME, UNFINISHED = "no time left", "begun, and not ended"
DONE, WRONG, NO_GPU, LOST = range(4)  # how a process ends
_ON_GPU = {
    case.name: case
    for case in (
        Case("paper-batch16", 16, 10, 16, (128, 64, 64), (16, 16), 5, future=10),
        Case("map128-batch16", 16, 10, 64, (64,), (128, 128), 3),
        Case("stream64", 1, 1, 64, (64,), (64, 64), 3, streaming=True),
    )
}
GPU_CASES = {**_ON_GPU, **CASES}
DEFAULT_CASES = (*_ON_GPU, "5x5", "3x3", "map64-batch4", "paper")


class Peer(NamedTuple):
    """One that is measured, and how."""

    name: str
    module: str
    variant: str = ""
    needs: tuple[str, ...] = ()  # modules that must be installed
    turn: int = 0  # the round that it is measured in: what compiles for long comes after all else

    @property
    def kind(self) -> str:
        return {"ours": "ours", "floor": "floor"}.get(self.module, "peer")


BASELINE = Peer("torch loop", "torch_loop", "eager")
AGAIN = tuple(
    BASELINE._replace(name=f"torch loop, {when}", turn=turn) for turn, when in enumerate(("again", "late", "last"))
)
PEERS = (
    Peer("stormcell (auto)", "ours", "auto"),
    Peer("stormcell, triton", "ours", "triton"),
    BASELINE,
    Peer("torch loop, channels_last", "torch_loop", "channels_last"),
    Peer("convolutions alone", "floor", "contiguous"),
    Peer("convolutions alone, channels_last", "floor", "channels_last"),
    Peer("convolutions alone, graph", "floor", "contiguous+graph"),
    Peer("convolutions alone, channels_last, graph", "floor", "channels_last+graph"),
    Peer("stormcell, bptt", "ours", "bptt"),
    Peer("stormcell, reference", "ours", "reference"),
    Peer("stormcell, torch.compile", "ours", "auto+reduce-overhead"),
    Peer("stormcell, triton, torch.compile", "ours", "triton+reduce-overhead"),
    Peer("Flax", "flax_cell", needs=("jax", "flax")),
    Peer("Keras on torch", "keras_torch", needs=("keras",)),
    Peer("torch.compile", "torch_loop", "compile", turn=1),
    Peer("torch.compile, reduce-overhead", "torch_loop", "reduce-overhead", turn=1),
    Peer("torch.compile, max-autotune", "torch_loop", "max-autotune", turn=2),
)
KINDS = {peer.name: peer.kind for peer in PEERS}
Rows = dict[str, dict[str, Any]]


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Products of float32 in float32 or TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def on_gpu(device: str) -> bool:
    return device.startswith("cuda")


def wait(device: str) -> None:
    if on_gpu(device):
        torch.cuda.synchronize()


# --- what is measured ---


def steps_of(run: Any, kind: str, device: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """How a run is started, and how one waits for what that gave."""
    if hasattr(run, "launch"):  # JAX does not compute on torch's streams

        def finish(result: Any) -> None:
            importlib.import_module("jax").block_until_ready(result)

        return partial(run.launch, kind), finish
    return run.forward if kind == "forward" else run.training_step, lambda _: wait(device)


def milliseconds(start: Callable[[], Any], finish: Callable[[Any], None], seconds: float) -> dict[str, float]:
    """Median and quartiles of as many runs as fit, after some that are not counted; then the mean of runs in a row."""
    for _ in range(WARM_RUNS):
        finish(start())
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < FEWEST_RUNS or time.perf_counter() < end:
        begun = time.perf_counter()
        finish(start())
        taken.append(1000 * (time.perf_counter() - begun))
    low, middle, high = statistics.quantiles(taken, n=4, method="inclusive")
    count = max(FEWEST_RUNS, min(MOST_PIPELINED, int(500 * seconds / middle)))
    begun = time.perf_counter()
    for _ in range(count - 1):
        start()
    finish(start())
    pipelined = 1000 * (time.perf_counter() - begun) / count
    return {"n": len(taken), "median_ms": middle, "q1_ms": low, "q3_ms": high, "pipelined_ms": pipelined}


def memory(run: Any, kind: str, start: Callable[[], Any], device: str) -> dict[str, float | None]:
    """Of a run that is not the first."""
    if hasattr(run, "peak_mib"):
        return {"peak_mib": run.peak_mib(kind)}
    if not on_gpu(device):
        return {"peak_mib": None}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    start()
    wait(device)
    return {
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
        "held_mib": torch.cuda.max_memory_reserved() / 2**20,
    }


def truth(case: Case, device: str) -> dict[str, Tensor]:
    """y and d_x of the reference in float64, not on the GPU, whose memory is measured; y alone of a case that streams."""
    numbers = arrays(case)
    model = ours.module(case, numbers, engine="reference", dtype=torch.float64).to(device)

    def put(values: Any) -> Tensor:
        return torch.from_numpy(values).to(device).double()

    def kept(values: Tensor) -> Tensor:
        return values.cpu().pin_memory() if on_gpu(device) else values

    x = put(numbers.x)
    if case.streaming:
        with torch.no_grad():
            return {"y": kept(model.step(x[:, 0], tuple(put(value)[None] for value in numbers.state))[0])}
    x.requires_grad_()
    y = model(x, steps=case.future) if case.future else model(x)[0]
    (d_x,) = torch.autograd.grad(y, x, put(numbers.d_y))
    return {"y": kept(y.detach()), "d_x": kept(d_x)}


def off(found: Tensor, exact: Tensor, device: str) -> float:
    """Relative error, root mean square; infinite where shapes differ. A sample at a time: the whole is large in float64."""
    if found.shape != exact.shape:
        return float("inf")
    wrong, size = 0.0, 0.0
    for each, true in zip(found, exact):
        true = true.to(device)
        wrong += float((each.to(device).double() - true).square().sum())
        size += float(true.square().sum())
    return math.sqrt(wrong / size)


def errors(run: Any, exact: dict[str, Tensor], device: str) -> dict[str, float]:
    """By tensor; of the convolutions alone there are none."""
    if hasattr(run, "tensors"):
        found = run.tensors()
    else:  # arrays of JAX are not to be written to, which torch minds
        found = {name: torch.from_numpy(value.copy()) for name, value in run.numbers().items() if name in exact}
    return {name: off(found[name], value, device) for name, value in exact.items() if name in found}


def measure(
    peer: Peer,
    case: Case,
    precision: str,
    device: str,
    seconds: float,
    exact: dict[str, Tensor],
    most: dict[str, float],
) -> dict[str, Any]:
    """A row: times, memory, errors; or why there are none."""
    missing = [name for name in peer.needs if find_spec(name) is None]
    if missing:
        return {"why": f"not installed: {', '.join(missing)}"}
    begun = time.perf_counter()
    counters["inductor"].clear()
    try:
        run = importlib.import_module(f"benchmarks.peers.{peer.module}").build(case, peer.variant, device, precision)
        wrong = errors(run, exact, device)
        bad = {name: value for name, value in wrong.items() if not value <= most.get(name, float("inf"))}
        if bad:
            return {"why": f"other numbers: off by {bad}, allowed {most}", "disagrees": True}
        row: dict[str, Any] = {"errors": wrong, "ready_s": time.perf_counter() - begun}
        for kind in case.kinds:
            start, finish = steps_of(run, kind, device)
            row[kind] = {**milliseconds(start, finish, seconds), **memory(run, kind, start, device)}
        if counters["inductor"]["cudagraph_skips"]:
            row["without_graphs"] = counters["inductor"]["cudagraph_skips"]  # asked for, but torch.compile would not
        if peer.variant.startswith("auto"):
            with autocast(device, precision):
                row["engine"] = ours.chosen(case, device)
        return row
    except NotHere as reason:
        return {"why": str(reason)}
    except Exception as error:  # a compiler that fails, or no memory left: said in the result
        return {"why": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}


def survived(device: str) -> bool:
    """Whether the GPU still computes for this process. After a kernel's wrong access to memory it never does again."""
    try:
        wait(device)
    except RuntimeError:
        return False
    return True


def forget(device: str) -> None:
    """Let go of what the last peer held, CUDA graphs as well."""
    torch._dynamo.reset()
    graphs.clear()
    gc.collect()
    if on_gpu(device):
        torch.cuda.empty_cache()


# --- what it says ---


def ratios(rows: Rows, measured: str = "median_ms") -> dict[str, dict[str, dict[str, Any]]]:
    """For each of ours, forward and train: the fastest peer and its time over ours, ours over that of the fastest floor,
    and both kinds of memory over those of the eager loop. What is not there is left out."""

    def fastest(of: str, kind: str) -> str | None:
        times = {name: row[kind][measured] for name, row in rows.items() if KINDS.get(name) == of and kind in row}
        return min(times, key=times.__getitem__) if times else None

    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, row in rows.items():
        for kind in ("forward", "train"):
            if KINDS.get(name) != "ours" or kind not in row:
                continue
            mine, told = row[kind], found.setdefault(name, {}).setdefault(kind, {})
            for of in ("peer", "floor"):
                other = fastest(of, kind)
                if other is not None:
                    times = rows[other][kind][measured], mine[measured]
                    told[of] = other
                    told[f"over_{of}"] = times[0] / times[1] if of == "peer" else times[1] / times[0]
            plain = rows.get(BASELINE.name, {}).get(kind, {})
            for what in ("peak_mib", "held_mib"):
                if mine.get(what) and plain.get(what):
                    told[what] = mine[what] / plain[what]
    return found


def ratio_lines(rows: Rows) -> list[str]:
    """`ratios` in words; of pipelined runs in brackets."""
    lines = []
    pipelined = ratios(rows, "pipelined_ms")
    for name, kinds in ratios(rows).items():
        for kind, told in kinds.items():
            parts = []
            for of, words in (("peer", "{:.2f}× ({:.2f}×) as fast as {}"), ("floor", "{:.2f} ({:.2f}) of {}")):
                if of in told:
                    in_a_row = pipelined[name][kind][f"over_{of}"]
                    parts.append(words.format(told[f"over_{of}"], in_a_row, told[of]))
            memories = [
                f"{told[what]:.2f} {word}"
                for what, word in (("peak_mib", "peak"), ("held_mib", "held"))
                if what in told
            ]
            parts += [f"memory of {BASELINE.name}: {', '.join(memories)}"] if memories else []
            if parts:
                lines.append(f"  {name}, {kind}: {'; '.join(parts)}")
    return lines


def line(name: str, row: dict[str, Any]) -> str:
    """A row in words: median and, in brackets, pipelined milliseconds; peak memory."""
    if "why" in row:
        return f"  {name:<41} {row['why']}"
    told = ""
    for kind in ("forward", "train"):
        if kind in row:
            told += f"{row[kind]['median_ms']:10.3f} ({row[kind]['pipelined_ms']:.3f}) ms"
            told += f"{row[kind]['peak_mib']:8.0f} MiB" if row[kind]["peak_mib"] is not None else ""
    return f"  {name:<41}{told}  {row.get('engine', '')}".rstrip()


class Bench:
    """Measures what a result lacks, and keeps it in a file after every peer."""

    def __init__(self, result: dict[str, Any], target: Path | None, *, device: str, seconds: float, end: float) -> None:
        self.result, self.target, self.device, self.seconds, self.end = result, target, device, seconds, end
        self._exact: tuple[Case, dict[str, Tensor]] | None = None

    def case(self, case: Case, precision: str, peers: Sequence[Peer]) -> bool:
        """Peers in their order. False: the GPU was lost, and only a new process can go on."""
        entry = self.result["cases"].setdefault(case.name, {"title": case.title, "case": case._asdict()})
        rows: Rows = entry.setdefault(precision, {})
        todo = [peer for peer in peers if rows.get(peer.name, {"why": NO_TIME}).get("why") == NO_TIME]
        if not todo:
            return True
        print(f"{case.title}, {precision}", flush=True)
        most: dict[str, float] | None = None
        for peer in todo:
            if time.monotonic() >= self.end:
                rows[peer.name] = {"why": NO_TIME}
                continue
            rows[peer.name] = {"why": UNFINISHED}
            self.write()
            with products(precision):
                try:
                    exact = self._truth(case)
                    most = self._allowed(case, precision, exact) if most is None else most
                    rows[peer.name] = measure(peer, case, precision, self.device, self.seconds, exact, most)
                except Exception as error:  # no memory for the truth
                    rows[peer.name] = {"why": f"nothing to compare with: {type(error).__name__}: {error}"[:300]}
            self.write()
            print(line(peer.name, rows[peer.name]), flush=True)
            if not survived(self.device):
                return False
            forget(self.device)
        self.write()
        for told in ratio_lines(rows):
            print(told, flush=True)
        return True

    def _truth(self, case: Case) -> dict[str, Tensor]:
        if self._exact is None or self._exact[0] != case:
            self._exact = None
            self._exact = case, truth(case, self.device)
            forget(self.device)
        return self._exact[1]

    def _allowed(self, case: Case, precision: str, exact: dict[str, Tensor]) -> dict[str, float]:
        plain = importlib.import_module("benchmarks.peers.torch_loop").build(case, "eager", self.device, precision)
        allowed = {name: PEER_FACTOR * value for name, value in errors(plain, exact, self.device).items()}
        del plain
        forget(self.device)
        return allowed

    def write(self) -> None:
        if self.target is None:
            return
        self.target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.target) as temporary:
            temporary.write_text(json.dumps(self.result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @property
    def is_wrong(self) -> bool:
        """Whether anybody computes other numbers."""
        parts = [part for entry in self.result["cases"].values() for name, part in entry.items() if name in PRECISIONS]
        return any(row.get("disagrees") for rows in parts for row in rows.values())


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [peer.name for peer in PEERS]
    add = made.add_argument
    add("--device", default="cuda")
    add("--cases", nargs="+", choices=list(GPU_CASES), default=list(DEFAULT_CASES))
    add("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    add("--peers", nargs="+", choices=names, default=names)
    add("--seconds", type=float, default=1.0, help="of timing for each peer, case and kind (1)")
    add("--limit", type=float, default=math.inf, metavar="SECONDS", help="after which no other peer is begun")
    add("--out", type=Path, metavar="FILE", help="(benchmarks/results/gpu/DATE-COMMIT.json; with --quick none)")
    add("--resume", action="store_true", help="keep what is in the file, and measure what is missing")
    add("--quick", action="store_true", help="one tiny case")
    add("--in-process", action="store_true", help="measure in this process, and end where it ends")
    return made


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def commit() -> str:
    return git("rev-parse", "HEAD") or "unknown"


def new_result(device: str) -> dict[str, Any]:
    triton = metadata.version("triton") if find_spec("triton") is not None else None
    return {
        "date": now(),
        "commit": commit(),
        "dirty": bool(git("status", "--porcelain")),
        "machine": machine(device),
        "versions": {
            **versions(),
            "triton": triton,
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        },
        "cases": {},
    }


def supervise(command: Sequence[str], target: Path, end: float) -> int:
    """Run a command that fills the file, and again for the rest after a crash, as long as each begins something."""
    told: list[str] = []
    while True:
        before = target.read_text(encoding="utf-8") if target.exists() else ""
        limit = ["--limit", str(end - time.monotonic()), "--out", str(target)]
        code = subprocess.run([*command, *told, *limit]).returncode
        after = target.read_text(encoding="utf-8") if target.exists() else ""
        if code in (DONE, WRONG, NO_GPU) or after == before:
            return code
        print(f"the process ended with {code}: a new one goes on", flush=True)
        told = ["--resume"]


def main(arguments: Sequence[str] | None = None) -> int:
    end = time.monotonic()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    asked = parser().parse_args(arguments)
    end += asked.limit
    if on_gpu(asked.device) and not torch.cuda.is_available():
        print("There is no CUDA GPU that torch can use: --device cpu --quick shows whether all works.", file=sys.stderr)
        return NO_GPU
    target = asked.out or (None if asked.quick else RESULTS / f"{now()[:10]}-{commit()[:7]}.json")
    if on_gpu(asked.device) and target is not None and not asked.in_process:
        return supervise([sys.executable, "-m", "benchmarks.gpu", *arguments, "--in-process"], target, end)
    kept = asked.resume and target is not None and target.exists()
    result = json.loads(target.read_text(encoding="utf-8")) if kept else new_result(asked.device)
    os.environ.setdefault("KERAS_BACKEND", "torch")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of the GPU for itself
    torch.backends.cudnn.benchmark = True  # for everybody
    all_cases.keep_arrays = True
    bench = Bench(result, target, device=asked.device, seconds=asked.seconds, end=end)
    peers = [peer for peer in PEERS if peer.name in asked.peers]
    for again in AGAIN:
        turns = [peer for peer in peers if peer.turn == again.turn]
        if turns and BASELINE in peers:
            turns.append(again)
        for case in [QUICK] if asked.quick else [GPU_CASES[name] for name in asked.cases]:
            for precision in asked.precisions:
                if not bench.case(case, precision, turns):
                    return LOST
    if target is not None:
        print(f"wrote {target}")
    return WRONG if bench.is_wrong else DONE


if __name__ == "__main__":
    sys.exit(main())
