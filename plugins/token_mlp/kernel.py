"""The kernel: both products of an MLP over tokens for a tile of channels, whose hidden activations stay on the chip.

    hidden[h, c] = gelu(up_bias[h] + sum over n of up[h, n] * x[b, n, c])
    y[b, m, c] = residual[b, m, c] + down_bias[m] + sum over h of down[m, h] * hidden[h, c]

Channels are the rows of both products, so that the first one's result is the left operand of the second as it lies in
registers, and both matrices are read along their rows. This is the order of attention without a softmax: x is the
queries, `up` the keys and `down` the values (Dao et al., FlashAttention, arXiv 2205.14135).
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["batch"])
def mlp(  # type: ignore[no-untyped-def]
    x,
    up,
    up_bias,
    down,
    down_bias,
    residual,
    batch,
    y,
    N: tl.constexpr,
    H: tl.constexpr,
    M: tl.constexpr,
    C: tl.constexpr,
    UP_ROW: tl.constexpr,
    DOWN_ROW: tl.constexpr,
    GELU: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """`x` (batch, N, C), contiguous, to `y` (batch, M, C); `up_bias`, `down_bias` and `residual` may be None.

    `up` is (H, N), `down` (M, H); their rows begin UP_ROW and DOWN_ROW numbers apart, and end in zeros where these are
    more. `up_bias` (H,) is added in front of GELU ("erf" or "tanh"), `down_bias` (M,) behind the second product, and
    then `residual`, which lies as `y` and may be `y`. BLOCK_N and BLOCK_M hold all tokens. WIDE: the addresses need 64
    bits. The grid is images times tiles of channels, the latter fastest.
    """
    tiles: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tile = tl.program_id(0)
    image = tile // tiles
    b = image.to(tl.int64) if WIDE else image
    c = (tile % tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    n, m = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    inside_c = c < C
    rows = tl.load(
        x + b * (N * C) + c[:, None] + (n * C)[None, :], mask=inside_c[:, None] & (n < N)[None, :], other=0.0
    )
    read = n < UP_ROW  # zeros of a padded row too, in whole vectors
    total = tl.zeros((BLOCK_C, BLOCK_M), tl.float32)
    for start in range(0, H, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        keys = tl.load(up + (h * UP_ROW)[None, :] + n[:, None], mask=(h < H)[None, :] & read[:, None], other=0.0)
        values = tl.load(
            down + (m * DOWN_ROW)[None, :] + h[:, None], mask=(m < M)[None, :] & (h < DOWN_ROW)[:, None], other=0.0
        )
        hidden = tl.dot(rows, keys, input_precision=PRECISION)
        if up_bias is not None:
            hidden += tl.load(up_bias + h, mask=h < H, other=0.0).to(tl.float32)[None, :]
        if GELU == "erf":
            hidden = 0.5 * hidden * (1.0 + tl.erf(hidden * 0.7071067811865476))
        else:  # 1 + tanh(u) is 2 sigmoid(2 u)
            hidden = hidden * tl.sigmoid(hidden * (1.5957691216057308 + 0.07135481282553494 * hidden * hidden))
        total = tl.dot(hidden.to(x.dtype.element_ty), values, total, input_precision=PRECISION)
    if down_bias is not None:
        total += tl.load(down_bias + m, mask=m < M, other=0.0).to(tl.float32)[None, :]
    place = b * (M * C) + c[:, None] + (m * C)[None, :]
    inside = inside_c[:, None] & (m < M)[None, :]
    if residual is not None:
        total += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=inside)
