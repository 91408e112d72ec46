"""Keras' weight files, read without Keras: `.keras`, `.weights.h5` and the `.h5` of Keras 2.

Two layouts hold the arrays. `.keras` (a zip) and `.weights.h5` follow the objects: a group a layer, named by its class and
counted (conv_lstm2d, conv_lstm2d_1), so that the configuration, or since Keras 3.6 an attribute, tells which layer it is.
`.h5` follows the variables: layer/…/kernel, with a path that each version of Keras makes up anew; only its ends are relied on.

Files are not trusted: nothing is unpickled, links are not followed, and a size is checked against what the file can hold
before anything of that size is made.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError, reason
from .keras_config import ASKED, ConvLSTM, Found, Part, Path_, from_node, layers_of

MAY_SAY = (*ASKED, "go_backwards", "merge_mode")
ENTRIES = ("metadata.json", "config.json", "model.weights.h5")  # of a .keras file
DEFLATE = 1032  # https://zlib.net/zlib_tech.html: no deflated data grow more than that
LARGEST_CONFIG = 2**24  # bytes of JSON; a thousand layers need less than one of the sixteen MiB
DEEPEST = 64  # groups in groups
OLD_LAYERS = "_layer_checkpoint_dependencies"  # what Keras 2.12 and 2.13 call "layers"
BROKEN = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ValueError,
    RuntimeError,  # h5py; zipfile for an encrypted entry; RecursionError
    MemoryError,
    OverflowError,
)


def read_keras(path: str | Path, *, options: Mapping[str, Any] | None = None) -> dict[str, ConvLSTM]:
    """Every ConvLSTM layer of a Keras file, by its name in Keras (with those of the models around it where names repeat).

    Layers are in evaluation mode, float32, or float64 where the file is. Stormcell takes frames with channels first, whatever
    `data_format` says. `go_backwards` becomes `reverse`, whose output keeps the order of its input: Keras' is `y.flip(1)`.
    A Bidirectional that concatenates becomes one layer; any other becomes two, NAME/forward and NAME/backward (with
    `reverse`), whose outputs are to be merged. Under a mask Keras' Bidirectional, and any layer with `zero_output_for_mask`,
    gives zeros where Stormcell repeats the last output: multiply by the mask.

    Args:
        path: `.keras`, `.weights.h5`, or `.h5` of a whole model or of weights; what it is, its contents say.
        options: what weights alone do not hold, in Keras' words: padding, strides, dilation_rate, activation,
            recurrent_activation, merge_mode of a Bidirectional, and go_backwards if it is True; for all layers, or, under a
            layer's name, a mapping for that one, which wins.
            Activations go by Stormcell's names: "keras2_hard_sigmoid" is the hard_sigmoid of Keras 1 and 2,
            "hard_sigmoid" that of Keras 3. In a file that names its own, Keras 2 is known by its version.

    Raises InputError if the file is none of these, breaks off or contradicts itself; if options are missing, unknown, or
    given for what the file says itself; and for an activation that Stormcell has not.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is a folder, not a Keras file" if path.is_dir() else f"there is no file {path}")
    try:
        with _opened(path) as source:
            found = _named(source)
            _check_options(path, options, found)
            layers: dict[str, ConvLSTM] = {}
            for name, each in found.items():
                given, keras = each, source.keras
                if each.parts[0].config is None:
                    given, keras = _told(f"{path}: layer {name}", name, each, options or {}, source.keras), 3
                layers |= layers_of(f"{path}: layer {name}", name, given, keras)
            return layers
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(f"{path} is not a Keras file, or breaks off ({reason(error)})") from error


def h5py_module() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise InputError("Keras files need h5py: pip install 'stormcell[keras]'") from error
    return h5py


# --- what is in a file ---


class _Tree(NamedTuple):
    """The arrays of an HDF5 file by path, not yet read, and the names that Keras since 3.6 writes beside them."""

    arrays: dict[Path_, Any]
    filled: set[Path_]  # groups with arrays somewhere under them
    names: dict[Path_, str]
    by_name: dict[tuple[Path_, str], Path_]  # (the group around it, its name) → the layer's group


class _Source(NamedTuple):
    path: Path
    tree: _Tree
    config: Any  # the model's, None for weights alone
    keras: int  # its major version
    by_variable: bool  # the layout of Keras 2's .h5


def is_keras_file(path: Path) -> bool:
    """Whether a file is HDF5, or a zip with what Keras puts into one; nothing more of it is read."""
    with path.open("rb") as file:
        start = file.read(8)
    if start == b"\x89HDF\r\n\x1a\n":
        return True
    if not start.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return set(ENTRIES) <= set(archive.namelist())
    except BROKEN:
        return False


def keras_entries(path: Path) -> dict[str, bytes]:
    """What lies in a `.keras` file, by name. Raises InputError for another file, or one that claims more than it can have."""
    try:
        with zipfile.ZipFile(path) as archive:
            if not set(ENTRIES) <= set(archive.namelist()):
                raise InputError(f"{path} is a zip, but not of Keras: it lacks {' or '.join(ENTRIES)}")
            size = path.stat().st_size
            return {
                name: _entry(archive, name, size, LARGEST_CONFIG if name.endswith(".json") else DEFLATE * size)
                for name in ENTRIES
            }
    except BROKEN as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a Keras file, or breaks off ({reason(error)})") from error


@contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    h5py = h5py_module()
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        entries = keras_entries(path)
        metadata, config, weights = (
            json.loads(entries[ENTRIES[0]]),
            json.loads(entries[ENTRIES[1]]),
            entries[ENTRIES[2]],
        )
        with h5py.File(io.BytesIO(weights), "r") as file:
            yield _Source(path, _tree(file, path, len(weights)), config, _major(metadata["keras_version"]), False)
        return
    if not h5py.is_hdf5(path):
        raise InputError(f"{path} is not a Keras file: neither a zip (.keras) nor HDF5 (.h5)")
    with h5py.File(path, "r") as file:
        size = path.stat().st_size
        whole = "model_weights" in list(file)
        by_variable = whole or any(key.startswith("layer_names") for key in file.attrs)
        tree = _tree(_group(file, "model_weights", path) if whole else file, path, size)
        config = None
        if "model_config" in file.attrs:
            config = json.loads(_attribute(file, "model_config", path, LARGEST_CONFIG))
        keras = 2 if by_variable or OLD_LAYERS in list(file) else 3
        if by_variable and "keras_version" in file.attrs:
            keras = _major(_attribute(file, "keras_version", path, 64))
        yield _Source(path, tree, config, keras, by_variable)


def _major(version: str) -> int:
    return int(version.split(".")[0])


def _entry(archive: zipfile.ZipFile, name: str, size: int, largest: int) -> bytes:
    entry = archive.getinfo(name)
    packed = entry.compress_size
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{archive.filename}: {name} is packed in a way that Keras does not use")
    if packed > size or entry.file_size > min(largest, packed * DEFLATE):
        raise InputError(f"{archive.filename}: {name} claims {entry.file_size} bytes, more than it can have")
    return archive.read(name)


def _attribute(item: Any, name: str, path: Path, largest: int) -> str:
    if h5py_module().h5a.open(item.id, name.encode()).get_storage_size() > largest:
        raise InputError(f"{path}: the attribute {name} claims more bytes than it can have")
    value = item.attrs[name]
    text = value.decode() if isinstance(value, bytes) else str(value)
    if len(text) > largest:
        raise InputError(f"{path}: the attribute {name} is larger than any of Keras")
    return text


def _group(parent: Any, key: str, path: Path) -> Any:
    """What lies under a key, which must be a group or an array in this file."""
    h5py = h5py_module()
    if not isinstance(parent.get(key, getlink=True), h5py.HardLink):
        raise InputError(f"{path}: {parent.name.rstrip('/')}/{key} is a link, and Keras writes none")
    return parent[key]


def _tree(root: Any, path: Path, size: int) -> _Tree:
    """What is under a group. Raises InputError for links and for arrays that lie elsewhere, or claim what is not there."""
    h5py = h5py_module()
    tree = _Tree({}, set(), {}, {})
    seen = set()
    left = size

    def visit(group: Any, place: Path_) -> None:
        nonlocal left
        if len(place) > DEEPEST:
            raise InputError(f"{path}: groups are nested deeper than {DEEPEST}")
        for key in group:
            here = (*place, key)
            item = _group(group, key, path)
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise InputError(f"{path}: {'/'.join(here)} is there twice")
            seen.add(address)
            if isinstance(item, h5py.Group):
                if key == "vars" and "name" in item.attrs:
                    name = tree.names[place] = _attribute(item, "name", path, size)
                    tree.by_name[place[:-1], name] = place
                visit(item, here)
            elif isinstance(item, h5py.Dataset):
                left -= _stored(item, f"{path}: {'/'.join(here)}", left)
                tree.arrays[here] = item
                tree.filled.update(here[:i] for i in range(len(here)))

    if not isinstance(root, h5py.Group):
        raise InputError(f"{path} is not a Keras file: its weights are no group")
    visit(root, ())
    return tree


def _stored(dataset: Any, where: str, left: int) -> int:
    """Bytes of a dataset in the file."""
    if dataset.external or dataset.is_virtual:
        raise InputError(f"{where} lies in another file")
    stored = dataset.id.get_storage_size()
    claimed = dataset.dtype.itemsize * int(np.prod(dataset.shape or (0,), dtype=object))
    packed = dataset.id.get_create_plist().get_nfilters() > 0
    if stored > left or claimed > stored * (DEFLATE if packed else 1):
        raise InputError(f"{where} claims {claimed} bytes, more than the file has for it")
    return stored


# --- which of it are ConvLSTM layers ---


def _found(source: _Source) -> list[Found]:
    leaves = _variables(source.tree) if source.by_variable else _objects(source.tree)
    found = [] if source.config is None else list(_from_model(source, leaves))
    return found + list(_from_weights(source, leaves))  # those in classes of one's own, or all


def _objects(tree: _Tree) -> dict[Path_, tuple[Any, ...]]:
    """(kernel, recurrent kernel, bias) by the group of the layer, where groups are objects."""
    leaves = {}
    for place, kernel in tree.arrays.items():
        if place[-3:] == ("cell", "vars", "0") and len(kernel.shape) in (3, 4, 5):
            there = [tree.arrays.get((*place[:-1], key)) for key in "0123"]
            arrays = tuple(array for array in there if array is not None)
            if len(arrays) in (2, 3):
                leaves[place[:-3]] = arrays
    return leaves


def _variables(tree: _Tree) -> dict[Path_, tuple[Any, ...]]:
    """(kernel, recurrent kernel, bias) by the path of the variables, less the cell that some versions name in it."""
    groups: dict[Path_, dict[str, Any]] = {}
    for path, array in tree.arrays.items():
        groups.setdefault(path[:-1], {})[path[-1].removesuffix(":0")] = array
    leaves = {}
    for place, group in groups.items():
        kernel = group.get("kernel")
        if place and "recurrent_kernel" in group and kernel is not None and len(kernel.shape) in (3, 4, 5):
            if len(place) > 1 and re.fullmatch(r"(conv_lstm\w*_)?cell(_\d+)?", place[-1]):
                place = place[:-1]
            leaves[place] = tuple(group[key] for key in ("kernel", "recurrent_kernel", "bias") if key in group)
    return leaves


def _from_model(source: _Source, leaves: dict[Path_, tuple[Any, ...]]) -> Iterator[Found]:
    """Layers of the configuration; their arrays are taken out of `leaves`."""

    def take(names: Path_, place: Path_) -> tuple[Any, ...]:
        key = _variables_of(names, leaves) if source.by_variable else place
        if key not in leaves:
            raise InputError(
                f"{source.path}: layer {names[-1]} is in the configuration, but its weights are not in the file"
            )
        return leaves.pop(key)

    def walk(node: Mapping[str, Any], names: Path_, place: Path_) -> Iterator[Found]:
        config = node.get("config")
        if isinstance(config, list):  # a Sequential of Keras before 2.2.3
            config = {"layers": config}
        if not isinstance(config, dict):
            return
        layer = from_node(node, names, place, take)
        inner = names if node is source.config else (*names, str(config.get("name")))
        if layer is not None:
            yield layer
        elif isinstance(config.get("layers"), list):
            for child, own in zip(config["layers"], _places(config["layers"], place, source.tree)):
                yield from walk(child, inner, own)
        elif isinstance(config.get("layer"), dict):  # a wrapper
            yield from walk(config["layer"], inner, (*place, "layer"))

    yield from walk(source.config, (), ())


def _places(nodes: list[Any], place: Path_, tree: _Tree) -> Iterator[Path_]:
    """The group of each layer of a model: by its name where Keras wrote that, else by counting layers of its class."""
    old = (*place, OLD_LAYERS) in tree.filled
    inside = (*place, OLD_LAYERS if old else "layers")
    counts: Counter[str] = Counter()
    for node in nodes:
        words = re.sub(r"\W", "", str(node["class_name"]).rpartition(">")[2])
        base = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", words).lower()
        own = (*inside, f"{base}_{counts[base]}" if counts[base] else base)
        counts[base] += 2 if old and own in tree.filled else 1  # Keras 2.12 and 2.13 count a layer with weights twice
        name = node["config"].get("name") if isinstance(node.get("config"), dict) else None
        yield tree.by_name.get((inside, str(name)), own)


def _variables_of(names: Path_, leaves: dict[Path_, Any]) -> Path_:
    """The path of a layer's variables: under the outermost model or layer, the one that ends in its name."""
    names = tuple("/".join(names).split("/"))  # Keras 2 takes slashes in names
    under = [key for key in leaves if key[0] == names[0]]
    ends = [key for key in under if key[-1] == names[-1]]
    if len(ends) > 1:
        ends = [key for key in ends if set(names) <= set(key)]
    if len(ends) == 1:
        return ends[0]
    return under[0] if len(under) == 1 else ()


def _from_weights(source: _Source, leaves: dict[Path_, tuple[Any, ...]]) -> Iterator[Found]:
    """Layers whose arrays are there, but no configuration."""

    def names(place: Path_) -> Path_:
        if source.by_variable:
            return place
        ends = [i for i, key in enumerate(place) if key not in ("layers", OLD_LAYERS)]
        return tuple(source.tree.names.get(place[: i + 1], place[i]) for i in ends)

    def counted(place: Path_) -> list[tuple[int, str]]:
        return [(len(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", "/".join(place))]

    for place in sorted(leaves, key=counted):
        *around, last = place
        word, _, rest = last.partition("_")
        other = (*around, f"{'backward' if word == 'forward' else 'forward'}_{rest}")
        if around and word in ("forward", "backward") and other in leaves:
            if word == "forward":
                yield Found(names(tuple(around)), (Part(None, leaves[place]), Part(None, leaves[other])))
        else:
            yield Found(names(place), (Part(None, leaves[place]),))


def _named(source: _Source) -> dict[str, Found]:
    found = _found(source)
    counts = Counter(each.names[-1] for each in found)
    named = {each.names[-1] if counts[each.names[-1]] == 1 else "/".join(each.names): each for each in found}
    if len(named) < len(found):
        raise InputError(f"{source.path} has several layers of one name: {', '.join(named)}")
    if not named:
        raise InputError(f"{source.path} holds no ConvLSTM layer")
    return named


# --- layers from it ---


def _check_options(path: Path, options: Mapping[str, Any] | None, found: dict[str, Found]) -> None:
    if not options:
        return
    silent = [name for name, each in found.items() if each.parts[0].config is None]
    if not silent:
        raise InputError(f"{path} says itself what its layers are: leave the options out")
    of_layers = {name: value for name, value in options.items() if isinstance(value, Mapping)}
    for name in of_layers:
        if name not in silent:
            raise InputError(f"options name the layer {name!r}; {path} needs them for {', '.join(silent)}")
    for given in ({k: v for k, v in options.items() if k not in of_layers}, *of_layers.values()):
        unknown = set(given) - set(MAY_SAY)
        if unknown:
            raise InputError(f"options are {', '.join(MAY_SAY)}. Received: {', '.join(sorted(map(repr, unknown)))}")


def _told(where: str, name: str, found: Found, options: Mapping[str, Any], keras: int) -> Found:
    """A layer of which the file holds weights only, with what the options say of it: what is said of all, then its own."""
    given = {key: value for key, value in options.items() if not isinstance(value, Mapping)} | options.get(name, {})
    both = len(found.parts) == 2
    example = {**ASKED, "merge_mode": "concat"} if both else ASKED
    missing = [key for key in example if key not in given]
    if missing:
        shown = ", ".join(f"{key}={example[key]}" for key in missing)
        raise InputError(
            f"{where}: the file holds weights only, and does not say {', '.join(missing)}. Give them as options, as it was "
            f"trained: {shown}, or otherwise"
        )
    if both and given.get("go_backwards"):
        raise InputError(f"{where} runs in both directions: leave out go_backwards")
    if keras < 3 and "hard_sigmoid" in (given["activation"], given["recurrent_activation"]):
        raise InputError(
            f'{where}: the file is of Keras {keras}, whose hard_sigmoid Stormcell calls "keras2_hard_sigmoid"; '
            '"hard_sigmoid" is that of Keras 3'
        )
    backwards = bool(given.get("go_backwards"))
    configs = [{**given, "go_backwards": backwards}, {**given, "go_backwards": not backwards}]
    parts = tuple(part._replace(config=config) for part, config in zip(found.parts, configs))
    return found._replace(parts=parts, merge=given.get("merge_mode"))
