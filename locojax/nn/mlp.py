"""Dense stacks, and the deep autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Activation = Callable[[jax.Array], jax.Array]


def glorot_bias(key: jax.Array, shape: Sequence[int], dtype=jnp.float32):
  """Glorot uniform for a vector: bound sqrt(6 / (2 n)), `shape` = (n,)."""
  bound = (3.0 / shape[0]) ** 0.5
  return jax.random.uniform(key, shape, dtype, -bound, bound)


class MLP(nn.Module):
  """Dense layers `layer_0`, `layer_1`, ... with an activation between them.

  Attributes:
    features: sizes of the layers' outputs; the last one has no activation.
    activation: elementwise function after each layer but the last.
    dtype: dtype of the computation; None follows the input.
    kernel_init, bias_init: initialisers of each layer.
  """

  features: Sequence[int]
  activation: Activation = nn.relu
  dtype: Any = None
  kernel_init: Any = nn.initializers.lecun_normal()
  bias_init: Any = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., din]` to `[..., features[-1]]`."""
    for i, size in enumerate(self.features):
      x = nn.Dense(
        size,
        dtype=self.dtype,
        kernel_init=self.kernel_init,
        bias_init=self.bias_init,
        name=f"layer_{i}",
      )(x)
      if i < len(self.features) - 1:
        x = self.activation(x)
    return x


class Autoencoder(nn.Module):
  """The deep autoencoder of Hinton and Salakhutdinov (2006).

  Layers `encoder_0 ...`, a linear `code`, the mirror image `decoder_0 ...`, and
  `output`, whose logits are returned.

  Attributes:
    num_inputs: size of the input and of the output.
    hidden: sizes of the encoder's hidden layers, outermost first.
    code_size: size of the linear code.
    activation: of the hidden units.
    dtype: dtype of the computation; None follows the input.
  """

  num_inputs: int
  hidden: Sequence[int]
  code_size: int
  activation: Activation = jnp.tanh
  dtype: Any = None

  def _dense(self, size: int, name: str) -> nn.Dense:
    return nn.Dense(
      size,
      dtype=self.dtype,
      kernel_init=nn.initializers.glorot_uniform(),
      bias_init=glorot_bias,
      name=name,
    )

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[batch, num_inputs]` to logits `[batch, num_inputs]`."""
    for i, size in enumerate(self.hidden):
      x = self.activation(self._dense(size, f"encoder_{i}")(x))
    x = self._dense(self.code_size, "code")(x)
    for i, size in enumerate(reversed(self.hidden)):
      x = self.activation(self._dense(size, f"decoder_{i}")(x))
    return self._dense(self.num_inputs, "output")(x)
