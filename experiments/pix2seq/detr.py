"""Set prediction with Pix2Seq's encoder, bridge and decoder blocks (DETR).

Carion et al., arXiv 2005.12872. Slots are learned vectors that attend to each
other and to the image, all at once; each says a class, or none, and a box. The
blocks are those of Pix2Seq without the causal mask; each block's output is read
and has a loss, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.pix2seq import matching
from locojax.core import boxes as layouts
from locojax.core import metrics, types
from locojax.methods import pix2seq
from locojax.methods.pix2seq import model as model_lib
from locojax.nn import transformer


class Slots(NamedTuple):
  """What the slots say, Q of them, K classes.

  Attributes:
    logits: `[..., Q, K + 1]` float32; class 0 is no object.
    boxes: `[..., Q, 4]` float32, centre (x, y) and size, as shares.
  """

  logits: jax.Array
  boxes: jax.Array


class Detr(nn.Module):
  """Images to slots.

  Attributes:
    encoder: as of `pix2seq.Pix2Seq`.
    num_classes: K.
    num_slots: Q.
    model_size, num_layers, num_heads, hidden_size: of the decoder.
    bridge_ratio, activation, dropout, drop_path, remat, dtype: as there.
  """

  encoder: nn.Module
  num_classes: int
  num_slots: int
  model_size: int
  num_layers: int
  num_heads: int
  hidden_size: int
  bridge_ratio: int = 4
  activation: Callable[[jax.Array], jax.Array] = nn.gelu
  dropout: float = 0.0
  drop_path: float = 0.0
  remat: str = "none"
  dtype: Any = None

  def _block(self, i: int) -> transformer.Block:
    return transformer.Block(
      self.num_heads,
      self.hidden_size,
      activation=self.activation,
      cross_attention=True,
      remat=self.remat if self.remat == "attention" else "none",
      dtype=self.dtype,
      dropout=self.dropout,
      drop_path=self.drop_path,
      name=f"block_{i}",
    )

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    *,
    train: bool = False,
    mask: jax.Array | None = None,
  ) -> Slots:
    """Slots after each block, `[layers, B, Q, ...]`, the last one the answer.

    Args:
      images, train, mask: as of `pix2seq.Pix2Seq`.
    """
    memory = model_lib.Bridge(
      self.model_size,
      mode="mlp",
      hidden_size=self.bridge_ratio * self.model_size,
      activation=self.activation,
      dropout=self.dropout,
      drop_path=self.drop_path,
      dtype=self.dtype,
      name="bridge",
    )(self.encoder(images, train=train, mask=mask), train=train)
    slots = self.param(
      "slots",
      nn.initializers.normal(1.0),
      (self.num_slots, self.model_size),
      jnp.float32,
    )
    shape = (memory.shape[0], *slots.shape)
    x = jnp.broadcast_to(slots.astype(memory.dtype), shape)
    norm = nn.LayerNorm(1e-6, dtype=self.dtype, name="norm")
    after = []

    def run(block, x, memory):
      return block(x, context=memory, train=train)

    if self.remat in ("dots", "block"):
      run = nn.remat(run)
    for i in range(self.num_layers):
      x = run(self._block(i), x, memory)
      after.append(norm(x))
    x = jnp.stack(after)
    dense = lambda size, name: nn.Dense(size, dtype=self.dtype, name=name)
    logits = dense(self.num_classes + 1, "label")(x)
    for i in range(2):
      x = nn.relu(dense(self.model_size, f"box_{i}")(x))
    boxes = jax.nn.sigmoid(dense(4, "box")(x).astype(jnp.float32))
    return Slots(logits.astype(jnp.float32), boxes)


def from_pix2seq(
  model: pix2seq.Pix2Seq, num_classes: int, num_slots: int
) -> Detr:
  """A `Detr` with the encoder and the sizes of a model."""
  decoder = model.decoder
  return Detr(
    model.encoder.clone(),
    num_classes=num_classes,
    num_slots=num_slots,
    model_size=decoder.model_size,
    num_layers=decoder.num_layers,
    num_heads=decoder.num_heads,
    hidden_size=decoder.hidden_size or 4 * decoder.model_size,
    bridge_ratio=model.bridge_ratio,
    activation=model.activation,
    dropout=model.dropout,
    drop_path=model.drop_path,
    remat=decoder.remat,
    dtype=model.dtype,
  )


def make_loss_fn(model: Detr, weights: matching.Weights) -> types.LossFn:
  """The set loss after each block, summed (arXiv 2005.12872, section 3.2).

  The batch is that of `pix2seq.make_loss_fn`.

  Args:
    model: what is trained.
    weights: of the parts.
  """

  def loss_fn(params, model_state, batch, key):
    out, new = model.apply(
      {"params": params, **model_state},
      batch["image"],
      train=True,
      rngs={"dropout": key},
      mutable=["batch_stats"],
    )
    true_boxes = layouts.yxyx_to_cxcywh(batch["boxes"])
    total, parts = 0.0, {}
    for logits, boxes in zip(*out):
      loss, parts = matching.set_loss(
        logits,
        boxes,
        batch["labels"],
        true_boxes,
        batch["valid"],
        weights=weights,
      )
      total = total + loss
    return total, ({"loss": metrics.mean(total), **parts}, dict(new))

  return loss_fn


def detections(slots: Slots) -> pix2seq.Detections:
  """What the slots after the last block say, best real classes.

  Returns:
    Boxes yxyx cut at the canvas, labels, their probabilities; no tokens.
  """
  shares = jax.nn.softmax(slots.logits[-1])[..., 1:]
  boxes = layouts.cxcywh_to_yxyx(slots.boxes[-1])
  return pix2seq.Detections(
    boxes=jnp.clip(boxes, 0.0, 1.0),
    classes=(shares.argmax(-1) + 1).astype(jnp.int32),
    scores=shares.max(-1),
    tokens=jnp.zeros((boxes.shape[0], 0), jnp.int32),
  )
