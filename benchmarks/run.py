"""Time ConvLSTM everywhere: every peer in its own process, in turns, and only after its numbers are found to be right.

    python benchmarks/run.py                                  all cases and peers: about an hour and a half on two cores
    python benchmarks/run.py --quick                          one tiny case and a small growth, to see that all works
    python benchmarks/run.py --cases 5x5 3x3 --peers stormcell torch keras-tensorflow
    python benchmarks/run.py --cases growth --seconds 4
    python benchmarks/run.py --table                          write the newest result into benchmarks/README.md

Exit 0 done; 1 an engine or a peer computes other numbers, and no speed is printed; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(ROOT)

from benchmarks import table  # noqa: E402
from benchmarks.cases import CASES, GROWTH, QUICK, QUICK_GROWTH, SAME, Case, arrays, parameter_count  # noqa: E402
from benchmarks.peers import GROWTH_PEERS, PEERS, Peer  # noqa: E402
from benchmarks.worker import environment  # noqa: E402
from stormcell.provenance import cpu  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
SETTLE_SECONDS = 0.05  # between turns: idle threads have stopped spinning by then (worker.environment)
TURN_SECONDS = 0.1  # of a peer's turn, or a single run where that takes longer
FEWEST_RUNS = 5
BUSY = 0.1  # share of all cores that other programs may use before a result says so
DISTRIBUTIONS = ("torch", "numpy", "keras", "tensorflow", "jax", "jaxlib", "flax")
Entry = dict[str, Any]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Process:
    """A worker, and what it answers."""

    def __init__(self, peer: Peer, *, threads: int, patience: float) -> None:
        self.patience = patience
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", peer.name, str(threads)],
            cwd=ROOT,
            env={**os.environ, **environment(threads, peer.backend), "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            encoding="utf-8",
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.state = self._answer()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _answer(self) -> Entry:
        try:
            line = self._answers.get(timeout=self.patience)
        except queue.Empty:
            self.process.kill()
            return {"status": "failed", "why": f"no answer within {self.patience:.0f} s"}
        if line:
            return json.loads(line)
        self.process.wait()
        self.log.seek(0)
        said = self.log.read().decode(errors="replace").strip().splitlines()
        last = f": {said[-1]}" if said else ""
        return {"status": "failed", "why": f"its process ended with {self.process.returncode}{last}"[:300]}

    def ask(self, do: str, **values: Any) -> Entry:
        """Send a request and wait for the answer; `status` is "ok", or says with `why` what is the matter."""
        if self.state["status"] != "ok":
            return self.state
        try:
            self.process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it has ended: the answer says how
        self.state = self._answer()
        return self.state

    def close(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


@contextmanager
def started(peers: Sequence[Peer], *, threads: int, patience: float) -> Iterator[dict[str, Process]]:
    """A process for each peer, ended when the block is left."""
    processes: dict[str, Process] = {}
    try:
        for peer in peers:
            processes[peer.name] = Process(peer, threads=threads, patience=patience)
        yield processes
    finally:
        for process in processes.values():
            process.close()


class Bench:
    """How long to measure, and which peers have already turned out not to run here."""

    def __init__(self, peers: Sequence[Peer], *, threads: int, seconds: float, patience: float) -> None:
        self.peers, self.threads, self.seconds, self.patience = peers, threads, seconds, patience
        self.absent: dict[str, Entry] = {}

    def _start(self, peers: Sequence[Peer]) -> Any:
        return started(peers, threads=self.threads, patience=self.patience)

    def check_peers(self, cases: Sequence[Case]) -> list[Any]:
        """Every peer's numbers on small cases; remembers who cannot run."""
        from benchmarks.agreement import check_peer

        lines = []
        for peer in self.peers:
            say(f"  {peer.title}")
            with self._start([peer]) as processes, tempfile.TemporaryDirectory() as folder:
                process = processes[peer.name]
                for case in cases:
                    path = Path(folder) / f"{case.name}.npz"
                    process.ask("build", case=case._asdict())
                    if process.ask("numbers", path=str(path))["status"] != "ok":
                        self.absent[peer.name] = process.state
                        say(f"    {process.state['status']}: {process.state['why']}")
                        break
                    import numpy as np

                    with np.load(path) as found:
                        lines += check_peer(peer.name, case, dict(found), parameter_count(arrays(case)))
        return lines

    def measure(self, case: Case, peers: Sequence[Peer], kinds: Sequence[str]) -> dict[str, Entry]:
        """Times and peak memory of a case for each peer, by name."""
        entries = {peer.name: self._entry(peer) for peer in peers}
        here = [peer for peer in peers if entries[peer.name]["status"] == "ok"]
        with self._start(here) as processes:
            for peer in here:
                say(f"  {peer.title}: first run")
                self._prepare(peer, processes[peer.name], case, kinds, entries[peer.name])
            self._take_turns(processes, case, kinds, entries)
        for peer in here:
            entry = entries[peer.name]
            if entry["status"] == "ok" and peer.complete:
                self._measure_memory(peer, case, kinds[-1], entry)
        return entries

    def _entry(self, peer: Peer) -> Entry:
        state = self.absent.get(peer.name, {"status": "ok"})
        return {"title": peer.title, "ours": peer.ours, "complete": peer.complete, **state}

    def _prepare(self, peer: Peer, process: Process, case: Case, kinds: Sequence[str], entry: Entry) -> None:
        process.ask("build", case=case._asdict())
        first = {kind: process.ask("first", kind=kind).get("seconds", [None])[0] for kind in kinds}
        entry.update(_problem(process.state))
        entry["first_run_s"] = first
        if entry["status"] == "ok" and peer.variant == "auto":
            entry["engine"] = process.ask("chosen", case=case._asdict()).get("engine")

    def _take_turns(
        self, processes: dict[str, Process], case: Case, kinds: Sequence[str], entries: dict[str, Entry]
    ) -> None:
        budget = self.seconds / len(kinds)
        durations: dict[tuple[str, str], list[float]] = {
            (name, kind): [] for name in processes for kind in kinds if entries[name]["status"] == "ok"
        }
        waiting = list(durations)
        while waiting:
            for name, kind in list(waiting):
                time.sleep(SETTLE_SECONDS)
                answer = processes[name].ask("time", kind=kind, seconds=TURN_SECONDS)
                if answer["status"] != "ok":
                    entries[name].update(_problem(answer))
                    waiting.remove((name, kind))
                    continue
                took = durations[name, kind]
                took += answer["seconds"]
                enough = len(took) >= FEWEST_RUNS and sum(took) >= budget
                if enough or max(answer["seconds"]) > table.SLOW_SECONDS:
                    waiting.remove((name, kind))
        for (name, kind), took in durations.items():
            if took:
                entries[name][kind] = table.summary(took)

    def _measure_memory(self, peer: Peer, case: Case, kind: str, entry: Entry) -> None:
        say(f"  {peer.title}: memory")
        with self._start([peer]) as processes:
            process = processes[peer.name]
            process.ask("build", case=case._asdict())
            answer = process.ask("memory", kind=kind, once=entry[kind]["slow"])
        entry.update({key: value for key, value in answer.items() if key not in ("status", "why")})


def _problem(state: Entry) -> Entry:
    return {key: state[key] for key in ("status", "why") if key in state}


# --- where and with what ---


def git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def machine() -> Entry:
    """What the numbers depend on besides the code."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    known = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "asimd", "sve")
    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "instructions": [flag for flag in known if flag in flags],
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str | None]:
    """Of Python and of every library that a peer stands on; None: not installed."""
    found: dict[str, str | None] = {"Python": platform.python_version()}
    for name in DISTRIBUTIONS:
        found[name] = None
        for distribution in (name, f"{name}-cpu"):
            try:
                found[name] = metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
            break
    return found


def other_load(seconds: float = 1.0) -> float | None:
    """Share of all cores in use while we wait; None where the system does not say (it is Linux that does)."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None

    def read() -> tuple[int, int]:
        values = [int(value) for value in stat.read_text().splitlines()[0].split()[1:9]]
        return sum(values), values[3] + values[4]  # all, idle and waiting for a disk

    all_before, idle_before = read()
    time.sleep(seconds)
    all_after, idle_after = read()
    return 1 - (idle_after - idle_before) / max(all_after - all_before, 1)


# --- the command line ---


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="benchmarks/run.py"
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a tiny case and little time; the result is never shown on the page")
    add("--cases", nargs="+", metavar="CASE", help=f"of: {', '.join([*CASES, QUICK.name, 'growth'])}")
    add("--peers", nargs="+", metavar="PEER", help=f"of: {', '.join(PEERS)}")
    add("--seconds", type=float, help="of timing for each peer and case, at least five runs (8; with --quick 0.4)")
    add("--threads", type=int, default=2, help="for every peer (2)")
    add("--patience", type=float, default=900, help="seconds after which a peer that does not answer has failed (900)")
    add("--out", metavar="NAME", help="of the files in benchmarks/results (date and commit; with --quick: quick)")
    add("--table", action="store_true", help="measure nothing: write the newest result into benchmarks/README.md")
    return parser


def _wrong(asked: argparse.Namespace, cases: Sequence[str], peers: Sequence[str]) -> str | None:
    known = [*CASES, QUICK.name, "growth"]
    for name in cases:
        if name not in known:
            return f"unknown case {name!r}: choose from {', '.join(known)}."
    for name in peers:
        if name not in PEERS:
            return f"unknown peer {name!r}: choose from {', '.join(PEERS)}."
    if asked.threads < 1 or asked.patience <= 0 or (asked.seconds is not None and asked.seconds <= 0):
        return "--threads, --seconds and --patience must be positive."
    if asked.out is not None and Path(asked.out).name != asked.out:
        return f"--out is a name without folders, not {asked.out!r}."
    return None


def _refuse(lines: Sequence[Any]) -> bool:
    """Say what disagrees; True if something does."""
    red = [line for line in lines if not line.agrees]
    for line in red:
        say(f"disagrees: {line}")
    if red:
        say("No speed is measured while numbers disagree.")
    return bool(red)


def _plots(result: Entry, name: str) -> list[str]:
    try:
        from benchmarks import figures
    except ModuleNotFoundError as error:
        say(f"no plots: {error.name} is not installed")
        return []
    drawn = figures.bars(result, RESULTS / name) if result["cases"] else []
    if result["growth"]:
        drawn += figures.growth(result, RESULTS / f"{name}-growth")
    return drawn


def main(arguments: list[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    if asked.table:
        return table.main([])
    everything = [QUICK.name, "growth"] if asked.quick else [*CASES, "growth"]
    case_names, peer_names = asked.cases or everything, asked.peers or list(PEERS)
    wrong = _wrong(asked, case_names, peer_names)
    if wrong is not None:
        say(f"benchmarks: {wrong}")
        return 2
    os.environ.update(environment(asked.threads))
    loads = [other_load()]

    from benchmarks import agreement

    cases = [{**CASES, QUICK.name: QUICK}[name] for name in case_names if name != "growth"]
    growth = {} if "growth" not in case_names else QUICK_GROWTH if asked.quick else GROWTH
    say("agreement of our engines with the reference in float64")
    lines = agreement.check([*cases, *(case for series in growth.values() for case in series)], names=agreement.names())
    if _refuse(lines):
        return 1

    seconds = asked.seconds or (0.4 if asked.quick else 8.0)
    peers = [PEERS[name] for name in peer_names]
    bench = Bench(peers, threads=asked.threads, seconds=seconds, patience=asked.patience)
    say("agreement of the peers")
    peer_lines = bench.check_peers(SAME[:1] if asked.quick else SAME)
    if _refuse(peer_lines):
        return 1

    commit, now = git("rev-parse", "HEAD"), datetime.now(timezone.utc)
    result: Entry = {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit or "unknown",
        "dirty": bool(git("status", "--porcelain")),
        "quick": asked.quick,
        "threads": asked.threads,
        "machine": machine(),
        "versions": versions(),
        "settings": {
            "environment": environment(asked.threads),
            "seconds_per_peer_and_case": seconds,
            "seconds_of_a_turn": TURN_SECONDS,
            "seconds_between_turns": SETTLE_SECONDS,
        },
        "agreement": [line._asdict() for line in (*lines, *peer_lines)],
        "cases": {},
        "growth": {},
    }
    for case in cases:
        say(case.title)
        found = bench.measure(case, peers, case.kinds)
        ratios = {kind: table.speeds(found, kind) for kind in case.kinds}
        result["cases"][case.name] = {"title": case.title, "case": case._asdict(), "peers": found, "speeds": ratios}
    measured: dict[Case, dict[str, Entry]] = {}  # the three series meet in one case
    for axis, series in growth.items():
        result["growth"][axis] = []
        for case in series:
            same = case._replace(name="")
            if same not in measured:
                say(f"growth: {case.title}")
                chosen = [peer for peer in peers if peer.name in GROWTH_PEERS]
                measured[same] = bench.measure(case, chosen, ("train",))
            value = {"steps": case.steps, "pixels": case.size[0] * case.size[1], "hidden": case.hidden[0]}[axis]
            result["growth"][axis].append({"value": value, "case": case._asdict(), "peers": measured[same]})
    loads.append(other_load())
    result["other_load"] = loads
    result["busy"] = any(load is not None and load > BUSY for load in loads)

    name = asked.out or ("quick" if asked.quick else f"{now:%Y-%m-%d}-{(commit or 'unknown')[:7]}")
    RESULTS.mkdir(exist_ok=True)
    result["plots"] = _plots(result, name)
    target = RESULTS / f"{name}.json"
    target.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    table.show(result)
    say(f"wrote {target.relative_to(ROOT)}" + "".join(f", {plot}" for plot in result["plots"]))
    if not asked.quick:
        say("now: python benchmarks/run.py --table")
    return 0


if __name__ == "__main__":
    sys.exit(main())
