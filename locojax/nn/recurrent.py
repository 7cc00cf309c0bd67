"""Recurrent layers: LSTM and CIFG, with an optional recurrent projection.

With gates from `a_t = W x_t + U h_{t-1} + b`,

  LSTM   c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)
  CIFG   c_t = sigmoid(f) c_{t-1} + (1 - sigmoid(f)) tanh(g)
  both   m_t = sigmoid(o) tanh(c_t),   h_t = m_t, or P m_t with a projection.

LSTM: Hochreiter and Schmidhuber 1997. Coupled input and forget gates: Greff et
al. 2017 (arXiv 1503.04069). Projection: Sak, Senior, Beaufays 2014 (arXiv
1402.1128).

Letters: B batch, T tokens, D input size, U units, R size of h (U, or that of
the projection), G gates (4, or 3 for CIFG).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import arrays, checks

# Order of the blocks of U columns in kernels and biases.
GATES = {"lstm": ("i", "f", "g", "o"), "cifg": ("f", "g", "o")}


class Carry(NamedTuple):
  """What passes from token to token.

  Attributes:
    c: the cell, `[B, U]`.
    h: the output, `[B, R]`.
  """

  c: jax.Array
  h: jax.Array


def forget_bias_init(cell: str, value: float = 1.0):
  """An initialiser of the bias: `value` at the forget gate, else zero.

  Args:
    cell: `lstm` or `cifg`.
    value: of the forget gate; 1 after Jozefowicz et al. 2015.

  Returns:
    An initialiser for shapes `(G U,)`.
  """
  gates = checks.lookup("cell", cell, GATES)
  place = gates.index("f")

  def init(key, shape, dtype=jnp.float32):
    del key
    blocks = jnp.zeros((len(gates), shape[0] // len(gates)), dtype)
    return blocks.at[place].set(value).reshape(shape)

  return init


class _Cell(nn.Module):
  """One token; the products with the input are done before."""

  cell: str
  units: int
  projection: int | None
  recurrent_init: Any
  projection_init: Any
  dtype: Any

  @nn.compact
  def __call__(self, carry: Carry, inputs):
    """`(carry, ([B, G U], [B]))` to `(carry, [B, R])`."""
    gates_x, valid = inputs
    names = GATES[self.cell]
    dense = lambda size, init, name: nn.Dense(
      size, use_bias=False, dtype=self.dtype, kernel_init=init, name=name
    )
    size = len(names) * self.units
    blocks = gates_x + dense(size, self.recurrent_init, "recurrent")(carry.h)
    gate = dict(zip(names, jnp.split(blocks, len(names), axis=-1)))
    f = nn.sigmoid(gate["f"])
    i = nn.sigmoid(gate["i"]) if "i" in gate else 1 - f
    c = f * carry.c + i * jnp.tanh(gate["g"])
    h = nn.sigmoid(gate["o"]) * jnp.tanh(c)
    if self.projection is not None:
      h = dense(self.projection, self.projection_init, "projection")(h)
    new = Carry(c.astype(carry.c.dtype), h.astype(carry.h.dtype))
    if valid is not None:
      keep = (valid != 0)[:, None]
      new = Carry(*(jnp.where(keep, a, b) for a, b in zip(new, carry)))
    return new, new.h


class Recurrent(nn.Module):
  """A layer of LSTM or CIFG cells over a sequence.

  Parameters: `input` (`kernel` `[D, G U]`, `bias` `[G U]`), `cell/recurrent`
  (`kernel` `[R, G U]`) and, with a projection, `cell/projection` (`kernel`
  `[U, R]`). Blocks of U columns stand in the order of `GATES`. The products
  with the input are one matrix product for all tokens; the rest is a scan.

  Attributes:
    units: U.
    cell: `lstm` or `cifg`.
    projection: R; None projects nothing.
    unroll: tokens that the scan does in one turn.
    dtype: dtype of the computation; None is that of the parameters, which are
      float32. The carry is float32 in any case.
    kernel_init, recurrent_init, projection_init: initialisers.
    forget_bias: first bias of the forget gate.
  """

  units: int
  cell: str = "lstm"
  projection: int | None = None
  unroll: int = 1
  dtype: Any = None
  kernel_init: Any = nn.initializers.lecun_normal()
  recurrent_init: Any = nn.initializers.orthogonal()
  projection_init: Any = nn.initializers.lecun_normal()
  forget_bias: float = 1.0

  def init_carry(self, batch_size: int) -> Carry:
    """Zeros, for the start of sequences."""
    checks.positive_int("batch_size", batch_size)
    width = self.projection or self.units
    return Carry(
      jnp.zeros((batch_size, self.units)), jnp.zeros((batch_size, width))
    )

  def _check(self) -> None:
    checks.one_of("cell", self.cell, GATES)
    checks.positive_int("units", self.units)
    checks.float_dtype("dtype", self.dtype)
    checks.positive_int("unroll", self.unroll)
    if self.projection is not None:
      checks.positive_int("projection", self.projection)

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    valid: jax.Array | None = None,
    carry: Carry | None = None,
  ) -> tuple[jax.Array, Carry]:
    """Runs over a sequence.

    Args:
      x: `[B, T, D]`.
      valid: `[B, T]`, zero at padding, which may hold anything: there the
        carry stays as it is and the output is that of the token before. None
        if there is none.
      carry: where the sequence goes on; None starts at zeros.

    Returns:
      `(outputs [B, T, R], carry after the last token)`. One token at a time,
      with the carry handed on, gives the same outputs.

    Raises:
      ValueError: a bad setting.
    """
    self._check()
    x = arrays.kept(x, valid)
    gates_x = nn.Dense(
      len(GATES[self.cell]) * self.units,
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      bias_init=forget_bias_init(self.cell, self.forget_bias),
      name="input",
    )(x)
    scan = nn.scan(
      _Cell,
      variable_broadcast="params",
      split_rngs={"params": False},
      in_axes=1,
      out_axes=1,
      unroll=self.unroll,
    )
    cell = scan(
      self.cell,
      self.units,
      self.projection,
      self.recurrent_init,
      self.projection_init,
      self.dtype,
      name="cell",
    )
    carry = self.init_carry(x.shape[0]) if carry is None else carry
    carry, outputs = cell(carry, (gates_x, valid))
    return outputs.astype(gates_x.dtype), carry
