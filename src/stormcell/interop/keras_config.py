"""What Keras says of a ConvLSTM layer ⇄ ours: its configuration, and its arrays in the order of `get_weights`.

A kernel (*k, C, 4F) is `weight_ih` with its axes in another order, whatever the data format: gates lie in the order of Keras
in both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, reason
from ..nn.convlstm import ConvLSTM, ConvLSTM1d, ConvLSTM2d, ConvLSTM3d
from ..nn.recurrent import ACTIVATIONS, RecurrentLayer

Path_ = tuple[str, ...]
CLASSES: dict[str, type[ConvLSTM]] = {"ConvLSTM1D": ConvLSTM1d, "ConvLSTM2D": ConvLSTM2d, "ConvLSTM3D": ConvLSTM3d}
ASKED = {  # what weights alone do not say, and what an example of it looks like
    "padding": "same",
    "strides": 1,
    "dilation_rate": 1,
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
}
NOT_IN = {2: ("hard_sigmoid", "relu6"), 3: ("keras2_hard_sigmoid",)}  # activations, by the version of Keras


def to_config(layer: RecurrentLayer, *, name: str | None = None, keras: int = 3) -> list[dict[str, Any]]:
    """The layer as Keras serialises it, for `keras.layers.deserialize`: one dict for each of its `num_layers`.

    The Keras layers return sequences, channels last; `name` is the first one's name, and `keras` the version whose
    activations are meant. Their weights are `to_weights(layer)`. Raises InputError for what Keras cannot express.
    """
    return [unit.config for unit in units_of(default_name(layer) if name is None else name, layer, keras)]


def to_weights(layer: RecurrentLayer) -> list[list[np.ndarray]]:
    """The weights for each dict of `to_config`, in the order of Keras' `set_weights`."""
    return [
        [array for direction in _arrays_of(layer, number) for array in direction] for number in range(layer.num_layers)
    ]


def from_config(
    config: Mapping[str, Any], weights: Sequence[np.ndarray], *, name: str = "layer", keras: int = 3
) -> ConvLSTM:
    """A layer from what `keras.layers.serialize` and `get_weights` say of a ConvLSTM, or a Bidirectional that concatenates.

    Raises InputError for any other layer, an activation that Stormcell has not, and weights that do not fit the config.
    """
    left = list(weights)
    each = len(left) // (2 if config["class_name"] == "Bidirectional" else 1)

    def take(names: Path_, place: Path_) -> tuple[Any, ...]:
        return tuple(left.pop(0) for _ in range(each))

    found = from_node(config, (), (), take)
    if found is None:
        raise InputError(f"{name} is no ConvLSTM layer of Keras. Received: {config['class_name']}")
    layers = list(layers_of(name, name, found, keras).values())
    if len(layers) > 1:
        raise InputError(f"{name} merges its directions by {found.merge!r}: only 'concat' makes one layer of the two")
    return layers[0]


# --- theirs → ours ---


class Part(NamedTuple):
    """One direction of a layer."""

    config: Any  # None: the file does not say
    arrays: tuple[Any, ...]  # kernel, recurrent kernel, bias if there is one; of NumPy or HDF5


class Found(NamedTuple):
    names: Path_  # of the models around the layer, and its own
    parts: tuple[Part, ...]  # two in a Bidirectional
    merge: Any = None  # merge_mode of a Bidirectional


def is_conv_lstm(node: Mapping[str, Any]) -> bool:
    """Whether a serialised layer is Keras' ConvLSTM or Stormcell's, and none of the same name from elsewhere."""
    package, _, name = str(node.get("class_name")).rpartition(">")
    registered, _, _ = str(node.get("registered_name") or "").rpartition(">")
    module = str(node.get("module") or "keras").split(".")[0]
    return (
        name in CLASSES
        and {package, registered} <= {"", "stormcell"}
        and module in ("keras", "tf_keras", "tensorflow", "stormcell")
    )


Take = Callable[[Path_, Path_], tuple[Any, ...]]


def from_node(node: Mapping[str, Any], names: Path_, place: Path_, take: Take) -> Found | None:
    """A ConvLSTM layer, bidirectional or not; None for anything else. `take` gives the arrays by names or by group."""
    config = node["config"]
    if is_conv_lstm(node):
        own = (*names, str(config["name"]))
        return Found(own, (Part(config, take(own, place)),))
    if node.get("class_name") != "Bidirectional" or not is_conv_lstm(config["layer"]):
        return None
    own = (*names, str(config["name"]))
    forward = config["layer"]["config"]
    given = (config.get("backward_layer") or {}).get("config")
    backward = given or {**forward, "go_backwards": not forward.get("go_backwards")}
    parts = []
    for word, one in (("forward", forward), ("backward", backward)):
        name = f"{word}_" + str(one["name"]).removeprefix("forward_").removeprefix("backward_")
        parts.append(Part(one, take((*own, name), (*place, f"{word}_layer"))))
    return Found(own, tuple(parts), config.get("merge_mode", "concat"))


def layers_of(where: str, name: str, found: Found, keras: int) -> dict[str, ConvLSTM]:
    """The layer under its name, or the two that a Bidirectional which does not concatenate becomes."""
    arrays = [part.arrays for part in found.parts]
    arguments = [_arguments(where, part.config, part.arrays, keras) for part in found.parts]
    if len(arguments) == 1:
        if found.parts[0].config.get("zero_output_for_mask"):
            warnings.warn(
                f"{where} has zero_output_for_mask=True. Stormcell repeats the last output where the mask is False: "
                "multiply y by the mask for Keras' output",
                UserWarning,
                stacklevel=3,
            )
        return {name: _layer(where, arguments[0], arrays)}
    forward, backward = arguments
    if found.merge == "concat" and not forward["reverse"] and {**forward, "reverse": True} == backward:
        return {name: _layer(where, {**forward, "bidirectional": True}, arrays)}
    return {
        f"{name}/forward": _layer(f"{where}, forward", forward, arrays[:1]),
        f"{name}/backward": _layer(f"{where}, backward", backward, arrays[1:]),
    }


def _activation(where: str, argument: str, value: Any, keras: int) -> str:
    name = value.get("config") if isinstance(value, dict) and value.get("class_name") == "function" else value
    name = {None: "linear", "swish": "silu"}.get(name, name) if isinstance(name, str | None) else name
    if keras < 3 and name == "hard_sigmoid":
        name = "keras2_hard_sigmoid"
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise InputError(f"{where}: Stormcell has no {argument} {name!r}; it has {', '.join(ACTIVATIONS)}")
    return name


def _arguments(where: str, config: Mapping[str, Any], arrays: tuple[Any, ...], keras: int) -> dict[str, Any]:
    """Arguments of a layer, from its configuration and the shapes of its arrays, which must agree."""
    missing = [key for key in ASKED if key not in config]
    if missing:
        raise InputError(f"{where}: the configuration does not say {', '.join(missing)}")
    shapes = [tuple(array.shape) for array in arrays]
    *kernel_size, channels, gates = shapes[0]
    hidden = gates // 4
    fitting = [(*kernel_size, channels, 4 * hidden), (*kernel_size, hidden, 4 * hidden), (4 * hidden,)]
    if not config.get("use_bias", shapes[2:]):
        del fitting[2]
    said = [config.get("filters", hidden), list(_tuple(config.get("kernel_size", kernel_size), len(kernel_size)))]
    if shapes != fitting or said != [hidden, kernel_size]:
        raise InputError(
            f"{where}: its weights do not fit together, or not its configuration. Received: {shapes} for filters "
            f"{said[0]!r} and kernel_size {said[1]!r}"
        )
    return {
        "in_channels": channels,
        "hidden_channels": hidden,
        "kernel_size": tuple(kernel_size),
        "stride": _tuple(config["strides"], len(kernel_size)),
        "padding": str(config["padding"]).lower(),
        "dilation": _tuple(config["dilation_rate"], len(kernel_size)),
        "bias": len(shapes) == 3,
        "reverse": bool(config.get("go_backwards")),
        "activation": _activation(where, "activation", config["activation"], keras),
        "recurrent_activation": _activation(where, "recurrent_activation", config["recurrent_activation"], keras),
        "unit_forget_bias": bool(config.get("unit_forget_bias", True)),
        "input_dropout": config.get("dropout") or 0.0,
        "recurrent_dropout": config.get("recurrent_dropout") or 0.0,
    }


def _tuple(value: Any, dims: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * dims


def _layer(where: str, arguments: dict[str, Any], arrays: Sequence[tuple[Any, ...]]) -> ConvLSTM:
    dims = len(arguments["kernel_size"])
    try:
        with torch.device("meta"):
            layer = CLASSES[f"ConvLSTM{dims}D"](**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {reason(error)}") from error
    weights = {}
    for suffix, direction in zip(("_l0", "_l0_reverse"), arrays):
        for key, array in zip(("weight_ih", "weight_hh", "bias"), direction):
            weights[key + suffix] = _tensor(f"{where}: {key + suffix}", array)
    double = any(tensor.dtype == torch.float64 for tensor in weights.values())
    dtype = torch.float64 if double else torch.float32
    layer.load_state_dict({key: tensor.to(dtype) for key, tensor in weights.items()}, assign=True)
    return layer.eval()


def _tensor(where: str, array: Any) -> Tensor:
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise InputError(f"{where} is of type {array.dtype}; Stormcell reads float16, float32 and float64")
    values = np.asarray(array[()])
    values = values.astype(values.dtype.newbyteorder("="))
    tensor = torch.from_numpy(values)
    return tensor if tensor.ndim == 1 else tensor.permute(-1, -2, *range(tensor.ndim - 2)).contiguous()


# --- ours → theirs ---


class Unit(NamedTuple):
    """One Keras layer to be written."""

    name: str
    config: dict[str, Any]  # serialised
    directions: list[list[np.ndarray]]
    in_channels: int
    out_channels: int


def default_name(layer: RecurrentLayer) -> str:
    return f"conv_lstm{layer.dims}d"


def _padding(layer: ConvLSTM) -> str | None:
    """The padding in Keras' words; None if it has none."""
    if isinstance(layer.padding, str):
        return layer.padding
    if not any(layer.padding):
        return "valid"
    full = tuple((k - 1) * d for k, d in zip(layer.kernel_size, layer.dilation))
    return "same" if max(layer.stride) == 1 and tuple(2 * p for p in layer.padding) == full else None


def _refused(layer: ConvLSTM, keras: int) -> list[str]:
    """What a layer has and Keras has not."""
    refused = [
        (layer.in_channels == 0, "layers without input (in_channels=0)"),
        (layer.peephole is not None, "peepholes"),
        (layer.recurrent_kernel_size != layer.kernel_size, "a recurrent kernel of a size of its own"),
        (_padding(layer) is None, f"the padding {layer.padding!r}, which is neither 'same' nor 'valid'"),
        (layer.periodic_x, "a periodic axis"),
        (layer.norm is not None, f"norm={layer.norm!r}"),
        (any(layer.zoneout), "zoneout"),
        (layer.dropout > 0 and layer.num_layers > 1, "dropout between layers"),
        (
            layer.dropout_masks == "shared" and max(layer.input_dropout, layer.recurrent_dropout) > 0,
            'dropout_masks="shared"',
        ),
    ]
    for argument, value in (
        ("activation", layer.activation),
        ("recurrent_activation", layer.recurrent_activation),
    ):
        if callable(value):
            refused.append((True, f"a function as {argument}"))
        elif value in NOT_IN[keras]:
            refused.append((True, f"the {argument} {value!r}"))
    return [what for is_there, what in refused if is_there]


def units_of(name: str, layer: RecurrentLayer, keras: int) -> list[Unit]:
    if not isinstance(layer, ConvLSTM):
        raise InputError(f"layer {name}: Keras has ConvLSTM layers only. Received: {type(layer).__name__}")
    refused = _refused(layer, keras)
    if refused:
        raise InputError(f"layer {name}: Keras {keras} cannot express {', '.join(refused)}")
    words = {"keras2_hard_sigmoid": "hard_sigmoid", "silu": "swish"} if keras == 2 else {}
    units = []
    for number in range(layer.num_layers):
        own = name if number == 0 else f"{name}_{number}"
        directions = _arrays_of(layer, number)
        dtype = str(directions[0][0].dtype)
        ones = [1] * layer.dims
        config = {
            "name": own,
            "trainable": True,
            "dtype": dtype,
            "return_sequences": True,
            "return_state": False,
            "go_backwards": layer.reverse and number == 0,  # the layers above then see the reversed order already
            "stateful": False,
            "unroll": False,
            "filters": layer.hidden_channels,
            "kernel_size": list(layer.kernel_size),
            "strides": list(layer.stride) if number == 0 else ones,
            "padding": _padding(layer) if number == 0 else "same",
            "data_format": "channels_last",
            "dilation_rate": list(layer.dilation) if number == 0 else ones,
            "activation": words.get(str(layer.activation), layer.activation),
            "recurrent_activation": words.get(str(layer.recurrent_activation), layer.recurrent_activation),
            "use_bias": len(directions[0]) == 3,
            "unit_forget_bias": layer.unit_forget_bias,
            "dropout": layer.input_dropout,
            "recurrent_dropout": layer.recurrent_dropout,
        }
        node = serialised(f"ConvLSTM{layer.dims}D", config)
        if layer.bidirectional:
            around = {"name": own, "trainable": True, "dtype": dtype, "merge_mode": "concat", "layer": node}
            node = serialised("Bidirectional", around)
        inputs = directions[0][0].shape[-2]
        units.append(Unit(own, node, directions, inputs, layer.hidden_channels * len(directions)))
    return units


def serialised(class_name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": class_name, "config": config, "registered_name": None}


def _arrays_of(layer: RecurrentLayer, number: int) -> list[list[np.ndarray]]:
    """[kernel, recurrent kernel, bias] of one of the stacked layers, for each direction."""
    result = []
    for suffix in (f"_l{number}", f"_l{number}_reverse")[: 1 + layer.bidirectional]:
        arrays = []
        for key in ("weight_ih", "weight_hh", "bias"):
            tensor = getattr(layer, key + suffix)
            if tensor is None:
                continue
            tensor = tensor.detach().cpu()
            tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
            arrays.append((tensor if tensor.ndim == 1 else tensor.permute(*range(2, tensor.ndim), 1, 0)).numpy())
        result.append(arrays)
    return result
