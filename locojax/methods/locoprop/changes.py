"""How the gradient of a local problem changes along the way.

Letters: N rows, I inputs, O outputs of a layer. X [N, I] inputs, W [I, O]
kernel, A = X W + b [N, O], f the transfer function. The local pre-activation
is A + X delta, so that delta = 0 gives back the recorded A to the last bit, and
where X delta is 0 there is no change, also where a compiler rounds f(A) in the
loop otherwise than before it: Adam would make a full step of that bit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from locojax.core import trees, types
from locojax.methods.locoprop import (
  matching,
  nnx_layers,
  rows,
  taps,
  targets,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowsChange:
  """X^T [f(A + X delta) - f(A)], from the rows themselves.

  Attributes:
    params: the layer's parameters W0, in the dtype of the computation.
    inputs, preact, mask: rows, or rows in columns (`rows.grouped`).
    start: f(A), or None if it is computed each time.
    affine: of the record, in the dtype of the computation.
    response: f.
    vector: whether f couples the entries of a row (softmax).
    kind: of the layer.
    scale: rows of the problem over rows seen.
    columns: number of samples taken in turn; 0 if all rows are seen.
    first: iteration that sees the first of them.
  """

  params: types.PyTree
  inputs: tuple[jax.Array, ...]
  preact: jax.Array
  mask: jax.Array | None
  start: jax.Array | None
  affine: Callable[..., jax.Array] = dataclasses.field(
    metadata={"static": True}
  )
  response: Callable[..., jax.Array] = dataclasses.field(
    metadata={"static": True}
  )
  vector: bool = dataclasses.field(metadata={"static": True})
  kind: str = dataclasses.field(metadata={"static": True})
  scale: float = dataclasses.field(metadata={"static": True})
  columns: int = dataclasses.field(metadata={"static": True})
  first: int = dataclasses.field(default=0, metadata={"static": True})

  def __call__(self, delta: types.PyTree, t: jax.Array) -> types.PyTree:
    """The change at `delta` in iteration `t`, a tree like it."""
    inputs, preact, mask, start = self._rows(t)
    linear = lambda d: jax.jvp(
      lambda p: self.affine(p, *inputs), (self.params,), (d,)
    )[1]
    moved = linear(delta)
    still = moved == 0
    if self.vector:
      still = still.all(axis=-1, keepdims=True)
    change = self.response(preact + moved.astype(preact.dtype)) - start
    change = jnp.where(still, 0.0, change)
    change = rows.masked(change * self.scale, mask)
    (out,) = jax.linear_transpose(linear, delta)(change.astype(moved.dtype))
    return jax.tree.map(lambda x, d: x.astype(d.dtype), out, delta)

  def _rows(self, t):
    inputs, preact, mask = self.inputs, self.preact, self.mask
    dtype = rows.dtype_of(self.params)
    if not self.columns:
      inputs = rows.seen(inputs, mask, dtype)
      return inputs, preact, mask, self.start
    column = (t - self.first) % self.columns
    inputs, preact, mask = jax.tree.map(
      lambda x: rows.pick(x, column), (inputs, preact, mask)
    )
    inputs, preact = rows.seen((inputs, preact), mask, dtype)
    return inputs, preact, mask, self.response(preact)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GramChange:
  """C delta with C = X^T X, computed once: 2 I^2 O an iteration."""

  gram: jax.Array
  kind: str = dataclasses.field(default="dense", metadata={"static": True})

  def __call__(self, delta: types.PyTree, t: jax.Array) -> types.PyTree:
    """The change at `delta`, a tree like it."""
    del t
    return unfold(self.gram @ fold(delta), delta)


def gradient_change(
  record: taps.LayerRecord,
  params: types.PyTree,
  transfer: matching.MatchingLoss,
  options: targets.LocalOptions,
) -> RowsChange | GramChange:
  """X^T [f(A + X delta) - f(A)], the change of the local gradient.

  The local gradient at `delta` is that at W0 plus this. Row sub-sampling
  touches this term alone: it is an unbiased estimate that vanishes with delta
  (a control variate), and the gradient at W0 stays exact.

  Args:
    record: the tape's record of the layer.
    params: the layer's parameters W0.
    transfer: f; unused for variant 'squared', where f is the identity.
    options: `max_rows`, `rotate_rows`, `gather_rows`, `gram`, `num_iters`.

  Returns:
    `(delta, t) -> tree like params`, in `rows.dtype_of(params)`; a tree of
    what does not change with delta, so that several may be stacked.
  """
  params = rows.cast(params)
  dtype, num = rows.dtype_of(params), rows.count(record)
  record = rows.flatten(record)
  stride = rows.stride(num, options.max_rows)
  if options.variant == "squared" and _use_gram(record, options):
    record = rows.in_dtype(record, dtype)
    return GramChange(record_gram(record, stride, has_bias(params)))
  f = targets.response(transfer, options)
  make = functools.partial(
    RowsChange,
    affine=taps.in_dtype(record.affine, dtype),
    response=f,
    vector=transfer.vector and options.variant != "squared",
    kind=record.kind,
  )
  if stride == 1:
    mask = record.row_mask
    preact = rows.seen(record.preact, mask, dtype)
    start = f(preact)
    return make(
      params, record.inputs, preact, mask, start, scale=1.0, columns=0
    )
  first, columns = _columns(stride, options)
  sample = functools.partial(rows.grouped, step=stride)
  if options.gather_rows:
    sample = lambda x: rows.gather(rows.grouped(x, stride), first, columns)
  inputs, preact, mask = jax.tree.map(
    sample, (record.inputs, record.preact, record.row_mask)
  )
  scale = num / preact.shape[0]
  return make(
    params,
    inputs,
    preact,
    mask,
    None,
    scale=scale,
    columns=columns,
    first=first,
  )


def _columns(stride: int, options: targets.LocalOptions) -> tuple[int, int]:
  """First and number of the samples that iterations 1 ... T-1 take in turn.

  Where the rows are gathered there are no more of them than iterations.
  """
  columns = stride if options.rotate_rows else 1
  num = options.num_iters
  if not options.gather_rows or num is None or columns < num:
    return 0, columns
  return min(1, columns - 1), max(1, num - 1)


def _use_gram(record, options: targets.LocalOptions) -> bool:
  """Whether X^T X is the cheaper way (and possible): a dense layer, I < 2N."""
  possible = record.kind == "dense"
  if options.gram is None:
    return possible and record.inputs[0].shape[-1] < record.preact.shape[0]
  return options.gram and possible


def seen_inputs(record, stride: int, bias: bool) -> tuple[jax.Array, float]:
  """X~ `[n, I]`, or `[n, I+1]` with a column of ones, and the weight of a row.

  Every `stride`-th row, so that each stands for N / n of them.
  """
  x = record.inputs[0]
  if bias:
    x = jnp.concatenate([x, jnp.ones((x.shape[0], 1), x.dtype)], axis=1)
  picked = rows.masked(x, record.row_mask)[::stride]
  return picked, x.shape[0] / picked.shape[0]


def record_gram(record, stride: int, bias: bool) -> jax.Array:
  """X~^T X~, `[I, I]`, or `[I+1, I+1]`, in the dtype of the inputs."""
  x, weight = seen_inputs(record, stride, bias)
  return x.T @ x * weight


def has_bias(tree: types.PyTree) -> bool:
  """Whether a dense layer of these parameters has a bias."""
  return "bias" in _by_name(tree)


def _by_name(tree: types.PyTree) -> dict[str, jax.Array]:
  """A dense layer's `kernel` and `bias`, out of any tree that has them."""
  leaves = trees.flatten(tree).items()
  return {nnx_layers.split_name(path)[1]: leaf for path, leaf in leaves}


def fold(tree: types.PyTree) -> jax.Array:
  """Kernel with the bias as its last row, `[I(+1), O]`, as `rows.cast`."""
  named = _by_name(rows.cast(tree))
  if "bias" not in named:
    return named["kernel"]
  return jnp.concatenate([named["kernel"], named["bias"][None]])


def unfold(matrix: jax.Array, like: types.PyTree) -> types.PyTree:
  """The tree that `fold` made the matrix of."""
  parts = {"kernel": matrix}
  if has_bias(like):
    parts = {"kernel": matrix[:-1], "bias": matrix[-1]}
  name = lambda path: nnx_layers.split_name(path)[1]
  return trees.map_with_path(lambda path, _: parts[name(path)], like)
