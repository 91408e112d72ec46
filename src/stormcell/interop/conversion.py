"""From other people's layers and files to ours and back, whichever they are: what `stormcell convert` does.

A file is known by what it holds, and is written as its suffix says. Keras itself is imported only where layers of Keras go in
or come out; files need h5py at most.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..nn.recurrent import RecurrentLayer
from .keras_config import ConvLSTM, default_name, from_config, to_config, to_weights
from .keras_read import is_keras_file, read_keras
from .keras_write import SUFFIXES as KERAS_SUFFIXES
from .keras_write import write_keras, write_plain
from .layer_file import is_layer_file, read_layers, write_layers
from .layouts import LAYOUTS, from_torch, to_torch
from .torch_files import SUFFIXES as TORCH_SUFFIXES
from .torch_files import read_torch_file, write_torch_file

__all__ = ["convert", "from_keras", "to_keras"]


def from_keras(source: Any, *, options: Mapping[str, Any] | None = None) -> Any:
    """ConvLSTM layers of Keras as ours, with their weights.

    >>> from_keras(keras.layers.ConvLSTM2D(8, 3))     # once it is built
    ConvLSTM2d(1, 8, kernel_size=(3, 3), padding='valid')

    Args:
        source: the path of a `.keras`, `.weights.h5` or Keras 2 `.h5` file, or a model of Keras 3 → {layer name: layer}; a
            built layer of Keras 3, ConvLSTM1D, 2D, 3D or a Bidirectional around one that concatenates → the layer.
        options: what a file of weights alone does not hold; see `keras_read.read_keras`, which also says what differs.

    Layers are in evaluation mode and share no memory with Keras. Raises InputError for anything else.
    """
    if isinstance(source, (str, Path)):
        return read_keras(source, options=options)
    keras = sys.modules.get("keras")  # there, if the source is of Keras
    if keras is not None and isinstance(source, keras.Model):
        with tempfile.TemporaryDirectory() as folder:
            source.save(Path(folder) / "model.keras")
            return read_keras(Path(folder) / "model.keras", options=options)
    if keras is None or not isinstance(source, keras.layers.Layer):
        raise InputError(f"expected a path, or a layer or model of Keras 3. Received: {type(source).__name__}")
    if options:
        raise InputError("a layer of Keras says itself what it is: leave the options out")
    if not source.built:
        raise InputError(f"layer {source.name} has no weights yet: build it, or call it once")
    return from_config(keras.layers.serialize(source), source.get_weights(), name=source.name)


def to_keras(layer: ConvLSTM, *, frame_size: int | Sequence[int] | None = None, name: str | None = None) -> Any:
    """A ConvLSTM layer as one of Keras 3, built, with its weights: channels last, all outputs.

    Without `frame_size` it is a layer of `stormcell.interop.keras`, which takes frames of any size and needs Keras on torch.
    With it, ((Y, X), and so on), it is a plain one, on any backend, for frames of that size. Several `num_layers` become a
    keras.Sequential, a bidirectional layer a Bidirectional; a layer with `reverse` gives `y.flip(1)`.

    Raises InputError for what Keras cannot express (peepholes, norms, a recurrent kernel of its own size, …), ImportError
    without Keras.
    """
    configs = to_config(layer, name=name)
    import keras

    if frame_size is None:
        if keras.backend.backend() != "torch":
            raise InputError(
                "a layer for any frame size needs Keras on torch: set KERAS_BACKEND=torch before keras is imported, or give "
                f"frame_size. Received: the backend {keras.backend.backend()!r}"
            )
        from .keras import named_as_ours

        configs = named_as_ours(configs)
        size: tuple[int | None, ...] = (None,) * layer.dims
    else:
        size = (frame_size,) * layer.dims if isinstance(frame_size, int) else tuple(frame_size)
        if len(size) != layer.dims:
            raise InputError(f"frame_size must be {layer.dims} integers. Received: {frame_size!r}")
    layers = [keras.layers.deserialize(config) for config in configs]
    shape = (None, None, *size, layer.in_channels)
    made: Any = layers[0]
    if len(layers) > 1:
        own = default_name(layer) if name is None else name
        made = keras.Sequential([keras.Input(shape[1:], dtype=layers[0].dtype), *layers], name=f"{own}_stack")
    else:
        made.build(shape)
    for each, weights in zip(layers, to_weights(layer)):
        each.set_weights(weights)
    return made


def convert(
    source: str | Path,
    target: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    layout: str | None = None,
    prefix: str = "",
    gates: str | None = None,
    to: str | None = None,
    only: Sequence[str] = (),
    frame_size: int | Sequence[int] | None = None,
    steps: int | None = None,
) -> dict[str, RecurrentLayer]:
    """Turn a file of ConvLSTM weights into another kind; returns the layers that it holds, by name.

    `source` may be a file of Keras, of Stormcell (`write_layers`), or weights of a known layout (`from_torch`). The suffix
    of `target` says what it becomes: `.keras`, `.weights.h5` and `.h5` (Keras 2) are for plain Keras; with `to`, a layout,
    `.pt`, `.pth`, `.ckpt`, `.safetensors` and `.npz` are for other people's code; `.safetensors` without it is Stormcell's own;
    `.onnx` is for runtimes. From `.keras` to `.keras` the whole model stays, and what plain Keras does not know is taken out.

    Args:
        options: what a Keras file of weights alone does not hold; see `read_keras`.
        layout, prefix, gates: how to read other weights; see `from_torch`.
        to: layout to write.
        only: names of the layers to take; all if empty.
        frame_size: for a `.keras`, whose layers know one; for an `.onnx`, to fix it.
        steps: for an `.onnx`, of a sequence; None exports one step.

    Raises InputError for what cannot be read, said or written, and for arguments that do not go with the files.
    """
    source, target = Path(source), Path(target)
    kind = _suffix(target)
    if not source.is_file():
        raise InputError(f"{source} is a folder: name a file" if source.is_dir() else f"there is no file {source}")
    if target.exists() and target.samefile(source):
        raise InputError(f"{target} is the file that is read: give the new one another name")
    of_keras = is_keras_file(source)
    _check_pairs(
        {
            "options": (bool(options), of_keras, "a file of Keras that holds weights only"),
            "layout": (layout is not None, not of_keras, "weights of PyTorch, Flax or Haiku"),
            "prefix": (prefix != "", not of_keras, "weights of PyTorch, Flax or Haiku"),
            "gates": (gates is not None, not of_keras, "weights of PyTorch, Flax or Haiku"),
            "to": (to is not None, kind in TORCH_SUFFIXES, f"an output of {', '.join(TORCH_SUFFIXES)}"),
            "frame_size": (frame_size is not None, kind in (".keras", ".onnx"), "an output of .keras or .onnx"),
            "steps": (steps is not None, kind == ".onnx", "an output of .onnx"),
        }
    )
    if of_keras and kind == ".keras" and source.suffix.lower() == ".keras" and not only and frame_size is None:
        write_plain(source, target)
        return dict(read_keras(target))
    if of_keras:
        layers: dict[str, Any] = dict(read_keras(source, options=options))
    elif is_layer_file(source):
        layers = dict(read_layers(source))
    else:
        try:
            layers = from_torch(read_torch_file(source), layout, prefix=prefix, gates=gates)
        except InputError as error:
            raise error if str(source) in str(error) else InputError(f"{source}: {error}") from error
    layers = _only(layers, only, source)
    if kind in KERAS_SUFFIXES:
        write_keras(
            {name or default_name(layer): layer for name, layer in layers.items()}, target, frame_size=frame_size
        )
    elif to is not None:
        write_torch_file(to_torch(layers[""] if list(layers) == [""] else layers, to), target)
    elif kind == ".onnx":
        if len(layers) > 1:
            raise InputError(f"an .onnx file is one layer: choose one of {', '.join(layers)}")
        from .onnx import to_onnx

        to_onnx(next(iter(layers.values())), target, steps=steps, frame_size=frame_size)
    elif kind == ".safetensors":
        write_layers({name or "layer": layer for name, layer in layers.items()}, target)
    else:
        raise InputError(
            f"{target} is a file for other people's code: say which layout, one of {', '.join(_written())}"
        )
    return layers


def _suffix(path: Path) -> str:
    known = (*KERAS_SUFFIXES, *TORCH_SUFFIXES, ".onnx")  # .weights.h5 before .h5
    found = next((suffix for suffix in known if path.name.lower().endswith(suffix)), None)
    if found is None:
        raise InputError(f"{path}: name a file that ends in {', '.join(known)}")
    return found


def _written() -> list[str]:
    return [name for name, layout in LAYOUTS.items() if layout.write]


def _check_pairs(given: dict[str, tuple[bool, bool, str]]) -> None:
    for name, (is_there, fits, what) in given.items():
        if is_there and not fits:
            raise InputError(f"{name} goes with {what} only: leave it out")


def _only(layers: dict[str, Any], only: Sequence[str], source: Path) -> dict[str, Any]:
    for name in only:
        if name not in layers:
            raise InputError(f"{source} has no layer {name!r}; it has {', '.join(map(repr, layers))}")
    return {name: layer for name, layer in layers.items() if not only or name in only}
