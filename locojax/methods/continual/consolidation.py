"""Elastic weight consolidation: parameters that mattered are held.

Kirkpatrick et al. 2017, arXiv 1612.00796. After task k, with theta_k its
parameters and F_k the diagonal of its Fisher information,

  loss = L + weight / 2 * sum_k sum_i F_ki (theta_i - theta_ki)^2       (summed)
  loss = L + weight / 2 * sum_i F_i (theta_i - theta*_i)^2              (online)

Online (Schwarz et al. 2018, arXiv 1805.06370) has F <- decay F + F_k and theta*
the latest parameters. The summed penalties are one quadratic as well: two, of
weights F and G about a and b, are
  (F + G) (theta - m)^2 + F G / (F + G) (a - b)^2,  m = (F a + G b) / (F + G),
so that the memory does not grow with the tasks.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from locojax.core import checks, types
from locojax.methods.continual import losses, masks

STATE = "ewc"
LABELS = ("given", "sampled")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fisher:
  """Sums of squared per-example gradients, and the number of examples.

  Attributes:
    total: tree like the parameters, float32.
    weight: `[]` float32.
  """

  total: types.PyTree
  weight: jax.Array

  def merge(self, other: Fisher) -> Fisher:
    """That of both sets of examples."""
    total = jax.tree.map(jnp.add, self.total, other.total)
    return Fisher(total, self.weight + other.weight)

  def value(self) -> types.PyTree:
    """The mean over examples; 0 where none counted."""
    safe = jnp.where(self.weight > 0, self.weight, 1.0)
    return jax.tree.map(lambda x: x / safe, self.total)


def diagonal_fisher(
  apply_fn: losses.ApplyFn,
  params: types.PyTree,
  model_state: types.PyTree,
  batch: types.Batch,
  key: jax.Array,
  *,
  labels: str = "given",
  chunk: int = 16,
) -> Fisher:
  """F_i = mean over examples of (d log p(y | x) / d theta_i)^2.

  The gradient of each example is squared, not that of the batch. Merge what
  several batches give; `value()` is the mean.

  Args:
    apply_fn: logits `[n, C]`; it sees one example at a time, so it should
      evaluate (running batch statistics, no dropout). Its state is not kept.
    params: where the Fisher information is taken.
    model_state: of the model.
    batch: `[n, ...]`, with `label`; `mask` and `class_mask` are heeded.
    key: typed PRNG key; example i has `fold_in(key, i)`.
    labels: `given`: y is the label (the empirical Fisher, usual). `sampled`: y
      is drawn from the model's distribution.
    chunk: examples whose gradients are in memory at a time.

  Returns:
    A `Fisher`. Examples that are masked, or whose label is outside the class
    mask, are left out.

  Raises:
    ValueError: an unknown kind of labels, a bad chunk.
  """
  checks.one_of("labels", labels, LABELS)
  checks.positive_int("chunk", chunk)
  batch = losses.clean(batch)
  num = len(batch[losses.LABEL])
  one = functools.partial(_squares, apply_fn, params, model_state, labels)
  pad = -num % chunk
  rows = {k: _padded(jnp.asarray(v), pad) for k, v in batch.items()}
  live = losses.live_rows(batch, num)
  rows[losses.MASK] = jnp.concatenate([live, jnp.zeros(pad)])
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num + pad))
  pieces = jax.tree.map(
    lambda x: x.reshape(-1, chunk, *x.shape[1:]), (rows, keys)
  )

  def body(total, piece):
    found = jax.vmap(one)(*piece)
    found = jax.tree.map(lambda x: jnp.sum(x, axis=0), found)
    return jax.tree.map(jnp.add, total, found), None

  zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
  start = Fisher(zeros, jnp.zeros((), jnp.float32))
  return jax.lax.scan(body, start, pieces)[0]


def _padded(x: jax.Array, num: int) -> jax.Array:
  """With `num` copies of the first row behind."""
  return jnp.concatenate([x, jnp.repeat(x[:1], num, axis=0)])


def _squares(apply_fn, params, model_state, labels, example, key) -> Fisher:
  """The squared gradient of one example, without its leading axis."""
  batch = {k: v[None] for k, v in example.items()}
  apply_key, draw_key = jax.random.split(key)
  classes = batch.get(masks.CLASS_MASK)

  def log_p(params):
    logits, _ = apply_fn(params, model_state, batch, apply_key)
    logits = logits.astype(jnp.float32)
    label = batch[losses.LABEL]
    if labels == "sampled":
      allowed = (
        logits if classes is None else masks.mask_logits(logits, classes)
      )
      label = jax.random.categorical(draw_key, jax.lax.stop_gradient(allowed))
    found = masks.masked_losses(logits, label, classes)
    return -found.values[0], found.outside[0]

  grads, outside = jax.grad(log_p, has_aux=True)(params)
  weight = jnp.where(outside, 0.0, batch[losses.MASK][0])
  square = lambda g: weight * jnp.square(g.astype(jnp.float32))
  return Fisher(jax.tree.map(square, grads), weight)


def ewc_state(params: types.PyTree) -> dict[str, types.PyTree]:
  """No penalty yet: `fisher`, `anchor`, `constant`; the entry `ewc` of a state.

  Args:
    params: for shapes; the anchor is a float32 copy of them.
  """
  zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
  return {
    "fisher": zeros,
    "anchor": _wide(params),
    "constant": jnp.zeros((), jnp.float32),
  }


def _wide(params: types.PyTree) -> types.PyTree:
  """Float32 copies: a step may give its own arrays away."""
  return jax.tree.map(lambda p: jnp.array(p, jnp.float32), params)


def with_ewc(model_state: types.PyTree, params: types.PyTree) -> types.PyTree:
  """The model state with `ewc_state(params)` in it, for `ewc`."""
  return {**(model_state or {}), STATE: ewc_state(params)}


def _check_fisher(params, fisher) -> None:
  if jax.tree.structure(params) != jax.tree.structure(fisher):
    raise ValueError(
      "fisher has other names than params: it must be a tree like them, such "
      "as `diagonal_fisher(...).value()`."
    )


def ewc_summed(
  state: dict[str, types.PyTree], params: types.PyTree, fisher: types.PyTree
) -> dict[str, types.PyTree]:
  """The state with one more penalty, about `params`; see the head of the file.

  Args:
    state: of `ewc_state`, or of this function.
    params: theta_k, after task k.
    fisher: F_k, 0 or more, tree like the parameters.

  Raises:
    ValueError: trees of other names.
  """
  _check_fisher(params, fisher)
  total = jax.tree.map(jnp.add, state["fisher"], fisher)

  def share(f, new):
    return jnp.where(new > 0, f / jnp.where(new > 0, new, 1.0), 0.0)

  def middle(old, p, f, new):
    return old + share(f, new) * (p.astype(jnp.float32) - old)

  def left(old, p, held, f, new):
    gap = jnp.square(p.astype(jnp.float32) - old)
    return jnp.sum(held * share(f, new) * gap)

  anchor = jax.tree.map(middle, state["anchor"], params, fisher, total)
  constant = jax.tree.map(
    left, state["anchor"], params, state["fisher"], fisher, total
  )
  constant = state["constant"] + sum(jax.tree.leaves(constant))
  return {"fisher": total, "anchor": anchor, "constant": constant}


def ewc_online(
  state: dict[str, types.PyTree],
  params: types.PyTree,
  fisher: types.PyTree,
  *,
  decay: float = 1.0,
  rate: float = 1.0,
) -> dict[str, types.PyTree]:
  """F <- decay F + rate F_new, about the latest parameters.

  Needs no task boundary. With `decay = 1 - a`, `rate = a`, called every few
  steps, it is the moving average of EWC++ (Chaudhry et al. 2018, arXiv
  1801.10112).

  Args:
    state: of `ewc_state`, or of this function.
    params: the latest ones.
    fisher: F_new, 0 or more, tree like the parameters.
    decay: in [0, 1].
    rate: above 0.

  Raises:
    ValueError: trees of other names, a bad number.
  """
  checks.in_range("decay", decay, 0.0, 1.0)
  checks.positive("rate", rate)
  _check_fisher(params, fisher)
  moved = jax.tree.map(
    lambda old, new: decay * old + rate * new, state["fisher"], fisher
  )
  constant = jnp.zeros((), jnp.float32)
  return {"fisher": moved, "anchor": _wide(params), "constant": constant}


def ewc_penalty(state: dict[str, types.PyTree], params: types.PyTree):
  """sum_k sum_i F_ki (theta_i - theta_ki)^2, `[]` float32."""

  def term(f, p, a):
    return jnp.sum(f * jnp.square(p.astype(jnp.float32) - a))

  terms = jax.tree.map(term, state["fisher"], params, state["anchor"])
  return state["constant"] + sum(jax.tree.leaves(terms))


def ewc(loss_fn: types.LossFn, *, weight: ArrayLike) -> types.LossFn:
  """L + weight / 2 * sum_k sum_i F_ki (theta_i - theta_ki)^2.

    state = steps.init_state(params, tx, key=key,
                             model_state=continual.with_ewc({}, params))
    ...  # a task
    fisher = continual.diagonal_fisher(...).value()
    ewc_state = continual.ewc_summed(state.model_state["ewc"], state.params,
                                     fisher)

  Args:
    loss_fn: any loss. It does not see the entry `ewc` of the model state.
    weight: 0 or more.

  Returns:
    A `LossFn` with the metrics of the inner one, the new `loss`, and
    `ewc_penalty` (without the factor).

  Raises:
    ValueError: a bad weight; a model state that `with_ewc` did not make.
  """
  checks.nonnegative("weight", weight)

  @functools.wraps(loss_fn)
  def penalised(params, model_state, batch, key):
    state, rest = losses.take(model_state, STATE, "with_ewc")
    loss, (found, rest) = loss_fn(params, rest, batch, key)
    term = ewc_penalty(jax.lax.stop_gradient(state), params)
    loss, found = losses.add_term(loss, found, "ewc_penalty", term, weight / 2)
    return loss, (found, {**rest, STATE: state})

  return penalised
