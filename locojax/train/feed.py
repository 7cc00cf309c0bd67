"""Batches on their way to the devices, and the layout of state and batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from locojax.core import checks, trees
from locojax.train import experiment as experiment_lib
from locojax.train import sharding


@dataclasses.dataclass(frozen=True)
class Layout:
  """Shapes and shardings of the state and of a batch on a mesh.

  Attributes:
    mesh: the devices.
    state: tree of `jax.ShapeDtypeStruct` with shardings.
    batch: the same for the global batch, in the dtypes that JAX will use.
  """

  mesh: jax.sharding.Mesh
  state: Any
  batch: Any

  @property
  def replicated(self) -> jax.sharding.NamedSharding:
    """The whole on every device."""
    return jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())

  @property
  def state_shardings(self) -> Any:
    """The tree of the state with shardings for leaves."""
    return jax.tree.map(lambda x: x.sharding, self.state)


def _with_shardings(tree: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )


def layout_of(
  experiment: experiment_lib.Experiment,
  mesh: jax.sharding.Mesh,
  key: jax.Array,
) -> Layout:
  """How an experiment lies on a mesh; nothing is computed.

  Args:
    experiment: gives `init`, `rules`, `batch_shapes` and `batch_spec`.
    mesh: the devices.
    key: a typed key; only its kind matters.

  Returns:
    The layout.

  Raises:
    ValueError: `key` is not a typed key, or a rule or a size does not fit.
  """
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    raise ValueError(
      f"key={key!r} is not allowed: it must be a typed key, as "
      "`jax.random.key(seed)` makes."
    )
  state = jax.eval_shape(experiment.init, key)
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, jax.dtypes.canonicalize_dtype(x.dtype)
    ),
    experiment.batch_shapes,
  )
  return Layout(
    mesh,
    _with_shardings(
      state, sharding.state_shardings(state, mesh, experiment.rules)
    ),
    _with_shardings(
      batch, sharding.batch_shardings(batch, mesh, experiment.batch_spec)
    ),
  )


class Feed:
  """Global batches on the devices, from batch `start` on.

  Args:
    experiment: gives `batches`.
    layout: what the batches must look like.
    start: number of updates done.
  """

  def __init__(
    self, experiment: experiment_lib.Experiment, layout: Layout, start: int
  ):
    self._iterator: Iterator[Any] = iter(experiment.batches(start))
    self._index = start
    self._wanted, self._tree = jax.tree.flatten(layout.batch)
    self._paths = list(trees.flatten(layout.batch))
    self._shardings = [x.sharding for x in self._wanted]
    self._many = jax.process_count() > 1
    devices = layout.mesh.devices
    self._device = devices.item() if devices.size == 1 else None

  def next(self) -> Any:
    """The next batch; the transfer need not be over.

    Raises:
      ValueError: the data end here, or the batch is not what
        `experiment.batch_shapes` says, or has 64-bit integers that JAX
        would wrap.
    """
    try:
      batch = next(self._iterator)
    except StopIteration:
      raise ValueError(
        f"experiment.batches ended before batch {self._index}: it must give "
        "one batch for each of num_steps."
      ) from None
    leaves = self._leaves(batch)
    self._index += 1
    return jax.tree.unflatten(self._tree, self._put(leaves))

  def _put(self, leaves: Sequence[np.ndarray]) -> Sequence[jax.Array]:
    if self._device is not None:
      return jax.device_put(leaves, self._device)  # the same, and quicker
    if not self._many:
      return jax.device_put(leaves, self._shardings)
    return [
      jax.make_array_from_process_local_data(s, x, w.shape)
      for s, x, w in zip(self._shardings, leaves, self._wanted, strict=True)
    ]

  def _leaves(self, batch: Any) -> list[np.ndarray]:
    leaves, tree = jax.tree.flatten(batch)
    if tree != self._tree:
      raise ValueError(
        f"batch {self._index} has the form {tree}: it must be that of "
        f"experiment.batch_shapes, {self._tree}."
      )
    for i, (x, wanted) in enumerate(zip(leaves, self._wanted, strict=True)):
      shape = x.shape[1:] if self._many else x.shape
      allowed = wanted.shape[1:] if self._many else wanted.shape
      if shape != allowed:
        self._refuse(i, f"shape {x.shape}", f"shape {wanted.shape}")
      if x.dtype != wanted.dtype:
        if jax.dtypes.canonicalize_dtype(x.dtype) != wanted.dtype:
          self._refuse(i, f"dtype {x.dtype}", f"dtype {wanted.dtype}")
        leaves[i] = checks.kept(
          f"batch {self._index}: {self._paths[i]!r}", x, wanted.dtype
        ).astype(wanted.dtype)
    return leaves

  def _refuse(self, i: int, found: str, wanted: str) -> None:
    raise ValueError(
      f"batch {self._index}: {self._paths[i]!r} has {found}; "
      f"experiment.batch_shapes says {wanted}."
    )
