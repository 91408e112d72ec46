"""Results as tables: ratios, Markdown for README.md in this folder, and the same for a terminal.

    python -m benchmarks.table            write the newest result into benchmarks/README.md
    python -m benchmarks.table --check    exit 1, and write nothing, if the page is not what the newest result gives

A speed is how many times faster something is than the fastest complete peer that is not ours, so that this peer has 1.
Results of --quick are never shown on the page. Needs nothing but Python for the page, and rich for a terminal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- results: made by benchmarks/table.py, not by hand -->", "<!-- end of results -->"
KINDS = {"forward": "forward", "train": "training step"}
SLOW_SECONDS = 20.0  # a run that takes longer is repeated once at most
_MARK = "†"
Result = dict[str, Any]


def summary(seconds: list[float]) -> dict[str, Any]:
    """Median and quartiles of durations, in seconds, with their number; `slow` where a run took more than 20 s."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return {"n": len(seconds), "median_s": middle, "q1_s": low, "q3_s": high, "slow": middle > SLOW_SECONDS}


def best(peers: dict[str, Any], kind: str, value: str = "median_s") -> str | None:
    """The peer with the smallest value that is not ours and leaves nothing out; None where none has run."""
    found = {
        name: (entry[kind][value] if kind != "peak_mb" else entry[kind])
        for name, entry in peers.items()
        if not entry["ours"] and entry["complete"] and entry.get(kind)
    }
    return min(found, key=lambda name: found[name]) if found else None


def speeds(peers: dict[str, Any], kind: str) -> dict[str, float]:
    """For each peer that has run: its speed, the fastest complete peer that is not ours being 1."""
    fastest = best(peers, kind)
    if fastest is None:
        return {}
    one = peers[fastest][kind]["median_s"]
    return {name: one / entry[kind]["median_s"] for name, entry in peers.items() if entry.get(kind)}


def _ms(seconds: float) -> str:
    ms = 1000 * seconds
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def _time(entry: dict[str, Any], kind: str) -> str:
    took = entry.get(kind)
    if not took:
        return "–"
    spread = f" ({_ms(took['q1_s'])}–{_ms(took['q3_s'])})" if took["n"] > 2 else ""
    return f"{_ms(took['median_s'])}{spread}{_MARK if took['slow'] else ''}"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"


class Table(NamedTuple):
    """A title, column heads, rows of text."""

    title: str
    head: list[str]
    rows: list[list[str]]


def tables(result: Result) -> Iterator[Table]:
    """A table for each case; peers in the order in which they were asked for, those that could not run with the reason."""
    for entry in result["cases"].values():
        peers = entry["peers"]
        kinds = [kind for kind in KINDS if any(kind in peer for peer in peers.values())]
        ratios = {kind: speeds(peers, kind) for kind in kinds}
        head = ["", *(text for kind in kinds for text in (f"{KINDS[kind]}, ms", "speed")), "peak, MiB"]
        rows = []
        for name, peer in peers.items():
            title = peer["title"] + (f" → {peer['engine']}" if peer.get("engine") else "")
            row = [title]
            if peer["status"] != "ok":
                row.append(f"{peer['status']}: {peer['why']}")
                row += [""] * (len(head) - 2)
            else:
                for kind in kinds:
                    row += [_time(peer, kind), _times(ratios[kind].get(name))]
                row.append("–" if peer.get("peak_mb") is None else f"{peer['peak_mb']:,.0f}")
            rows.append(row)
        yield Table(entry["title"], head, rows)


def overview(result: Result) -> Table:
    """A row a case: our default against the fastest peer, wins and losses alike."""
    head = ["case", "", "Stormcell, ms", "fastest peer, ms", "speed", "memory"]
    rows = []
    for entry in result["cases"].values():
        peers = entry["peers"]
        ours = peers.get("stormcell", {})
        for kind in KINDS:
            fastest = best(peers, kind)
            if not ours.get(kind) or fastest is None:
                continue
            other = f"{_time(peers[fastest], kind)}, {peers[fastest]['title']}"
            leanest = best(peers, "peak_mb")
            kinds_with_memory = "train" if ours.get("train") else "forward"
            memory = "–"
            if kind == kinds_with_memory and leanest is not None and ours.get("peak_mb"):
                memory = f"{ours['peak_mb'] / peers[leanest]['peak_mb']:.2f}× of {peers[leanest]['title']}"
            rows.append(
                [
                    entry["title"],
                    KINDS[kind],
                    _time(ours, kind),
                    other,
                    _times(speeds(peers, kind)["stormcell"]),
                    memory,
                ]
            )
    return Table("Overview", head, rows)  # fmt: skip


def provenance(result: Result) -> str:
    """Where and how the numbers came about, in two sentences."""
    machine, versions = result["machine"], result["versions"]
    commit = result["commit"][:10] + (" with changes that were not committed" if result["dirty"] else "")
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    busy = " **Other programs were running.**" if result.get("busy") else ""
    return (
        f"{result['date'][:10]}, commit {commit}. {machine['cpu']}, {machine['cores']} cores, {machine['system']}; "
        f"{result['threads']} threads. {libraries}.{busy}"
    )


def _markdown_table(table: Table) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"

    aligned = "|---|" + "--:|" * (len(table.head) - 1)
    return "\n".join([line(table.head), aligned, *map(line, table.rows)])


def markdown(result: Result | None) -> str:
    """The part of the page between its two comments."""
    if result is None:
        return "No result has been recorded yet."
    parts = [provenance(result)]
    parts += [
        f"![{plot.rsplit('.', 1)[0]}](results/{plot})" for plot in result.get("plots", []) if plot.endswith(".svg")
    ]
    parts += [_markdown_table(overview(result))]
    parts += [f"### {table.title}\n\n{_markdown_table(table)}" for table in tables(result)]
    if any(_MARK in part for part in parts):
        parts.append(f"{_MARK} A run takes more than {SLOW_SECONDS:.0f} s and was made once.")
    return "\n\n".join(parts)


def newest(folder: Path = FOLDER / "results") -> Result | None:
    """The newest full result of a folder by its date; None if there is none."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    found = [result for result in found if not result["quick"]]
    return max(found, key=lambda result: result["date"]) if found else None


def insert(page: str, text: str) -> str:
    """The page with `text` between its two comments. Raises ValueError where a comment is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks one of its comments: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def show(result: Result) -> None:
    """All tables on the terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    console = Console()
    console.print(escape(provenance(result)))
    for table in [*tables(result), overview(result)]:
        drawn = RichTable(title=escape(table.title), title_justify="left")
        for number, head in enumerate(table.head):
            drawn.add_column(head, justify="right" if number else "left")
        for row in table.rows:
            own = row[0].startswith("Stormcell")
            drawn.add_row(*map(escape, row), style="bold" if own else None)
        console.print(drawn)


def main(arguments: list[str] | None = None, *, folder: Path = FOLDER) -> int:
    parser = argparse.ArgumentParser(description="Write the newest result into benchmarks/README.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is out of date")
    check = parser.parse_args(arguments).check
    page = folder / "README.md"
    old = page.read_text(encoding="utf-8")
    new = insert(old, markdown(newest(folder / "results")))
    if new == old:
        return 0
    if check:
        print("benchmarks/README.md is out of date: run python -m benchmarks.table", file=sys.stderr)
        return 1
    page.write_text(new, encoding="utf-8")
    print(f"wrote {page}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
