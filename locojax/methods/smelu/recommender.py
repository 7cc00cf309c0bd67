"""Click prediction: embeddings of categorical fields, an MLP, one logit.

B batch, F fields, S slots (ids of an example over all fields), R rows of the
table, E embedding size, D numeric features.

A batch is `{"categorical": int32 [B, S], "numeric": float [B, D], "label":
[B], "mask": [B]}`. A field has one slot, or several when it is multi-hot; a
negative id is an empty slot.

All fields share one table `[R, E]`, each with a range of rows of its own. One
table needs one gather and, with rows sharded (`RULES`), one sum over the axis
`model`, and every device holds as many rows however unequal the fields are. XLA
partitions the lookup without gathering the table, forward and backward.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from locojax.core import arrays, checks, metrics, types
from locojax.core import labels as labels_lib
from locojax.nn import mlp

COMBINERS = ("sum", "mean")
NUMERIC = ("identity", "log1p")
ROW_MULTIPLE = 256

# Rows over `model`. The devices along `data` hold copies, and sum the gradient
# of their rows: a dense array of R / model rows.
RULES = ((r"(^|/)embedding/table$", PartitionSpec("model", None)),)
# Rows over all devices: least memory, no sum of table gradients; instead ids
# and looked-up vectors of the whole batch travel. For tables of gigabytes.
RULES_ALL_DEVICES = (
  (r"(^|/)embedding/table$", PartitionSpec(("data", "model"), None)),
)


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of uint32 in which each bit depends on all (MurmurHash3)."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def hash_ids(
  ids: ArrayLike, *, salt: ArrayLike, num_buckets: ArrayLike
) -> jax.Array:
  """Spreads integers evenly over buckets.

  `mix(mix(id + mix(salt + c))) mod num_buckets`, with the 32-bit finaliser of
  MurmurHash3 as `mix`. A bucket's share is off `1 / num_buckets` by at most
  `2^-32`. Different salts give unrelated assignments.

  Args:
    ids: integers of any shape, signed or not, of NumPy in 64 bits too; the low
      32 bits count.
    salt: integer(s), such as the number of the field; broadcasts.
    num_buckets: integer(s) in 1..2^31-1; broadcasts.

  Returns:
    int32 in `0..num_buckets-1`, of the broadcast shape; the same on every
    backend.

  Raises:
    ValueError: ids that are no integers, or a `num_buckets` below 1.

  >>> hash_ids([0, 1, 2], salt=0, num_buckets=1000).tolist()
  [304, 709, 813]
  """
  ids = _words("ids", ids)
  if not isinstance(num_buckets, jax.core.Tracer):
    lowest = int(np.min(num_buckets)) if np.size(num_buckets) else 1
    checks.positive_int("num_buckets", lowest)
  seed = _mix(_words("salt", salt) + np.uint32(0x9E3779B9))
  mixed = _mix(_mix(ids + seed))
  return (mixed % _words("num_buckets", num_buckets)).astype(jnp.int32)


def _words(name: str, x: ArrayLike) -> jax.Array:
  """The low 32 bits of integers, of NumPy's 64-bit ones too."""
  x = x if isinstance(x, jax.Array) else np.asarray(x)
  if not np.issubdtype(x.dtype, np.integer):
    raise ValueError(f"{name} have dtype {x.dtype}: they must be integers.")
  return jnp.asarray(x.astype(np.uint32))


def _ids(categorical: ArrayLike) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Ids as int32 (none becomes another), as words; which are not empty."""
  if not isinstance(categorical, jax.Array):
    categorical = np.asarray(categorical)
  words, there = _words("categorical", categorical), categorical >= 0
  if isinstance(categorical, np.ndarray):
    if categorical.size and int(categorical.max()) >= 2**32:
      raise ValueError(
        f"categorical has the id {categorical.max()}, which is not allowed: it "
        "must be below 2^32. Fold longer ids first, as `ids % (2**32 - 5)`."
      )
    categorical = categorical.astype(np.int64)
    categorical = np.clip(categorical, -1, 2**31 - 1).astype(np.int32)
  return checks.index_array("categorical", categorical), words, there


def _per_field(name: str, value: Any, num_fields: int) -> tuple:
  """One setting for each field, from one for all or a sequence."""
  if isinstance(value, str) or not isinstance(value, Sequence):
    return (value,) * num_fields
  if len(value) != num_fields:
    raise ValueError(
      f"{name}={value!r} has {len(value)} entries for {num_fields} fields: "
      "give one value, or one for each field."
    )
  return tuple(value)


class EmbeddingTower(nn.Module):
  """Embeddings of categorical fields, next to the numeric features.

  The parameter is `table`, `[R, E]`. Field f owns `vocab_sizes[f]` rows; unused
  rows at the end make R a multiple of `ROW_MULTIPLE`, so that the table divides
  over the devices.

  Attributes:
    vocab_sizes: ids (or hash buckets, for a hashed field) of each field.
    dim: E.
    hashing: whether ids are hashed into the field's rows; for all fields or one
      by one. Ids are integers in [0, 2^32); those from 2^31 come as unsigned
      ones, or as 64-bit integers of NumPy. Without hashing an id outside the
      vocabulary is an empty slot. Negative ids always are.
    widths: slots of each field; None means one each.
    combiner: of the slots of a field: `sum`, or `mean` over those that are not
      empty. A field whose slots are all empty gives zeros.
    numeric: `identity` (already standardised), or `log1p`, which is
      `sign(x) log(1 + |x|)`, for counts.
    embedding_init: initialiser of the table; None means normal with standard
      deviation `1 / sqrt(E)`.
    dtype: dtype of the output; None keeps float32.
  """

  vocab_sizes: Sequence[int]
  dim: int = 16
  hashing: bool | Sequence[bool] = False
  widths: Sequence[int] | None = None
  combiner: str | Sequence[str] = "sum"
  numeric: str = "identity"
  embedding_init: Callable[..., jax.Array] | None = None
  dtype: Any = None

  def _settings(self) -> tuple[tuple[int, ...], tuple, tuple]:
    """Widths, hashing and combiners, one for each field, all checked."""
    n = len(self.vocab_sizes)
    widths = _per_field("widths", self.widths or 1, n)
    hashing = _per_field("hashing", self.hashing, n)
    combiners = _per_field("combiner", self.combiner, n)
    for size in self.vocab_sizes:
      checks.positive_int("vocab_sizes", size)
    for width in widths:
      checks.positive_int("widths", width)
    for combiner in combiners:
      checks.one_of("combiner", combiner, COMBINERS)
    checks.positive_int("dim", self.dim)
    checks.one_of("numeric", self.numeric, NUMERIC)
    return widths, hashing, combiners

  @property
  def num_rows(self) -> int:
    """R, with the rows that only fill up."""
    rows = -(-sum(self.vocab_sizes) // ROW_MULTIPLE) * ROW_MULTIPLE
    if rows >= 2**31:
      raise ValueError(
        f"vocab_sizes add up to {sum(self.vocab_sizes)} rows, not allowed: "
        "they must stay below 2^31."
      )
    return rows

  def rows(self, categorical: ArrayLike) -> jax.Array:
    """Rows of the table for ids: int32 `[B, S]`, -1 for empty slots.

    Args:
      categorical: `[B, S]` integers of any width, signed or not.

    Raises:
      ValueError: another shape or dtype; ids from the host of 2^32 or more,
        which JAX would wrap.
    """
    widths, hashing, _ = self._settings()
    checks.same_shape(
      "categorical", np.shape(categorical)[1:], "sum of widths", (sum(widths),)
    )
    slots = lambda values: np.repeat(np.asarray(values), widths)
    sizes = slots(self.vocab_sizes).astype(np.int32)
    starts = np.cumsum([0, *self.vocab_sizes])[:-1]
    salts, hashed = slots(np.arange(len(widths))), slots(hashing).astype(bool)
    ids, words, there = _ids(categorical)
    if hashed.any():
      buckets = hash_ids(words, salt=salts, num_buckets=sizes)
      ids = jnp.where(hashed & there, buckets, ids)
    found = (ids >= 0) & (ids < sizes)
    return jnp.where(found, ids + slots(starts).astype(np.int32), -1)

  def _combine(self, vectors: jax.Array, found: jax.Array) -> jax.Array:
    """`[B, S, E]` to `[B, F, E]`."""
    widths, _, combiners = self._settings()
    if set(widths) == {1}:
      return vectors
    bounds = itertools.pairwise(itertools.accumulate(widths, initial=0))
    fields = []
    for (low, high), combiner in zip(bounds, combiners):
      total = jnp.sum(vectors[:, low:high], axis=1)
      if combiner == "mean":
        count = jnp.sum(found[:, low:high], axis=1, dtype=total.dtype)
        total = total / jnp.maximum(count, 1)[:, None]
      fields.append(total)
    return jnp.stack(fields, axis=1)

  @nn.compact
  def __call__(
    self, categorical: jax.Array, numeric: jax.Array | None = None
  ) -> jax.Array:
    """`[B, S]` ids and `[B, D]` numbers to features `[B, F E + D]`."""
    rows = self.rows(categorical)
    init = self.embedding_init or nn.initializers.normal(self.dim**-0.5)
    table = self.param("table", init, (self.num_rows, self.dim))
    found = rows >= 0
    vectors = jnp.take(table, jnp.maximum(rows, 0), axis=0, mode="clip")
    vectors = jnp.where(found[..., None], vectors, 0)
    fields = self._combine(vectors, found)
    out = fields.reshape(fields.shape[0], -1)
    if numeric is not None:
      numeric = arrays.as_float(numeric)
      if self.numeric == "log1p":
        numeric = jnp.sign(numeric) * jnp.log1p(jnp.abs(numeric))
      out = jnp.concatenate([out, numeric], axis=-1)
    return out if self.dtype is None else out.astype(self.dtype)


class CTRModel(nn.Module):
  """Embeddings and numeric features, hidden layers, one logit.

  Parameters: `embedding/table`, `mlp/layer_i/...`, `mlp/norm_i/...`.

  Attributes:
    vocab_sizes, dim, hashing, widths, combiner, numeric, embedding_init: of
      `EmbeddingTower`.
    hidden: sizes of the hidden layers.
    activation: elementwise function, or a linen module, copied for each layer.
    normalization: before each activation: `layer`, `weight`, `batch` or None.
      `batch` couples the examples of a batch.
    dropout_rate: of the hidden units.
    dtype: dtype of the hidden layers; None is float32. The logit is float32.
  """

  vocab_sizes: Sequence[int]
  dim: int = 16
  hashing: bool | Sequence[bool] = False
  widths: Sequence[int] | None = None
  combiner: str | Sequence[str] = "sum"
  numeric: str = "identity"
  embedding_init: Callable[..., jax.Array] | None = None
  hidden: Sequence[int] = (256, 128, 64)
  activation: mlp.Activation = nn.relu
  normalization: str | None = "layer"
  dropout_rate: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    categorical: jax.Array,
    numeric: jax.Array | None = None,
    *,
    train: bool = False,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """Logits `[B]`, float32 (float64 for float64 numbers).

    Args:
      categorical: `[B, S]` integers.
      numeric: `[B, D]`, or None.
      train: use dropout and the statistics of the batch.
      mask: `[B]`; BatchNorm ignores examples where it is zero, whose numbers
        count as zeros, whatever they are.
    """
    if numeric is not None:
      numeric = arrays.kept(numeric, mask)
    names = ("vocab_sizes", "dim", "hashing", "widths", "combiner", "numeric")
    tower = EmbeddingTower(
      **{name: getattr(self, name) for name in names},
      embedding_init=self.embedding_init,
      dtype=self.dtype,
      name="embedding",
    )
    stack = mlp.MLP(
      (*self.hidden, 1),
      activation=self.activation,
      normalization=self.normalization,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
      name="mlp",
    )
    out = stack(tower(categorical, numeric), train=train, mask=mask)
    return arrays.as_float(out[:, 0])


def init(
  model: CTRModel, *, key: jax.Array, num_numeric: int = 0
) -> tuple[types.PyTree, types.PyTree]:
  """Parameters and model state (batch statistics, or an empty dict).

  Args:
    model: the model.
    key: typed PRNG key.
    num_numeric: D.

  Returns:
    `(params, model_state)`.
  """
  num_slots = sum(model.widths or (1,) * len(model.vocab_sizes))
  ids = jnp.zeros((1, num_slots), jnp.int32)
  variables = model.init(key, ids, jnp.zeros((1, num_numeric)))
  return variables["params"], {
    name: state for name, state in variables.items() if name != "params"
  }


def _clicks(labels: ArrayLike, mask) -> labels_lib.Checked:
  """Labels as floats in [0, 1], 0 where they are bad or removed."""
  labels = jnp.asarray(labels)
  if not jnp.issubdtype(labels.dtype, jnp.floating):
    index, bad = labels_lib.check("label", labels, 2, mask)
    return labels_lib.Checked(arrays.as_float(index), bad)
  labels = arrays.kept(arrays.as_float(labels), mask)
  good = (labels >= 0) & (labels <= 1)
  if arrays.is_concrete(good) and not bool(good.all()):
    checks.refuse("label", float(labels[~good][0]), "a number in [0, 1]")
  return labels_lib.Checked(jnp.where(good, labels, 0.0), ~good)


def make_loss(model: CTRModel, *, train: bool = True) -> types.LossFn:
  """The logistic loss, mean over the examples that the mask keeps.

  Args:
    model: the model.
    train: use dropout, and update batch statistics; False for evaluation.

  Returns:
    `(params, model_state, batch, key) -> (loss, (metrics, model_state))`.
    Metrics, all `Mean`: `loss`, `accuracy` (at 1/2), `prediction` (mean
    probability) and `label` (mean label; its ratio to `prediction` tells the
    calibration). `mask` may be absent; its values are weights. With BatchNorm
    the loss is marked as coupling examples, so that it is not cut into
    microbatches. Labels are 0 or 1, as integers or floats, or probabilities in
    between; others are refused, or where they are traced make the loss NaN
    (`core.labels`). Of no examples the loss is 0.
  """

  def loss_fn(params, model_state, batch, key):
    mask = batch.get("mask")
    logits, new_state = model.apply(
      {"params": params, **model_state},
      batch["categorical"],
      batch.get("numeric"),
      train=train,
      mask=mask,
      rngs={"dropout": key} if train and model.dropout_rate else {},
      mutable=list(model_state) if train else [],
    )
    label, bad = _clicks(batch["label"], mask)
    each = optax.sigmoid_binary_cross_entropy(logits, label)
    hits = ((logits > 0) == (label > 0.5)).astype(each.dtype)
    out = {
      "loss": metrics.mean(labels_lib.spoil(each, bad), mask),
      "accuracy": metrics.mean(labels_lib.spoil(hits, bad), mask),
      "prediction": metrics.mean(jax.nn.sigmoid(logits), mask),
      "label": metrics.mean(label, mask),
    }
    new_state = {**model_state, **new_state}
    return out["loss"].loss(), (out, new_state)

  loss_fn.couples_examples = train and model.normalization == "batch"
  return loss_fn


def make_predict(
  model: CTRModel,
) -> Callable[[types.PyTree, types.PyTree, types.Batch], jax.Array]:
  """`(params, model_state, batch) -> click probabilities [B]`, float32."""

  def predict(params, model_state, batch):
    logits = model.apply(
      {"params": params, **model_state},
      batch["categorical"],
      batch.get("numeric"),
    )
    return jax.nn.sigmoid(logits)

  return predict


# Keywords of `CTRModel`. The sizes are a choice of this project: no published
# model of the method states its own. `criteo` has the shape of the Criteo data
# sets (26 categorical, 13 numeric features): 33.7 million rows of which ten
# large fields hold nearly all, 540 million embedding parameters.
NUM_NUMERIC_CRITEO = 13
PRESETS: dict[str, dict[str, Any]] = {
  "small": dict(dim=8, hidden=(64, 32)),
  "base": dict(dim=16, hidden=(256, 128, 64)),
  "criteo": dict(
    vocab_sizes=(4 * 10**6,) * 8
    + (8 * 10**5,) * 2
    + (10**4,) * 8
    + (2500,) * 8,
    hashing=True,
    numeric="log1p",
    dim=16,
    hidden=(1024, 512, 256),
  ),
}
