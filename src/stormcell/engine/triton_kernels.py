"""The kernels of the Triton engine, and their launchers. Imports triton, so that triton.py imports it when it computes.

All tensors are matrices without gaps. A row is a pixel of a sample, r = b·P + p, a column a channel: maps of any number of
dimensions in channels-last order. A program computes a tile of rows and columns with all four gates of these channels, so
that the state is updated where its pre-activations are made. Arithmetic is in float32 whatever the tensors are.

    B, P    samples, pixels of a map; F hidden channels; K taps of the recurrent kernel
    z       pre-activations of i, f, g, o, without bias and peepholes   (B·P, 4F), in the precision of weights
    c, c'   cell states before and after a step                         (B·P, F), float32
    h, h'   hidden states                                               (B·P, F), in the precision of weights
    w_c     peepholes of i, f, o                                        (1, 3F), or (P, 3F) one a pixel
    used    the mask of a step                                          (B,)
    ρ, φ    recurrent activation, activation
    a       φ(c')
    d_v     gradient of a value v; d_z (B·P, 4F), in the precision of weights
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

# --- activations, and their slopes from z and a; by the names of activations.py ---


@triton.jit
def _activated(z, NAME: tl.constexpr):
    if NAME == "sigmoid":
        e = tl.exp(-tl.abs(z))  # nothing overflows
        a = tl.where(z >= 0, 1.0, e) / (1.0 + e)
    elif NAME == "tanh":
        # The quotient cancels near zero: there the odd polynomial of Cephes, tanhf.c (test_tiny_values_keep_their_digits)
        is_near = tl.abs(z) < 0.625
        t = tl.where(is_near, z, 0.0)
        s = t * t
        near = (-5.70498872745e-3 * s + 2.06390887954e-2) * s - 5.37397155531e-2
        near = ((near * s + 1.33314422036e-1) * s - 3.33332819422e-1) * s * t + t
        e = tl.exp(-2.0 * tl.abs(z))
        far = (1.0 - e) / (1.0 + e)
        a = tl.where(is_near, near, tl.where(z >= 0, far, -far))
    elif NAME == "relu":
        a = _above(z, 0.0)
    elif NAME == "hard_sigmoid":
        a = _below(_above(z / 6.0 + 0.5, 0.0), 1.0)
    elif NAME == "keras2_hard_sigmoid":
        a = _below(_above(0.2 * z + 0.5, 0.0), 1.0)
    else:
        tl.static_assert(NAME == "linear")
        a = z
    return a


@triton.jit
def _above(z, low: tl.constexpr):
    return tl.where(z < low, low, z)  # NaN stays


@triton.jit
def _below(z, high: tl.constexpr):
    return tl.where(z > high, high, z)


@triton.jit
def _slope(z, a, NAME: tl.constexpr):
    if NAME == "sigmoid":
        s = a * (1.0 - a)
    elif NAME == "tanh":
        s = 1.0 - a * a
    elif NAME == "relu":
        s = tl.where(z > 0, 1.0, 0.0)
    elif NAME == "hard_sigmoid":
        s = tl.where((z > -3.0) & (z < 3.0), 1.0 / 6.0, 0.0)
    elif NAME == "keras2_hard_sigmoid":
        s = tl.where((z >= -2.5) & (z <= 2.5), 0.2, 0.0)
    else:
        tl.static_assert(NAME == "linear")
        s = tl.where(z == z, 1.0, z)
    return s


# --- what both kernels are made of ---


@triton.jit
def _read(matrix, at, there):
    return tl.load(matrix + at, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _seen(
    matrix,
    width,
    rows,
    row_count,
    k,
    tap,
    SIGN: tl.constexpr,
    P,
    Y,
    X,
    KZ: tl.constexpr,
    KY: tl.constexpr,
    KX: tl.constexpr,
):
    """Columns k (1, n) of what rows see through a tap; through the kernel's mirror image if SIGN is -1. Zeros outside."""
    p = (rows % P).to(tl.int32)
    dz = SIGN * (
        tap // (KY * KX) - (KZ - 1) // 2
    )  # "same": with an even kernel the larger part of the zeros comes after
    dy = SIGN * (tap // KX % KY - (KY - 1) // 2)
    dx = SIGN * (tap % KX - (KX - 1) // 2)
    pz, py, px = p // (Y * X) + dz, p // X % Y + dy, p % X + dx
    inside = (pz >= 0) & (pz * Y * X < P) & (py >= 0) & (py < Y) & (px >= 0) & (px < X)
    at = (rows + (dz * Y + dy) * X + dx) * width + k
    return tl.load(matrix + at, mask=inside & (rows < row_count) & (k < width), other=0.0)


@triton.jit
def _product(a, b, added, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, added, input_precision=PRECISION)


@triton.jit
def _with_bias_and_peepholes(z_i, z_f, z_g, z_o, bias, w_i, w_f, c, columns, there, F):
    if bias is not None:
        z_i += _read(bias, columns, there)
        z_f += _read(bias, columns + F, there)
        z_g += _read(bias, columns + 2 * F, there)
        z_o += _read(bias, columns + 3 * F, there)
    return z_i + w_i * c, z_f + w_f * c, z_g, z_o


@triton.jit
def _places(row_count, F, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The pixels (ROWS, 1) and channels (1, COLUMNS) of this program, and which of them there are."""
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    columns = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    return rows, columns, (rows < row_count) & (columns < F)


@triton.jit
def _peepholes(w_c, c, rows, columns, there, P, F, BY_PIXEL: tl.constexpr):
    """w_c of i, f and o; zeros if there are none."""
    w_i = tl.zeros_like(c)
    w_f = tl.zeros_like(c)
    w_o = tl.zeros_like(c)
    if w_c is not None:
        at = rows * 0 + columns
        if BY_PIXEL:
            at += (rows % P) * 3 * F
        w_i = _read(w_c, at, there)
        w_f = _read(w_c, at + F, there)
        w_o = _read(w_c, at + 2 * F, there)
    return w_i, w_f, w_o


# --- a step ---


@triton.jit
def _step_kernel(
    from_x,  # (B·P, 4F), or None
    from_h,  # (B·P, 4F), or None: then it is computed here
    taps,  # (K, F, 4F), for that
    bias,  # (4F,), or None
    w_c,  # or None
    used,  # or None
    h,
    c,
    z_after,  # what the backward needs, or None
    h_after,
    c_after,
    row_count,
    P,
    Y,
    X,
    F,
    KZ: tl.constexpr,
    KY: tl.constexpr,
    KX: tl.constexpr,
    BY_PIXEL: tl.constexpr,
    PHI: tl.constexpr,
    RHO: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    rows, columns, there = _places(row_count, F, ROWS, COLUMNS)
    at, at_z = rows * F + columns, rows * 4 * F + columns

    z_i = tl.zeros((ROWS, COLUMNS), tl.float32)
    z_f = tl.zeros((ROWS, COLUMNS), tl.float32)
    z_g = tl.zeros((ROWS, COLUMNS), tl.float32)
    z_o = tl.zeros((ROWS, COLUMNS), tl.float32)
    if from_h is None:
        blocks = tl.cdiv(F, INNER)
        for n in range(KZ * KY * KX * blocks):
            tap, first = n // blocks, n % blocks * INNER
            seen = _seen(h, F, rows, row_count, first + tl.arange(0, INNER)[None, :], tap, 1, P, Y, X, KZ, KY, KX)
            k = first + tl.arange(0, INNER)[:, None]
            w = taps + (tap * F + k) * 4 * F + columns
            known = (k < F) & (columns < F)
            z_i = _product(seen, tl.load(w, mask=known, other=0.0), z_i, PRECISION, WIDEN)
            z_f = _product(seen, tl.load(w + F, mask=known, other=0.0), z_f, PRECISION, WIDEN)
            z_g = _product(seen, tl.load(w + 2 * F, mask=known, other=0.0), z_g, PRECISION, WIDEN)
            z_o = _product(seen, tl.load(w + 3 * F, mask=known, other=0.0), z_o, PRECISION, WIDEN)
    else:
        z_i += _read(from_h, at_z, there)
        z_f += _read(from_h, at_z + F, there)
        z_g += _read(from_h, at_z + 2 * F, there)
        z_o += _read(from_h, at_z + 3 * F, there)
    if from_x is not None:
        z_i += _read(from_x, at_z, there)
        z_f += _read(from_x, at_z + F, there)
        z_g += _read(from_x, at_z + 2 * F, there)
        z_o += _read(from_x, at_z + 3 * F, there)
    narrow = h_after.dtype.element_ty  # the gates that the backward will see
    z_i, z_f, z_g, z_o = z_i.to(narrow), z_f.to(narrow), z_g.to(narrow), z_o.to(narrow)
    if z_after is not None:
        tl.store(z_after + at_z, z_i, mask=there)
        tl.store(z_after + at_z + F, z_f, mask=there)
        tl.store(z_after + at_z + 2 * F, z_g, mask=there)
        tl.store(z_after + at_z + 3 * F, z_o, mask=there)
    z_i, z_f, z_g, z_o = z_i.to(tl.float32), z_f.to(tl.float32), z_g.to(tl.float32), z_o.to(tl.float32)

    before = _read(c, at, there)
    w_i, w_f, w_o = _peepholes(w_c, before, rows, columns, there, P, F, BY_PIXEL)
    z_i, z_f, z_g, z_o = _with_bias_and_peepholes(z_i, z_f, z_g, z_o, bias, w_i, w_f, before, columns, there, F)
    after = _activated(z_f, RHO) * before + _activated(z_i, RHO) * _activated(z_g, PHI)
    shown = _activated(z_o + w_o * after, RHO) * _activated(after, PHI)
    if used is not None:
        now = tl.load(used + rows // P, mask=rows < row_count, other=0) != 0
        after = tl.where(now, after, before)
        shown = tl.where(now, shown, _read(h, at, there))
    tl.store(c_after + at, after, mask=there)
    tl.store(h_after + at, shown.to(narrow), mask=there)


# --- and back ---


@triton.jit
def _back_kernel(
    z,
    bias,  # or None
    w_c,  # or None
    used,  # or None
    c,
    d_y,  # (B·P, F) each: what the step's output, or None,
    d_h,  # the next step, or None: then it is computed here,
    d_held,  # and the steps that the mask left out, or None, say of h'
    d_c_after,
    d_z_next,  # of the next step,
    taps,  # and (K, 4F, F), for d_h
    d_z,
    d_c,
    d_held_before,  # what the mask hands on to h, where there is one
    row_count,
    P,
    Y,
    X,
    F,
    KZ: tl.constexpr,
    KY: tl.constexpr,
    KX: tl.constexpr,
    BY_PIXEL: tl.constexpr,
    PHI: tl.constexpr,
    RHO: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """c' = ρ(i) φ(g) + ρ(f) c, h' = ρ(o) φ(c'); the gates are made anew from z and c."""
    rows, columns, there = _places(row_count, F, ROWS, COLUMNS)
    at, at_z = rows * F + columns, rows * 4 * F + columns

    d_shown = tl.zeros((ROWS, COLUMNS), tl.float32)
    if d_h is None:
        blocks = tl.cdiv(4 * F, INNER)
        for n in range(KZ * KY * KX * blocks):
            tap, first = n // blocks, n % blocks * INNER
            seen = _seen(
                d_z_next, 4 * F, rows, row_count, first + tl.arange(0, INNER)[None, :], tap, -1, P, Y, X, KZ, KY, KX
            )
            k = first + tl.arange(0, INNER)[:, None]
            w = tl.load(taps + (tap * 4 * F + k) * F + columns, mask=(k < 4 * F) & (columns < F), other=0.0)
            d_shown = _product(seen, w, d_shown, PRECISION, WIDEN)
    else:
        d_shown += _read(d_h, at, there)
    if d_held is not None:
        d_shown += _read(d_held, at, there)
    if d_y is not None:
        d_shown += _read(d_y, at, there)

    before = _read(c, at, there)
    w_i, w_f, w_o = _peepholes(w_c, before, rows, columns, there, P, F, BY_PIXEL)
    z_i, z_f = _read(z, at_z, there), _read(z, at_z + F, there)
    z_g, z_o = _read(z, at_z + 2 * F, there), _read(z, at_z + 3 * F, there)
    z_i, z_f, z_g, z_o = _with_bias_and_peepholes(z_i, z_f, z_g, z_o, bias, w_i, w_f, before, columns, there, F)
    i, f, g = _activated(z_i, RHO), _activated(z_f, RHO), _activated(z_g, PHI)
    after = f * before + i * g
    z_o += w_o * after
    o, a = _activated(z_o, RHO), _activated(after, PHI)

    d_after = _read(d_c_after, at, there)
    d_o = d_shown * a * _slope(z_o, o, RHO)
    d_inside = d_after + d_shown * o * _slope(after, a, PHI) + w_o * d_o  # of c', as far as it is computed
    d_i = d_inside * g * _slope(z_i, i, RHO)
    d_f = d_inside * before * _slope(z_f, f, RHO)
    d_g = d_inside * i * _slope(z_g, g, PHI)
    d_before = d_inside * f + w_i * d_i + w_f * d_f
    if used is not None:
        now = tl.load(used + rows // P, mask=rows < row_count, other=0) != 0
        d_i, d_f = tl.where(now, d_i, 0.0), tl.where(now, d_f, 0.0)
        d_g, d_o = tl.where(now, d_g, 0.0), tl.where(now, d_o, 0.0)
        d_before = tl.where(now, d_before, d_after)
        tl.store(d_held_before + at, tl.where(now, 0.0, d_shown), mask=there)
    narrow = d_z.dtype.element_ty
    tl.store(d_z + at_z, d_i.to(narrow), mask=there)
    tl.store(d_z + at_z + F, d_f.to(narrow), mask=there)
    tl.store(d_z + at_z + 2 * F, d_g.to(narrow), mask=there)
    tl.store(d_z + at_z + 3 * F, d_o.to(narrow), mask=there)
    tl.store(d_c + at, d_before, mask=there)


# --- launchers ---

INTERPRETED = not isinstance(_step_kernel, triton.JITFunction)  # it takes bfloat16 for integers in products (3.9)
TILES = 128  # of a fused step at least, if need be small ones: so many multiprocessors a large GPU has


class Cell(NamedTuple):
    """What all steps of a call have in common."""

    batch: int
    hidden: int
    size: tuple[int, ...]  # of a map, one to three axes
    kernel: tuple[int, ...]  # of the recurrent convolution
    activation: str
    recurrent_activation: str
    precision: str  # of products of float32: "tf32" or "ieee"
    bias: Tensor | None
    w_c: Tensor | None

    @property
    def rows(self) -> int:
        return self.batch * prod(self.size)

    def shared(self) -> dict[str, Any]:
        y, x = (1, *self.size)[-2:]
        kz, ky, kx = (1, 1, *self.kernel)[-3:]
        return {
            "bias": self.bias,
            "w_c": self.w_c,
            "row_count": self.rows,
            "P": prod(self.size),
            "Y": y,
            "X": x,
            "F": self.hidden,
            "KZ": kz,
            "KY": ky,
            "KX": kx,
            "BY_PIXEL": self.w_c is not None and self.w_c.ndim == 2,
            "PHI": self.activation,
            "RHO": self.recurrent_activation,
            "PRECISION": self.precision,
            "WIDEN": INTERPRETED,
        }


def _launch(kernel: Any, cell: Cell, *, fused: bool, **given: Tensor | None) -> None:
    columns = min(64, max(16, triton.next_power_of_2(cell.hidden)))
    rows = 1024 // columns
    if fused:  # products take tiles of 16 at least
        columns = min(columns, 32)
        rows = 64 if triton.cdiv(cell.rows, 64) * triton.cdiv(cell.hidden, columns) >= TILES else 16
    grid = (triton.cdiv(cell.rows, rows), triton.cdiv(cell.hidden, columns))
    if cell.rows:
        kernel[grid](**given, **cell.shared(), ROWS=rows, COLUMNS=columns, INNER=32, num_warps=4, enable_fp_fusion=True)


def step(
    cell: Cell,
    *,
    from_x: Tensor | None,
    from_h: Tensor | None,
    taps: Tensor | None,
    used: Tensor | None,
    h: Tensor,
    c: Tensor,
    z: Tensor | None,
    h_after: Tensor,
    c_after: Tensor,
) -> None:
    """Write h_after, c_after, and z where the backward will need it. Of from_h and taps one is given; h_after must not be h."""
    _launch(
        _step_kernel,
        cell,
        fused=from_h is None,
        from_x=from_x,
        from_h=from_h,
        taps=taps,
        used=used,
        h=h,
        c=c,
        z_after=z,
        h_after=h_after,
        c_after=c_after,
    )


def back(
    cell: Cell,
    *,
    z: Tensor,
    used: Tensor | None,
    c: Tensor,
    d_y: Tensor | None,
    d_h: Tensor | None,
    d_held: Tensor | None,
    d_c_after: Tensor,
    d_z_next: Tensor | None,
    taps: Tensor | None,
    d_z: Tensor,
    d_c: Tensor,
    d_held_before: Tensor | None,
) -> None:
    """Write d_z, d_c, and d_held_before under a mask. Either d_h is given, or d_z_next and taps."""
    _launch(
        _back_kernel,
        cell,
        fused=d_h is None,
        z=z,
        used=used,
        c=c,
        d_y=d_y,
        d_h=d_h,
        d_held=d_held,
        d_c_after=d_c_after,
        d_z_next=d_z_next,
        taps=taps,
        d_z=d_z,
        d_c=d_c,
        d_held_before=d_held_before,
    )
