"""Cohorts: the batches of federated rounds, `[clients, local_steps, batch]`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from locojax.core import checks
from locojax.data import clients as clients_lib

Batch = clients_lib.Batch
# Round -> client numbers [n], and 1 or, for those that are padding, 0.
Sampler = Callable[[int], tuple[np.ndarray, np.ndarray]]
_MAX_SEED = 2**32 - 1


def cohort(
  data: clients_lib.ClientData,
  clients: Any,
  mask: Any = None,
  *,
  local_steps: int,
  batch_size: int,
  seed: int,
  round_index: int,
  num_epochs: int = 1,
) -> Batch:
  """The examples of a cohort, in batches for local training.

  Each client shuffles its examples anew for each epoch, a function of (seed,
  round, client), and deals them into batches; the last batch of an epoch may be
  short. What is beyond `local_steps` batches is left out of this round.

  Args:
    data: the client data set.
    clients: client numbers `[n]`.
    mask: `[n]`, zero where a number is padding; None has no padding.
    local_steps: batches of a client, at most.
    batch_size: examples of a batch.
    seed: of the shuffles, in [0, 2^32).
    round_index: number of the round.
    num_epochs: passes of a client over its examples.

  Returns:
    `[n, local_steps, batch_size, ...]` for each array, zero where there is no
    example; `mask` `[n, local_steps, batch_size]` and `client_mask` `[n]`,
    float32.

  Raises:
    ValueError: a bad argument, or a client number out of range.
  """
  for name, value in (
    ("local_steps", local_steps),
    ("batch_size", batch_size),
    ("num_epochs", num_epochs),
  ):
    checks.positive_int(name, value)
  checks.in_range("seed", seed, 0, _MAX_SEED)
  clients = np.asarray(clients)
  present = np.ones(clients.shape) if mask is None else np.asarray(mask)
  checks.same_shape("mask", present.shape, "clients", clients.shape)
  layout = np.full((len(clients), local_steps * batch_size), -1, np.int64)
  for i in np.flatnonzero(present):
    rows = data.rows[data.number(clients[i])]
    rng = _rng(seed, round_index, int(clients[i]))
    order = _local_order(rows, batch_size, num_epochs, rng)
    order = order[: layout.shape[1]]
    layout[i, : len(order)] = order
  out = _gather(data.arrays, layout.reshape(-1, local_steps, batch_size))
  return {**out, clients_lib.CLIENT_MASK: (present != 0).astype(np.float32)}


def _rng(seed: int, round_index: int, client: int) -> np.random.Generator:
  place = (round_index, client)
  sequence = np.random.SeedSequence(seed, spawn_key=place)
  return np.random.Generator(np.random.Philox(sequence))


def _local_order(rows, batch_size: int, num_epochs: int, rng) -> np.ndarray:
  """Rows in their order, -1 for padding, each epoch in whole batches."""
  padding = np.full((-len(rows) % batch_size,), -1, np.int64)
  epochs = [
    np.concatenate([rng.permutation(rows), padding]) for _ in range(num_epochs)
  ]
  return np.concatenate(epochs)


def _gather(arrays: Mapping[str, np.ndarray], layout: np.ndarray) -> Batch:
  there = layout >= 0

  def take(array):
    rows = array[np.maximum(layout, 0)]
    rows[~there] = np.zeros((), array.dtype)
    return rows

  out = {name: take(array) for name, array in arrays.items()}
  return {**out, clients_lib.MASK: there.astype(np.float32)}


def cohorts(
  data: clients_lib.ClientData,
  sampler: Sampler,
  *,
  num_rounds: int | None = None,
  process_index: int = 0,
  process_count: int = 1,
  **settings,
) -> Callable[[int], Iterator[Batch]]:
  """Cohorts of round after round, for the training loop.

  Args:
    data: the client data set.
    sampler: round -> `(client numbers [n], mask [n])`, random access; n is the
      same in every round.
    num_rounds: the iterator ends after so many; None never ends.
    process_index, process_count: which block of the clients of each round is
      wanted; the count divides n.
    **settings: `local_steps`, `batch_size`, `seed`, `num_epochs`, as for
      `cohort`.

  Returns:
    `start -> iterator` of cohorts `start, start + 1, ...`; cohort k is a
    function of (seed, k) and the sampler alone.

  Raises:
    ValueError: as `cohort`, at the round in question.
  """
  checks.positive_int("process_count", process_count)
  checks.one_of("process_index", process_index, range(process_count))

  def iterate(start):
    k = int(checks.nonnegative("start", start))
    while num_rounds is None or k < num_rounds:
      clients, mask = (np.asarray(x) for x in sampler(k))
      checks.divisible("cohort", len(clients), "process_count", process_count)
      size = len(clients) // process_count
      mine = slice(process_index * size, (process_index + 1) * size)
      yield cohort(data, clients[mine], mask[mine], round_index=k, **settings)
      k += 1

  return iterate
