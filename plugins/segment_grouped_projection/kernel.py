"""The kernel: one matrix product that walks the activations as they lie in memory.

    y[b, k, q, t, o] = sum over p, s of x[b, p, q, s, o] * weight[(k t), (p s)]

Rows of the product are (b q o), columns are (k t), and the contraction runs over (p s): where a row starts and where
the contraction steps are strides of `x`, so nothing is permuted on the way in or out. Without a trailing axis (o = 1)
the runs of s are contiguous; with one, the runs of o.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["batch"])
def project(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    scale,
    accumulate,
    batch,
    y,
    P: tl.constexpr,
    Q: tl.constexpr,
    S: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    T: tl.constexpr,
    WEIGHT_ROW: tl.constexpr,
    WEIGHT_COLUMN: tl.constexpr,
    CHANNELS: tl.constexpr,
    SHARE: tl.constexpr,
    GELU: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`x` (batch, P, Q, S, O), contiguous, to `y` (batch, K, Q, T, O); the pointers before `batch` may be None.

    `weight[n, c]` lies at n * WEIGHT_ROW + c * WEIGHT_COLUMN; rows that are longer than P * S end in zeros. In this
    order: `bias` (K*T,) is added, GELU is applied ("erf" or "tanh"), the result is multiplied by `scale`
    (batch / SHARE, CHANNELS) of its image and channel, and added to `accumulate`, which lies as `y` and may be `y`. A
    channel is (q % (CHANNELS / (T * O)), t, o); SHARE batch entries are one image. WIDE: the addresses need 64 bits.
    The grid is tiles of rows times tiles of columns, the latter fastest, so that the tiles which read the same
    activations run together.
    """
    columns: tl.constexpr = (K * T + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0)
    m = (tile // columns) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tile % columns) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_m, inside_n = m < batch * (Q * O), n < K * T
    if Q == 1:  # said so, since rest // O and rest % O hide from the compiler that o runs
        b, q, o = m // O, tl.zeros([BLOCK_M], tl.int32), m % O
    else:
        b, rest = m // (Q * O), m % (Q * O)
        q, o = rest // O, rest % O
    image = b.to(tl.int64) if WIDE else b
    rows = x + (image * (P * Q * S * O) + q * (S * O) + o)[:, None]
    matrix = weight + (n * WEIGHT_ROW)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, P * S, BLOCK_K):
        c = start + tl.arange(0, BLOCK_K)
        p, s = (0, c) if P == 1 else (c // S, c % S)  # c goes beyond S where it is masked: no quotient that is 0
        a = rows + (p * (Q * S * O) + s * O)[None, :]
        w = matrix + (c * WEIGHT_COLUMN)[:, None]
        if (P * S) % BLOCK_K == 0:
            left = tl.load(a, mask=inside_m[:, None], other=0.0)
            right = tl.load(w, mask=inside_n[None, :], other=0.0)
        else:
            inside_c = c < P * S
            read = c < WEIGHT_ROW if WEIGHT_COLUMN == 1 else inside_c  # zeros of a padded row too, in whole vectors
            left = tl.load(a, mask=inside_m[:, None] & inside_c[None, :], other=0.0)
            right = tl.load(w, mask=inside_n[None, :] & read[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    k, t = n // T, n % T
    if bias is not None:
        total += tl.load(bias + n, mask=inside_n, other=0.0).to(tl.float32)[None, :]
    if GELU == "erf":
        total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    if GELU == "tanh":  # 1 + tanh(u) is 2 sigmoid(2 u)
        total = total * tl.sigmoid(total * (1.5957691216057308 + 0.07135481282553494 * total * total))
    if scale is not None:
        channel = ((q % (CHANNELS // (T * O))) * (T * O) + o)[:, None] + (t * O)[None, :]
        weights = scale + (b // SHARE * CHANNELS)[:, None] + channel
        total *= tl.load(weights, mask=inside_m[:, None] & inside_n[None, :], other=0.0).to(tl.float32)
    place = (image * (K * Q * T * O) + q * (T * O) + o)[:, None] + (k * (Q * T * O) + t * O)[None, :]
    inside = inside_m[:, None] & inside_n[None, :]
    if accumulate is not None:
        total += tl.load(accumulate + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=inside)
