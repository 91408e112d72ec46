"""The reference against numbers worked by hand and against a plain NumPy loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stormcell import engine
from stormcell.engine.reference import Form, Weights, pads, sequence, state_size, step

FORM = Form((1, 1), "same", (1, 1), torch.tanh, torch.sigmoid)


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def test_a_step_worked_by_hand() -> None:
    """One pixel, one channel, every weight different: any two gates or peepholes exchanged would show."""
    weights = Weights(
        ih=torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).view(4, 1, 1, 1),
        hh=torch.tensor([0.5, -0.6, 0.7, 0.8], dtype=torch.float64).view(4, 1, 1, 1),
        ch=torch.tensor([0.9, -1.0, 1.1], dtype=torch.float64),
        bias=torch.tensor([0.01, 0.02, 0.03, 0.04], dtype=torch.float64),
    )
    x, h, c = 2.0, 0.3, -0.4
    i = sigmoid(0.1 * x + 0.5 * h + 0.9 * c + 0.01)
    f = sigmoid(0.2 * x - 0.6 * h - 1.0 * c + 0.02)
    g = math.tanh(0.3 * x + 0.7 * h + 0.03)
    c_next = f * c + i * g
    o = sigmoid(0.4 * x + 0.8 * h + 1.1 * c_next + 0.04)
    h_next = o * math.tanh(c_next)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    h_out, c_out = step(x * one, (h * one, c * one), weights, FORM)
    assert h_out.item() == pytest.approx(h_next, abs=1e-15)
    assert c_out.item() == pytest.approx(c_next, abs=1e-15)


def naive_convolution(
    x: np.ndarray, w: np.ndarray, before: tuple[int, int], out: tuple[int, int], s: int
) -> np.ndarray:
    """Cross-correlation of x (C, Y, X) with w (O, C, kY, kX), written as its definition."""
    result = np.zeros((w.shape[0], *out))
    for row in range(out[0]):
        for col in range(out[1]):
            for ky in range(w.shape[2]):
                for kx in range(w.shape[3]):
                    y, z = row * s + ky - before[0], col * s + kx - before[1]
                    if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                        result[:, row, col] += w[:, :, ky, kx] @ x[:, y, z]
    return result


@pytest.mark.parametrize(
    ("kernel", "recurrent", "stride"), [((3, 3), (3, 3), 1), ((4, 2), (2, 4), 1), ((3, 5), (1, 3), 2)]
)
def test_sequence_against_the_definition_of_convolution(
    kernel: tuple[int, int], recurrent: tuple[int, int], stride: int
) -> None:
    """Even kernels and strides pad as TensorFlow does: the odd zero comes after."""
    rng = np.random.default_rng(0)
    channels, hidden, steps, size = 2, 3, 3, (5, 6)
    form = FORM._replace(stride=(stride, stride))
    w = {
        "ih": rng.normal(size=(4 * hidden, channels, *kernel)),
        "hh": rng.normal(size=(4 * hidden, hidden, *recurrent)),
        "ch": rng.normal(size=(3 * hidden,)),
        "bias": rng.normal(size=(4 * hidden,)),
    }
    x = rng.normal(size=(steps, channels, *size))
    out = tuple(-(-n // stride) for n in size)
    before = tuple(max((o - 1) * stride + k - n, 0) // 2 for o, k, n in zip(out, kernel, size))
    before_h = tuple((k - 1) // 2 for k in recurrent)
    h, c = rng.normal(size=(2, hidden, *out))
    y, _ = sequence(
        torch.tensor(x)[None],
        (torch.tensor(h)[None], torch.tensor(c)[None]),
        Weights(*(torch.tensor(w[k]) for k in ("ih", "hh", "ch", "bias"))),
        form,
    )
    peephole = w["ch"].reshape(3, hidden, 1, 1)
    for t in range(steps):
        z = naive_convolution(x[t], w["ih"], before, out, stride) + naive_convolution(h, w["hh"], before_h, out, 1)
        i, f, g, o = (z + w["bias"][:, None, None]).reshape(4, hidden, *out)
        squash = np.vectorize(sigmoid)
        c, c_old = squash(f + peephole[1] * c) * c + squash(i + peephole[0] * c) * np.tanh(g), c
        assert not np.allclose(c, c_old)
        h = squash(o + peephole[2] * c) * np.tanh(c)
        np.testing.assert_allclose(y[0, t].numpy(), h, atol=1e-12)


def test_padding_follows_tensorflow() -> None:
    same = Form((2, 3), "same", (1, 1), torch.tanh, torch.sigmoid)
    assert pads((7, 8), (4, 2), same) == [(1, 2), (0, 0)]  # (ceil(7/2)-1)·2+4-7 = 3; (ceil(8/3)-1)·3+2-8 = 0
    assert state_size((7, 8), (4, 2), same) == (4, 3)
    assert pads((7, 8), (4, 2), same._replace(padding="valid")) == [(0, 0), (0, 0)]
    assert state_size((7, 8), (3, 3), same._replace(padding=(2, 1), stride=(1, 1))) == (9, 8)


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    shapes = [(2, 3, 1, 3, 4), (2, 2, 3, 4), (2, 2, 3, 4), (8, 1, 3, 2), (8, 2, 3, 3), (6,), (8,)]
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]

    def run(x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, *w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, state = sequence(x, (h, c), Weights(*w), FORM)
        return y, *state

    assert torch.autograd.gradcheck(run, tensors)


def test_engines_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.zeros(1, 1, 1, 1, 1)
    weights = Weights(None, torch.zeros(4, 1, 1, 1), None, None)
    arguments = (one[:, :, :0], (one[:, 0], one[:, 0]), weights, FORM)
    assert "reference" in engine.engines()
    engine.run(*arguments, engine="reference")
    with pytest.raises(ValueError, match="unknown engine.*'warp'"):
        engine.run(*arguments, engine="warp")
    with pytest.raises(ValueError, match="unknown engine"):
        engine.set_default("warp")
    monkeypatch.setenv("STORMCELL_ENGINE", "warp")
    with pytest.raises(ValueError, match="unknown engine"):
        engine.run(*arguments)
    engine.run(*arguments, engine="reference")  # an engine that is named outranks the environment
