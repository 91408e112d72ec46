"""Makes flax_haiku.npz: parameters, frames and outputs of ConvLSTMs that Flax and Haiku themselves have computed.

    python -m venv jax && jax/bin/pip install flax==0.12.8 dm-haiku==0.0.17 jax==0.10.2 numpy==2.4.6
    jax/bin/python tests/interop/make_flax_haiku.py

In double precision, with random weights of standard deviation 1/sqrt(fan-in) and random biases. Names in the file are
CASE/params/…, CASE/x (B, T, *frame, C), CASE/y (B, T, *frame, F) and, for the last cell, CASE/h and CASE/c after the last step.
"""

from pathlib import Path

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(2015)
out = {}


class FlaxStack(nn.Module):
    cells: tuple

    @nn.compact
    def __call__(self, x):
        for features, kernel, use_bias in self.cells:
            cell = nn.ConvLSTMCell(features, kernel, use_bias=use_bias, param_dtype=jnp.float64)
            (c, h), x = nn.RNN(cell, return_carry=True)(x)
        return x, h, c


def haiku_stack(cells):
    def run(x):
        make = {1: hk.Conv1DLSTM, 2: hk.Conv2DLSTM, 3: hk.Conv3DLSTM}[x.ndim - 3]
        core = hk.DeepRNN([make(x.shape[2:-1], features, kernel) for features, kernel, _ in cells])
        y, states = hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)
        return y, states[-1].hidden, states[-1].cell

    return hk.without_apply_rng(hk.transform(run))


def drawn(leaf):
    fan_in = leaf.size / leaf.shape[-1] if leaf.ndim > 1 else 1
    return rng.standard_normal(leaf.shape) / np.sqrt(fan_in)


def keep(case, net, frame, channels):
    x = rng.standard_normal((2, 4, *frame, channels))
    params = jax.tree_util.tree_map(drawn, net.init(jax.random.key(0), x))
    y, h, c = net.apply(params, x)
    assert y.dtype == np.float64
    for name, value in flatten_dict(params, sep="/").items():
        out[f"{case}/{'' if name.startswith('params/') else 'params/'}{name}"] = value
    out.update({f"{case}/x": x, f"{case}/y": y, f"{case}/h": h, f"{case}/c": c})


two_cells = ((3, (3, 2), True), (4, (3, 3), True))
keep("flax", FlaxStack(two_cells), (5, 4), 2)
keep("flax-no-bias", FlaxStack(((3, (3,), False),)), (6,), 2)
keep("haiku", haiku_stack(two_cells), (5, 4), 2)
keep("haiku-3d", haiku_stack(((2, 2, True),)), (3, 4, 3), 1)
np.savez_compressed(Path(__file__).with_name("flax_haiku.npz"), **out)
