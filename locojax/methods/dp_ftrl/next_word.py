"""Next-word models and their masked accuracies.

A sentence is `[bos, w_1, ..., w_n, eos, pad, ...]`; token t + 1 is the label of
token t. `PRESETS` has the model of the StackOverflow simulations of DP-FTRL
(arXiv 2103.00039), 4,050,748 parameters; the family that keyboards use (coupled
gates, projection, tied embedding: Hard et al., arXiv 1811.03604), 1,412,250;
and small ones.

Letters: B batch, T tokens, V vocabulary, E embedding.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike

from locojax.core import checks, metrics, types
from locojax.core import labels as labels_lib
from locojax.nn import recurrent

# Numbers of the special tokens; `locojax.data.words` has the same.
PAD, OOV, BOS, EOS = range(4)


def uniform_init(scale: float = 0.05):
  """Uniform in [-scale, scale], as for Keras's embeddings."""
  checks.positive("scale", scale)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -scale, scale)

  return init


class NextWordModel(nn.Module):
  """Embedding, recurrent layers, and logits over the vocabulary.

  Layers: `embed`; `recurrent_0`, ... (see `recurrent.Recurrent`); with
  `bottleneck`, a dense layer of that name back to E; and `output`, dense,
  unless the embedding is tied.

  Attributes:
    vocab_size: V, special tokens included.
    embedding_size: E.
    units: of each recurrent layer.
    cell: `lstm` or `cifg`.
    projection: size of the recurrent projection; None has none.
    bottleneck: whether a dense layer leads from the units to E.
    tie_embedding: logits are products with the embedding, without bias; the
      size before them must then be E.
    num_layers: recurrent layers.
    unroll: tokens that the scan does in one turn.
    dtype: dtype of the computation; None is float32, as the parameters.
  """

  vocab_size: int
  embedding_size: int
  units: int
  cell: str = "lstm"
  projection: int | None = None
  bottleneck: bool = True
  tie_embedding: bool = False
  num_layers: int = 1
  unroll: int = 1
  dtype: Any = None

  def _check(self) -> None:
    for name in ("vocab_size", "embedding_size", "units", "num_layers"):
      checks.positive_int(name, getattr(self, name))
    checks.float_dtype("dtype", self.dtype)
    width = self.projection or self.units
    width = self.embedding_size if self.bottleneck else width
    if self.tie_embedding and width != self.embedding_size:
      raise ValueError(
        f"tie_embedding=True is not allowed with {width} features before the "
        f"logits: they must be embedding_size={self.embedding_size}, by a "
        "projection of that size or a bottleneck."
      )

  def _recurrent(self, i: int) -> recurrent.Recurrent:
    return recurrent.Recurrent(
      self.units,
      cell=self.cell,
      projection=self.projection,
      unroll=self.unroll,
      dtype=self.dtype,
      kernel_init=nn.initializers.he_normal(),
      projection_init=nn.initializers.glorot_normal(),
      name=f"recurrent_{i}",
    )

  def _dense(self, size: int, name: str) -> nn.Dense:
    return nn.Dense(
      size,
      dtype=self.dtype,
      kernel_init=nn.initializers.glorot_normal(),
      name=name,
    )

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """`[B, T]` int tokens to `[B, T, V]` logits; padding moves no state.

    Raises:
      ValueError: a bad setting.
    """
    self._check()
    embed = nn.Embed(
      self.vocab_size,
      self.embedding_size,
      dtype=self.dtype,
      embedding_init=uniform_init(),
      name="embed",
    )
    x, valid = embed(tokens), tokens != PAD
    for i in range(self.num_layers):
      x, _ = self._recurrent(i)(x, valid=valid)
    if self.bottleneck:
      x = self._dense(self.embedding_size, "bottleneck")(x)
    if self.tie_embedding:
      return embed.attend(x)
    return self._dense(self.vocab_size, "output")(x)


_CIFG = dict(cell="cifg", bottleneck=False, tie_embedding=True)
PRESETS: dict[str, dict[str, Any]] = {
  # 4,050,748 parameters: 10,000 words and four special tokens.
  "stackoverflow": dict(vocab_size=10_004, embedding_size=96, units=670),
  # 1,412,250 parameters; the vocabulary counts the special tokens.
  "cifg_production": dict(
    vocab_size=10_000, embedding_size=96, units=670, projection=96, **_CIFG
  ),
  "cifg_small": dict(
    vocab_size=4_000, embedding_size=64, units=192, projection=64, **_CIFG
  ),
  "cifg_cpu": dict(
    vocab_size=2_000, embedding_size=32, units=64, projection=32, **_CIFG
  ),
  "cifg_tiny": dict(
    vocab_size=64, embedding_size=8, units=12, projection=8, **_CIFG
  ),
}


def next_word_model(preset: str, **changes) -> NextWordModel:
  """A model of `PRESETS`, with fields changed.

  Args:
    preset: a name of `PRESETS`.
    **changes: fields of `NextWordModel` to set otherwise.

  Returns:
    The model.

  Raises:
    ValueError: an unknown preset or field.

  >>> next_word_model("stackoverflow", tie_embedding=True).units
  670
  """
  settings = checks.lookup("preset", preset, PRESETS)
  fields = set(NextWordModel.__dataclass_fields__) - {"parent", "name"}
  for name in changes:
    checks.one_of("field", name, sorted(fields))
  return NextWordModel(**{**settings, **changes})


def split_sentence(tokens: ArrayLike) -> tuple[jax.Array, jax.Array]:
  """`[..., T + 1]` tokens to inputs and labels, `[..., T]` each."""
  tokens = checks.array("tokens", tokens)
  return tokens[..., :-1], tokens[..., 1:]


def token_mask(
  labels: ArrayLike, special: tuple[int, ...], mask: ArrayLike | None = None
) -> jax.Array:
  """1 for labels that are none of the special tokens, in examples that count.

  Args:
    labels: `[..., T]` integers.
    special: tokens that do not count.
    mask: `[...]` of the sentences; None counts all.

  Returns:
    `[..., T]` float32.
  """
  labels = checks.array("labels", labels)
  counts = jnp.ones(labels.shape, jnp.float32)
  for token in special:
    counts = counts * (labels != token)
  if mask is not None:
    counts = counts * jnp.asarray(mask, jnp.float32)[..., None]
  return counts


def _first_largest(logits: jax.Array) -> jax.Array:
  """As `argmax` over the last axis; NaN is nowhere (V).

  Two plain reductions: XLA's CPU code for `argmax` reduces pairs, without
  vector instructions, which made a client's training half as fast.
  """
  largest = logits.max(axis=-1, keepdims=True)
  place = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  return jnp.where(logits == largest, place, logits.shape[-1]).min(axis=-1)


def masked_accuracies(
  logits: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None
) -> dict[str, metrics.Mean]:
  """Shares of labels that are the largest logit, over three sets of labels.

  The prediction is the largest of all V logits, whatever is counted.

  Args:
    logits: `[..., T, V]`.
    labels: `[..., T]` integers.
    mask: `[...]` of the sentences; None counts all.

  Returns:
    `accuracy_no_oov_or_eos` (labels that are words), `accuracy_no_oov` (words
    and eos) and `accuracy_with_oov` (all but padding), each a `Mean`.
  """
  left_out = {
    "accuracy_no_oov_or_eos": (PAD, OOV, EOS),
    "accuracy_no_oov": (PAD, OOV),
    "accuracy_with_oov": (PAD,),
  }
  labels = checks.array("labels", labels)
  hits = _first_largest(jnp.asarray(logits)) == labels
  return {
    name: metrics.mean(hits, token_mask(labels, special, mask))
    for name, special in left_out.items()
  }


def next_word_loss(model: nn.Module, *, name: str = "tokens") -> types.LossFn:
  """Mean cross-entropy of the labels that are not padding, in float32.

  Args:
    model: tokens `[B, T]` -> logits `[B, T, V]`.
    name: of the tokens in the batch, `[B, T + 1]` integers. `mask` `[B]`, if
      there, says which sentences count.

  Returns:
    A `LossFn` with the metrics `loss` and `masked_accuracies`. Where nothing
    counts the loss is zero.
  """

  def loss_fn(params, model_state, batch, key):
    del key
    inputs, labels = split_sentence(batch[name])
    logits = model.apply({"params": params}, inputs).astype(jnp.float32)
    mask = batch.get("mask")
    each = labels_lib.cross_entropy(logits, labels, mask)
    mean = metrics.mean(each, token_mask(labels, (PAD,), mask))
    found = {"loss": mean, **masked_accuracies(logits, labels, mask)}
    loss = mean.total / jnp.maximum(mean.weight, 1.0)
    return loss, (found, model_state)

  return loss_fn
