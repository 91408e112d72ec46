"""ConvLSTM on a GPU: milliseconds and peak memory of our engines and of what torch offers, in float32, TF32 and bfloat16.

    python -m benchmarks.gpu                              all cases on the GPU; JSON into benchmarks/results/gpu
    python -m benchmarks.gpu --device cpu --quick         a tiny case without a GPU, to see that all works

One process, peers in turns. Before a case is timed each peer's output and input gradient are compared with `reference` in
float64; what is off by more than 16 times the error of the plain loop in the same precision is said, and not timed. Times are
from a synchronised clock; memory is what torch has allocated at most in a training step, weights and frames included.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.agreement import PEER_FACTOR
from benchmarks.cases import CASES, QUICK, Case, arrays
from benchmarks.peers import NotHere, ours
from benchmarks.run import git, versions
from stormcell.provenance import machine

RESULTS = Path(__file__).parent / "results" / "gpu"
FEWEST_RUNS, WARM_RUNS = 10, 3


class Peer(NamedTuple):
    name: str
    module: str
    variant: str = ""


PEERS = (
    Peer("stormcell (auto)", "ours", "auto"),
    Peer("stormcell, triton", "ours", "triton"),
    Peer("stormcell, bptt", "ours", "bptt"),
    Peer("stormcell, reference", "ours", "reference"),
    Peer("torch loop", "torch_loop", "eager"),
    Peer("torch loop, channels_last", "torch_loop", "channels_last"),
    Peer("torch.compile", "torch_loop", "compile"),
    Peer("torch.compile, reduce-overhead", "torch_loop", "reduce-overhead"),
    Peer("torch.compile, max-autotune", "torch_loop", "max-autotune"),
    Peer("Keras on torch", "keras_torch"),
    Peer("convolutions alone", "floor"),
)
PRECISIONS = ("float32", "tf32", "bfloat16")


@contextmanager
def precision(name: str, device: str) -> Iterator[None]:
    """float32 products in float32 or TF32, or bfloat16 under autocast."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    try:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=name == "bfloat16"):
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def milliseconds(compute: Callable[[], Any], device: str, seconds: float) -> dict[str, float]:
    """Median and quartiles of as many runs as fit, after some that are not counted."""
    for _ in range(WARM_RUNS):
        compute()
    wait(device)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < FEWEST_RUNS or time.perf_counter() < end:
        begun = time.perf_counter()
        compute()
        wait(device)
        taken.append(1000 * (time.perf_counter() - begun))
    low, middle, high = statistics.quantiles(taken, n=4, method="inclusive")
    return {"n": len(taken), "median_ms": middle, "q1_ms": low, "q3_ms": high}


def peak_mib(compute: Callable[[], Any], device: str) -> float | None:
    if not device.startswith("cuda"):
        return None
    torch.cuda.reset_peak_memory_stats()
    compute()
    wait(device)
    return torch.cuda.max_memory_allocated() / 2**20


def truth(case: Case, device: str) -> dict[str, Tensor]:
    """y and d_x of the reference in float64; y alone of a case that streams."""
    numbers = arrays(case)
    model = ours.module(case, numbers, engine="reference", dtype=torch.float64).to(device)
    x, d_y = (torch.from_numpy(value).double().to(device) for value in (numbers.x, numbers.d_y))
    if case.streaming:
        with torch.no_grad():
            state = tuple(torch.from_numpy(value)[None].double().to(device) for value in numbers.state)
            return {"y": model.step(x[:, 0], state)[0].cpu()}
    x.requires_grad_()
    y = model(x, steps=case.future) if case.future else model(x)[0]
    return {"y": y.detach().cpu(), "d_x": torch.autograd.grad(y, x, d_y)[0].cpu()}


def errors(run: Any, exact: dict[str, Tensor]) -> dict[str, float]:
    """Relative, root mean square."""
    found = run.numbers()
    return {
        name: float((torch.from_numpy(found[name]).double() - value).norm() / value.norm())
        for name, value in exact.items()
        if name in found
    }


def measure(
    peer: Peer, case: Case, device: str, seconds: float, exact: dict[str, Tensor], most: dict[str, float]
) -> Any:
    """A row: times, memory, errors; or why there are none."""
    if peer.module == "keras_torch" and find_spec("keras") is None:
        return {"why": "not installed: keras"}
    try:
        run = importlib.import_module(f"benchmarks.peers.{peer.module}").build(case, peer.variant, device)
        off = errors(run, exact)
        bad = {name: value for name, value in off.items() if not value <= most.get(name, float("inf"))}
        if bad:
            return {"why": f"other numbers: off by {bad}, allowed {most}", "disagrees": True}
        row: dict[str, Any] = {"errors": off}
        for kind in case.kinds:
            compute = run.forward if kind == "forward" else run.training_step
            row[kind] = milliseconds(compute, device, seconds)
            row["peak_mib"] = peak_mib(compute, device)
        if peer.variant == "auto":
            row["engine"] = ours.chosen(case, device)
        return row
    except NotHere as reason:
        return {"why": str(reason)}
    except Exception as error:  # a compiler that fails, or no memory left: said in the result
        return {"why": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
    finally:
        torch._dynamo.reset()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()


def show(title: str, rows: dict[str, Any]) -> None:
    print(title)
    for name, row in rows.items():
        if "why" in row:
            print(f"  {name:<32} {row['why']}")
            continue
        times = "".join(f"{row[kind]['median_ms']:12.3f}" for kind in ("forward", "train") if kind in row)
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:10.0f} MiB"
        print(f"  {name:<32}{times} ms{peak} {row.get('engine', '')}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--peers", nargs="+", choices=[peer.name for peer in PEERS], default=[p.name for p in PEERS])
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing for each peer, case and kind (1)")
    parser.add_argument("--quick", action="store_true", help="one tiny case; nothing is written")
    asked = parser.parse_args(arguments)
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        print("There is no CUDA GPU that torch can use: --device cpu --quick shows whether all works.", file=sys.stderr)
        return 2
    os.environ.setdefault("KERAS_BACKEND", "torch")
    torch.backends.cudnn.benchmark = True  # for everybody
    cases = [QUICK] if asked.quick else [CASES[name] for name in asked.cases]
    result: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(git("status", "--porcelain")),
        "machine": machine(asked.device),
        "versions": versions(),
        "cases": {},
    }
    wrong = False
    for case in cases:
        exact = truth(case, asked.device)
        result["cases"][case.name] = {"title": case.title, "case": case._asdict()}
        for name in asked.precisions:
            with precision(name, asked.device):
                plain = importlib.import_module("benchmarks.peers.torch_loop").build(case, "eager", asked.device)
                most = {key: PEER_FACTOR * value for key, value in errors(plain, exact).items()}
                del plain
                rows = {
                    peer.name: measure(peer, case, asked.device, asked.seconds, exact, most)
                    for peer in PEERS
                    if peer.name in asked.peers
                }
            show(f"{case.title}, {name}", rows)
            wrong = wrong or any(row.get("disagrees") for row in rows.values())
            result["cases"][case.name][name] = rows
    if not asked.quick:
        RESULTS.mkdir(parents=True, exist_ok=True)
        target = RESULTS / f"{result['date'][:10]}-{result['commit'][:7]}.json"
        target.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"wrote {target}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
