"""ConvLSTM1D, 2D and 3D for Keras 3 on torch: Keras' own layers, computed by Stormcell's engines.

Each is a subclass of its namesake that replaces the loop over time and nothing else, so that constructor, config, weights,
initialisers, regularisers, stateful runs and wrappers stay Keras' own. What differs is a list in docs/keras.md.

A saved model names the classes of Keras (`__module__` below), since the config is theirs too: it opens without Stormcell in
plain Keras, and with these layers wherever this module is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch
from torch import Tensor

from .. import engine as _engine
from ..engine import Drop, Form, Weights
from ..nn.recurrent import ACTIVATIONS

if keras.backend.backend() != "torch":
    raise ImportError(
        "stormcell.interop.keras computes with torch: set the environment variable KERAS_BACKEND=torch before keras is "
        f"imported. Received: the backend {keras.backend.backend()!r}"
    )

__all__ = ["ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "named_as_ours", "replace_layers"]


class _Engine:
    """The loop over time, for a subclass of a Keras ConvLSTM layer."""

    cell: Any
    data_format: str
    dropout: float
    recurrent_dropout: float
    go_backwards: bool
    stateful: bool
    zero_output_for_mask: bool

    def __init__(self, *args: Any, checkpoint_every: int | None = None, engine: str = "auto", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if checkpoint_every is not None and checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be None or ≥ 1. Received: {checkpoint_every}")
        for name in ("dropout", "recurrent_dropout"):
            if getattr(self, name) >= 1:  # Keras takes 1.0, and then drops nothing
                raise ValueError(f"{name} must lie in [0, 1). Received: {getattr(self, name)}")
        self.checkpoint_every, self.engine = checkpoint_every, engine

    def get_config(self) -> dict[str, Any]:
        """Keras' config; what only Stormcell has is in it where it is not the default."""
        config = super().get_config()  # type: ignore[misc]
        if self.checkpoint_every is not None:
            config["checkpoint_every"] = self.checkpoint_every
        if self.engine != "auto":
            config["engine"] = self.engine
        return config

    @property
    def _channels_last(self) -> bool:
        return self.data_format == "channels_last"

    def _channels_first_frames(self, frames: Tensor) -> Tensor:
        return frames.movedim(-1, -self.cell.rank - 1) if self._channels_last else frames

    def _keras_frames(self, frames: Tensor) -> Tensor:
        return frames.movedim(-self.cell.rank - 1, -1) if self._channels_last else frames

    # --- any frame size ---

    def build(self, sequences_shape: Sequence[int | None], initial_state_shape: Any = None) -> None:
        """Make the weights. Frames may be of any size, known (and then checked by nobody) or None."""
        step_shape = [sequences_shape[0], *sequences_shape[2:]]
        axes = range(1, self.cell.rank + 1) if self._channels_last else range(2, self.cell.rank + 2)
        size = tuple(step_shape[axis] for axis in axes)
        if self.stateful and None in size:
            raise ValueError(f"stateful=True needs a frame size that is known. Received: {tuple(sequences_shape)}")
        for axis in axes:
            step_shape[axis] = step_shape[axis] or 1  # Keras' cell wants a number; the weights do not depend on it
        if not self.cell.built:
            self.cell.build(tuple(step_shape))
            self.cell.built = True
        self.cell.spatial_dims = size
        self.cell.input_spec = keras.layers.InputSpec(ndim=self.cell.rank + 2)
        super().build(sequences_shape)  # type: ignore[misc]

    def call(self, sequences: Any, initial_state: Any = None, mask: Any = None, training: bool = False) -> Any:
        if initial_state is None and not self.stateful:
            step_shape = (sequences.shape[0], *sequences.shape[2:])
            size = self.cell.compute_output_shape(step_shape)[0]
            initial_state = [torch.zeros(size, device=sequences.device) for _ in range(2)]
        return super().call(sequences, initial_state=initial_state, mask=mask, training=training)  # type: ignore[misc]

    # --- the loop over time ---

    def _maybe_config_dropout_masks(self, *args: Any) -> None:
        """Keras draws masks here, in inference too, which moves the seed on; `_drop` draws them when they are used."""

    def _drop(self, sequences: Tensor, h: Tensor, training: bool) -> Drop:
        def stacked(masks: list[Tensor]) -> Tensor:
            return torch.stack([self._channels_first_frames(mask) for mask in masks], dim=1)

        inputs = recurrent = None
        if training and self.dropout:
            inputs = stacked(self.cell.get_dropout_mask(sequences[:, 0]))
        if training and self.recurrent_dropout:
            recurrent = stacked(self.cell.get_recurrent_dropout_mask(h))
        return Drop(inputs, recurrent, training)

    def _activation(self, function: Callable[[Any], Any]) -> Callable[[Tensor], Tensor]:
        name = keras.activations.serialize(function)
        if isinstance(name, str) and name in ACTIVATIONS:
            return ACTIVATIONS[name]
        if not self._channels_last:
            return function
        return lambda z: function(z.movedim(1, -1)).movedim(-1, 1)  # softmax, for one, means the last axis

    def _weights(self) -> Weights:
        cell = self.cell
        dtype = cell.compute_dtype
        kernel, recurrent = (
            keras.ops.cast(value, dtype).permute(-1, -2, *range(cell.rank))
            for value in (cell.kernel, cell.recurrent_kernel)
        )
        bias = None if cell.bias is None else keras.ops.cast(cell.bias, dtype)
        return Weights(kernel, recurrent, None, bias)

    def inner_loop(self, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        cell = self.cell
        h, c = initial_state
        if self.stateful:  # Keras writes the next state into the same memory, which the backward still needs
            h, c = h.clone(), c.clone()
        drop = self._drop(sequences, h, bool(training))
        x, h, c = (self._channels_first_frames(value) for value in (sequences, h, c))
        mask = None if mask is None else mask.bool()
        if mask is not None and mask.ndim > 2:
            mask = mask.flatten(2).all(2)
        if self.go_backwards:
            x, mask = x.flip(1), None if mask is None else mask.flip(1)
        form = Form(
            cell.strides,
            cell.padding,
            cell.dilation_rate,
            self._activation(cell.activation),
            self._activation(cell.recurrent_activation),
        )
        precise = torch.promote_types(c.dtype, torch.float32)  # sums over time: Keras keeps c in half precision
        y, (h, c) = _engine.run(
            x,
            (h, c.to(precise)),
            self._weights(),
            form,
            mask=mask,
            drop=drop,
            checkpoint_every=self.checkpoint_every,
            engine=self.engine,
        )
        if mask is not None and self.zero_output_for_mask:
            y = torch.where(mask.view(*mask.shape, *(1,) * (y.ndim - 2)), y, y.new_zeros(()))
        y = self._keras_frames(y)
        return y[:, -1], y, [self._keras_frames(h), self._keras_frames(c)]


def _in_place_of(cls: Any) -> Any:
    """Show Keras' arguments in the signature, and load models that were saved with this class with it again."""
    theirs = inspect.signature(cls.__mro__[2].__init__)
    ours = inspect.signature(_Engine.__init__)
    keywords = [ours.parameters[name] for name in ("checkpoint_every", "engine")]
    (*own, rest) = list(theirs.parameters.values())[1:]
    cls.__signature__ = inspect.Signature([*own, *keywords, rest])
    keras.saving.get_custom_objects()[cls.__name__] = cls
    return cls


@_in_place_of
class ConvLSTM2D(_Engine, keras.layers.ConvLSTM2D):
    """Keras' ConvLSTM2D with its constructor, config and weights, computed by Stormcell's engines.

    Two arguments more, which the config holds only where they are given: `checkpoint_every` keeps the state after every so
    many steps for the backward and computes the steps between anew (less memory, same numbers); `engine` is one of
    `stormcell.engine.engines()`. The frame size may differ from call to call, and None may stand for it in `keras.Input`.
    `unroll` changes nothing.

    Raises ValueError for a dropout of 1, and what Keras raises.
    """

    __module__ = "keras.layers"


@_in_place_of
class ConvLSTM1D(_Engine, keras.layers.ConvLSTM1D):
    """Keras' ConvLSTM1D computed by Stormcell's engines: see `ConvLSTM2D`."""

    __module__ = "keras.layers"


@_in_place_of
class ConvLSTM3D(_Engine, keras.layers.ConvLSTM3D):
    """Keras' ConvLSTM3D computed by Stormcell's engines: see `ConvLSTM2D`."""

    __module__ = "keras.layers"


def replace_layers(model: Any) -> Any:
    """A copy of a Keras model, weights and all, in which these layers stand for Keras' ConvLSTM layers, wrapped ones too.

    >>> old = keras.Sequential([keras.Input((None, 8, 8, 1)), keras.layers.ConvLSTM2D(4, 3)])
    >>> isinstance(replace_layers(old).layers[0], ConvLSTM2D)
    True
    """
    copy = keras.saving.deserialize_keras_object(named_as_ours(keras.saving.serialize_keras_object(model)))
    for new, old in zip(copy.weights, model.weights):
        new.assign(old.value)
    return copy


def named_as_ours(config: Any) -> Any:
    """What Keras serialised, with these layers in place of its own."""
    if isinstance(config, dict):
        config = {key: named_as_ours(value) for key, value in config.items()}
        if config.get("class_name") in __all__ and config.get("module") == "keras.layers":
            config["registered_name"] = config["class_name"]  # by which Keras finds what `_in_place_of` left
        return config
    return type(config)(map(named_as_ours, config)) if isinstance(config, (list, tuple)) else config
