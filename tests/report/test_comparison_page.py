"""A comparison on the terminal: every score in a table that fits, every table with the names of its rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stormcell.report import print_comparison

RESULT = Path(__file__).parents[2] / "experiments" / "results" / "radar-four-events.json"


def test_tables_fit_and_name_their_rows(capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    print_comparison(result)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if "The same numbers" not in line) <= 120
    heads = [k for k, line in enumerate(lines) if line.strip().startswith("model ")]
    assert len(heads) == 3  # what they are, and ten scores in two
    for head in heads:
        for row in result["rows"]:
            assert any(line.startswith(f" {row['name']} ") for line in lines[head : head + 12])
    text = "\n".join(lines)
    for score in result["rows"][0]["scores"].values():
        assert score["label"] in text
