"""Dense stacks, and the deep autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import arrays, checks
from locojax.nn import norms

Activation = Callable[[jax.Array], jax.Array]
NORMALIZATIONS = (None, "layer", "weight", "batch")


def glorot_bias(key: jax.Array, shape: Sequence[int], dtype=jnp.float32):
  """Glorot uniform for a vector: bound sqrt(6 / (2 n)), `shape` = (n,)."""
  bound = (3.0 / shape[0]) ** 0.5
  return jax.random.uniform(key, shape, dtype, -bound, bound)


class WeightNormDense(nn.Module):
  """A dense layer whose columns have a length of their own.

  `y = x (scale v / |v|) + bias`, `|v|` over the inputs of each output
  (Salimans and Kingma 2016, equation 2, arXiv 1602.07868).

  Attributes:
    features: size of the output.
    dtype: dtype of the product; None follows the input.
    kernel_init, bias_init: initialisers of `v` and of the bias; `scale` starts
      as the lengths of `v`, so the layer starts as a plain dense one.
    eps: added to `|v|^2`.
  """

  features: int
  dtype: Any = None
  kernel_init: Any = nn.initializers.lecun_normal()
  bias_init: Any = nn.initializers.zeros_init()
  eps: float = 1e-12

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., din]` to `[..., features]`."""
    checks.positive_int("features", self.features)
    shape = (x.shape[-1], self.features)
    v = self.param("kernel", self.kernel_init, shape)
    length = jnp.sqrt(jnp.sum(jnp.square(v), axis=0) + self.eps)
    scale = self.param("scale", lambda _: length)
    bias = self.param("bias", self.bias_init, (self.features,))
    kernel = v * (scale / length)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    return x @ kernel + bias


class MLP(nn.Module):
  """Dense layers `layer_0`, `layer_1`, ... with an activation between them.

  Each layer but the last is followed by normalisation, activation, dropout, in
  this order, where asked for.

  Attributes:
    features: sizes of the layers' outputs; the last one has no activation.
    activation: elementwise function after each layer but the last. A linen
      module is copied for each layer (`activation_0`, ...), so that each has
      parameters of its own.
    dtype: dtype of the computation; None follows the input.
    kernel_init, bias_init: initialisers of each layer.
    normalization: of the hidden layers before the activation: None, `layer`
      (LayerNorm `norm_i`), `weight` (`WeightNormDense`), or `batch` (BatchNorm
      `norm_i`, with running means in the collection `batch_stats`).
    dropout_rate: share of hidden units dropped in training; takes the stream
      `dropout` of PRNG keys.
  """

  features: Sequence[int]
  activation: Activation = nn.relu
  dtype: Any = None
  kernel_init: Any = nn.initializers.lecun_normal()
  bias_init: Any = nn.initializers.zeros_init()
  normalization: str | None = None
  dropout_rate: float = 0.0

  def _layer(self, i: int) -> nn.Module:
    hidden = i < len(self.features) - 1
    weight_norm = hidden and self.normalization == "weight"
    return (WeightNormDense if weight_norm else nn.Dense)(
      self.features[i],
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      name=f"layer_{i}",
    )

  def _normalize(self, x, i: int, train: bool, mask) -> jax.Array:
    """Statistics in float32 (flax does so), result in the dtype of `x`."""
    if self.normalization == "layer":
      return nn.LayerNorm(dtype=self.dtype, name=f"norm_{i}")(x)
    if self.normalization == "batch":
      keep = None if mask is None else mask[..., None]
      norm = nn.BatchNorm(momentum=0.9, dtype=self.dtype, name=f"norm_{i}")
      return norms.batch_norm(norm, x, keep, train=train)
    return x

  def _activate(self, x: jax.Array, i: int) -> jax.Array:
    if isinstance(self.activation, nn.Module):
      return self.activation.copy(name=f"activation_{i}")(x)
    return self.activation(x)

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None
  ) -> jax.Array:
    """The stack.

    Args:
      x: `[..., din]`.
      train: use dropout, and the statistics of the batch in BatchNorm.
      mask: `[...]`, zero for the examples that BatchNorm is to ignore. They
        count as zeros, whatever they hold.

    Returns:
      `[..., features[-1]]`.

    Raises:
      ValueError: a bad setting.
    """
    checks.sizes("features", self.features)
    checks.float_dtype("dtype", self.dtype)
    checks.one_of("normalization", self.normalization, NORMALIZATIONS)
    checks.in_range("dropout_rate", self.dropout_rate, 0.0, 1.0)
    x = arrays.kept(x, mask)
    for i in range(len(self.features)):
      x = self._layer(i)(x)
      if i < len(self.features) - 1:
        x = self._activate(self._normalize(x, i, train, mask), i)
        if self.dropout_rate:
          x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
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
    """`[batch, num_inputs]` to logits `[batch, num_inputs]`.

    Raises:
      ValueError: a size below 1, or an unknown dtype.
    """
    checks.positive_int("num_inputs", self.num_inputs)
    checks.sizes("hidden", self.hidden)
    checks.positive_int("code_size", self.code_size)
    checks.float_dtype("dtype", self.dtype)
    for i, size in enumerate(self.hidden):
      x = self.activation(self._dense(size, f"encoder_{i}")(x))
    x = self._dense(self.code_size, "code")(x)
    for i, size in enumerate(reversed(self.hidden)):
      x = self.activation(self._dense(size, f"decoder_{i}")(x))
    return self._dense(self.num_inputs, "output")(x)
