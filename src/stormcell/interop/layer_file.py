"""ConvLSTM layers as one `.safetensors`: weights, and a JSON header with each layer's class and arguments.

What `stormcell convert` writes. Nothing is unpickled, and nothing is allocated that the file does not hold: a layer is made
without memory, and given the file's own tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from .. import nn as _nn
from ..errors import InputError, reason
from ..nn.recurrent import RecurrentLayer
from ..writing import whole_file

FORMAT = 1
CLASSES: dict[str, Callable[..., RecurrentLayer]] = {
    name: getattr(_nn, name) for kind in ("ConvLSTM", "ConvGRU") for name in (f"{kind}1d", f"{kind}2d", f"{kind}3d")
}


def write_layers(layers: Mapping[str, RecurrentLayer] | RecurrentLayer, path: str | Path) -> None:
    """Write layers by name (a single one is called "layer"), whole or not at all.

    Raises InputError where the file cannot be written, or where an activation is a function, which has no name.
    """
    from safetensors.torch import save

    named = layers if isinstance(layers, Mapping) else {"layer": layers}
    described, tensors = {}, {}
    for name, layer in named.items():
        arguments = layer.arguments()
        for argument in ("activation", "recurrent_activation"):
            if callable(arguments[argument]):
                raise InputError(f"layer {name}: {argument} is a function, which a file cannot hold: give it by name")
        described[name] = {"class": type(layer).__name__, "arguments": arguments}
        for key, tensor in layer.state_dict().items():
            tensors[f"{name}.{key}"] = tensor.detach().cpu().contiguous()
    header = {"format": FORMAT, "version": __version__, "layers": described}
    with whole_file(Path(path)) as temporary:
        temporary.write_bytes(save(tensors, metadata={"stormcell": json.dumps(header)}))


def is_layer_file(path: str | Path) -> bool:
    """Whether a file is one of `write_layers`, rather than some other `.safetensors`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return "layers" in json.loads((file.metadata() or {}).get("stormcell", "{}"))
    except (SafetensorError, OSError, ValueError):
        return False


def read_layers(path: str | Path) -> dict[str, RecurrentLayer]:
    """Layers by name, in evaluation mode. Raises InputError if the file is no such file, or breaks off."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["stormcell"])
            if header["format"] != FORMAT:
                raise InputError(f"{path} has format {header['format']}; this version of Stormcell reads {FORMAT}")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        layers = {name: _made(described) for name, described in header["layers"].items()}
        for name, layer in layers.items():
            own = {key.rpartition(".")[2]: t for key, t in tensors.items() if key.rpartition(".")[0] == name}
            if {key: t.shape for key, t in own.items()} != {key: t.shape for key, t in layer.state_dict().items()}:
                raise InputError(f"{path}: the weights of layer {name} are not those that its arguments say")
            layer.load_state_dict(own, assign=True)
    except InputError:
        raise
    except (SafetensorError, OSError, LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not a file of Stormcell layers, or breaks off ({reason(error)})") from error
    return layers


def _made(described: dict[str, Any]) -> RecurrentLayer:
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in described["arguments"].items()}
    with torch.device("meta"):
        layer = CLASSES[described["class"]](**arguments)
    return layer.eval()
