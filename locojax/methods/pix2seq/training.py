"""The loss of Pix2Seq over a batch of images with boxes.

Boxes become sequences inside the step: noise, order and corruption are drawn by
its key, so that every showing of an image has others.

Letters: B batch, n slots for boxes in the batch, N objects of a sequence, T = 5
N tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from locojax.core import arrays, checks, metrics, types
from locojax.core import labels as labels_lib
from locojax.methods.pix2seq import (
  loss,
  model,
  noise,
  orders,
  sequences,
  vocabulary,
)

# Settings of the parts, which `sequences_of` and the losses take.
_NOISE = ("jitter", "dup", "mix_rate")
_SEQUENCE = ("corruption", "noise_weight", "eos_weight", "random_classes")


def sequences_of(
  key: jax.Array,
  objects: types.Batch,
  vocab: vocabulary.Vocabulary,
  *,
  max_objects: int,
  order: str = "random",
  inject_noise: bool = True,
  mask: jax.Array | None = None,
  **settings: Any,
) -> sequences.SequenceBatch:
  """Orders the objects of each image, adds noise, and makes sequences.

  Args:
    key: of order, noise and corruption.
    objects: `boxes` `[B, n, 4]`, `labels` `[B, n]`, `valid` `[B, n]` bool.
    vocab: the tokens.
    max_objects: N; of more objects the first ones, in the order, are kept.
    order: one of `ORDERS`.
    inject_noise: whether free slots are filled with noise; otherwise they are
      padding, which is the end of the sequence.
    mask: `[B]`, zero at images without objects, whatever they hold.
    **settings: `jitter`, `dup`, `mix_rate` of `inject_noise_objects`;
      `corruption`, `noise_weight`, `eos_weight`, `random_classes` of
      `build_sequences`.

  Raises:
    ValueError: a setting, or objects that are no boxes.
  """
  checks.boolean("inject_noise", inject_noise)
  checks.positive_int("max_objects", max_objects)
  for name in settings:
    checks.one_of("setting", name, (*_NOISE, *_SEQUENCE))
  keys = jax.random.split(key, 3)
  valid = jnp.asarray(objects["valid"])
  if mask is not None:
    valid &= jnp.asarray(mask)[:, None] != 0
  told = orders.order_objects(
    objects["boxes"], objects["labels"], valid, order, keys[0]
  )
  part = lambda names: {k: v for k, v in settings.items() if k in names}
  if inject_noise:
    filled = noise.inject_noise_objects(
      keys[1], *told, max_objects, **part(_NOISE)
    )
  else:
    filled = _slots(told, max_objects)
  return sequences.build_sequences(
    *filled, vocab, key=keys[2], **part(_SEQUENCE)
  )


def _slots(told: orders.Ordered, num: int) -> noise.Objects:
  """Objects, valid ones first, in `num` slots without noise."""
  free = max(num - told.labels.shape[-1], 0)
  grow = lambda x: jnp.pad(
    x[:, :num], ((0, 0), (0, free), *(((0, 0),) * (x.ndim - 2)))
  )
  boxes, labels, valid = map(grow, told)
  return noise.Objects(boxes, labels, jnp.zeros_like(valid), valid)


def _make(
  model: model.Pix2Seq,
  vocab: vocabulary.Vocabulary,
  *,
  max_objects: int,
  kind: str = "xent",
  label_smoothing: float = 0.0,
  focal_gamma: float | None = None,
  train: bool = True,
  **settings: Any,
) -> Callable[..., Any]:
  """`(params, model_state, batch, key) -> (losses, weights, metrics, state)`.

  Losses and weights are `[B, T]`; arguments are those of `make_loss_fn`.
  """
  most = model.decoder.max_len // sequences.PER_OBJECT
  checks.int_in_range("max_objects", max_objects, 1, most)
  vocab.check_decoder(model.decoder.vocab_size)
  checks.boolean("train", train)
  score = functools.partial(
    loss.token_losses,
    kind=kind,
    label_smoothing=label_smoothing,
    focal_gamma=focal_gamma,
  )

  def terms(params, model_state, batch, key):
    _check_batch(batch)
    mask = batch.get("mask")
    drawn, dropped = jax.random.split(key)
    told = sequences_of(
      drawn, batch, vocab, max_objects=max_objects, mask=mask, **settings
    )
    logits, state = _logits(
      model, params, model_state, batch["image"], told, mask, train, dropped
    )
    weights = told.weights * _weights(batch, mask)[:, None]
    bad = _bad(batch, mask, vocab)
    losses = labels_lib.spoil(score(logits, told.targets), bad)
    found, counts = loss.token_scores(logits, told.targets, weights)
    found = {k: metrics.mean(v, counts) for k, v in found.items()}
    return losses, weights, found, state

  return terms


def _check_batch(batch: types.Batch) -> None:
  """All that is needed is there, for the same images, with a slot at least."""
  missing = sorted({"image", "boxes", "labels", "valid"} - set(batch))
  if missing:
    raise ValueError(
      f"batch has no {missing[0]!r}: it must have image, boxes, labels, valid."
    )
  rows, slots = batch["image"].shape[0], batch["labels"].shape[-1]
  checks.positive_int("slots of labels", slots)
  for name, ending in (("boxes", (4,)), ("labels", ()), ("valid", ())):
    checks.same_shape(
      name, batch[name].shape, "image and labels", (rows, slots, *ending)
    )


def _logits(model, params, model_state, images, told, mask, train, key):
  """Logits, and the model state with new statistics."""
  state = dict(model_state or {})
  variables = {"params": params}
  if "batch_stats" in state:
    variables["batch_stats"] = state["batch_stats"]
  images = arrays.kept(images, mask)
  if not train:
    return model.apply(variables, images, told.inputs, mask=mask), state
  logits, new = model.apply(
    variables,
    images,
    told.inputs,
    train=True,
    mask=mask,
    rngs={"dropout": key},
    mutable=["batch_stats"],
  )
  return logits, {**state, **new}


def _weights(batch: types.Batch, mask: jax.Array | None) -> jax.Array:
  """What the tokens of each image count, `[B]` float32."""
  num = batch["image"].shape[0]
  weights = jnp.ones(num)
  for name, value in (("weight", batch.get("weight")), ("mask", mask)):
    if value is not None:
      checks.same_shape(name, jnp.shape(value), "images", (num,))
  if batch.get("weight") is not None:
    weights = arrays.kept(arrays.as_float(batch["weight"]), mask)
  return weights if mask is None else weights * (jnp.asarray(mask) != 0)


def _bad(batch, mask, vocab: vocabulary.Vocabulary) -> jax.Array:
  """`[B]`: images with a label that is none."""
  labels = checks.index_array("labels", batch["labels"])
  good = (labels >= 1) & (labels <= vocab.num_classes)
  bad = jnp.any(jnp.asarray(batch["valid"]) & ~good, axis=-1)
  return bad if mask is None else bad & (jnp.asarray(mask) != 0)


def make_losses_fn(
  model: model.Pix2Seq, vocab: vocabulary.Vocabulary, **settings: Any
) -> Callable[..., Any]:
  """The losses of the images one by one, for what weighs examples.

      loss_fn = ciw.reweight(pix2seq.make_losses_fn(model, vocab, ...), config)

  Args:
    model, vocab, **settings: as of `make_loss_fn`.

  Returns:
    `(params, model_state, batch, key) -> (losses [B], (metrics, model_state))`:
    for each image the mean over its tokens by their weights; 0 where there is
    none.
  """
  terms = _make(model, vocab, **settings)

  def losses_fn(params, model_state, batch, key):
    losses, weights, found, state = terms(params, model_state, batch, key)
    top = jnp.sum(jnp.where(weights > 0, losses, 0.0) * weights, axis=-1)
    means = arrays.ratio(top, jnp.sum(weights, axis=-1), 0.0)
    return means, (found, state)

  return losses_fn


def make_loss_fn(
  model: model.Pix2Seq, vocab: vocabulary.Vocabulary, **settings: Any
) -> types.LossFn:
  """The mean over all tokens of a batch by their weights (Pix2Seq, eq. 1).

  The batch has `image` `[B, H, W, channels]` (floats in [0, 1] or bytes),
  `boxes` `[B, n, 4]` (normalised yxyx), `labels` `[B, n]` (from 1) and `valid`
  `[B, n]` bool. It may have `weight` `[B]`, which multiplies the weights of an
  image's tokens, and `mask` `[B]`, zero at images that are padding.

  Args:
    model: what is trained.
    vocab: the tokens.
    **settings: `max_objects`, N, is needed; 5 N is at most the `max_len` of the
      decoder. `order`, `inject_noise`, `jitter`, `dup`, `mix_rate`,
      `corruption`, `noise_weight`, `eos_weight`, `random_classes`: as of
      `sequences_of`. `kind`, `label_smoothing`, `focal_gamma`: as of
      `token_losses`. `train`: True; False drops nothing, reads running means
      and changes no state, for the loss of a test set.

  Returns:
    A `LossFn`. Model state is `{"batch_stats": ...}` for a residual network,
    else `{}`; other entries pass through. Metrics, each a `metrics.Mean`:
    `loss`, and `loss_notpad`, `accuracy_notpad` of `token_metrics`. With
    nothing that counts the loss is 0. An image with a label that is none gives
    NaN.

  Raises:
    ValueError: a bad setting; a batch that lacks something or does not fit.
  """
  terms = _make(model, vocab, **settings)

  def loss_fn(params, model_state, batch, key):
    losses, weights, found, state = terms(params, model_state, batch, key)
    mean = metrics.mean(losses, weights)
    return mean.loss(), ({"loss": mean, **found}, state)

  return loss_fn
