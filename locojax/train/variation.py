"""What varies between replicas: one stream of random numbers for each source.

See `replicas`, which makes experiments of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from locojax.core import checks, types
from locojax.train import experiment as experiment_lib

SOURCES = ("init", "order", "dropout", "rounding", "labels")
# The state of a replica keeps one key for each of these, in this order.
STREAMS = ("dropout", "rounding", "labels")

SeededBatches = Callable[[int], Callable[[int], Iterator[types.Batch]]]


@dataclasses.dataclass(frozen=True)
class Variation:
  """An experiment and what varies; the fields are told by `from_experiment`."""

  experiment: experiment_lib.Experiment
  vary: frozenset[str]
  batches: SeededBatches | None = None
  order_seed: int | None = None
  rounding_ulps: float = 1.0
  label_name: str = "label"
  num_classes: int | None = None

  def __post_init__(self):
    for name in self.vary:
      checks.one_of("vary", name, SOURCES)
    if "order" in self.vary and self.batches is None:
      raise ValueError(
        "batches=None is not allowed with 'order' in vary: it must be a "
        "function seed -> (start -> iterator)."
      )
    if (self.batches is None) != (self.order_seed is None):
      raise ValueError(
        f"order_seed={self.order_seed!r} is not allowed with "
        f"batches={self.batches!r}: give both or none."
      )
    if self.order_seed is not None:
      checks.in_range("order_seed", self.order_seed, 0, 2**32 - 1)
    checks.nonnegative("rounding_ulps", self.rounding_ulps)
    if "labels" in self.vary:
      _check_labels(self.experiment, self.label_name, self.num_classes)

  def stream(self, key: jax.Array, source: str, replica) -> jax.Array:
    """The key of a source: that of replica 0 where the source is shared."""
    key = jax.random.fold_in(key, SOURCES.index(source))
    return jax.random.fold_in(key, replica if source in self.vary else 0)

  def streams(self, key: jax.Array, replica) -> jax.Array:
    """The keys that a replica keeps, `[streams]`."""
    return jnp.stack([self.stream(key, s, replica) for s in STREAMS])

  def init(self, key: jax.Array, replica) -> types.TrainState:
    """Replica at step 0."""
    state = self.experiment.init(self.stream(key, "init", replica))
    return state.replace(key=self.streams(key, replica))

  def batches_of(self, replica: int) -> Callable[[int], Iterator[types.Batch]]:
    """`start -> iterator` of the batches of a replica."""
    if self.batches is None:
      return self.experiment.batches
    which = replica if "order" in self.vary else 0
    return self.batches(replica_seed(self.order_seed, which))

  def step(self, state: types.TrainState, batch: types.Batch):
    """The step of one replica, whose `state.key` is `[streams]`."""
    keys = state.key
    dropout, rounding, labels = (keys[i] for i in range(len(STREAMS)))
    if "labels" in self.vary:
      order = jax.random.permutation(labels, self.num_classes)
      batch = _renumber(batch, self.label_name, order)
    new, measured = self.experiment.step(state.replace(key=dropout), batch)
    if "rounding" in self.vary:
      key = jax.random.fold_in(rounding, state.step)
      params = _rounded(new.params, state.params, key, self.rounding_ulps)
      new = new.replace(params=params)
    return new.replace(key=keys.at[0].set(new.key)), measured


def _check_labels(experiment, label_name, num_classes) -> None:
  checks.positive_int("num_classes", num_classes)
  shapes = experiment.batch_shapes
  if not isinstance(shapes, Mapping):
    raise ValueError("vary={'labels'} needs batches that are dicts.")
  leaf = checks.lookup("label_name", label_name, shapes)
  if not jnp.issubdtype(leaf.dtype, jnp.integer):
    raise ValueError(
      f"label_name={label_name!r} is not allowed: its dtype is {leaf.dtype}, "
      "and it must be an array of class indices."
    )
  if experiment.evals:
    raise ValueError(
      f"experiment.evals={sorted(experiment.evals)} are not allowed with "
      "'labels' in vary, for they know nothing of the new numbers: they must "
      "be left out. Use `predictor` and `unpermute`."
    )


def replica_seed(seed: int, replica: int) -> int:
  """The seed of the batches of a replica, in [0, 2^32).

  Seeds of different replicas, or from different `seed`, are independent.
  """
  sequence = np.random.SeedSequence(seed, spawn_key=(replica,))
  return int(sequence.generate_state(1)[0])


def _renumber(batch: types.Batch, name: str, order: jax.Array) -> types.Batch:
  """Class j becomes `order[j]`; an index outside the classes stays."""
  labels = checks.array(name, batch[name])
  inside = (labels >= 0) & (labels < order.shape[0])
  new = order[jnp.where(inside, labels, 0)].astype(labels.dtype)
  return {**batch, name: jnp.where(inside, new, labels)}


def _rounded(new, old, key: jax.Array, ulps: float) -> types.PyTree:
  """`_rounded_leaf` on all float leaves, each with a key of its own."""
  leaves, tree = jax.tree.flatten(new)
  before = jax.tree.leaves(old)
  out = [
    _rounded_leaf(x, y, jax.random.fold_in(key, i), ulps)
    if jnp.issubdtype(x.dtype, jnp.floating)
    else x
    for i, (x, y) in enumerate(zip(leaves, before, strict=True))
  ]
  return jax.tree.unflatten(tree, out)


def _rounded_leaf(new, old, key, ulps: float) -> jax.Array:
  """`old + u (1 + ulps eps U(-1, 1))` for u = new - old.

  The change is mostly less than the distance of `new` to the next float. The
  sum then goes to that float with the probability that gives the right mean,
  as the rounding of a changed update would.
  """
  wide = jnp.promote_types(new.dtype, jnp.float32)
  size, chance = jax.random.uniform(key, (2, *new.shape), wide)
  eps = ulps * float(jnp.finfo(new.dtype).eps)
  update = new.astype(wide) - old.astype(wide)
  change = update * eps * (2 * size - 1)
  infinity = jnp.full_like(new, jnp.inf)
  towards = jnp.where(change < 0, -infinity, infinity)
  neighbour = jax.lax.nextafter(new, towards)
  gap = jnp.abs(neighbour.astype(wide) - new.astype(wide))
  small = jnp.where(chance * gap < jnp.abs(change), neighbour, new)
  large = (new.astype(wide) + change).astype(new.dtype)
  return jnp.where(jnp.abs(change) < gap, small, large)
