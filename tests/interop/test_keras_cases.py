"""Keras' numbers where Keras is not installed: recorded cases with masks, states, strides, dilation, both data formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from stormcell.interop.keras_config import from_config


class Record(NamedTuple):
    config: dict[str, Any]  # of the layer, serialised
    arrays: dict[str, np.ndarray]  # x, mask, state.0, …, by their names in the file

    def all(self, name: str) -> list[np.ndarray]:
        return [value for key, value in self.arrays.items() if key.split(".")[0] == name]


def records() -> Iterator[Record]:
    with np.load(Path(__file__).parent / "keras_cases.npz") as file:
        everything = {key: file[key] for key in file.files}
    for number in range(1 + max(int(key.split(".")[0]) for key in everything)):
        own = {k.partition(".")[2]: v for k, v in everything.items() if k.startswith(f"{number}.")}
        yield Record(json.loads(str(own.pop("about")))["layer"], own)


RECORDS = list(records())


def test_the_cases_cover_what_keras_can_do() -> None:
    assert len(RECORDS) >= 20
    configs = [record.config["config"] for record in RECORDS]
    for key in ("padding", "data_format", "go_backwards", "use_bias", "return_sequences", "zero_output_for_mask"):
        assert len({config[key] for config in configs}) == 2, key
    assert {record.config["class_name"] for record in RECORDS} == {"ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"}
    assert any(max(config["strides"]) > 1 for config in configs)
    assert any(max(config["dilation_rate"]) > 1 for config in configs)
    assert any("mask" in record.arrays and record.all("state") for record in RECORDS)


@pytest.mark.filterwarnings("ignore:.*zero_output_for_mask:UserWarning")
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.config["config"]["name"])
def test_layers_give_the_recorded_numbers(record: Record) -> None:
    config = record.config["config"]
    layer = from_config(record.config, record.all("weights")).double()
    channels = -1 if config["data_format"] == "channels_last" else -1 - layer.dims

    def ours(frames: np.ndarray) -> Tensor:
        return torch.from_numpy(frames).double().movedim(channels, -1 - layer.dims)

    state = tuple(ours(value)[None] for value in record.all("state")) or None
    mask = torch.from_numpy(record.arrays["mask"]) if "mask" in record.arrays else None
    with torch.no_grad():
        y, (h, c) = layer(ours(record.arrays["x"]), state, mask=mask)
    if mask is not None and config["zero_output_for_mask"]:
        y = y * mask.view(*mask.shape, *(1,) * (y.ndim - 2))
    y = y.flip(1) if config["go_backwards"] else y
    outputs = [y if config["return_sequences"] else y[:, -1], h[0], c[0]]
    recorded = record.all("out")
    assert len(recorded) == (3 if config["return_state"] else 1)
    for value, expected in zip(outputs, map(ours, recorded)):
        assert value.shape == expected.shape
        assert torch.all((value - expected).abs() <= 1e-12 * (1 + expected.abs()))
