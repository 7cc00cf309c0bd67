"""ReLU convolved with densities (RESCU), and activations with a gate."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from locojax.core import checks
from locojax.methods.smelu import arrays, piecewise

KERNELS = ("box", "triangle", "cosine", "logistic", "gaussian", "student")


# RESCU: ReLU convolved with a symmetric density of width 1. With a = |x|,
# `lower` is the distribution function at -a and `tail` its integral, so that
# the convolution is max(x, 0) + tail(a). The box is SmeLU.


def _gap(a):
  return jnp.maximum(1 - a, 0)


def _gaussian_lower(a):
  return 0.5 * jax.scipy.special.erfc(jnp.minimum(a, 100) * math.sqrt(0.5))


def _gaussian_tail(a):
  density = jnp.exp(-0.5 * jnp.square(a)) / math.sqrt(2 * math.pi)
  return density - jnp.minimum(a, 100) * _gaussian_lower(a)


def _student_lower(a):
  a = jnp.minimum(a, 1e18)
  root = jnp.sqrt(1 + jnp.square(a))
  return 0.5 / (root * (root + a))


def _cosine_lower(a):
  b = _gap(a)
  # Rounding may make it negative where b is tiny.
  return jnp.maximum(b - jnp.sin(math.pi * b) / math.pi, 0) / 2


def _cosine_tail(a):
  return jnp.square(_gap(a) / 2) - jnp.square(
    jnp.sin(math.pi / 2 * _gap(a)) / math.pi
  )


_LOWER = {
  "triangle": lambda a: jnp.square(_gap(a)) / 2,
  "cosine": _cosine_lower,
  "logistic": lambda a: jax.nn.sigmoid(-a),
  "gaussian": _gaussian_lower,
  "student": _student_lower,
}
_TAIL = {
  "triangle": lambda a: _gap(a) ** 3 / 6,
  "cosine": _cosine_tail,
  "logistic": lambda a: jnp.log1p(jnp.exp(-a)),
  "gaussian": _gaussian_tail,
  "student": lambda a: 0.5 / (jnp.sqrt(1 + jnp.square(a)) + a),
}


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _tail(kernel, a):
  return _TAIL[kernel](a)


@_tail.defjvp
def _tail_jvp(kernel, primals, tangents):
  (a,), (da,) = primals, tangents
  return _tail(kernel, a), -_LOWER[kernel](a) * da


def _convolved(kernel, v, width):
  """ReLU convolved with a kernel; `v` of a wide dtype."""
  if kernel == "box":
    return piecewise.smelu_core(v, width)
  positive = v > 0  # not max and abs: at 0 each has a derivative of its own
  a = jnp.where(positive, v, -v) / width
  return jnp.where(positive, v, 0) + width * _tail(kernel, a)


@functools.partial(jax.jit, inline=True, static_argnums=0)
@functools.partial(arrays.keep_input, static_argnums=0)
def _rescu(kernel, x, width, low, high):
  """low and high are None where they are 0 and 1."""
  v = x.astype(width.dtype)
  y = _convolved(kernel, v, width)
  y = y if high is None else arrays.times(high, y)
  if low is not None:
    y = y - arrays.times(low, _convolved(kernel, -v, width))
  return y.astype(x.dtype)


def rescu(
  x: ArrayLike,
  kernel: str = "box",
  width: ArrayLike = 1.0,
  negative_slope: ArrayLike = 0.0,
  positive_slope: ArrayLike = 1.0,
) -> jax.Array:
  """Rectified smooth continuous unit: two half-lines convolved with a density.

  y = g+ R(x) - g- R(-x), with R ReLU convolved with the kernel, so that
  y' = g- + (g+ - g-) K(x), K the kernel's distribution function
  (arXiv 2010.09931). Convex where g+ >= g-.

  Args:
    x: `[...]` any real dtype.
    kernel: the density. With w the width: 'box', uniform on [-w, w] (SmeLU with
      beta = w); 'triangle' and 'cosine' (raised cosine) on [-w, w]; 'logistic'
      of scale w (Softplus with beta = 1 / w); 'gaussian' of standard deviation
      w; 'student', w / sqrt 2 times Student's t with two degrees of freedom
      (squareplus with b = w^2).
    width: above 0; a number or an array that broadcasts against `x`.
    negative_slope, positive_slope: g- and g+, the slopes far from 0.

  Returns:
    `[...]`, the dtype of `x`; NaN where an array `width` is not above 0.

  Raises:
    ValueError: unknown kernel; `width` is a number not above 0; a slope is not
      finite.

  >>> round(float(rescu(0.0, "triangle", 3.0)), 6)
  0.5
  """
  x = arrays.floating(x)
  checks.one_of("kernel", kernel, KERNELS)
  width = arrays.parameter("width", width, x)
  low = arrays.slope("negative_slope", negative_slope, x)
  high = arrays.slope("positive_slope", positive_slope, x)
  low = None if arrays.is_number(negative_slope, 0) else low
  high = None if arrays.is_number(positive_slope, 1) else high
  if kernel == "box" and low is None and high is None:
    return piecewise.smelu_core(x, width)
  return _rescu(kernel, x, width, low, high)


def softplus(x: ArrayLike, beta: ArrayLike = 1.0) -> jax.Array:
  """Softplus, log(1 + e^(beta x)) / beta; the smaller beta, the smoother.

  Args:
    x: `[...]` any real dtype.
    beta: above 0; a number or an array that broadcasts against `x`.

  Returns:
    `[...]`, the dtype of `x`; no overflow at any size of `beta x`.

  Raises:
    ValueError: `beta` is a number not above 0.

  >>> round(float(softplus(0.0, 2.0)), 6)
  0.346574
  """
  x = arrays.floating(x)
  width = 1 / arrays.parameter("beta", beta, x)
  return _rescu("logistic", x, width, None, None)


def squareplus(x: ArrayLike, b: ArrayLike = 4.0) -> jax.Array:
  """Squareplus, (x + sqrt(x^2 + b)) / 2; the larger b, the smoother.

  Args:
    x: `[...]` any real dtype.
    b: above 0; a number or an array that broadcasts against `x`.

  Returns:
    `[...]`, the dtype of `x`; no overflow or cancellation at large |x|.

  Raises:
    ValueError: `b` is a number not above 0.

  >>> float(squareplus(0.0, 4.0))
  1.0
  """
  x = arrays.floating(x)
  width = jnp.sqrt(arrays.parameter("b", b, x))
  return _rescu("student", x, width, None, None)


# x times a gate that rises from 0 to 1.


def _gated(gate):
  """The function x gate(x, ...), with its limits at infinity."""

  @functools.wraps(gate)
  def core(x, *parameters):
    v = x.astype(arrays.wide(x.dtype))
    low, high = arrays.bounds(v.dtype)
    finite = jnp.clip(v, low, high)
    y = finite * gate(finite, *parameters)
    return jnp.where(v == jnp.inf, v, y).astype(x.dtype)

  return jax.jit(arrays.keep_input(core), inline=True)


@_gated
def _swish(v, beta):
  return jax.nn.sigmoid(beta * v)


@_gated
def _gelu(v, beta):
  return 0.5 * jax.scipy.special.erfc(-math.sqrt(0.5) * beta * v)


@_gated
def _gelu_tanh(v, beta):
  z = jnp.clip(beta * v, -20, 20)
  return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


@_gated
def _mish(v):
  return jnp.tanh(jax.nn.softplus(v))


@_gated
def _tanhexp(v):
  return jnp.tanh(jnp.exp(jnp.minimum(v, 20)))


def swish(x: ArrayLike, beta: ArrayLike = 1.0) -> jax.Array:
  """Swish, x sigmoid(beta x); the smaller beta, the smoother.

  Args:
    x: `[...]` any real dtype.
    beta: above 0; a number or an array that broadcasts against `x`.

  Returns:
    `[...]`, the dtype of `x`.

  Raises:
    ValueError: `beta` is a number not above 0.

  >>> round(float(swish(1.0)), 6)
  0.731059
  """
  x = arrays.floating(x)
  return _swish(x, arrays.parameter("beta", beta, x))


def gelu(
  x: ArrayLike, beta: ArrayLike = 1.0, approximate: bool = False
) -> jax.Array:
  """GELU, x Phi(beta x), Phi the normal distribution function.

  Args:
    x: `[...]` any real dtype.
    beta: above 0; the smaller, the smoother. A number or an array that
      broadcasts against `x`.
    approximate: the tanh formula in place of the exact one.

  Returns:
    `[...]`, the dtype of `x`.

  Raises:
    ValueError: `beta` is a number not above 0.

  >>> round(float(gelu(1.0)), 6)
  0.841345
  """
  x = arrays.floating(x)
  core = _gelu_tanh if approximate else _gelu
  return core(x, arrays.parameter("beta", beta, x))


def mish(x: ArrayLike) -> jax.Array:
  """Mish, x tanh(softplus(x)).

  Args:
    x: `[...]` any real dtype.

  Returns:
    `[...]`, the dtype of `x`.

  >>> round(float(mish(1.0)), 6)
  0.865098
  """
  return _mish(arrays.floating(x))


def tanhexp(x: ArrayLike) -> jax.Array:
  """TanhExp, x tanh(e^x).

  Args:
    x: `[...]` any real dtype.

  Returns:
    `[...]`, the dtype of `x`.

  >>> round(float(tanhexp(0.5)), 6)
  0.464341
  """
  return _tanhexp(arrays.floating(x))
