"""The FLOPs of a step, counted without the backend.

XLA's own analysis treats library calls as opaque: on a GPU, where cuDNN and cuBLAS compute convolutions and products,
its FLOPs leave out nearly the whole step. This module counts the FLOPs of the program before compilation, with the body
of a loop counted once. (`explain` has the bytes of the compiled program.)
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from sintrovae_jax.arrays import Tree


def flops(jaxpr: Jaxpr) -> float:
    """The FLOPs of a jaxpr's convolutions and matrix products, without dead code and, as XLA counts, without padding.

    Elementwise operations are not counted: they are bound by memory. Only the most expensive branch of a `cond` counts.
    """
    return _flops(jaxpr, [True] * len(jaxpr.outvars))[0]


def _flops(jaxpr: Jaxpr, wanted: list[bool]) -> tuple[float, list[bool]]:
    """The FLOPs that the wanted outputs need, and the inputs that they need."""
    total, live = 0.0, {var for var, want in zip(jaxpr.outvars, wanted, strict=True) if want and not _literal(var)}
    for eqn in reversed(jaxpr.eqns):
        wanted = [var in live for var in eqn.outvars]
        if not any(wanted) and not eqn.effects:
            continue
        needed = [True] * len(eqn.invars)
        if inner := [each for value in eqn.params.values() for each in _jaxprs(value)]:
            counts, needs = zip(*(_inside(eqn, each, wanted) for each in inner), strict=True)
            total += max(counts) if eqn.primitive.name == "cond" else sum(counts)
            needed = [any(need) for need in zip(*needs, strict=True)]
        elif eqn.primitive.name == "conv_general_dilated":
            total += _convolution(eqn)
        elif eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            x, out = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
            total += 2 * math.prod(out) * math.prod(x[i] for i in contracted)
        live |= {var for var, need in zip(eqn.invars, needed, strict=True) if need and not _literal(var)}
    return total, [var in live for var in jaxpr.invars]


def _inside(eqn: JaxprEqn, inner: Jaxpr, wanted: list[bool]) -> tuple[float, list[bool]]:
    """`_flops` of a jaxpr within an equation. All outputs of a loop are wanted, as inputs of its next iteration."""
    same = len(inner.outvars) == len(wanted) and eqn.primitive.name not in ("scan", "while")
    total, needed = _flops(inner, wanted if same else [True] * len(inner.outvars))
    extra = len(eqn.invars) - len(inner.invars)  # the index of a branch comes first
    return total, [True] * extra + needed if same and extra >= 0 else [True] * len(eqn.invars)


def _literal(var: Var | Literal) -> bool:
    return hasattr(var, "val")


def _jaxprs(value: Any) -> list[Jaxpr]:
    """The jaxprs in a parameter of an equation, without derivative rules, which are still functions."""
    if isinstance(value, tuple | list):
        return [each for item in value for each in _jaxprs(item)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []


def _shape(var: Any) -> tuple[int, ...]:
    return var.aval.shape  # only abstract arrays have a shape


def _convolution(eqn: JaxprEqn) -> float:
    params, (x, kernel), out = eqn.params, map(_shape, eqn.invars), _shape(eqn.outvars[0])
    numbers = params["dimension_numbers"]
    products = out[numbers.out_spec[0]] * kernel[numbers.rhs_spec[0]] * kernel[numbers.rhs_spec[1]]
    windows = zip(
        params["window_strides"], params["padding"], params["lhs_dilation"], params["rhs_dilation"], strict=True
    )
    for i, (stride, (pad, _), x_dilation, dilation) in enumerate(windows, 2):
        sizes = (x[numbers.lhs_spec[i]], kernel[numbers.rhs_spec[i]], out[numbers.out_spec[i]])
        products *= _hits(*sizes, stride, pad, x_dilation, dilation)
    return 2 * products


def _hits(size: int, kernel: int, out: int, stride: int, pad: int, x_dilation: int, dilation: int) -> int:
    """The number of pairs (output, kernel position) along one axis that meet an actual input value, not padding."""
    position = np.arange(out)[:, None] * stride + np.arange(kernel) * dilation - pad
    return int(((position >= 0) & (position <= (size - 1) * x_dilation) & (position % x_dilation == 0)).sum())


def jaxpr_of(function: Callable[..., Tree], *args: Tree) -> Jaxpr:
    """The jaxpr of a function called with these arguments, which may be shapes."""
    return jax.make_jaxpr(function)(*args).jaxpr
