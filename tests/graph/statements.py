"""The statements that a random network can have: each writes one, or two, about a value."""

from __future__ import annotations

import math
from collections.abc import Callable

from hypothesis import strategies as st

from tests.graph.writer import BATCH, Dim, Writer, dim, free, size

IN_PLACE = "{}.clone().relu_().add_(0.1)"


def _unary(w: Writer, name: str, shape: list[Dim]) -> None:
    text = w.pick(
        [
            "F.gelu({})",
            "torch.tanh({})",
            "{} * 1.5",
            "1 - {}",
            "-{}",
            "{} / 3",
            "{}.sigmoid() + 0.5",
            "{}.clone()",
            IN_PLACE,
        ]
    )
    w.emit(str(text).format(name), shape, name)


def _binary(w: Writer, name: str, shape: list[Dim]) -> None:
    others = [other for other, theirs in w.values.items() if _broadcasts(shape, theirs)]
    other = str(w.pick(others[::-1]))
    theirs = w.values[other]
    operator = w.pick(["{} + {}", "{} * {}", "torch.maximum({}, {})", "{} - {}"])
    rank = max(len(shape), len(theirs))
    padded = [[dim(1)] * (rank - len(one)) + one for one in (shape, theirs)]
    result = [a if size(a) != 1 else b for a, b in zip(*padded, strict=True)]
    pair = (name, other) if w.draw(st.booleans()) else (other, name)
    w.emit(str(operator).format(*pair), result, name, other)


def _broadcasts(first: list[Dim], second: list[Dim]) -> bool:
    pairs = list(zip(first[::-1], second[::-1], strict=False))
    spare = (first if len(first) > len(second) else second)[: abs(len(first) - len(second))]
    return (
        all(_alike(a, b) for a, b in pairs)
        and sum(one[1] for one in [*spare, *(a if a[1] else b for a, b in pairs)]) == 1
    )


def _alike(a: Dim, b: Dim) -> bool:
    return a == b or (not a[1] and not b[1] and size(a) == size(b)) or 1 in (size(a), size(b))


def _with_parameter(w: Writer, name: str, shape: list[Dim]) -> None:
    rank = w.draw(st.integers(1, len(shape)))
    sizes = [1 if one[1] or w.draw(st.integers(0, 2)) == 0 else one[0] * one[2] for one in shape[-rank:]]
    operator = w.pick(["{} + {}", "{} * {}"])
    w.emit(str(operator).format(name, w.parameter(*sizes)), shape, name)


def _linear(w: Writer, name: str, shape: list[Dim]) -> None:
    if shape[-1][1]:
        return _permute(w, name, shape)
    last, out = size(shape[-1]), w.draw(st.sampled_from([size(shape[-1]), 4, 6, 2, 1]))
    assert last is not None and out is not None
    bias = w.parameter(out) if w.draw(st.booleans()) else None
    w.emit(f"F.linear({name}, {w.parameter(out, last)}, {bias})", [*shape[:-1], dim(out)], name)


def _contraction(w: Writer, name: str, shape: list[Dim]) -> None:
    index = w.draw(st.sampled_from(free(shape)))
    length, out = size(shape[index]), w.draw(st.sampled_from([size(shape[index]), 4, 3]))
    assert length is not None and out is not None
    result = [*shape[:index], dim(out), *shape[index + 1 :]]
    letters = [*"abcdefg"[: len(shape)]]
    after = [*letters[:index], "z", *letters[index + 1 :]]
    kind = w.draw(st.integers(0, 4))
    if kind == 0 and index == len(shape) - 2 and len(shape) > 2:
        w.emit(f"{w.parameter(out, length)} @ {name}", result, name)
    elif kind == 1 and index == len(shape) - 1 and len(shape) > 1:
        w.emit(f"{name} @ {w.parameter(length, out)}", result, name)
    elif kind == 2:
        result = [*shape[:index], *shape[index + 1 :], dim(out)]
        w.emit(f"torch.tensordot({name}, {w.parameter(out, length)}, dims=([{index}], [1]))", result, name)
    elif kind == 3:
        order = w.draw(st.permutations(range(len(shape))))
        terms = f"z{letters[index]},{''.join(letters)}->{''.join(after[i] for i in order)}"
        w.emit(f"torch.einsum('{terms}', {w.parameter(out, length)}, {name})", [result[i] for i in order], name)
    else:
        terms = f"{''.join(letters)},{letters[index]}z->{''.join(after)}"
        w.emit(f"torch.einsum('{terms}', {name}, {w.parameter(length, out)})", result, name)


def _norm(w: Writer, name: str, shape: list[Dim]) -> None:
    count = w.draw(st.integers(1, max(1, len(shape) - 1)))
    if any(one[1] for one in shape[-count:]):
        return _permute(w, name, shape)
    sizes = [one[0] * one[2] for one in shape[-count:]]
    affine = f", {w.parameter(*sizes)}, {w.parameter(*sizes)}" if w.draw(st.booleans()) else ""
    w.emit(f"F.layer_norm({name}, {sizes}{affine})", shape, name)


def _softmax(w: Writer, name: str, shape: list[Dim]) -> None:
    index = w.draw(st.sampled_from(free(shape)))
    negative = index - len(shape) if w.draw(st.booleans()) else index
    w.emit(f"torch.softmax({name}, {negative})", shape, name)


def _reduce(w: Writer, name: str, shape: list[Dim]) -> None:
    if len(free(shape)) < 2:
        return _unary(w, name, shape)
    dims = sorted(w.draw(st.sets(st.sampled_from(free(shape)), min_size=1, max_size=2)))
    keep = w.draw(st.booleans())
    result = [dim(1) if index in dims else one for index, one in enumerate(shape) if keep or index not in dims]
    w.emit(f"{name}.{w.pick(['mean', 'sum', 'amax'])}({dims}, keepdim={keep})", result, name)


def _part(w: Writer, name: str, shape: list[Dim]) -> None:
    index = w.draw(st.sampled_from(free(shape)))
    length = size(shape[index])
    assert length is not None
    kind = w.draw(st.integers(0, 4))
    if kind == 0 and length > 1:
        half = dim(-(-length // 2))
        rest = dim(length - (-(-length // 2)))
        w.emit(f"{name}.chunk(2, {index})[0]", [*shape[:index], half, *shape[index + 1 :]], name)
        w.emit(f"{name}.chunk(2, {index})[1]", [*shape[:index], rest, *shape[index + 1 :]], name)
    elif kind == 1 and len(shape) > 2:
        at = w.draw(st.integers(0, length - 1))
        w.emit(f"{name}.select({index}, {at})", [*shape[:index], *shape[index + 1 :]], name)
    elif kind == 2 and len(shape) > 2:
        w.emit(f"{name}.unbind({index})[{length - 1}]", [*shape[:index], *shape[index + 1 :]], name)
    elif kind == 3 and length > 1:
        w.emit(
            f"{name}.split([1, {length - 1}], {index})[1]", [*shape[:index], dim(length - 1), *shape[index + 1 :]], name
        )
    else:
        start = w.draw(st.integers(0, length - 1))
        w.emit(
            f"{name}.narrow({index}, {start}, {length - start})",
            [*shape[:index], dim(length - start), *shape[index + 1 :]],
            name,
        )


def _join(w: Writer, name: str, shape: list[Dim]) -> None:
    index = w.draw(st.sampled_from(free(shape)))
    length = size(shape[index])
    assert length is not None
    others = [n for n, theirs in w.values.items() if len(theirs) == len(shape)]
    others = [
        n
        for n in others
        if all(
            a == b or (not a[1] and not b[1] and size(a) == size(b)) for a, b in zip(shape, w.values[n], strict=True)
        )
    ]
    other = str(w.pick(others))
    if w.draw(st.booleans()):
        w.emit(
            f"torch.cat([{name}, {other}], {index})",
            [*shape[:index], dim(2 * length), *shape[index + 1 :]],
            name,
            other,
        )
    elif len(shape) < 5:
        w.emit(f"torch.stack([{name}, {other}], {index})", [*shape[:index], dim(2), *shape[index:]], name, other)


def _permute(w: Writer, name: str, shape: list[Dim]) -> None:
    order = w.draw(st.permutations(range(len(shape))))
    w.emit(f"{name}.permute({list(order)})", [shape[index] for index in order], name)


def _transpose(w: Writer, name: str, shape: list[Dim]) -> None:
    a, b = (w.draw(st.integers(0, len(shape) - 1)) for _ in range(2))
    result = list(shape)
    result[a], result[b] = result[b], result[a]
    text = w.pick(["{}.transpose({}, {})", "torch.swapaxes({}, {}, {})"])
    w.emit(str(text).format(name, a - len(shape), b), result, name)


def _merge(w: Writer, name: str, shape: list[Dim]) -> None:
    if len(shape) < 3:
        return _split(w, name, shape)
    first = w.draw(st.integers(0, len(shape) - 2))
    a, b = shape[first : first + 2]
    if a[1]:
        merged = (a[0], True, a[2] * b[0] * b[2])
    elif b[1]:
        merged = (a[0] * a[2] * b[0], True, b[2])
    else:
        merged = dim(a[0] * a[2] * b[0] * b[2])
    return w.emit(f"{name}.flatten({first}, {first + 1})", [*shape[:first], merged, *shape[first + 2 :]], name)


def _split(w: Writer, name: str, shape: list[Dim]) -> None:
    if len(shape) > 4:
        return _unary(w, name, shape)
    index = w.draw(st.sampled_from(range(len(shape))))
    before, has_batch, after = shape[index]
    if has_batch:
        parts, sizes = [dim(before), BATCH, dim(after)], f"({before}, -1, {after})"
    else:
        factor = w.draw(st.sampled_from([n for n in range(1, before * after + 1) if before * after % n == 0]))
        parts, sizes = [dim(factor), dim(before * after // factor)], f"({factor}, {before * after // factor})"
    return w.emit(f"{name}.unflatten({index}, {sizes})", [*shape[:index], *parts, *shape[index + 1 :]], name)


def _reshape(w: Writer, name: str, shape: list[Dim]) -> None:
    """All that is behind the batch, or in front of it, in other factors."""
    at = next(index for index, one in enumerate(shape) if one[1])
    behind = [one[0] * one[2] for one in shape[at + 1 :]]
    total = math.prod(behind)
    factor = w.draw(st.sampled_from([n for n in range(1, total + 1) if total % n == 0]))
    result = [*shape[: at + 1], dim(factor), dim(total // factor)]
    sizes = ", ".join("-1" if one[1] else str(one[0] * one[2]) for one in result)
    w.emit(f"{name}.reshape({sizes})", result, name)


def _ones(w: Writer, name: str, shape: list[Dim]) -> None:
    ones = [index for index, one in enumerate(shape) if size(one) == 1]
    if ones and w.draw(st.booleans()) and len(shape) > 2:
        index = w.draw(st.sampled_from(ones))
        w.emit(f"{name}.squeeze({index})", [*shape[:index], *shape[index + 1 :]], name)
    elif len(shape) < 5:
        index = w.draw(st.integers(0, len(shape)))
        w.emit(f"{name}.unsqueeze({index})", [*shape[:index], dim(1), *shape[index:]], name)


def _attention(w: Writer, name: str, shape: list[Dim]) -> None:
    if len(shape) < 3 or shape[-1][1] or shape[-2][1]:
        return _permute(w, name, shape)
    return w.emit(f"torch.softmax({name} @ {name}.mT, -1) @ {name}", shape, name)


def _shift(w: Writer, name: str, shape: list[Dim]) -> None:
    index = w.draw(st.sampled_from(free(shape)))
    w.emit(str(w.pick(["{}.roll(1, {})", "{}.flip({})", "{}.cumsum({})"])).format(name, index), shape, name)


def _expand(w: Writer, name: str, shape: list[Dim]) -> None:
    ones = [index for index, one in enumerate(shape) if size(one) == 1]
    if not ones:
        return _unary(w, name, shape)
    index = w.draw(st.sampled_from(ones))
    sizes = [2 if i == index else -1 for i in range(len(shape))]
    return w.emit(f"{name}.expand({sizes})", [*shape[:index], dim(2), *shape[index + 1 :]], name)


def _convolution(w: Writer, name: str, shape: list[Dim]) -> None:
    if len(shape) not in (3, 4) or shape[0][0] * shape[0][2] != 1 or not shape[0][1]:
        return _permute(w, name, shape)
    channels = size(shape[1])
    assert channels is not None
    spatial = len(shape) - 2
    out = w.draw(st.sampled_from([channels, 3]))
    kernel = w.draw(st.sampled_from([1, 3]))
    weight = w.parameter(out, channels, *[kernel] * spatial)
    result = [shape[0], dim(out), *shape[2:]]
    return w.emit(f"F.conv{spatial}d({name}, {weight}, padding={kernel // 2})", result, name)


def _batch_norm(w: Writer, name: str, shape: list[Dim]) -> None:
    if len(shape) < 2 or size(shape[1]) is None:
        return _permute(w, name, shape)
    n = size(shape[1])
    assert n is not None
    return w.emit(
        f"F.batch_norm({name}, {w.parameter(n)}, {w.parameter(n)}.square() + 0.5, {w.parameter(n)})", shape, name
    )


KINDS: list[Callable[[Writer, str, list[Dim]], None]] = [
    _linear, _permute, _unary, _binary, _transpose, _merge, _split, _contraction, _with_parameter, _norm, _softmax,
    _reduce, _part, _join, _reshape, _ones, _expand, _attention, _shift, _convolution, _batch_norm,
    _linear, _transpose, _binary,
]  # fmt: skip

ALWAYS = [_unary, _split, _ones]
"""Those for a value that has the batch in its every dimension."""
