"""Results as plots, PNG and SVG: speeds as bars, a panel a case; growth as lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .table import KINDS, Result, _ms, speeds

_OURS, _PEER, _FLOOR = "#c2410c", "#94a3b8", "#ffffff"
_LINES = {"stormcell": "#c2410c", "stormcell-bptt": "#f59e0b", "stormcell-reference": "#78716c", "torch": "#1e3a8a"}
_WIDTH, _BAR = 11.0, 0.19  # inches
_CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # of the dashed line behind a label
_AXES = {"steps": "steps T", "pixels": "pixels of the map", "hidden": "hidden channels F"}


def _save(figure: Any, path: Path) -> list[str]:
    names = []
    for suffix in (".png", ".svg"):
        target = path.with_name(path.name + suffix)
        metadata = {"Date": None} if suffix == ".svg" else None
        figure.savefig(target, dpi=150, metadata=metadata)
        names.append(target.name)
    plt.close(figure)
    return names


def _panel(ax: Any, peers: dict[str, Any], kind: str, *, labels: bool) -> None:
    ratios = speeds(peers, kind)
    right = max([1.0, *ratios.values()])
    for row, (name, peer) in enumerate(peers.items()):
        if name in ratios:
            colour = _OURS if peer["ours"] else _PEER if peer["complete"] else _FLOOR
            ax.barh(
                row,
                ratios[name],
                0.72,
                color=colour,
                edgecolor="none" if peer["complete"] else "#475569",
                linewidth=0.8,
            )
            text = f"{_ms(peer[kind]['median_s'])} ms"
        else:
            text = peer["status"] if peer["status"] != "ok" else "not run"
        ax.text(ratios.get(name, 0) + 0.015 * right, row, text, va="center", fontsize=7, color="#334155", bbox=_CLEAR)
    ax.axvline(1, color="#334155", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    ax.set_xlim(0, 1.22 * right)
    ax.set_yticks(
        range(len(peers)), [peer["title"] for peer in peers.values()] if labels else [""] * len(peers), fontsize=8
    )
    ax.set_ylim(len(peers) - 0.4, -0.6)
    ax.tick_params(axis="x", labelsize=7)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right"]].set_visible(False)


def bars(result: Result, path: Path) -> list[str]:
    """Speeds of all cases; the fastest complete peer that is not ours is 1, longer is faster. Returns file names."""
    cases = list(result["cases"].values())
    rows = max(len(case["peers"]) for case in cases)
    height = len(cases) * (rows * _BAR + 0.75) + 0.7
    figure, axes = plt.subplots(len(cases), len(KINDS), figsize=(_WIDTH, height), squeeze=False, layout="constrained")
    for line, case in zip(axes, cases):
        for number, (kind, ax) in enumerate(zip(KINDS, line)):
            if not any(kind in peer for peer in case["peers"].values()):
                ax.set_axis_off()
                continue
            _panel(ax, case["peers"], kind, labels=number == 0)
            ax.set_title(f"{case['title']} · {KINDS[kind]}", fontsize=8.5, loc="left")
    for ax in axes[-1]:
        ax.set_xlabel("speed; fastest peer = 1, longer is faster", fontsize=8)
    return _save(figure, path)


def growth(result: Result, path: Path) -> list[str]:
    """Time and peak memory of a training step against steps, pixels and hidden channels. Returns file names."""
    series = result["growth"]
    figure, axes = plt.subplots(
        2, len(series), figsize=(_WIDTH, 6.2), squeeze=False, sharey="row", layout="constrained"
    )
    for column, (axis, points) in enumerate(series.items()):
        names = {name: peer["title"] for point in points for name, peer in point["peers"].items()}
        for name, title in names.items():
            entries = [(point["value"], point["peers"].get(name, {})) for point in points]
            times = [(value, 1000 * peer["train"]["median_s"]) for value, peer in entries if peer.get("train")]
            peaks = [(value, peer["peak_mb"]) for value, peer in entries if peer.get("peak_mb")]
            for ax, found in zip(axes[:, column], (times, peaks)):
                if found:
                    ax.plot(*zip(*found), marker="o", markersize=4, linewidth=1.6, color=_LINES.get(name), label=title)
        for ax, label in zip(axes[:, column], ("training step, ms", "peak memory, MiB")):
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.set_xticks([point["value"] for point in points])
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.set_xlabel(_AXES[axis], fontsize=9)
            if column == 0:
                ax.set_ylabel(label, fontsize=9)
            ax.grid(alpha=0.25)
            ax.tick_params(labelsize=8)
            ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(fontsize=8, frameon=False)
    return _save(figure, path)
