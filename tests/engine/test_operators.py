"""Operators are called where somebody watches, and their code directly where nobody does: the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from stormcell import ConvLSTM2d, engine

ENGINES = [name for name in ("bptt", "winograd") if engine.engines()[name] is None]


class Watch(TorchDispatchMode):
    """What operators of ours were called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        namespace, _, name = str(function).partition(".")
        if namespace == "stormcell":
            self.seen.append(name.partition(".")[0])
        return function(*arguments, **(options or {}))


def layer(name: str, **options: Any) -> ConvLSTM2d:
    torch.manual_seed(0)
    return ConvLSTM2d(2, 8, 3, engine=name, **options)


def train(model: ConvLSTM2d, x: Tensor) -> list[Tensor]:
    y, (h, c) = model(x)
    return [y, h, c, *torch.autograd.grad(y.square().sum() + c.sum(), list(model.parameters()))]


@pytest.mark.parametrize("name", ENGINES)
def test_whoever_watches_sees_operators_with_the_same_numbers(name: str) -> None:
    model, x = layer(name), torch.randn(2, 3, 2, 6, 7)
    with Watch() as watch:
        seen = train(model, x)
        with torch.no_grad():
            y, _ = model(x)
    assert len(watch.seen) == 3
    assert all(operator.startswith(name) for operator in watch.seen)
    for ours, expected in zip([*seen, y], [*train(model, x), model(x)[0]], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ENGINES)
def test_tensors_without_numbers_have_shapes(name: str) -> None:
    with torch.no_grad():
        y, _ = layer("bptt", device="meta")(torch.empty(2, 3, 2, 6, 7, device="meta"))
    assert (y.device.type, tuple(y.shape)) == ("meta", (2, 3, 8, 6, 7))
    with FakeTensorMode():
        model = layer(name)
        results = train(model, torch.empty(2, 3, 2, 6, 7))
        assert all(isinstance(value, FakeTensor) for value in results)
    expected = train(layer(name), torch.randn(2, 3, 2, 6, 7))
    assert [(value.shape, value.stride()) for value in results] == [(value.shape, value.stride()) for value in expected]


@pytest.mark.parametrize("name", ENGINES)
def test_what_is_saved_for_the_backward_may_lie_elsewhere(name: str) -> None:
    """`torch.autograd.graph.saved_tensors_hooks`, as save_on_cpu and checkpoints have them."""
    model, x = layer(name, peephole="channel"), torch.randn(2, 3, 2, 6, 7)
    packed: list[Tensor] = []

    def pack(value: Tensor) -> Tensor:
        packed.append(value)
        return value.detach().clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        y, _ = model(x)
    loss = y.square().sum()
    found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    again = torch.autograd.grad(loss, list(model.parameters()))
    assert packed
    expected = torch.autograd.grad(model(x)[0].square().sum(), list(model.parameters()))
    for each in zip(found, again, expected):
        assert torch.equal(each[0], each[1])
        torch.testing.assert_close(each[0], each[2], rtol=1e-6, atol=1e-7)
