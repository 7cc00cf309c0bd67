"""Mixup that instance weights bias: whom to mix with, and in what ratio.

Kumar, Amid 2021, arXiv 2111.05428. With m_i = w_i^power / sum_j w_j^power,

  x'_i = r_i x_i + (1 - r_i) x_j(i),   labels alike, and

  mode             partner j(i)           ratio r_i
  simple           random permutation     Beta(alpha, alpha)
  sample           drawn from m           Beta(alpha, alpha)
  weight           random permutation     m_i / (m_i + m_j)
  sample_weight    drawn from m           m_i / (m_i + m_j)    (CICW-M)
  label_smoothing  as `simple`, after y_i <- s_i y_i + (1 - s_i) e_argmax z_i,
                   s_i = (m_i - lo) / (hi - lo), lo = max(min m - 0.01, 0),
                   hi = min(max m + 0.01, 1)

Letters in shapes: n examples, K classes.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from locojax.core import arrays, checks, trees, types
from locojax.core import labels as labels_lib
from locojax.methods.ciw import classes
from locojax.methods.ciw import inputs as inputs_lib

MODES = ("simple", "sample", "weight", "sample_weight", "label_smoothing")
_BETA = ("simple", "sample", "label_smoothing")
_DRAWN = ("sample", "sample_weight")
_MARGIN = 0.01


class Mixed(NamedTuple):
  """A mixed batch.

  Attributes:
    inputs: as the inputs given.
    labels: `[n, K]` soft labels.
    partners: `[n]` int32, the index j(i).
    ratios: `[n]`, the share r_i of the example itself.
  """

  inputs: types.PyTree
  labels: jax.Array
  partners: jax.Array
  ratios: jax.Array


def mixing_mass(
  weights: ArrayLike, *, power: float = 1.0, mask: ArrayLike | None = None
) -> jax.Array:
  """m_i = w_i^power / sum_j w_j^power.

  Args:
    weights: `[n]`, zero or more.
    power: 0 or more; 0 is uniform over the live examples.
    mask: `[n]`, zero at examples that count as removed.

  Returns:
    `[n]` that sum to 1; uniform if all weights are 0.

  >>> mixing_mass([0.75, 0.25]).tolist()
  [0.75, 0.25]
  """
  checks.nonnegative("power", power)
  weights = arrays.as_float(weights)
  live = inputs_lib.live_examples(mask, weights.shape[0])
  weights = jnp.where(live, weights, 0.0)
  top = jnp.max(weights)
  scaled = jnp.where(top > 0, weights / jnp.where(top > 0, top, 1.0), 1.0)
  mass = jnp.where(live, scaled**power, 0.0)
  total = jnp.sum(mass)
  return mass / jnp.where(total > 0, total, 1.0)


def smoothing_share(mass: ArrayLike, mask: ArrayLike | None = None):
  """s_i, the share of its label that an example keeps; see the head.

  Args:
    mass: `[n]` from `mixing_mass`.
    mask: `[n]`, zero at examples that count as removed.

  Returns:
    `[n]` in [0, 1] at live examples.
  """
  mass = arrays.as_float(mass)
  live = inputs_lib.live_examples(mask, mass.shape[0])
  low = jnp.min(jnp.where(live, mass, jnp.inf)) - _MARGIN
  high = jnp.max(jnp.where(live, mass, -jnp.inf)) + _MARGIN
  low, high = jnp.maximum(low, 0), jnp.minimum(high, 1)
  return jnp.where(live, (mass - low) / (high - low), 1.0)


def weight_ratio(mass: jax.Array, partners: jax.Array) -> jax.Array:
  """m_i / (m_i + m_j), 1/2 where both are 0.

  >>> import jax.numpy as jnp
  >>> weight_ratio(jnp.array([0.75, 0.25]), jnp.array([1, 0])).tolist()
  [0.75, 0.25]
  """
  total = mass + mass[partners]
  return jnp.where(total > 0, mass / jnp.where(total > 0, total, 1.0), 0.5)


def _permuted(key, live):
  """A random permutation of the live examples; the others keep themselves."""
  n = live.shape[0]
  order = jax.random.permutation(key, n)
  # The live ones first, in random order; the k-th live one takes the k-th.
  order = order[jnp.argsort(~live[order], stable=True)]
  rank = jnp.cumsum(live) - 1
  return jnp.where(live, order[rank], jnp.arange(n)).astype(jnp.int32)


def _drawn(key, mass, live):
  """Partners with the probabilities `mass`, with replacement."""
  n = mass.shape[0]
  # A group without mass: any of its live examples.
  scores = jnp.where(jnp.any(mass > 0), mass, live.astype(mass.dtype))
  partners = jax.random.categorical(key, jnp.log(scores), shape=(n,))
  return jnp.where(live, partners, jnp.arange(n)).astype(jnp.int32)


def _partners(key, mass, live, drawn: bool, groups: int):
  """`[n]` partners, each within its contiguous group."""

  def one(key, mass, live):
    return _drawn(key, mass, live) if drawn else _permuted(key, live)

  if groups == 1:
    return one(key, mass, live)
  rows = mass.shape[0] // groups
  parts = (x.reshape(groups, rows) for x in (mass, live))
  partners = jax.vmap(one)(jax.random.split(key, groups), *parts)
  return (partners + rows * jnp.arange(groups)[:, None]).reshape(-1)


def _mix(x, ratios, partners, live=None):
  """r x_i + (1 - r) x_j in at least float32, dtype and masked rows kept."""
  wide = arrays.as_float(x)
  shape = (-1,) + (1,) * (x.ndim - 1)
  r = ratios.reshape(shape)
  mixed = (r * wide + (1 - r) * wide[partners]).astype(x.dtype)
  return mixed if live is None else jnp.where(live.reshape(shape), mixed, x)


def _check_inputs(tree, n: int) -> None:
  for path, leaf in trees.flatten(tree).items():
    if jnp.shape(leaf)[:1] != (n,):
      raise ValueError(
        f"inputs/{path} has shape {jnp.shape(leaf)}: its first axis must be "
        f"the {n} examples."
      )
    if not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating):
      raise ValueError(
        f"inputs/{path} has dtype {jnp.asarray(leaf).dtype}: only floating "
        "point inputs can be mixed."
      )


def _check_mode(mode, alpha, n, groups, logits) -> None:
  checks.one_of("mode", mode, MODES)
  checks.positive_int("groups", groups)
  checks.divisible("number of examples", n, "groups", groups)
  if n // groups < 2:
    raise ValueError(
      f"batch size {n} in {groups} group(s) is not allowed: mixup needs two "
      "examples or more in each."
    )
  if mode in _BETA:
    if alpha is None:
      raise ValueError(f"alpha=None is not allowed: mode={mode!r} needs it.")
    checks.positive("alpha", alpha)
  if mode == "label_smoothing" and logits is None:
    raise ValueError("logits=None is not allowed: 'label_smoothing' needs it.")


def _soft_labels(labels, num_classes, live):
  labels = checks.array("labels", labels)
  if labels.ndim == 1 and num_classes is None:
    raise ValueError("num_classes=None is not allowed: integer labels need it.")
  if labels.ndim == 2:
    num_classes = labels.shape[1]
  labels, bad = classes.check_labels(labels, (live.shape[0], num_classes), live)
  dtype = labels.dtype if labels.ndim == 2 else jnp.float32
  return labels_lib.spoil(classes.one_hot(labels, num_classes, dtype), bad)


def _smoothed(labels, mass, logits, mask):
  share = smoothing_share(mass, mask)[:, None].astype(labels.dtype)
  guess = jnp.argmax(logits, axis=1)
  guess = jax.nn.one_hot(guess, labels.shape[1], dtype=labels.dtype)
  return share * labels + (1 - share) * guess


def ciw_mixup(
  key: jax.Array,
  inputs: types.PyTree,
  labels: ArrayLike,
  weights: ArrayLike,
  *,
  mode: str,
  alpha: float | None = None,
  power: float = 1.0,
  logits: ArrayLike | None = None,
  num_classes: int | None = None,
  mask: ArrayLike | None = None,
  groups: int = 1,
) -> Mixed:
  """A mixed batch; fixed shapes, `jit`-able; the head has the modes.

  Args:
    key: typed PRNG key.
    inputs: any tree of `[n, ...]` floating point arrays.
    labels: `[n]` integers (with `num_classes`), or `[n, K]` probabilities.
      Others are refused; where they are traced, the mixed labels of what they
      are mixed into are NaN (`core.labels`).
    weights: `[n]` instance weights; `simple` does not look at them.
    mode: one of `MODES`.
    alpha: of the Beta distribution, above 0; needed but by the `weight` modes.
    power: exponent of the weights.
    logits: `[n, K]` of the clean batch, for `label_smoothing`.
    num_classes: K, for integer labels.
    mask: `[n]`, zero at padding: it is no partner, and is left as it is.
    groups: partners come from the same of so many equal, contiguous parts of
      the batch. With as many parts as devices no example moves between
      devices; the weights may still be those of the global batch.

  Returns:
    A `Mixed` batch; inputs keep their dtypes. An example may be its own
    partner. No gradient flows through weights or logits.

  Raises:
    ValueError: a batch (or group) of one example; a leaf without the axis of
      examples or not floating point; an unknown mode; what a mode needs is
      missing; labels or mask as in `ciw_loss`.

  >>> x, weights = jnp.array([[1.0], [0.0]]), jnp.array([0.5, 0.5])
  >>> mixed = ciw_mixup(jax.random.key(1), x, jnp.array([0, 1]), weights,
  ...                   mode="weight", num_classes=2)
  >>> mixed.ratios.tolist()
  [0.5, 0.5]
  """
  weights = jax.lax.stop_gradient(jnp.asarray(weights))
  n = weights.shape[0]
  _check_mode(mode, alpha, n, groups, logits)
  _check_inputs(inputs, n)
  live = inputs_lib.live_examples(mask, n)
  labels = _soft_labels(labels, num_classes, live)
  mass = mixing_mass(weights, power=power, mask=mask)
  if mode == "label_smoothing":
    logits = jax.lax.stop_gradient(jnp.asarray(logits))
    checks.same_shape("logits", logits.shape, "labels", labels.shape)
    labels = _smoothed(labels, mass, logits, mask)
  pair_key, ratio_key = jax.random.split(key)
  partners = _partners(pair_key, mass, live, mode in _DRAWN, groups)
  if mode in _BETA:
    ratios = jax.random.beta(ratio_key, alpha, alpha, (n,), mass.dtype)
  else:
    ratios = weight_ratio(mass, partners)
  mix = functools.partial(_mix, ratios=ratios, partners=partners)
  mixed = jax.tree.map(lambda x: mix(jnp.asarray(x), live=live), inputs)
  return Mixed(mixed, mix(labels), partners, ratios)
