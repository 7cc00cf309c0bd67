"""Contrastive losses of image-text pairs.

Under `jit` over a mesh the plain form is the global batch. Inside `shard_map`
with `axis_name` the other modality is gathered and each shard computes its rows
of the table, with the same value on any number of shards.

Sources: Radford et al. 2021 (CLIP), arXiv 2103.00020; Zhai et al. 2023
(SigLIP), arXiv 2303.15343.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from locojax.core import checks, metrics


def unit_norm(z: jax.Array, *, eps: float = 1e-8) -> jax.Array:
  """z / (|z| + eps) over the last axis, float32."""
  z = z.astype(jnp.float32)
  squares = jnp.sum(jnp.square(z), axis=-1, keepdims=True)
  # The gradient of the root at 0 is infinite; that of the safe one is 0.
  norm = jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
  return z / (jnp.where(squares > 0, norm, 0.0) + eps)


def _gathered(z: jax.Array, axis_name: str | None) -> jax.Array:
  if axis_name is None:
    return z
  return jax.lax.all_gather(z, axis_name, tiled=True)


def _check(z_img: jax.Array, z_txt: jax.Array, max_scale: float | None) -> None:
  checks.same_shape("z_txt", z_txt.shape, "z_img", z_img.shape)
  if z_img.ndim != 2:
    raise ValueError(f"z_img has shape {z_img.shape}: it must be [pairs, d].")
  if max_scale is not None:
    checks.positive("max_scale", max_scale)


def _scale(log_scale: jax.Array, max_scale: float | None) -> jax.Array:
  scale = jnp.exp(jnp.asarray(log_scale, jnp.float32))
  return scale if max_scale is None else jnp.minimum(scale, max_scale)


def _labels(num: int, axis_name: str | None) -> jax.Array:
  """`[num]`: the column of each row's partner."""
  first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * num
  return first + jnp.arange(num)


def _mean(x: jax.Array, axis_name: str | None) -> jax.Array:
  return x if axis_name is None else jax.lax.pmean(x, axis_name)


def contrastive_softmax_loss(
  z_img: jax.Array,
  z_txt: jax.Array,
  log_scale: jax.Array,
  *,
  axis_name: str | None = None,
  max_scale: float | None = None,
) -> tuple[jax.Array, dict[str, metrics.Mean]]:
  """Half the cross-entropy of images among texts plus half the other way.

  s_ij = exp(t) <img_i, txt_j>, L = mean_i [lse_j s_ij - s_ii] / 2 + mean_j
  [lse_i s_ij - s_jj] / 2. It couples all pairs of the batch: no microbatches.

  Args:
    z_img, z_txt: `[n, d]`, unit norm; row i of both is a pair. With `axis_name`
      the rows of a shard.
    log_scale: t `[]`, the log of the inverse temperature, learned.
    axis_name: mesh axis of the rows.
    max_scale: cap on exp(t), 100 in CLIP; None has none.

  Returns:
    `(loss [], metrics)`: metrics are `image_to_text` and `text_to_image`, the
    accuracies within the batch (of a shard's rows).

  Raises:
    ValueError: shapes that differ.
  """
  _check(z_img, z_txt, max_scale)
  z_img, z_txt = z_img.astype(jnp.float32), z_txt.astype(jnp.float32)
  labels = _labels(len(z_img), axis_name)
  scale, total, found = _scale(log_scale, max_scale), 0.0, {}
  for name, rows, others in (
    ("image_to_text", z_img, z_txt),
    ("text_to_image", z_txt, z_img),
  ):
    s = scale * rows @ _gathered(others, axis_name).T
    own = jnp.take_along_axis(s, labels[:, None], axis=1)[:, 0]
    total += 0.5 * jnp.mean(jax.nn.logsumexp(s, axis=1) - own)
    found[name] = metrics.accuracy(s, labels)
  return _mean(total, axis_name), found


def contrastive_sigmoid_loss(
  z_img: jax.Array,
  z_txt: jax.Array,
  log_scale: jax.Array,
  bias: jax.Array,
  *,
  axis_name: str | None = None,
  max_scale: float | None = None,
) -> tuple[jax.Array, dict[str, metrics.Mean]]:
  """-mean_i sum_j log sigmoid(y_ij (s_ij + b)), y = 2 eye - 1 (SigLIP).

  Args:
    z_img, z_txt, log_scale, axis_name, max_scale: as in
      `contrastive_softmax_loss`.
    bias: b `[]`, learned; -10 at the start.

  Returns:
    `(loss [], metrics)` with `image_to_text`, the accuracy within the batch.

  Raises:
    ValueError: shapes that differ.
  """
  _check(z_img, z_txt, max_scale)
  z_img, z_txt = z_img.astype(jnp.float32), z_txt.astype(jnp.float32)
  s = _scale(log_scale, max_scale) * z_img @ _gathered(z_txt, axis_name).T
  s += bias
  labels = _labels(len(z_img), axis_name)
  y = 2 * jax.nn.one_hot(labels, s.shape[1]) - 1
  loss = -jnp.mean(jnp.sum(jax.nn.log_sigmoid(y * s), axis=1))
  return _mean(loss, axis_name), {"image_to_text": metrics.accuracy(s, labels)}
