"""The README cannot lie: its Python runs, its commands run, and its two make targets exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stormcell import ConvLSTM2d
from stormcell.cli import main
from stormcell.data.synthetic import advected_rain
from stormcell.data.units import rain_rate_to_dbz
from stormcell.forecasting.forecast import save_frames
from stormcell.interop import write_keras

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line[2:].split("  #")[0].strip() for block in blocks("console") for line in block.splitlines()]
    assert all(line.startswith(("make ", "stormcell ")) for line in lines)
    return lines


def test_the_ten_lines_of_layer_code() -> None:
    code = blocks("python")[0]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 10
    names: dict[str, object] = {}
    exec(code, names)
    assert names["y"].shape == (2, 10, 16, 64, 64)  # type: ignore[attr-defined]
    assert names["future"].shape == (2, 20, 1, 64, 64)  # type: ignore[attr-defined]
    assert sum(p.numel() for p in names["published"].parameters()) == 7_585_296  # type: ignore[attr-defined]


def test_the_commands_in_their_order_and_then_the_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, but for the time that training takes."""
    monkeypatch.chdir(tmp_path)
    rain = advected_rain(30, 12, size=32)
    (tmp_path / "radar").mkdir()
    save_frames(rain, tmp_path / "radar" / "rain.nc")
    (tmp_path / "pictures").mkdir()
    for frame in rain.isel(time=slice(0, 5 * 12)):
        pixels = np.round((rain_rate_to_dbz(frame.values) + 32) / 0.5).astype(np.uint8)
        name = re.sub(r"\D", "", str(frame.time.values.astype("M8[m]")))
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{name}.png")
    write_keras({"encoder": ConvLSTM2d(1, 4, 3), "decoder": ConvLSTM2d(4, 1, 3)}, "model.keras", frame_size=32)
    seen = []
    for command in commands():
        if command.startswith("make "):
            target = command.split()[1]
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
            continue
        short = command.replace("--minutes 15", "--minutes 0.15").replace("--minutes 30", "--updates 2 --seeds 2")
        arguments = shlex.split(short)[1:]
        assert main(arguments) == 0, command
        seen.append(arguments[0])
    assert {"train", "forecast", "verify", "compare", "convert"} <= set(seen)
    for name in ("which.html", "layer.onnx", "scores.json", "report.html", "now.nc", "now.gif", "now.png"):
        assert (tmp_path / name).stat().st_size > 1000
    exec(blocks("python")[1], {})


@pytest.mark.slow
def test_the_demo_beats_persistence(tmp_path: Path) -> None:
    assert main(["demo", "-o", str(tmp_path / "demo")]) == 0
    for name in ("report.html", "forecast.gif", "scores.json", "model.safetensors", "rain.nc", "unseen.nc"):
        assert (tmp_path / "demo" / name).exists()


def rows(text: str) -> dict[str, list[str]]:
    """Of all Markdown tables there, by the plain words of their first cell."""
    cells = [
        [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line[:1] == "|"
    ]
    return {re.sub(r"[`*]", "", name): others for name, *others in cells}


def test_the_times_on_a_gpu_are_those_of_the_docs() -> None:
    """docs/gpu.md is made of what benchmarks/gpu.py has measured: test_docs.py sees to that."""
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8").split("\n**")
    net, large = (
        rows(next(part for part in page if part.startswith(start))) for start in ("net 128-64-64", "16 × 10 steps")
    )
    names = {
        "Stormcell as it comes": "Stormcell as it comes",
        "the loop that everyone copies": "the loop that everyone copies",
        'that loop in torch.compile(mode="reduce-overhead")': "the loop inside torch.compile, reduce-overhead",
        "cuDNN's convolutions alone": "cuDNN's convolutions alone, in a CUDA graph",
    }
    said = rows(README)
    for name, in_docs in names.items():
        found = [
            cell
            for part in (net, large)
            for cell in next((v for k, v in part.items() if k.startswith(in_docs)), ["", ""])
        ]
        for cell, exact in zip(said[name], found, strict=True):
            assert cell == "open" if not exact else abs(float(cell) - float(exact)) <= 0.051
