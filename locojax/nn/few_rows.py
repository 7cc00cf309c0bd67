"""Products of a few rows with matrices that stay the same, in loops on a CPU.

A step of generation multiplies as many rows as there are sequences with every
matrix of the model. XLA's products on a CPU wait for the matrix then, and read
it at a third of what memory gives, unless it is the left factor and lies in the
order in which it is read. So it is transposed, which the compiler does once,
before the loop, as the matrix does not change in it:

    with few_rows.in_loop():
      logits = model.apply({"params": params}, tokens)

`lm.next_token` does this. On other devices nothing changes.
"""

from __future__ import annotations

import contextlib
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

# More rows have enough to compute for each number that is read, and smaller
# matrices stay in the caches.
MOST_ROWS = 64
LEAST_SIZE = 2**17


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`x @ kernel`, in a loop on a CPU three times as fast for a few rows.

  Args:
    x: `[..., in]`.
    kernel: `[in, out]`, the same in each turn of the loop. Outside a loop, or
      where it changes, transposing it costs more than is gained.

  Returns:
    `[..., out]`.
  """
  rows = x.reshape(-1, x.shape[-1])

  def on_cpu(rows, kernel):
    # The barriers keep XLA from taking the transpositions into the product.
    flipped = lax.optimization_barrier(kernel.T)
    y = lax.dot_general(flipped, rows, (((1,), (1,)), ((), ())))
    return lax.optimization_barrier(y).T

  y = lax.platform_dependent(rows, kernel, cpu=on_cpu, default=jnp.matmul)
  return y.reshape(*x.shape[:-1], kernel.shape[-1])


def in_loop() -> contextlib.AbstractContextManager[None]:
  """While it lasts, layers compute a few rows by `product`.

  These are `nn.Dense` and `nn.Embed.attend` in float32, for 2 to `MOST_ROWS`
  rows and matrices of `LEAST_SIZE` numbers or more. Not for scanned layers,
  whose matrices change from turn to turn.
  """
  return nn.intercept_methods(_call)


def _call(next_fun, args, kwargs, context):
  layer, method = context.module, context.method_name
  if len(args) != 1 or kwargs:
    return next_fun(*args, **kwargs)
  if type(layer) is nn.Dense and method == "__call__":
    kernel = layer.get_variable("params", "kernel")
    if kernel is not None and _gains(layer, *args, kernel):
      y = product(*args, kernel)
      return y + layer.get_variable("params", "bias") if layer.use_bias else y
  if type(layer) is nn.Embed and method == "attend":
    table = layer.get_variable("params", "embedding")
    if _gains(layer, *args, table):
      return product(*args, table.T)
  return next_fun(*args, **kwargs)


def _gains(layer: nn.Dense | nn.Embed, x: jax.Array, matrix: jax.Array) -> bool:
  for name in ("precision", "dot_general", "dot_general_cls"):
    if getattr(layer, name, None) is not None:
      return False
  rows = math.prod(x.shape[:-1])
  kinds = [matrix.dtype, x.dtype, layer.dtype or x.dtype]
  single = all(jnp.dtype(kind) == jnp.float32 for kind in kinds)
  return single and 1 < rows <= MOST_ROWS and matrix.size >= LEAST_SIZE
