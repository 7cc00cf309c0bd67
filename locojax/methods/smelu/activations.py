"""SmeLU and other smooth activations, each with its smoothness parameter.

All are elementwise, keep the dtype of `x` (integers become floats), compute in
float32 at least, and work under jit, vmap and every order of differentiation.
Values and first derivatives at the joints of the pieces are exact, and finite
input of any size, as well as an infinite one, has a finite gradient.

The backward pass keeps one array. For SmeLU it is the output, which the next
layer keeps anyway, since y' = min(sqrt(y / beta), 1); for the others it is the
input, from which the rest is recomputed.

A parameter that is a plain number is checked at once. Inside a traced function
a value cannot be checked: there an array that is out of range gives NaN.

References: Shamir, Lin, Coviello, "Smooth activations and reproducibility in
deep networks", arXiv 2010.09931; Shamir, Lin, arXiv 2202.06499.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from locojax.core import checks
from locojax.methods.smelu.piecewise import gsmelu, smelu
from locojax.methods.smelu.smooth import (
  KERNELS,
  gelu,
  mish,
  rescu,
  softplus,
  squareplus,
  swish,
  tanhexp,
)

__all__ = [
  "KERNELS",
  "activation_names",
  "gelu",
  "get_activation",
  "gsmelu",
  "mish",
  "register_activation",
  "rescu",
  "smelu",
  "softplus",
  "squareplus",
  "swish",
  "tanhexp",
]
Activation = Callable[[jax.Array], jax.Array]


def _kernel_activation(kernel: str):
  def activation(x: ArrayLike, width: ArrayLike = 1.0) -> jax.Array:
    return rescu(x, kernel, width)

  return activation


def _gsmelu_of(x: ArrayLike, width: ArrayLike = 1.0) -> jax.Array:
  """The leaky form: slope 0.01 on a left line through the origin."""
  return gsmelu(
    x, negative_slope=0.01, alpha=width, beta=width, offset="origin"
  )


_ACTIVATIONS: dict[str, Callable[..., Any]] = {
  "relu": jax.nn.relu,
  "elu": jax.nn.elu,
  "selu": jax.nn.selu,
  "smelu": smelu,
  "gsmelu": _gsmelu_of,
  "swish": swish,
  "gelu": gelu,
  "gelu_tanh": functools.partial(gelu, approximate=True),
  "softplus": softplus,
  "squareplus": squareplus,
  "mish": mish,
  "tanhexp": tanhexp,
  **{f"rescu_{kernel}": _kernel_activation(kernel) for kernel in KERNELS},
}


def activation_names() -> tuple[str, ...]:
  """The registered activations, in alphabetical order."""
  return tuple(sorted(_ACTIVATIONS))


def register_activation(name: str, fn: Callable[..., Any]) -> Callable:
  """Makes an activation known to `get_activation`.

  Args:
    name: letters, digits and underscores; not a taken one.
    fn: of `x`, and of a number as its second argument if 'name:number' is to
      be allowed.

  Returns:
    `fn`.

  Raises:
    ValueError: `name` is taken by another function, or is no identifier.
  """
  if not name.isidentifier():
    raise ValueError(
      f"name={name!r} is not allowed: it must be an identifier, such as 'relu'."
    )
  if _ACTIVATIONS.setdefault(name, fn) is not fn:
    raise ValueError(f"name={name!r} is not allowed: it is registered already.")
  return fn


def _second_argument(fn: Callable[..., Any]) -> str | None:
  """The name of the argument that takes the number; None if there is none."""
  kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
  found = [
    p.name for p in inspect.signature(fn).parameters.values() if p.kind in kinds
  ]
  return found[1] if len(found) > 1 else None


def _number(activation: str, suffix: str) -> float:
  try:
    return float(suffix)
  except ValueError:
    raise ValueError(
      f"activation={activation!r} is not allowed: what follows ':' must be a "
      f"number, and {suffix!r} is none."
    ) from None


@functools.cache
def _get(activation: str) -> Activation:
  name, colon, suffix = activation.partition(":")
  fn = checks.lookup("activation", name, _ACTIVATIONS)
  if not colon:
    return fn
  number, argument = _number(activation, suffix), _second_argument(fn)
  if argument is None:
    raise ValueError(
      f"activation={activation!r} is not allowed: {name!r} takes no number."
    )
  bound = functools.partial(fn, **{argument: number})
  jax.eval_shape(bound, jax.ShapeDtypeStruct((1, 8), jnp.float32))
  return bound


def get_activation(activation: str | Activation) -> Activation:
  """An activation by name, 'smelu', or by name and number, 'smelu:0.5'.

  The number is the smoothness parameter: beta of 'smelu', 'swish', 'gelu' and
  'softplus'; b of 'squareplus'; the width of 'rescu_box' and the like; alpha of
  'elu'; alpha and beta of 'gsmelu', whose left line has slope 0.01 here.

  Args:
    activation: name, or name and number; a function is returned as it is.

  Returns:
    A function of `x`; the same object for the same text.

  Raises:
    ValueError: an unknown name (the known ones are listed), a suffix that is no
      number, a number where none is taken or outside its range.

  >>> float(get_activation("smelu:0.5")(0.0))
  0.125
  """
  return activation if callable(activation) else _get(activation)
