"""Keras' weight files, written without Keras: `.keras`, `.weights.h5` and the `.h5` of Keras 2, for plain Keras."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..errors import InputError
from ..nn.recurrent import RecurrentLayer
from ..writing import whole_file
from .keras_config import Unit, default_name, is_conv_lstm, serialised, units_of
from .keras_read import h5py_module, keras_entries

SUFFIXES = {".weights.h5": 3, ".keras": 3, ".h5": 2}  # and the Keras that reads them


def write_keras(
    layers: Mapping[str, RecurrentLayer] | RecurrentLayer,
    path: str | Path,
    *,
    frame_size: int | Sequence[int] | None = None,
) -> None:
    """Write ConvLSTM layers, by name, for plain Keras: whole or not at all.

    The suffix says what: `.weights.h5` for `load_weights` of a Keras 3 model with the same layers in the same order, `.h5` for
    that of Keras 2 (by order, or by name), `.keras` for `keras.models.load_model` of Keras 3: a Sequential of the layers, each
    of which must take what the one before gives. A layer in it knows one frame size, `frame_size` ((Y, X), and so on); the
    other two formats do not.

    `num_layers` become as many Keras layers, NAME, NAME_1, …; a bidirectional layer becomes Bidirectional(ConvLSTM). With
    `reverse` Keras gives its output in reversed order, `y.flip(1)`; in a `.keras` file only the last layer may have it.
    Half precision is written as float32. `engine` and `checkpoint_every` change no numbers and are left out.

    Raises InputError for what Keras cannot express, another suffix, or where the file cannot be written.
    """
    path = Path(path)
    given = layers if isinstance(layers, Mapping) else {default_name(layers): layers}
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise InputError(f"{path}: name a file that ends in {', '.join(SUFFIXES)}")
    units = [unit for name, layer in given.items() for unit in units_of(name, layer, SUFFIXES[suffix])]
    if not units:
        raise InputError("there is no layer to write")
    for name, count in Counter(unit.name for unit in units).items():
        if count > 1:
            raise InputError(f"two layers would be called {name!r}: name them so that NAME_1, NAME_2, … stay free")
        if name in ("", ".", "..") or "/" in name:
            raise InputError(f"Keras takes no layer of the name {name!r}: it must not be empty or have a slash")
    model = _model(given, units, frame_size) if suffix == ".keras" else None
    h5py = h5py_module()
    with whole_file(path) as temporary:
        if model is None:
            with h5py.File(temporary, "w") as file:
                (_write_objects if suffix == ".weights.h5" else _write_variables)(file, units)
            return
        weights = io.BytesIO()
        with h5py.File(weights, "w") as file:
            _write_objects(file, units)
        metadata = {"keras_version": "3.0.0", "written_by": f"Stormcell {__version__}"}
        _write_zip(
            temporary,
            {
                "metadata.json": json.dumps(metadata).encode(),
                "config.json": json.dumps(model).encode(),
                "model.weights.h5": weights.getvalue(),
            },
        )


def write_plain(source: str | Path, target: str | Path) -> None:
    """A `.keras` file with layers of `stormcell.interop.keras` as one that plain Keras opens: whole or not at all.

    The model stays as it is, other layers, weights and all; only `checkpoint_every` and `engine`, which change no numbers and
    which Keras' own layers refuse, are taken out. Raises InputError if the source is no `.keras` file.
    """
    entries = keras_entries(Path(source))

    def plain(node: Any) -> Any:
        if isinstance(node, list):
            return [plain(each) for each in node]
        if not isinstance(node, dict):
            return node
        if is_conv_lstm(node) and isinstance(node.get("config"), dict):
            node = {
                **node,
                "config": {k: v for k, v in node["config"].items() if k not in ("checkpoint_every", "engine")},
            }
        return {key: plain(value) for key, value in node.items()}

    entries["config.json"] = json.dumps(plain(json.loads(entries["config.json"]))).encode()
    with whole_file(Path(target)) as temporary:
        _write_zip(temporary, entries)


def _write_zip(path: Path, entries: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name)  # of no date: the same layers make the same file
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)


def _model(
    layers: Mapping[str, RecurrentLayer], units: list[Unit], frame_size: int | Sequence[int] | None
) -> dict[str, Any]:
    """A Sequential of the layers, serialised."""
    first = next(iter(layers.values()))
    dims = first.dims
    size = (frame_size,) * dims if isinstance(frame_size, int) else tuple(frame_size or ())
    if len(size) != dims or any(not isinstance(n, int) or n < 1 for n in size):
        raise InputError(
            f"a ConvLSTM layer of plain Keras knows one frame size: give frame_size, {dims} integers for a .keras file. "
            f"Received: {frame_size!r}"
        )
    for (name, layer), (after, following) in zip(layers.items(), list(layers.items())[1:]):
        given = layer.hidden_channels * (1 + layer.bidirectional)
        if (following.dims, following.in_channels) != (dims, given):
            raise InputError(
                f"layer {after} does not take what layer {name} gives ({given} channels, {dims}d): write a file for each"
            )
        if layer.reverse:
            raise InputError(
                f"layer {name} runs in reverse, after which Keras' order is reversed: write a file for each"
            )
    shape = [None, None, *size, first.in_channels]
    for name, layer in layers.items():
        try:
            size = layer._state_size(torch.empty(1, layer.in_channels, *size, device="meta"))
        except ValueError as error:
            raise InputError(f"layer {name}: {error}") from error
    dtype = units[0].config["config"]["dtype"]
    frames = serialised("InputLayer", {"batch_shape": shape, "dtype": dtype, "name": "frames"})
    config = {
        "name": "stormcell",
        "trainable": True,
        "dtype": dtype,
        "layers": [frames, *(unit.config for unit in units)],
    }
    return {**serialised("Sequential", config), "module": "keras", "build_config": {"input_shape": shape}}


def _write_objects(file: Any, units: list[Unit]) -> None:
    """The layout of `.weights.h5` and `.keras`."""

    def write(place: str, name: str, arrays: Sequence[np.ndarray] = ()) -> None:
        group = file.create_group(f"{place}/vars")
        group.attrs["name"] = name
        for number, array in enumerate(arrays):
            group[str(number)] = array

    counts: Counter[str] = Counter()
    for unit in units:
        both = len(unit.directions) == 2
        base = "bidirectional" if both else f"conv_lstm{unit.directions[0][0].ndim - 2}d"
        place = f"layers/{base}_{counts[base]}" if counts[base] else f"layers/{base}"
        counts[base] += 1
        write(place, unit.name)
        for word, arrays in zip(("forward", "backward"), unit.directions):
            inner = f"{place}/{word}_layer" if both else place
            if both:
                write(inner, f"{word}_{unit.name}")
            write(f"{inner}/cell", "conv_lstm_cell", arrays)


def _write_variables(file: Any, units: list[Unit]) -> None:
    """The layout of Keras 2's `.h5`."""
    file.attrs["layer_names"] = [unit.name.encode() for unit in units]
    file.attrs["backend"] = "tensorflow"
    file.attrs["keras_version"] = "2.15.0"
    for unit in units:
        group = file.create_group(unit.name)
        names = []
        for word, arrays in zip(("forward", "backward"), unit.directions):
            inner = f"/{word}_{unit.name}" if len(unit.directions) == 2 else ""
            for key, array in zip(("kernel", "recurrent_kernel", "bias"), arrays):
                names.append(f"{unit.name}{inner}/{key}:0")
                group[names[-1]] = array
        group.attrs["weight_names"] = [name.encode() for name in names]
