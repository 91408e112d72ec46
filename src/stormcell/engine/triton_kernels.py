"""The kernels of the Triton engine, and their launchers. Imports triton, so that triton.py imports it when it computes.

Tensors are matrices without gaps, where nothing else is said. A row is a pixel of a sample, r = b·P + p, a column a channel:
maps of any number of dimensions in channels-last order. A program computes a tile of rows and columns with all four gates of
these channels, so that the state is updated where its pre-activations are made. Arithmetic is in float32 whatever the tensors
are.

The recurrent convolution in a kernel is a product of matrices, summed over taps and blocks of channels: what the rows of a
tile see through a tap, times the weights of that tap. These lie as `Cell.taps` makes them, with zeros up to whole tiles, the
four gates of a channel side by side, so that one product makes them all.

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

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

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
def _convolved(
    h,
    taps,
    row_count,
    P,
    Y,
    X,
    F,
    F_K,  # columns of taps
    KZ: tl.constexpr,
    KY: tl.constexpr,
    KX: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    EVEN: tl.constexpr,  # whether F_K is F
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """What the tile's rows see of h, zeros outside of a map, times taps: (ROWS, 4 · COLUMNS)."""
    TAPS: tl.constexpr = KZ * KY * KX
    start = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    p = ((start % P).to(tl.int32) + row) % P
    pz, py, px = p // (Y * X), p // X % Y, p % X
    there = row < row_count - start
    k = tl.arange(0, INNER)
    own = h + start * F + (row * F)[:, None] + k[None, :]
    column = tl.program_id(1) * 4 * COLUMNS + tl.arange(0, 4 * COLUMNS)
    weights = taps + (column * (TAPS * F_K))[:, None] + k[None, :]
    z = tl.zeros((ROWS, 4 * COLUMNS), tl.float32)
    for n in range(TAPS * (F_K // INNER)):
        tap, first = n % TAPS, n // TAPS * INNER
        dz = tap // (KY * KX) - (KZ - 1) // 2  # "same": an even kernel has the larger part of the zeros after
        dy = tap // KX % KY - (KY - 1) // 2
        dx = tap % KX - (KX - 1) // 2
        inside = there & (py + dy >= 0) & (py + dy < Y) & (px + dx >= 0) & (px + dx < X)
        if KZ > 1:
            inside = inside & (pz + dz >= 0) & ((pz + dz) * (Y * X) < P)
        seen = inside[:, None]
        if not EVEN:
            seen = seen & (k + first < F)[None, :]
        a = tl.load(own + (((dz * Y + dy) * X + dx) * F + first), mask=seen, other=0.0)
        b = tl.load(weights + (tap * F_K + first))
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        z = tl.dot(a, tl.trans(b), z, input_precision=PRECISION)
    return z


@triton.jit
def _gates(z, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """i, f, g, o (ROWS, COLUMNS) of what the rows of `taps` make."""
    z = tl.permute(tl.reshape(z, (ROWS, COLUMNS // 4, 2, 4, 2)), (0, 1, 3, 2, 4))
    i_g, f_o = tl.split(tl.reshape(z, (ROWS, COLUMNS, 2, 2)))
    z_i, z_g = tl.split(i_g)
    z_f, z_o = tl.split(f_o)
    return z_i, z_f, z_g, z_o


@triton.jit
def _with_bias_and_peepholes(z_i, z_f, z_g, z_o, bias, w_i, w_f, c, columns, F):
    if bias is not None:
        there = columns < F  # of the pointers' shape: before 3.5 Triton does not make them that of a mask
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
    taps,  # for that
    bias,  # (4F,), or None
    w_c,  # or None
    used,  # or None
    h,
    c,
    z_after,  # what the backward needs, or None
    h_after,
    h_again,  # or None: another place for it, its rows h_again_width apart
    c_after,
    h_again_width,
    row_count,
    P,
    Y,
    X,
    F,
    F_K,
    KZ: tl.constexpr,
    KY: tl.constexpr,
    KX: tl.constexpr,
    BY_PIXEL: tl.constexpr,
    PHI: tl.constexpr,
    RHO: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    rows, columns, there = _places(row_count, F, ROWS, COLUMNS)
    at, at_z = rows * F + columns, rows * 4 * F + columns

    if from_h is None:
        z = _convolved(h, taps, row_count, P, Y, X, F, F_K, KZ, KY, KX, PRECISION, WIDEN, EVEN, ROWS, COLUMNS, INNER)
        z_i, z_f, z_g, z_o = _gates(z, ROWS, COLUMNS)
    else:
        z_i = _read(from_h, at_z, there)
        z_f = _read(from_h, at_z + F, there)
        z_g = _read(from_h, at_z + 2 * F, there)
        z_o = _read(from_h, at_z + 3 * F, there)
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
    z_i, z_f, z_g, z_o = _with_bias_and_peepholes(z_i, z_f, z_g, z_o, bias, w_i, w_f, before, columns, F)
    after = _activated(z_f, RHO) * before + _activated(z_i, RHO) * _activated(z_g, PHI)
    shown = _activated(z_o + w_o * after, RHO) * _activated(after, PHI)
    if used is not None:
        now = tl.load(used + rows // P, mask=rows < row_count, other=0) != 0
        after = tl.where(now, after, before)
        shown = tl.where(now, shown, _read(h, at, there))
    tl.store(c_after + at, after, mask=there)
    tl.store(h_after + at, shown.to(narrow), mask=there)
    if h_again is not None:
        tl.store(h_again + rows * h_again_width + columns, shown.to(narrow), mask=there)


# --- and back ---


@triton.jit
def _add_to_sums(sums, values, COLUMNS: tl.constexpr, F):
    """The sums over a tile's rows, to those of the steps before: no other program has this place."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = sums + tl.program_id(0) * 3 * F + columns
    there = columns < F
    tl.store(at, tl.load(at, mask=there, other=0.0) + tl.sum(values, 0), mask=there)


@triton.jit
def _back_kernel(
    z,
    bias,  # or None
    w_c,  # or None
    used,  # or None
    c,
    d_y,  # (B·P, F) each: what the step's output, or None,
    d_h,  # the next step, its rows d_h_width apart,
    d_held,  # and the steps that the mask left out, or None, say of h'
    d_c_after,
    d_z,
    d_c,
    d_held_before,  # what the mask hands on to h, where there is one
    sums,  # of what a channel's peepholes get: (tiles of rows, 3F), added to; or None
    d_h_width,
    row_count,
    P,
    F,
    BY_PIXEL: tl.constexpr,
    PHI: tl.constexpr,
    RHO: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """c' = ρ(i) φ(g) + ρ(f) c, h' = ρ(o) φ(c'); the gates are made anew from z and c."""
    rows, columns, there = _places(row_count, F, ROWS, COLUMNS)
    at, at_z = rows * F + columns, rows * 4 * F + columns

    d_shown = _read(d_h, rows * d_h_width + columns, there)
    if d_held is not None:
        d_shown += _read(d_held, at, there)
    if d_y is not None:
        d_shown += _read(d_y, at, there)

    before = _read(c, at, there)
    w_i, w_f, w_o = _peepholes(w_c, before, rows, columns, there, P, F, BY_PIXEL)
    z_i, z_f = _read(z, at_z, there), _read(z, at_z + F, there)
    z_g, z_o = _read(z, at_z + 2 * F, there), _read(z, at_z + 3 * F, there)
    z_i, z_f, z_g, z_o = _with_bias_and_peepholes(z_i, z_f, z_g, z_o, bias, w_i, w_f, before, columns, F)
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
    if sums is not None:
        _add_to_sums(sums, tl.where(there, d_i * before, 0.0), COLUMNS, F)
        _add_to_sums(sums + F, tl.where(there, d_f * before, 0.0), COLUMNS, F)
        _add_to_sums(sums + 2 * F, tl.where(there, d_o * after, 0.0), COLUMNS, F)


# --- what is no step ---


@triton.jit
def _sum_kernel(values, sums, row_count, width, TILES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(row_count, width) → (programs, width): sums over the rows of so many tiles, one after the other."""
    columns = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for n in range(TILES):
        rows = ((tl.program_id(0).to(tl.int64) * TILES + n) * ROWS + tl.arange(0, ROWS))[:, None]
        total += _read(values, rows * width + columns, (rows < row_count) & (columns < width))
    at = sums + tl.program_id(0) * width + columns
    tl.store(at, tl.sum(total, 0)[None, :], mask=columns < width)


@triton.jit
def _copy_kernel(
    to,
    source,
    samples,
    height,
    width,
    to_m,
    to_n,
    to_i,
    to_j,
    from_m,
    from_n,
    from_i,
    from_j,
    TILE: tl.constexpr,
):
    """(M, samples, height, width) each, by strides: read and written in long pieces whichever axis has no gaps."""
    down, across = tl.cdiv(height, TILE), tl.cdiv(width, TILE)
    program = tl.program_id(0).to(tl.int64)
    mn, i, j = program // (down * across), program // across % down, program % across
    m, n = mn // samples, mn % samples
    i = (i * TILE + tl.arange(0, TILE))[:, None]
    j = (j * TILE + tl.arange(0, TILE))[None, :]
    there = (i < height) & (j < width)
    values = tl.load(source + m * from_m + n * from_n + i * from_i + j * from_j, mask=there)
    tl.store(to + m * to_m + n * to_n + i * to_i + j * to_j, values.to(to.dtype.element_ty), mask=there)


# --- launchers ---

INTERPRETED = not isinstance(_step_kernel, triton.JITFunction)  # it takes bfloat16 for integers in products (3.9)
SUMMED = (16, 32, 128)  # tiles of a program that sums, and their rows and columns
COPIED = 64  # rows and columns of a tile that is copied


class Tile(NamedTuple):
    """What a program computes, and how."""

    rows: int
    columns: int  # channels, with four gates each
    warps: int
    stages: int = 1  # blocks of factors that are under way


@dataclass
class Cell:
    """What all steps of a call have in common."""

    batch: int
    hidden: int
    size: tuple[int, ...]  # of a map, one to three axes
    kernel: tuple[int, ...]  # of the recurrent convolution
    activation: str
    recurrent_activation: str
    dtype: torch.dtype  # of the weights
    precision: str  # of products of float32: "tf32" or "ieee"
    bias: Tensor | None
    w_c: Tensor | None

    @cached_property
    def rows(self) -> int:
        return self.batch * prod(self.size)

    @cached_property
    def tile(self) -> Tile:
        """Of gates alone."""
        columns = min(64, max(16, triton.next_power_of_2(self.hidden)))
        return Tile(1024 // columns, columns, 4)

    @cached_property
    def fused_tile(self) -> Tile:
        """Of a convolution and gates."""
        return Tile(64, 16, 4, 4)

    @cached_property
    def inner(self) -> int:
        """Columns of h that a convolution reads at a time: 128 bytes of a row."""
        return min(128 // self.dtype.itemsize, max(16, triton.next_power_of_2(self.hidden)))

    @cached_property
    def sums(self) -> Tensor | None:
        """Zeros, to which the way back adds what a channel's peepholes get, a row for each tile of rows."""
        if self.w_c is None or self.w_c.ndim > 1:
            return None
        return self.w_c.new_zeros((triton.cdiv(self.rows, self.tile.rows), 3 * self.hidden), dtype=torch.float32)

    def taps(self, weight: Tensor) -> Tensor:
        """Weights (4F, F, *k) → (4F, K, F): the gates of a channel together, as `_gates` wants them, up to whole tiles."""
        by_gate = weight.flatten(2).unflatten(0, (4, self.hidden)).transpose(2, 3)
        spare, spare_k = -self.hidden % self.fused_tile.columns, -self.hidden % self.inner
        if spare or spare_k:
            by_gate = pad(by_gate, (0, spare_k, 0, 0, 0, spare))
        halves = by_gate.unflatten(1, (-1, 4)).unflatten(0, (2, 2))  # (2, 2, F/4, 4, K, F)
        return halves.permute(2, 0, 3, 1, 4, 5).flatten(0, 3).contiguous()

    def launch(self, kernel: Any, tile: Tile, **given: Any) -> None:
        """With what both kernels want."""
        if not self.rows:
            return
        grid = (triton.cdiv(self.rows, tile.rows), triton.cdiv(self.hidden, tile.columns))
        kernel[grid](
            bias=self.bias,
            w_c=self.w_c,
            row_count=self.rows,
            P=prod(self.size),
            F=self.hidden,
            BY_PIXEL=self.w_c is not None and self.w_c.ndim == 2,
            PHI=self.activation,
            RHO=self.recurrent_activation,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,
            **given,
        )


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
    h_again: Tensor | None = None,
    c_after: Tensor,
) -> None:
    """Write h_after, c_after, and z where the backward will need it. Of from_h and taps one is given; h_after must not be h.

    h_again (B·P, F), if given, is written as h_after is; its rows may lie apart.
    """
    y, x = (1, *cell.size)[-2:]
    kz, ky, kx = (1, 1, *cell.kernel)[-3:]
    cell.launch(
        _step_kernel,
        cell.fused_tile if from_h is None else cell.tile,
        from_x=from_x,
        from_h=from_h,
        taps=taps,
        used=used,
        h=h,
        c=c,
        z_after=z,
        h_after=h_after,
        h_again=h_again,
        c_after=c_after,
        h_again_width=0 if h_again is None else h_again.stride(0),
        Y=y,
        X=x,
        F_K=cell.hidden + -cell.hidden % cell.inner,
        KZ=kz,
        KY=ky,
        KX=kx,
        PRECISION=cell.precision,
        WIDEN=INTERPRETED,
        EVEN=cell.hidden % cell.inner == 0,
        INNER=cell.inner,
    )


def back(
    cell: Cell,
    *,
    z: Tensor,
    used: Tensor | None,
    c: Tensor,
    d_y: Tensor | None,
    d_h: Tensor,
    d_held: Tensor | None,
    d_c_after: Tensor,
    d_z: Tensor,
    d_c: Tensor,
    d_held_before: Tensor | None,
) -> None:
    """Write d_z, d_c, and d_held_before under a mask; add to `cell.sums`. The rows of d_h (B·P, F) may lie apart."""
    cell.launch(
        _back_kernel,
        cell.tile,
        z=z,
        used=used,
        c=c,
        d_y=d_y,
        d_h=d_h,
        d_held=d_held,
        d_c_after=d_c_after,
        d_z=d_z,
        d_c=d_c,
        d_held_before=d_held_before,
        sums=cell.sums,
        d_h_width=d_h.stride(0),
    )


def sum_of_rows(values: Tensor) -> Tensor:
    """(R, N) → (N,) in float32. torch reads narrow columns at a quarter of the memory's speed."""
    rows, width = values.shape
    programs = triton.cdiv(rows, SUMMED[0] * SUMMED[1])
    sums = values.new_empty((programs, width), dtype=torch.float32)
    if programs:
        tiles, tall, wide = SUMMED
        grid = (programs, triton.cdiv(width, wide))
        _sum_kernel[grid](
            values, sums, rows, width, TILES=tiles, ROWS=tall, COLUMNS=wide, num_warps=8, enable_fp_fusion=True
        )
    return sums.sum(0)


def copy(to: Tensor, source: Tensor) -> None:
    """to.copy_(source), both (M, N, I, J): fast also where one has I together in memory, and the other J."""
    m, n, i, j = to.shape
    programs = m * n * triton.cdiv(i, COPIED) * triton.cdiv(j, COPIED)
    if programs:
        sizes = (n, i, j, *to.stride(), *source.stride())
        _copy_kernel[programs,](to, source, *sizes, TILE=COPIED, num_warps=8, enable_fp_fusion=True)
