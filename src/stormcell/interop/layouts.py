"""Weights of other people's ConvLSTMs, in PyTorch, Flax and Haiku: from their names and shapes to ours, and back.

A state dict does not say in which order the gates lie, or whether the input or the state comes first in a joint convolution:
that is taken from the source of each project. What a cell holds beyond its layout is refused, since the original computes with
it. None of them can run with a stride, or with another padding than "same": their states would not fit.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..nn import ConvGRU1d, ConvGRU2d, ConvGRU3d, ConvLSTM1d, ConvLSTM2d, ConvLSTM3d
from ..nn.recurrent import ACTIVATIONS, RecurrentLayer

__all__ = ["LAYOUTS", "from_torch", "to_torch"]

Weights = dict[str, Tensor]
_CLASSES: dict[tuple[int, int], Callable[..., RecurrentLayer]] = {
    (gates, dims): cls
    for gates, classes in ((4, (ConvLSTM1d, ConvLSTM2d, ConvLSTM3d)), (3, (ConvGRU1d, ConvGRU2d, ConvGRU3d)))
    for dims, cls in enumerate(classes, 1)
}
_CONTAINERS = ("state_dict", "model_state_dict", "params")  # of Lightning, PyTorch's tutorials, Flax
_NESTED = ("flax", "haiku")  # as their parameters are
_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel, torch.compile


class Layout(NamedTuple):
    """How a project stores a cell. Gates lie in its order in what `read` gives and `write` takes."""

    anchor: str  # pattern of the name by which a cell is found
    names: str  # pattern of every name that may stand in a cell
    read: Callable[[Weights], Weights]  # by its names → by ours; a second bias is bias_hh
    write: Callable[[Weights], Weights] | None = None
    stack: str = ""  # what the cells of a stack are called, by number
    gates: str | None = None  # order; None where names tell the gates apart
    forget: float = 0.0  # what the cell adds to the forget gate besides the bias
    odd: bool = True  # kernels must be odd, since k // 2 zeros are added on either side


# --- what a cell of each project holds ---


def _read_ndrplz(w: Weights) -> Weights:
    joint = w["conv.weight"]
    inputs = joint.shape[1] - joint.shape[0] // 4
    if inputs < 1:
        raise InputError("conv.weight has no channels for an input beside those for the state")
    bias = {"bias": w["conv.bias"]} if "conv.bias" in w else {}
    return {"weight_ih": joint[:, :inputs], "weight_hh": joint[:, inputs:], **bias}


def _write_ndrplz(w: Weights) -> Weights:
    bias = {"conv.bias": w["bias"]} if "bias" in w else {}
    return {"conv.weight": torch.cat([w["weight_ih"], w["weight_hh"]], dim=1), **bias}


def _per_channel(values: Tensor, what: str) -> Tensor:
    values = values.flatten(1)
    if not torch.equal(values, values[:, :1].expand_as(values)):
        raise InputError(f"{what} differ from pixel to pixel, which norm cannot: it has one number a channel")
    return values[:, 0]


def _read_openstl(w: Weights) -> Weights:
    ours = {"weight_ih": w["conv_x.0.weight"], "weight_hh": w["conv_h.0.weight"]}
    if "conv_x.1.weight" in w or "conv_h.1.weight" in w:
        ours["norm_ih"] = _per_channel(w["conv_x.1.weight"], "the gains conv_x.1.weight")
        ours["norm_hh"] = _per_channel(w["conv_h.1.weight"], "the gains conv_h.1.weight")
        ours["bias"] = _per_channel(w["conv_x.1.bias"] + w["conv_h.1.bias"], "the shifts conv_x.1.bias + conv_h.1.bias")
    return ours


def _write_openstl(w: Weights) -> Weights:
    hidden, kernel = w["weight_hh"].shape[1], w["weight_hh"].shape[2:]
    unused = {  # in its forward
        "conv_o.0.weight": w["weight_hh"].new_zeros(hidden, 2 * hidden, *kernel),
        "conv_last.weight": w["weight_hh"].new_zeros(hidden, 2 * hidden, 1, 1),
    }
    return {"conv_x.0.weight": w["weight_ih"], "conv_h.0.weight": w["weight_hh"], **unused}


def _read_automan000(w: Weights) -> Weights:
    ours = {
        ours: torch.cat([w[f"{x}{g}.weight"] for g in "ifco"]) for ours, x in (("weight_ih", "Wx"), ("weight_hh", "Wh"))
    }
    if any(f"Wx{g}.bias" in w for g in "ifco"):
        ours["bias"] = torch.cat([w[f"Wx{g}.bias"] for g in "ifco"])
    if any(f"Wc{g}" in w for g in "ifo"):
        peepholes = torch.cat([w[f"Wc{g}"] for g in "ifo"], dim=1).squeeze(0)  # (1, F, Y, X) each
        ours["weight_ch"] = peepholes.flatten() if max(peepholes.shape[1:]) == 1 else peepholes
    return ours


def _write_automan000(w: Weights) -> Weights:
    bias = w.get("bias", w["weight_hh"].new_zeros(w["weight_hh"].shape[0]))
    theirs: Weights = {}
    for g, ih, hh, b in zip("ifco", w["weight_ih"].chunk(4), w["weight_hh"].chunk(4), bias.chunk(4)):
        theirs |= {f"Wx{g}.weight": ih, f"Wx{g}.bias": b, f"Wh{g}.weight": hh}
    if "weight_ch" in w:
        peepholes = w["weight_ch"].view(1, -1, *w["weight_ch"].shape[1:] or (1, 1))
        theirs |= {f"Wc{g}": value for g, value in zip("ifo", peepholes.chunk(3, dim=1))}
    return theirs


def _read_jax(w: Weights, names: dict[str, str]) -> Weights:
    ours = {key: w[name] for key, name in names.items() if name in w or key.startswith("weight")}
    return {key: t.movedim((-1, -2), (0, 1)) if key.startswith("weight") else t for key, t in ours.items()}


def _write_jax(w: Weights, names: dict[str, str]) -> Weights:
    return {names[k]: t.movedim((0, 1), (-1, -2)) if k.startswith("weight") else t for k, t in w.items()}


_FLAX = {"weight_ih": "ih.kernel", "weight_hh": "hh.kernel", "bias": "ih.bias", "bias_hh": "hh.bias"}
_HAIKU = {
    "weight_ih": "input_to_hidden.w",
    "weight_hh": "hidden_to_hidden.w",
    "bias": "input_to_hidden.b",
    "bias_hh": "hidden_to_hidden.b",
}


def _read_stormcell(w: Weights) -> Weights:
    if any(name.startswith("norm") for name in w):
        raise InputError(
            'has gains of a norm, and names and shapes do not tell "layer" from "group": make the layer and give it the '
            "weights with load_state_dict, or keep layers with write_layers"
        )
    return w


LAYOUTS: dict[str, Layout] = {
    "ndrplz": Layout(
        r"conv\.weight", r"conv\.(weight|bias)", _read_ndrplz, _write_ndrplz, stack="cell_list.{}", gates="ifog"
    ),
    "openstl": Layout(
        r"conv_h\.0\.weight",
        r"conv_[xho]\.(0\.weight|1\.(weight|bias))|conv_last\.weight",
        _read_openstl,
        _write_openstl,
        stack="cell_list.{}",
        gates="ifgo",
    ),
    "automan000": Layout(
        r"Whi\.weight",
        r"W[xh][ifco]\.weight|Wx[ifco]\.bias|Wc[ifo]",
        _read_automan000,
        _write_automan000,
        stack="cell{}",
    ),
    "flax": Layout(
        r"hh\.kernel",
        r"(ih|hh)\.(kernel|bias)",
        lambda w: _read_jax(w, _FLAX),
        lambda w: _write_jax(w, _FLAX),
        stack="ConvLSTMCell_{}",
        gates="igfo",
        forget=1.0,
        odd=False,
    ),
    "haiku": Layout(
        r"hidden_to_hidden\.w",
        r"(input|hidden)_to_hidden\.[wb]",
        lambda w: _read_jax(w, _HAIKU),
        lambda w: _write_jax(w, _HAIKU),
        stack="conv{dims}_dlstm_{}",
        gates="igfo",
        forget=1.0,
        odd=False,
    ),
    "stormcell": Layout(
        r"weight_hh(_l0)?",
        r"(weight_[ihc]h|bias|norm_[ih]h)(_l\d+(_reverse)?)?",
        _read_stormcell,
        odd=False,
    ),
}


# --- theirs → ours ---


def from_torch(
    state_dict: Mapping[Any, Any], layout: str | None = None, *, prefix: str = "", gates: str | None = None
) -> dict[str, RecurrentLayer]:
    """Layers from the weights of other people's ConvLSTMs, in the order and by the names of their cells' modules.

    Always one layer a cell, since cells of a stack may differ in size; "" is the name of a cell that is the whole state dict.
    A stack runs as a loop: `for layer in layers.values(): x, _ = layer(x)`.

    >>> theirs = {"cell_list.0.conv.weight": torch.zeros(32, 1 + 8, 3, 3), "cell_list.0.conv.bias": torch.zeros(32)}
    >>> from_torch(theirs)
    {'cell_list.0': ConvLSTM2d(1, 8, kernel_size=(3, 3))}

    | layout | whose | a cell is found by | gates |
    |---|---|---|---|
    | ndrplz | ndrplz/ConvLSTM_pytorch and its copies | conv.weight, in a module called …cell… or …lstm… | i, f, o, g |
    | openstl | chengtan9907/OpenSTL | conv_h.0.weight | i, f, g, o |
    | automan000 | automan000/Convolutional_LSTM_PyTorch | Whi.weight | by name |
    | flax | flax.linen.ConvLSTMCell | hh/kernel | i, g, f, o |
    | haiku | haiku.Conv1DLSTM, Conv2DLSTM, Conv3DLSTM | hidden_to_hidden/w | i, g, f, o |
    | stormcell | our layers and cells, options at their defaults | weight_hh or weight_hh_l0 | i, f, g, o |

    Args:
        state_dict: names → tensors or arrays, of the cells alone or of a whole network in which they are a part; nested or
            flat. Checkpoints ({"state_dict": …}) and what DataParallel and torch.compile put before names are seen through.
        layout: whose cells they are; None finds out by names and shapes. ConvLSTMs that share names with `ndrplz` but not the
            order [x, h] cannot be told from it.
        prefix: the module to look in. There, and with `layout`, a cell of ndrplz may have any name.
        gates: the order of the gates, "ifgo" for one, in a fork that has another than its layout.

    OpenSTL's LayerNorm becomes norm="layer", its unused conv_o and conv_last are left out, as is the convolution after its
    cells. Peepholes of automan000 are zero in its own code, and read where a fork has registered them. The two biases of
    Flax and Haiku, and the 1 that they add to the forget gate, become one bias. Precision and device stay; nothing is
    shared with `state_dict`.

    Raises:
        InputError: if no layout fits or more than one, if a cell holds what its layout does not, or computes what our layers
            do not: gains of LayerNorm that differ from pixel to pixel, GroupNorm over both convolutions (jhhuang96).
    """
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"layout must be one of {', '.join(LAYOUTS)}. Received: {layout!r}")
    if gates is not None and sorted(gates) != sorted("ifgo"):
        raise InputError(
            f'gates must be the letters i, f, g, o in the order of the file, such as "ifog". Received: {gates!r}'
        )
    weights = _below(flattened(state_dict), prefix)
    certain = layout is not None or prefix != ""
    asked = LAYOUTS if layout is None else (layout,)
    found = {name: cells for name in asked if (cells := _cells(weights, name, certain=certain))}
    if len(found) > 1:
        each = ", ".join(f'"{name}" ({next(iter(cells)) or "the whole"})' for name, cells in found.items())
        raise InputError(f"cells of more than one layout are here: {each}: give layout= or prefix=")
    if not found:
        raise InputError(_nothing_found(weights, layout))
    ((name, cells),) = found.items()
    return {path: _layer(weights, path, cells[path], name, gates) for path in _in_order(cells)}


def flattened(state_dict: Mapping[Any, Any]) -> dict[str, Any]:
    """Arrays by name: nested names are joined with "/", containers and wrappers around all of them taken away."""
    if not isinstance(state_dict, Mapping):
        raise InputError(f"expected names and weights: a state dict. Received: {type(state_dict).__name__}")
    for key in _CONTAINERS * 2:
        state_dict = state_dict[key] if isinstance(state_dict.get(key), Mapping) else state_dict
    flat: dict[str, Any] = {}
    for count, (name, value) in enumerate(_leaves(state_dict, "", 0)):
        if count == 100_000:  # more than any network; a hostile file may hold a mapping within itself
            raise InputError("has more than 100,000 entries: give the part that holds the weights")
        if isinstance(value, Tensor) or (hasattr(value, "__array__") and hasattr(value, "shape")):
            flat[name] = value
    for wrapper in _WRAPPERS * 2:
        if flat and all(name.startswith(wrapper) for name in flat):
            flat = {name.removeprefix(wrapper): value for name, value in flat.items()}
    return flat


def _leaves(mapping: Mapping[Any, Any], path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > 32:
        raise InputError("is nested more than 32 deep: give the part that holds the weights")
    for key, value in mapping.items():
        name = path + ("/".join(map(str, key)) if isinstance(key, tuple) else str(key))
        if isinstance(value, Mapping):
            yield name, None
            yield from _leaves(value, f"{name}/", depth + 1)
        else:
            yield name, value


def _dotted(name: str) -> str:
    return name.replace("/", ".")


def _below(weights: dict[str, Any], prefix: str) -> dict[str, Any]:
    start = _dotted(prefix).rstrip(".") + "."
    below = {name: value for name, value in weights.items() if not prefix or _dotted(name).startswith(start)}
    if not below and prefix:
        raise InputError(f"no name begins with the prefix {prefix!r}. Received: {_some(weights)}")
    return below


def _in_order(paths: Mapping[str, Any]) -> list[str]:
    """As they came, but by number where they differ in that alone: files may have sorted cell10 before cell2."""
    number = re.compile(r"\d{1,9}")
    first = {template: n for n, template in reversed(list(enumerate(number.sub("#", path) for path in paths)))}
    return sorted(paths, key=lambda path: (first[number.sub("#", path)], [int(n) for n in number.findall(path)]))


def _some(names: Mapping[str, Any]) -> str:
    shown = [name if len(name) <= 60 else f"{name[:57]}…" for name in list(names)[:5]]
    return ", ".join(shown) + (f", … ({len(names)} names)" if len(names) > 5 else "") or "no weights"


def _cells(weights: dict[str, Any], layout: str, *, certain: bool) -> dict[str, dict[str, str]]:
    """The cells of a layout: name of the module → (name in the cell → name in the state dict)."""
    anchor = re.compile(rf"(?:(.*)\.)?{LAYOUTS[layout].anchor}", re.DOTALL)
    paths = {}
    for name, value in weights.items():
        match = anchor.fullmatch(_dotted(name))
        if match and len(value.shape) > 2:
            path = match[1] or ""
            paths[path] = name[: len(path)]
    names = sorted((_dotted(name), name) for name in weights)
    cells = {}
    for path, shown in paths.items():
        start, end = (f"{path}.", f"{path}/") if path else ("", "\U0010ffff")
        own = names[bisect_left(names, (start, "")) : bisect_left(names, (end, ""))]
        cells[shown] = {dotted[len(start) :]: name for dotted, name in own}
    parts = [path.split(".") for path in paths if path]
    around = {".".join(names[:n]) for names in parts for n in range(len(names))}  # a net may have a conv of its own
    cells = {path: own for path, own in cells.items() if _dotted(path) not in around}
    if layout == "ndrplz":  # any convolution may be called conv
        alone = {path: own for path, own in cells.items() if path == "" and set(own) <= {"conv.weight", "conv.bias"}}
        named = {
            path: own for path, own in cells.items() if re.search(r"(cell|lstm)[^./]*([./]\d+)*$", path, re.IGNORECASE)
        }
        cells = alone or named or (cells if certain else {})
    return cells


def _nothing_found(weights: dict[str, Any], layout: str | None) -> str:
    for name, value in weights.items():
        cell = _dotted(name).removesuffix("conv.0.weight")
        norm = weights.get(f"{cell}conv.1.weight")
        if (
            cell != name
            and norm is not None
            and norm.shape == value.shape[:1]
            and f"{cell}conv.1.running_mean" not in weights
        ):
            return (
                f"{cell}conv looks like a convolution and a GroupNorm of its sum over input and state, as in "
                "jhhuang96/ConvLSTM-PyTorch; norm here takes the two apart, so that no layer computes this"
            )
    wanted = "ConvLSTM of a known layout" if layout is None else f'cell of the layout "{layout}"'
    hint = (
        "give layout= and prefix= if it has an unusual name"
        if layout is None
        else "leave out layout= to look for others"
    )
    return f"no {wanted} is here ({', '.join(LAYOUTS)}); {hint}. Received: {_some(weights)}"


def _layer(weights: dict[str, Any], path: str, own: dict[str, str], name: str, gates: str | None) -> RecurrentLayer:
    layout = LAYOUTS[name]
    where = f'{path or "the state dict"}, read as "{name}",'
    strange = [inner for inner in own if not re.fullmatch(layout.names, inner)]
    if strange:
        raise InputError(f"{where} holds what that layout does not compute with: {_some(dict.fromkeys(strange))}")
    if gates is not None and layout.gates is None:
        raise InputError(f"{where} needs no gates=: its names say which gate is which")
    try:
        tensors = {inner: as_tensor(weights[full]) for inner, full in own.items()}
        ours = layout.read(tensors)
        if layout.gates is not None:
            ours = {key: _regated(value, gates or layout.gates, "ifgo") for key, value in ours.items()}
        kernels = [n for key in ("weight_ih", "weight_hh") if key in ours for n in ours[key].shape[2:]]
        if layout.odd and any(n % 2 == 0 for n in kernels):
            raise InputError("has a kernel of even size, with which frames would grow from step to step")
        return _made(_one_bias(ours, layout.forget))
    except KeyError as error:
        raise InputError(f"{where} lacks {error.args[0]}") from None
    except InputError as error:
        raise InputError(f"{where} {error}") from None
    except (RuntimeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        shapes = ", ".join(f"{inner} {tuple(weights[full].shape)}" for inner, full in own.items())
        raise InputError(f"{where} has weights that do not fit together: {shapes}") from error


def as_tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        array = np.array(value)  # a copy: arrays of JAX cannot be written to, which torch warns of
        if array.dtype.name == "bfloat16":  # which NumPy itself does not know
            value = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        elif array.dtype.kind != "f":
            raise InputError(f"holds {array.dtype}, not floating-point numbers")
        else:
            value = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    if not value.is_floating_point():
        raise InputError(f"holds {value.dtype}, not floating-point numbers")
    return value.detach()


def _regated(values: Tensor, source: str, target: str) -> Tensor:
    blocks = values.unflatten(0, (4, -1))
    return blocks[[source.index(gate) for gate in target]].flatten(0, 1)


def _forget(like: Tensor, value: float) -> Tensor:
    """A bias of gates in our order that is `value` for the forget gate."""
    hidden = like.shape[0] // 4
    bias = torch.zeros(4 * hidden, dtype=torch.float64, device=like.device)
    bias[hidden : 2 * hidden] = value
    return bias


def _one_bias(ours: Weights, forget: float) -> Weights:
    """The sum of both biases and of what the cell adds, from the end: what `to_torch` splits comes back bit for bit."""
    if "bias_hh" not in ours and not forget:
        return ours
    total = _forget(ours["weight_hh"], forget)
    rest = dict(ours)
    for key in ("bias_hh", "bias"):
        total = total + rest.pop(key, 0)
    return {**rest, "bias": total.to(ours["weight_hh"].dtype)}


def _made(ours: Weights) -> RecurrentLayer:
    """A layer of these weights, its arguments taken from their shapes; the default stands for what weights do not say."""
    own = {key if "_l" in key else f"{key}_l0": value for key, value in ours.items()}
    hh, ih, ch = own["weight_hh_l0"], own.get("weight_ih_l0"), own.get("weight_ch_l0")
    kernel, hidden = hh.shape[2:], hh.shape[1]
    rows = {key.partition("_l")[2] for key in own}
    arguments: dict[str, Any] = {
        "recurrent_kernel_size": tuple(kernel),
        "bias": "bias_l0" in own,
        "num_layers": 1 + max(int(row.partition("_")[0]) for row in rows),
        "bidirectional": any(row.endswith("_reverse") for row in rows),
        "norm": "layer" if "norm_hh_l0" in own else None,
    }
    if ch is not None:
        arguments["peephole"] = "channel" if ch.ndim == 1 else "pixel"
        arguments["frame_size"] = tuple(ch.shape[1:]) or None
    make = _CLASSES.get((hh.shape[0] // hidden, len(kernel)))
    if make is None:
        raise ValueError("neither 4 gates nor 3, or another number of dimensions")
    with torch.device("meta"):
        layer = make(
            0 if ih is None else ih.shape[1], hidden, tuple(kernel if ih is None else ih.shape[2:]), **arguments
        )
    dtype = reduce(torch.promote_types, (value.dtype for value in own.values()))
    copies = {key: value.to(dtype).clone(memory_format=torch.contiguous_format) for key, value in own.items()}
    layer.load_state_dict(copies, assign=True)
    return layer


# --- ours → theirs ---


def to_torch(layers: RecurrentLayer | Mapping[str, RecurrentLayer], layout: str) -> dict[str, Any]:
    """Weights in another project's layout, which compute the same there: the reverse of `from_torch`.

    A layer becomes the stack of its `num_layers` cells, as the project names them (cell_list.0, …; cell0, …; for Flax and
    Haiku a single layer is one cell); layers by name become cells of these names. ndrplz, openstl and automan000 give a state
    dict of tensors, flax and haiku the nested dict of NumPy arrays that `apply` takes.

    The forget gate's bias loses the 1 that Flax and Haiku add to it. OpenSTL's cells get zeros for the convolutions that
    they never use. automan000 gets peepholes only where the layer has them: its own code makes them anew in each run, and
    refuses them in a state dict. What acts in training alone, dropout, has no place in weights and is left out.

    Raises InputError, naming all of it, for what the project's cell cannot compute: another activation, recurrent kernel size,
    stride or padding, both directions, a norm, zoneout, peepholes, even kernels, a bias in OpenSTL.
    """
    writable = [name for name, known in LAYOUTS.items() if known.write]
    if layout not in writable:
        raise InputError(f"layout must be one of {', '.join(writable)}. Received: {layout!r}")
    theirs: dict[str, Any] = {}
    for path, layer, row in _rows(layers, layout):
        suffix = f"_l{row}"
        ours = {key.removesuffix(suffix): t.detach() for key, t in layer.state_dict().items() if key.endswith(suffix)}
        _check_expressible(layer, ours, path, layout)
        for name, tensor in _written(ours, LAYOUTS[layout]).items():
            if layout in _NESTED:
                *modules, last = [*path.split("/"), *name.split(".")] if path else name.split(".")
                inner = theirs
                for module in modules if layout == "flax" else ["/".join(modules)]:
                    inner = inner.setdefault(module, {})
                inner[last] = as_array(tensor)
            else:
                theirs[f"{path}.{name}" if path else name] = tensor.clone(memory_format=torch.contiguous_format)
    return theirs


def _rows(
    layers: RecurrentLayer | Mapping[str, RecurrentLayer], layout: str
) -> Iterator[tuple[str, RecurrentLayer, int]]:
    """Name of the module in the other project, layer, and which of its `num_layers` it is."""
    named = layers if isinstance(layers, Mapping) else {"": layers}
    for name, layer in named.items():
        if not isinstance(layer, RecurrentLayer) or layer.cell != "lstm":
            raise InputError(f"expected ConvLSTM layers. Received: {type(layer).__name__}")
        cell = layer.num_layers == 1 and (layers is named or layout == "flax")
        for row in range(layer.num_layers):
            inner = "" if cell else LAYOUTS[layout].stack.format(row, dims=layer.dims)
            if layout == "haiku":
                inner = inner.removesuffix("_0")  # Haiku counts from the second on
            yield ("/" if layout in _NESTED else ".").join(filter(None, (name, inner))), layer, row


def _check_expressible(layer: Any, ours: Weights, path: str, layout: str) -> None:
    """Raise InputError for what a layer computes and a cell of the layout does not."""
    kernel, jax = layer.kernel_size, layout in _NESTED
    even = LAYOUTS[layout].odd and any(n % 2 == 0 for n in kernel)
    oblong = layout in ("openstl", "automan000") and len(set(kernel)) > 1
    same = layer.padding in ("same", tuple((n - 1) / 2 for n in kernel))
    unlike = {
        "in_channels": "weight_ih" not in ours,
        "hidden_channels": layout == "automan000" and layer.hidden_channels % 2 == 1,
        "kernel_size": even or oblong or (layer.dims != 2 and not jax),
        "recurrent_kernel_size": layer.recurrent_kernel_size != kernel,
        "stride": max(layer.stride) > 1,
        "padding": not same,
        "dilation": max(layer.dilation) > 1,
        "bias": layout == "openstl" and "bias" in ours and bool(ours["bias"].any()),
        "bidirectional": layer.bidirectional,
        "reverse": layer.reverse,
        "peephole": layer.peephole is not None and layout != "automan000",
        "activation": ACTIVATIONS.get(layer.activation, layer.activation) is not torch.tanh,
        "recurrent_activation": ACTIVATIONS.get(layer.recurrent_activation, layer.recurrent_activation)
        is not torch.sigmoid,
        "zoneout": any(layer.zoneout),
        "norm": layer.norm is not None,
        "periodic_x": layer.periodic_x,
    }
    arguments = layer.arguments()
    wrong = [f"{name}={arguments[name]!r}" for name, differs in unlike.items() if differs]
    if wrong:
        raise InputError(
            f'{path or "the layer"} has {", ".join(wrong)}, which a cell of the layout "{layout}" cannot have'
        )


def _written(ours: Weights, layout: Layout) -> Weights:
    if layout.forget:
        second = _forget(ours["weight_hh"], -layout.forget).to(ours["weight_hh"])
        ours = {"bias": torch.zeros_like(second), **ours, "bias_hh": second}
    if layout.gates is not None:
        ours = {key: _regated(value, "ifgo", layout.gates) for key, value in ours.items()}
    assert layout.write is not None
    return layout.write(ours)


def as_array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return np.array((tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy(), order="C")
