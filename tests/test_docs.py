"""The pages of docs/ cannot lie: they are what their templates give, their Python runs, and their numbers are true."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "conv2d-lstm-or-convlstm2d.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", DOCS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_what_their_templates_give(build: ModuleType) -> None:
    templates = sorted(DOCS.glob("*.md.j2"))
    assert templates
    for template in templates:
        assert template.with_suffix("").read_text(encoding="utf-8") == build.render(template), template.name


def test_a_page_that_was_edited_by_hand_is_found_and_mended(
    build: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md.j2").write_text("{{ 6 * 7 }}\n{% call example() %}\nprint(1 < 2)\n{% endcall %}\n")
    assert build.main([], docs=tmp_path) == 0
    assert build.main(["--check"], docs=tmp_path) == 0
    page = tmp_path / "page.md"
    made = page.read_text(encoding="utf-8")
    assert made.endswith("42\n```python\nprint(1 < 2)\n```\n\n```text\nTrue\n```\n")
    page.write_text(made.replace("42", "43"), encoding="utf-8")
    assert build.main(["--check"], docs=tmp_path) == 1
    assert "page.md is out of date: run python docs/build.py" in capsys.readouterr().err
    assert "43" in page.read_text(encoding="utf-8")
    assert build.main([], docs=tmp_path) == 0
    assert page.read_text(encoding="utf-8") == made


def test_the_examples_run_and_print_what_stands_below_them() -> None:
    """As a reader would run them: without a seed, so that what is printed holds for any weights."""
    examples = EXAMPLE.findall(PAGE)
    assert len(examples) == PAGE.count("```python") == 7
    for code, expected in examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, {})
        assert printed.getvalue() == expected


def test_every_identity_says_yes() -> None:
    section = PAGE.split("## Where they are the same")[1].split("## Where they differ")[0]
    printed = "".join(output for _, output in EXAMPLE.findall(section))
    assert printed.count("largest difference < 1e-12: True") == 4
    assert "False" not in printed


def test_the_table_is_what_the_formulas_below_it_give() -> None:
    """Parameters, millions of MACs, pixels seen after 1 and 10 steps; 64×64 pixels, C = 1, F = 64."""
    pixels, channels = 64 * 64, 64
    units = pixels * channels

    def convlstm(kx: int, kh: int, peepholes: int = 0, per_pixel: int = 0) -> tuple[int, int, str]:
        weights = 4 * channels * (kx**2 + kh**2 * channels)
        radii = [(kx - 1) // 2 + t * (kh - 1) // 2 for t in (0, 9)]
        parameters = weights + 4 * channels + 3 * channels * peepholes
        return parameters, weights * pixels + 3 * channels * pixels * per_pixel, f"{radii[0]} / {radii[1]}"

    expected = {
        "Conv2D + Flatten + LSTM, 256 units": (268_699_264, 271_056_896, "the whole map"),
        "Flatten + LSTM, 262,144 units: contains the ConvLSTM": (
            4 * units * (pixels + units + 1),
            4 * units * (pixels + units),
            "the whole map",
        ),
        "Conv2D + LSTM per pixel": (33_664, pixels * (9 * 64 + 4 * 64 * 128), "1 / 1"),
        "ConvLSTM, recurrent kernel 1×1": convlstm(3, 1),
        "ConvLSTM": convlstm(3, 3),
        "ConvLSTM, both kernels 5×5": convlstm(5, 5),
        "ConvLSTM, peepholes per channel": convlstm(3, 3, 1, 1),
        "ConvLSTM, peepholes per pixel": convlstm(3, 3, pixels, 1),
    }
    section = PAGE.split("## What each costs")[1].split("Parameters are counted")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")][2:]
    found = {name: (parameters, macs, sees) for name, parameters, macs, sees in rows}
    assert found == {name: (f"{p:,}", f"{macs / 1e6:,.1f} M", sees) for name, (p, macs, sees) in expected.items()}


def test_the_python_for_people_who_come_from_pysteps_runs() -> None:
    pytest.importorskip("pysteps", reason="pysteps is not installed: pip install 'stormcell[radar]'")
    page = (DOCS / "pysteps.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)[0]
    precip = np.random.default_rng(0).gamma(0.5, 3, size=(3, 32, 32))
    names: dict[str, Any] = {"precip": precip, "velocity": np.zeros((2, 32, 32))}
    exec(code, names)
    assert names["fcst"].shape == (12, 32, 32)
    assert names["ensemble"].shape == (20, 12, 32, 32)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_the_python_for_people_who_come_from_keras_runs() -> None:
    """One block after the other, as one program."""
    pytest.importorskip("keras", reason="Keras is not installed: pip install 'stormcell[keras]'")
    page = (DOCS / "keras.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["y"].shape == (2, 10, 32, 24, 1)
    assert repr(names["layer"]).startswith("ConvLSTM2d(1, 16")
    assert not any(type(names["plain"]) is type(layer) for layer in (names["again"], names["model"].layers[0]))
    assert type(names["again"]) is type(names["model"].layers[0])
