"""Imports point one way, and the base import is torch and numpy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "stormcell"
EVERYONE = {"errors", "provenance", "writing", "__version__"}  # small, and import nothing of ours but errors
MAY = {
    "engine": set(),
    "data": {"data"},
    "nn": {"engine", "nn"},
    "interop": {"data", "engine", "forecasting", "nn", "interop"},
    "forecasting": {"data", "nn", "forecasting"},
    "comparing": {"data", "nn", "forecasting", "comparing"},
    "report": {"data", "report"},
    "demo": {"data", "forecasting", "report"},
    "cli": {"cli", "comparing", "data", "engine", "forecasting", "interop", "nn", "report", "demo"},
    "writing": set(),
    "provenance": set(),
    "errors": set(),
    "__main__": {"cli"},
}


def imports(path: Path) -> set[str]:
    """Rooms of ours that a file imports, wherever in it."""
    package = ("stormcell", *path.relative_to(SOURCE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names = [module] if node.module else [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "stormcell":
                found.add(parts[1] if len(parts) > 1 else "")
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    if path == SOURCE / "__init__.py":
        return  # hands names on, lazily
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    own = {room} if room == "engine" else set()
    assert imports(path) <= MAY[room] | EVERYONE | own


def test_layers_need_only_torch_and_numpy() -> None:
    code = (
        "import sys, stormcell; stormcell.ConvLSTM2d(1, 2, 3); stormcell.EncoderForecaster(1, (2,), 3);"
        "heavy = {'xarray', 'lightning', 'matplotlib', 'pandas', 'scores', 'typer', 'pysteps'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_command_line_imports_nothing_heavy_before_a_verb_runs() -> None:
    code = (
        "import sys, stormcell.cli; assert stormcell.cli.main(['train', '--help']) == 0;"
        "heavy = {'torch', 'numpy', 'xarray', 'lightning', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_every_public_name_is_there() -> None:
    import stormcell

    for name in stormcell.__all__:
        assert getattr(stormcell, name) is not None
    assert set(stormcell.__all__) <= set(dir(stormcell))
    with pytest.raises(AttributeError, match="no attribute 'ConvGRU9d'"):
        _ = stormcell.ConvGRU9d  # type: ignore[attr-defined]
