"""Where "auto" should leave small layers to another engine: times of every engine over maps and channels, for docs/engines.md.

python -m benchmarks.choice           measure (two minutes, with nothing else running), write JSON and the page
python -m benchmarks.choice --page    write the page from the JSON that is there
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks import table
from benchmarks.run import git, machine

RESULT = Path(__file__).parent / "results" / "choice" / "choice.json"
PAGE = Path(__file__).parents[1] / "docs" / "engines.md"
STEPS = 10
LAYERS = [  # batch, channels, hidden channels, side of the map, kernel
    *[(1, 1, 4, 8, 3), (4, 4, 4, 64, 3), (8, 1, 8, 16, 3), (4, 8, 8, 32, 3), (1, 1, 16, 64, 3), (1, 16, 16, 16, 3)],
    *[(2, 16, 24, 16, 3), (8, 16, 64, 4, 3), (1, 64, 64, 8, 3), (1, 64, 128, 4, 3), (4, 32, 48, 32, 3)],
    *[(1, 4, 16, 8, 5), (1, 1, 16, 64, 5), (8, 16, 32, 8, 5), (1, 64, 128, 4, 5), (4, 32, 48, 32, 5)],
]


def milliseconds(compute: Callable[[], Any], seconds: float = 0.15) -> list[float]:
    """Times of as many runs as fit, five at least, after one that is not counted."""
    compute()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 5 or time.perf_counter() < end:
        begun = time.perf_counter()
        compute()
        taken.append(1000 * (time.perf_counter() - begun))
    return taken


def measure() -> dict[str, Any]:
    from stormcell import ConvLSTM2d, engine

    torch.set_num_threads(2)
    rows = []
    for batch, channels, hidden, side, kernel in LAYERS:
        x = torch.randn(batch, STEPS, channels, side, side)
        row: dict[str, Any] = {"batch": batch, "channels": channels, "hidden": hidden, "side": side, "kernel": kernel}
        taken: dict[tuple[str, str], list[float]] = {}
        layers = {}
        for name in engine.engines():
            layer = ConvLSTM2d(channels, hidden, kernel, engine=name)
            try:
                layer(x[:, :1])
            except ValueError:  # an engine that says no to this
                continue
            layers[name] = layer
        auto = ConvLSTM2d(channels, hidden, kernel)
        chosen = {
            kind: next(
                name for name, said in auto.explain(side, batch=batch, steps=STEPS, gradients=gradients)["l0"].items()
                if said == "chosen"
            )
            for kind, gradients in (("forward", False), ("train", True))
        }  # fmt: skip
        for _ in range(3):  # in turns
            for name, layer in layers.items():

                def forward(layer: Any = layer, x: Any = x) -> None:
                    with torch.no_grad():
                        layer(x)

                def train(layer: Any = layer, x: Any = x) -> None:
                    y, _ = layer(x)
                    y.backward(torch.ones_like(y))

                for kind, compute in (("forward", forward), ("train", train)):
                    taken.setdefault((kind, name), []).extend(milliseconds(compute))
        for (kind, name), values in taken.items():
            row.setdefault(kind, {})[name] = round(statistics.median(values), 4)
        rows.append({**row, "chosen": chosen})
        print(row, chosen, file=sys.stderr, flush=True)
    about = {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {**about, "date": date, "machine": machine(), "threads": 2, "torch": torch.__version__, "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    """The table, with the engine that "auto" takes in bold."""
    names = ["winograd", "bptt", "reference"]
    head = ["layer, 10 steps", *(f"{kind} {name}" for kind in ("forward", "training") for name in names)]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    for row in result["rows"]:
        cells = [
            f"{row['batch']} × {row['channels']}→{row['hidden']}, {row['side']}×{row['side']}, {row['kernel']}×{row['kernel']}"
        ]
        for kind in ("forward", "train"):
            for name in names:
                value = row[kind].get(name)
                text = "–" if value is None else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
                cells.append(f"**{text}**" if name == row["chosen"][kind] else text)
        lines.append(cells)
    where = f"{result['date'][:10]}, commit {result['commit'][:10]}, {result['machine']['cpu']}, {result['threads']} threads"
    return f"Milliseconds, medians; {where}.\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--page", action="store_true", help="measure nothing: write the page from the JSON")
    if not parser.parse_args(arguments).page:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    PAGE.write_text(table.insert(PAGE.read_text(encoding="utf-8"), markdown(result)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
