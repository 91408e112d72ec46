"""Makes the pages of docs/ that have a template: runs their examples and computes their numbers.

    python docs/build.py            write the pages
    python docs/build.py --check    exit 1, and write nothing, if a page is not what its template gives

Pages hold counts, bounds and yes or no, never digits that depend on the machine, but for those of experiments/results and of
benchmarks/results.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable
from functools import partial
from math import isinf
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jinja2
import torch
from torch import nn

from stormcell import ConvLSTM2d, paper_model
from stormcell.nn.costs import Cost, cost
from stormcell.nn.stacks import Conv2dFlatLSTM, Conv2dPixelLSTM
from stormcell.report.comparison import made_by, notes, score_table, structure_table
from stormcell.report.networks import csi_table, ensemble_table, markdown

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "experiments" / "results"
MEASURED = DOCS.parent / "benchmarks" / "results"
FRAME = (64, 64)
CHANNELS = 64


class Design(NamedTuple):
    """A row of the table: what it is, and what it costs for one channel in on 64×64 pixels."""

    name: str
    cost: Cost
    parameters: int  # with one bias, as Keras counts

    @property
    def macs(self) -> str:
        return f"{self.cost.macs_per_step / 1e6:,.1f} M"

    @property
    def sees(self) -> str:
        radii = [self.cost.receptive_radius(step)[0] for step in (1, 10)]
        return "the whole map" if isinf(radii[0]) else " / ".join(str(radius) for radius in radii)


def design(name: str, module: nn.Module) -> Design:
    found = cost(module, FRAME)
    second_bias = sum(p.numel() for key, p in module.named_parameters() if "bias_hh" in key)
    return Design(name, found, found.parameters - second_bias)


def designs() -> dict[str, Design]:
    """Rows of the table, in its order. Nothing is allocated."""

    def convlstm(kernel_size: int, **options: object) -> nn.Module:
        return ConvLSTM2d(1, CHANNELS, kernel_size, device="meta", **options)  # type: ignore[arg-type]

    pixels = FRAME[0] * FRAME[1]
    units = pixels * CHANNELS
    flat = Conv2dFlatLSTM(1, 256, 3, frame_size=FRAME, conv_channels=CHANNELS, device="meta")
    return {
        "flat": design("Conv2D + Flatten + LSTM, 256 units", flat),
        "dense": design(
            f"Flatten + LSTM, {units:,} units: contains the ConvLSTM", nn.LSTM(pixels, units, device="meta")
        ),
        "pixel": design("Conv2D + LSTM per pixel", Conv2dPixelLSTM(1, CHANNELS, 3, device="meta")),
        "one": design("ConvLSTM, recurrent kernel 1×1", convlstm(3, recurrent_kernel_size=1)),
        "convlstm": design("ConvLSTM", convlstm(3)),
        "five": design("ConvLSTM, both kernels 5×5", convlstm(5)),
        "channel": design("ConvLSTM, peepholes per channel", convlstm(3, peephole="channel")),
        "everywhere": design("ConvLSTM, peepholes per pixel", convlstm(3, peephole="pixel", frame_size=FRAME)),
    }


def paper_parameters(name: str) -> str:
    with torch.device("meta"):
        return f"{sum(p.numel() for p in paper_model(name).parameters()):,}"


def example(caller: Callable[[], str]) -> str:
    """A block of Python for the page, and below it what it prints."""
    code = caller().strip() + "\n"
    printed = io.StringIO()
    torch.manual_seed(0)
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    return f"```python\n{code}```\n\n```text\n{printed.getvalue()}```\n"


def results(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    return dict(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))


def skill() -> dict[str, list[dict[str, Any]]]:
    """Scores on each radar network that was left out (experiments/skill.py)."""
    return {path.stem: results(f"skill/{path.stem}")["scores"] for path in sorted((RESULTS / "skill").glob("*.json"))}


def comparison(name: str) -> str:
    """The tables of a comparison (`stormcell compare`) and its verdict, from its file of results."""
    result = results(name)
    rows = {"structure": structure_table(result), "scores": score_table(result, intervals=False)}
    tables = {part: markdown(["model", *columns], lines) for part, (columns, lines) in rows.items()}
    facts = "\n".join(f"- {key}: {value}" for key, value in result["facts"].items())
    verdicts = "\n".join(f"- {one['text']}" for one in result["verdicts"])
    told = "\n".join(f"- {note}" for note in notes(result))
    made = f"Made by `{result['repeat']}`, seed {result['seed']}; {made_by(result)}."
    parts = [f"**{result['verdict']}**", verdicts, tables["scores"], tables["structure"], facts, told, made]
    return "\n\n".join(part for part in parts if part) + "\n"


def render(template: Path) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    note = f"<!-- Made by docs/build.py from {template.name}: edit that one. -->\n\n"
    return note + environment.get_template(template.name).render(
        example=example,
        designs=designs(),
        paper_parameters=paper_parameters,
        checks=results("verdict"),
        comparison=comparison,
        default_model=results("default-model"),
        skill=skill(),
        sst=results("sea-surface-temperature"),
        measured=partial(results, folder=MEASURED),
        median=median,
        csi_table=csi_table,
        ensemble_table=ensemble_table,
    )


def main(arguments: list[str] | None = None, *, docs: Path = DOCS) -> int:
    parser = argparse.ArgumentParser(description="Make the pages of docs/ that have a template.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    check = parser.parse_args(arguments).check
    stale = False
    for template in sorted(docs.glob("*.md.j2")):
        page, text = template.with_suffix(""), render(template)
        if page.exists() and page.read_text(encoding="utf-8") == text:
            continue
        stale = True
        if not check:
            page.write_text(text, encoding="utf-8")
        print(f"{page.name} is out of date: run python docs/build.py" if check else f"wrote {page}", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
