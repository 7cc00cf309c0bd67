"""Client data sets: who holds which examples.

A client data set gives the examples of a client by its number. It comes from
labels (pseudo-writers) or from a column that names the user of each row, with
any source that tfds or a file gives; `client_texts` makes one from texts, and
`cohorts` makes batches for federated rounds of one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from locojax.core import checks
from locojax.data import sources

Batch = dict[str, np.ndarray]
# Names that cohorts add to those of the arrays.
MASK, CLIENT_MASK = "mask", "client_mask"


class ClientData:
  """Examples in memory, and the rows of them that each client holds.

  Attributes:
    names: of the clients, in order.
    arrays: examples `[n, ...]`, of all clients.
    rows: for each client its row numbers, in order.
  """

  def __init__(
    self,
    arrays: Mapping[str, Any],
    rows: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
  ):
    """Takes examples and who holds them.

    Args:
      arrays: `[n, ...]` each. They are not copied.
      rows: a list of row numbers for each client, none empty. A row may be
        held by several clients, or by none.
      names: of the clients, distinct; None numbers them.

    Raises:
      ValueError: no clients, one without rows, a row out of range, names that
        do not fit, or a name of an array that cohorts use.
    """
    self.arrays = sources.from_arrays(arrays).arrays
    self.rows = [
      checks.integers(f"rows[{i}]", r, np.int64).reshape(-1)
      for i, r in enumerate(rows)
    ]
    if names is None:
      names = [str(i) for i in range(len(self.rows))]
    self.names = list(names)
    self._check()

  def _check(self) -> None:
    num = len(next(iter(self.arrays.values())))
    if not self.rows or len(set(self.names)) != len(self.rows):
      raise ValueError(
        f"{len(self.rows)} clients with {len(set(self.names))} distinct names "
        "are not allowed: as many names as clients, at least one."
      )
    for name, rows in zip(self.names, self.rows):
      if not rows.size or rows.min() < 0 or rows.max() >= num:
        raise ValueError(
          f"client {name!r} holds {rows.size} rows, which is not allowed: it "
          f"must be at least one, each in [0, {num - 1}]."
        )
    if taken := {MASK, CLIENT_MASK} & set(self.arrays):
      raise ValueError(f"arrays may not have the names {sorted(taken)}.")

  def __len__(self) -> int:
    """How many clients there are."""
    return len(self.rows)

  @property
  def sizes(self) -> np.ndarray:
    """Examples of each client, `[clients]` int64."""
    return np.array([len(r) for r in self.rows], np.int64)

  def fingerprint(self, secret: bytes) -> str:
    """16 hex digits that change with who holds what.

    Names, rows and arrays of whole numbers (labels, tokens) count. Of arrays of
    floats only shape and dtype do: their last bits are not the same on all
    machines.

    Args:
      secret: without it nobody can find out by trying what the data are.
    """
    out = hmac.new(secret, digestmod=hashlib.sha256)
    for name, rows in zip(self.names, self.rows):
      out.update(f"{name!r} {len(rows)} ".encode())
      out.update(rows.astype("<i8").tobytes())
    for name, x in sorted(self.arrays.items()):
      out.update(f"{name!r} {x.shape} {x.dtype.kind} ".encode())
      if x.dtype.kind in "iub":
        out.update(x.astype("<i8").tobytes())
    return out.hexdigest()[:16]

  def client(self, client: int) -> Batch:
    """The examples of a client, `[its examples, ...]`."""
    rows = self.rows[self.number(client)]
    return {n: a[rows] for n, a in self.arrays.items()}

  def subset(self, clients: Iterable[int]) -> ClientData:
    """The data set of some clients alone, in the order given."""
    clients = [self.number(c) for c in clients]
    return ClientData(
      self.arrays,
      [self.rows[c] for c in clients],
      names=[self.names[c] for c in clients],
    )

  def pooled(self) -> Batch:
    """The examples of all clients one after the other, for evaluation."""
    rows = np.concatenate(self.rows)
    return {n: a[rows] for n, a in self.arrays.items()}

  def number(self, client: int) -> int:
    """The same client number, if there is such a client."""
    client = client.item() if isinstance(client, np.generic) else client
    return checks.int_in_range("client", client, 0, len(self) - 1)


def split_clients(
  data: ClientData, num_held_out: int, *, rng: np.random.Generator
) -> tuple[ClientData, ClientData]:
  """`(training clients, held-out clients)`: whole clients, at random."""
  checks.positive_int("num_held_out", num_held_out)
  if num_held_out >= len(data):
    raise ValueError(
      f"num_held_out={num_held_out} is not allowed: it must be below "
      f"{len(data)}, the number of clients."
    )
  order = rng.permutation(len(data))
  held, kept = order[:num_held_out], order[num_held_out:]
  return data.subset(np.sort(kept)), data.subset(np.sort(held))


def from_labels(
  arrays: Mapping[str, Any],
  *,
  num_clients: int,
  examples_per_client: int,
  alpha: float,
  rng: np.random.Generator,
  label: str = "label",
) -> ClientData:
  """Pseudo-writers: each client draws its own mix of classes.

  Client i has `p_i ~ Dirichlet(alpha prior)`, prior the shares of the classes
  in the data times their number (all 1 for balanced classes), and then takes
  its examples one by one, class by `p_i`, without replacement over all clients;
  classes that are used up are left out of p_i (Hsu et al., arXiv 1909.06335).

  Args:
    arrays: `[n, ...]` each, with class indices under `label`.
    num_clients: at least 1; together they hold `num_clients *
      examples_per_client <= n` examples.
    examples_per_client: of each client.
    alpha: above 0; small gives clients of one class, large gives equal ones.
    rng: all randomness.
    label: name of the class indices, `[n]` non-negative integers.

  Returns:
    The client data set; no example is held twice.

  Raises:
    ValueError: a bad argument, or too few examples.
  """
  checks.positive_int("num_clients", num_clients)
  checks.positive_int("examples_per_client", examples_per_client)
  checks.positive("alpha", alpha)
  labels = np.asarray(checks.lookup("label", label, dict(arrays)))
  if labels.size < num_clients * examples_per_client:
    raise ValueError(
      f"num_clients={num_clients} with examples_per_client="
      f"{examples_per_client} are not allowed: there are {labels.size} "
      "examples."
    )
  pools = [
    rng.permutation(np.flatnonzero(labels == c)) for c in _classes(labels)
  ]
  left = np.array([len(p) for p in pools])
  prior = alpha * left / left.mean()
  mixes = rng.dirichlet(prior, size=num_clients)
  rows = []
  for mix in mixes:
    counts = _draw_classes(mix, left, examples_per_client, rng)
    held = [p[n - k : n] for p, n, k in zip(pools, left, counts)]
    rows.append(np.concatenate(held))
    left = left - counts
  return ClientData(arrays, rows)


def _classes(labels: np.ndarray) -> np.ndarray:
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f"labels of shape {labels.shape} and dtype {labels.dtype} are not "
      "allowed: they must be class indices, one an example."
    )
  return np.unique(labels)


def _draw_classes(mix, left, num, rng) -> np.ndarray:
  """How many examples of each class a client takes, at most `left`."""
  counts = np.zeros_like(left)
  while (missing := num - counts.sum()) > 0:
    open_ = counts < left
    # Classes that the mix all but leaves out serve when the others are empty.
    weights = np.where(open_, np.maximum(mix, 1e-12), 0.0)
    drawn = rng.multinomial(missing, weights / weights.sum())
    counts = np.minimum(counts + drawn, left)
  return counts


def _key(value: Any) -> str:
  """A user as text, from its own value: an array of all might round it."""
  return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def from_keys(
  arrays: Mapping[str, Any],
  keys: Sequence[Any],
  *,
  max_examples: int | None = None,
) -> ClientData:
  """Real users: the rows of equal keys belong to one client.

  Args:
    arrays: `[n, ...]` each.
    keys: `[n]`, the user of each row (writer, author, rater); compared as text.
    max_examples: of a client, the first ones; None keeps all.

  Returns:
    Clients in the order of their sorted keys, named by them.

  Raises:
    ValueError: keys and rows differ in number.
  """
  keys = np.array(list(map(_key, keys)), str)
  num = len(sources.from_arrays(arrays))
  checks.same_shape("keys", keys.shape, "rows", (num,))
  names, inverse = np.unique(keys, return_inverse=True)
  order = np.argsort(inverse, kind="stable")
  ends = np.cumsum(np.bincount(inverse))[:-1]
  rows = [r[:max_examples] for r in np.split(order, ends)]
  return ClientData(arrays, rows, names=[str(n) for n in names])
