"""Objects as sequences of tokens: [ymin, xmin, ymax, xmax, class] each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from locojax.core import checks
from locojax.methods.pix2seq import inputs, quantization, vocabulary

PER_OBJECT = 5
CORRUPTIONS = (
  "none",
  "rand_cls",
  "real_n_fake_cls",
  "rand_n_fake_cls",
  "real_n_rand_n_fake_cls",
)
RANDOM_CLASSES = ("used", "layout")


class SequenceBatch(NamedTuple):
  """What a decoder reads and what it must say, L = 5 N.

  Attributes:
    inputs: `[..., L]` int32: the prompt, then the tokens before each target,
      the classes among them corrupted.
    targets: `[..., L]` int32: the true tokens.
    weights: `[..., L]` float32.
  """

  inputs: jax.Array
  targets: jax.Array
  weights: jax.Array


def build_sequences(
  boxes: Any,
  labels: Any,
  is_noise: Any,
  valid: Any,
  vocab: vocabulary.Vocabulary,
  *,
  corruption: str = "rand_n_fake_cls",
  noise_weight: float = 1.0,
  eos_weight: float = 0.1,
  key: jax.Array | None = None,
  mode: str = "round",
  random_classes: str = "used",
) -> SequenceBatch:
  """Training sequences of objects in their slots (Pix2Seq, section 3).

  The targets are the true tokens: a real object ends in its class, noise in
  `vocab.noise`, an empty slot is five times 0. The inputs are these one step
  later, behind the prompt, with the class of every object, noise too, replaced:

    none                     as it is
    rand_cls                 a random class
    real_n_fake_cls          as it is or noise, 1/2 each
    rand_n_fake_cls          a random class or noise, 1/2 each
    real_n_rand_n_fake_cls   as it is 1/2, a random class 1/4, noise 1/4

  Without that a decoder learns that all is noise after the first noise object.
  Weights are 1, but 0 for coordinates of noise, `noise_weight` for its class,
  and `eos_weight` wherever the target is 0.

  Args:
    boxes: `[..., N, 4]`, normalised yxyx.
    labels: `[..., N]` integers, 1 to `vocab.num_classes` for real objects.
    is_noise: `[..., N]` bool, see `inject_noise_objects`.
    valid: `[..., N]` bool; the others are empty slots.
    vocab: the tokens.
    corruption: one of `CORRUPTIONS`.
    noise_weight: 0 or more.
    eos_weight: 0 or more.
    key: for the corruption; `none` needs none.
    mode: of `quantize`.
    random_classes: `used` draws the classes of the vocabulary; `layout` all ids
      that the layout keeps for them, as the official code does (900 of them).

  Raises:
    ValueError: bad settings or objects, or no key.
  """
  checks.one_of("corruption", corruption, CORRUPTIONS)
  checks.one_of("random_classes", random_classes, RANDOM_CLASSES)
  checks.nonnegative("noise_weight", noise_weight)
  checks.nonnegative("eos_weight", eos_weight)
  if corruption != "none":
    key = inputs.key_of(key, f"the corruption {corruption!r}")
  boxes, labels, real, valid = _told(boxes, labels, is_noise, valid, vocab)
  coords = vocab.coord_start + quantization.quantize(
    boxes, vocab.num_bins, mode
  )
  classes = jnp.where(real, vocab.class_start - 1 + labels, vocab.noise)
  draw = vocab.class_ids if random_classes == "used" else vocab.class_range
  shown = _corrupted(key, classes, corruption, draw, vocab.noise)
  targets = _flat(coords, classes, valid)
  fed = _flat(coords, shown, valid)
  prompt = jnp.full((*fed.shape[:-1], 1), vocab.prompt(), jnp.int32)
  weights = _weights(real, noise_weight)
  return SequenceBatch(
    jnp.concatenate([prompt, fed[..., :-1]], axis=-1),
    targets,
    jnp.where(targets == vocab.eos, jnp.float32(eos_weight), weights),
  )


def _told(boxes, labels, is_noise, valid, vocab: vocabulary.Vocabulary):
  """Boxes, labels, and masks of the real ones and of all, checked."""
  noise = is_noise if isinstance(is_noise, jax.Array) else np.asarray(is_noise)
  valid = valid if isinstance(valid, jax.Array) else np.asarray(valid)
  checks.same_shape("is_noise", noise.shape, "valid", valid.shape)
  if noise.dtype != bool:
    raise ValueError(f"is_noise has dtype {noise.dtype}: it must be bool.")
  checks.same_shape("labels", np.shape(labels), "valid", valid.shape)
  # Noise has a box but no label: it is looked at as class 1.
  swap = jnp.where if isinstance(labels, jax.core.Tracer) else np.where
  if isinstance(noise, jax.core.Tracer):
    swap = jnp.where
  told = swap(noise, 1, labels)
  boxes, labels, valid = inputs.objects(
    boxes, told, valid, num_classes=vocab.num_classes
  )
  return boxes, labels, valid & ~jnp.asarray(noise), valid


def _corrupted(key, classes, corruption: str, draw: range, noise: int):
  if corruption == "none":
    return classes
  drawn, coin, coin2 = jax.random.split(key, 3)
  half = lambda k: jax.random.bernoulli(k, 0.5, classes.shape)
  random = jax.random.randint(drawn, classes.shape, draw.start, draw.stop)
  if corruption == "rand_cls":
    return random
  random_or_noise = jnp.where(half(coin), random, noise)
  if corruption == "rand_n_fake_cls":
    return random_or_noise
  other = noise if corruption == "real_n_fake_cls" else random_or_noise
  return jnp.where(half(coin2), classes, other)


def _flat(coords, classes, valid) -> jax.Array:
  """Tokens `[..., 5 N]` from coordinates and classes, 0 in empty slots."""
  tokens = jnp.concatenate([coords, classes[..., None]], axis=-1)
  tokens = jnp.where(valid[..., None], tokens, 0).astype(jnp.int32)
  return tokens.reshape(*tokens.shape[:-2], -1)


def _weights(real: jax.Array, noise_weight: float) -> jax.Array:
  coord = real.astype(jnp.float32)
  own = jnp.where(real, 1.0, jnp.float32(noise_weight))
  weights = jnp.stack([coord] * 4 + [own], axis=-1)
  return weights.reshape(*weights.shape[:-2], -1)


def words(
  tokens: Any,
  vocab: vocabulary.Vocabulary,
  class_names: Sequence[str] | None = None,
) -> list[str]:
  """Tokens `[T]` as words: bins as numbers, classes by name.

  Raises:
    ValueError: `tokens` is not `[T]`, or not one name for each class.

  >>> vocab = vocabulary.Vocabulary(2, 8)
  >>> words([0, 1, 2, 4, 9], vocab, ["cat", "dog"])
  ['.', 'noise', '<detection>', 'dog', '4']
  """
  tokens = checks.integers("tokens", tokens)
  if tokens.ndim != 1:
    raise ValueError(
      f"tokens of shape {tokens.shape} are not allowed: they must be [T]."
    )
  if class_names is None:
    class_names = [f"class {i + 1}" for i in range(vocab.num_classes)]
  if len(class_names) != vocab.num_classes:
    checks.refuse(
      "class_names", list(class_names), f"{vocab.num_classes} names"
    )
  types = np.asarray(vocab.token_type(tokens))
  return [
    _word(int(t), vocabulary.TOKEN_TYPES[i], vocab, class_names)
    for t, i in zip(tokens, types)
  ]


def _word(token: int, kind: str, vocab: vocabulary.Vocabulary, names) -> str:
  if kind == "coord":
    return str(token - vocab.coord_start)
  if kind == "class":
    return names[token - vocab.class_start]
  if kind == "prompt" and token == vocab.prompt():
    return "<detection>"
  return {"pad": ".", "noise": "noise"}.get(kind, f"<{kind} {token}>")


def show(
  batch: SequenceBatch,
  vocab: vocabulary.Vocabulary,
  class_names: Sequence[str] | None = None,
) -> str:
  """One sequence as a table: what is fed, what is asked, with which weight.

  A row is an object. `fed` are its tokens as the decoder reads them, of which
  the class is corrupted; `asked` are the targets.

  Args:
    batch: of one image, `[L]` each.
    vocab: the tokens.
    class_names: one a class; None numbers them.

  Raises:
    ValueError: not one image, or a bad number of names.
  """
  fed = words(batch.inputs, vocab, class_names)
  asked = words(batch.targets, vocab, class_names)
  weights = [f"{w:g}" for w in np.asarray(batch.weights).tolist()]
  head, fed = fed[0], [*fed[1:], "(none)"]  # The last class is never read.
  rows = [("slot", "fed", "asked", "weight")]
  for i in range(0, len(asked) - PER_OBJECT + 1, PER_OBJECT):
    cut = slice(i, i + PER_OBJECT)
    cells = (" ".join(part[cut]) for part in (fed, asked, weights))
    rows.append((str(i // PER_OBJECT), *cells))
  wide = [max(len(row[c]) for row in rows) for c in range(4)]
  lines = ["  ".join(x.ljust(w) for x, w in zip(row, wide)) for row in rows]
  return "\n".join([f"prompt {head}", *(line.rstrip() for line in lines)])
