"""From tokens back to boxes, and from the canvas to the image."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locojax.core import boxes as layouts
from locojax.core import checks
from locojax.methods.pix2seq import quantization, sequences, vocabulary

OVER = ("used", "layout")
yxyx_to_xyxy = layouts.yxyx_to_xyxy
xyxy_to_yxyx = layouts.xyxy_to_yxyx
yxyx_to_xywh = layouts.yxyx_to_xywh
xywh_to_yxyx = layouts.xywh_to_yxyx
xyxy_to_xywh = layouts.xyxy_to_xywh
xywh_to_xyxy = layouts.xywh_to_xyxy
yxyx_to_cxcywh = layouts.yxyx_to_cxcywh
cxcywh_to_yxyx = layouts.cxcywh_to_yxyx
is_proper = layouts.is_proper


class Detections(NamedTuple):
  """What was found, `[..., N]` slots in the order they were said.

  Attributes:
    boxes: `[..., N, 4]` float32, normalised yxyx of the canvas, in [0, 1].
      They are as said: some may end before they begin, see `is_proper`.
    classes: `[..., N]` int32 labels from 1.
    scores: `[..., N]` float32: the probability of that class.
    tokens: `[..., 5 N]` int32.
  """

  boxes: jax.Array
  classes: jax.Array
  scores: jax.Array
  tokens: jax.Array


def sequences_to_boxes(
  tokens: Any,
  class_logits: Any,
  vocab: vocabulary.Vocabulary,
  *,
  over: str = "used",
) -> Detections:
  """Reads generated sequences as detections (Pix2Seq, section 3).

  Each slot gets its best real class, whatever token was sampled there: the
  score is the probability of that class in the softmax over the whole
  vocabulary, so that what looks like noise scores low. It is not divided by
  the sum over the classes, which would spoil the ranking. Coordinates are
  clipped after they are made numbers: a token below the bins becomes 0, one
  above 1.

  Args:
    tokens: `[..., T]` int32; of a T that is no multiple of 5 the rest is cut.
    class_logits: `[..., T // 5, V]` at the fifth token of each object, before
      any temperature or filter.
    vocab: the tokens.
    over: `used`: the classes of the vocabulary; `layout`: all ids the layout
      keeps for classes, as the official code does.

  Raises:
    ValueError: shapes that do not go together, or another number of logits.
  """
  among = classes_over(vocab, over)
  tokens = checks.index_array("tokens", tokens)
  logits = checks.array("class_logits", class_logits).astype(jnp.float32)
  num = tokens.shape[-1] // sequences.PER_OBJECT
  wanted = (*tokens.shape[:-1], num, vocab.size)
  checks.same_shape("class_logits", logits.shape, "[..., T // 5, V]", wanted)
  own = logits[..., among.start : among.stop]
  total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  return read(tokens, own - total, vocab, among)


def classes_over(vocab: vocabulary.Vocabulary, over: str) -> range:
  """The tokens that detections are read from: `used` classes, or `layout`."""
  checks.one_of("over", over, OVER)
  return vocab.class_ids if over == "used" else vocab.class_range


def read(
  tokens: jax.Array,
  log_probs: jax.Array,
  vocab: vocabulary.Vocabulary,
  among: range,
) -> Detections:
  """Detections of sequences and of the log-probabilities of classes.

  Args:
    tokens: `[..., T]` int32; of a T that is no multiple of 5 the rest is cut.
    log_probs: `[..., T // 5, C]` float32 at the fifth token of each object; of
      -inf alone where nothing was said, which gives a score of 0.
    vocab: the tokens.
    among: the C tokens that `log_probs` are of.
  """
  num = log_probs.shape[-2]
  tokens = tokens[..., : num * sequences.PER_OBJECT]
  slots = tokens.reshape(*tokens.shape[:-1], num, sequences.PER_OBJECT)
  boxes = quantization.dequantize(
    slots[..., :4] - vocab.coord_start, vocab.num_bins
  )
  best = jnp.argmax(log_probs, axis=-1)
  top = jnp.max(log_probs, axis=-1)
  label = (best + among.start - vocab.class_start + 1).astype(jnp.int32)
  return Detections(jnp.clip(boxes, 0.0, 1.0), label, jnp.exp(top), tokens)


def before_eos(tokens: Any, vocab: vocabulary.Vocabulary) -> jax.Array:
  """Which objects are whole before the first end of sequence, `[..., N]` bool.

  For decoding that stops at it, which noise objects make unnecessary.

  Args:
    tokens: `[..., T]` integers.
    vocab: the tokens.
  """
  tokens = checks.index_array("tokens", tokens)
  num = tokens.shape[-1] // sequences.PER_OBJECT
  ended = jnp.cumsum(tokens == vocab.eos, axis=-1) > 0
  return ~ended[
    ...,
    sequences.PER_OBJECT - 1 : num
    * sequences.PER_OBJECT : sequences.PER_OBJECT,
  ]


def rescale_boxes(
  boxes: Any, *, canvas: Any, unpadded: Any, original: Any
) -> jax.Array:
  """Boxes of the padded canvas as pixels of the original image, yxyx.

  `box (canvas / unpadded) original`, clipped to the original image.

  Args:
    boxes: `[..., n, 4]`, normalised yxyx of the canvas.
    canvas: (height, width) that entered the network; `[2]` or `[..., 2]`.
    unpadded: the part of it, top left, that the image covers.
    original: of the image before it was resized.

  Returns:
    `[..., n, 4]` float32.

  Raises:
    ValueError: bad shapes; sizes of the host that are not above 0.
  """
  boxes = jnp.asarray(layouts.of_fours("boxes", boxes), jnp.float32)
  given = {"canvas": canvas, "unpadded": unpadded, "original": original}
  sizes = {k: _size(k, v) for k, v in given.items()}
  scale = sizes["canvas"] / sizes["unpadded"] * sizes["original"]
  twice = lambda a: jnp.concatenate([a, a], axis=-1)[..., None, :]
  return jnp.clip(boxes * twice(scale), 0.0, twice(sizes["original"]))


def _size(name: str, value: Any) -> jax.Array:
  size = checks.array(name, value)
  if size.ndim < 1 or size.shape[-1] != 2:
    checks.refuse(name, value, "(height, width), [..., 2]")
  if not isinstance(size, jax.core.Tracer) and not bool((size > 0).all()):
    checks.refuse(name, value, "(height, width) above 0")
  return size.astype(jnp.float32)
