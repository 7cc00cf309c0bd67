"""Contrastive losses of image-text pairs.

Under `jit` over a mesh the plain form is the global batch. Inside `shard_map`
with `axis_name` the other modality is gathered and each shard computes its rows
of the table, with the same value on any number of shards.

Sources: Radford et al. 2021 (CLIP), arXiv 2103.00020; Zhai et al. 2023
(SigLIP), arXiv 2303.15343.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from locojax.core import arrays, checks, metrics

# Beyond this, sums over a batch would leave float32.
_LARGEST_SCALE = 1e30


def unit_norm(z: jax.Array, *, axis: int = -1, eps: float = 1e-8) -> jax.Array:
  """z / (|z| + eps) over an axis, in float32 (float64 for float64).

  >>> [round(float(v), 3) for v in unit_norm(jnp.array([3.0, 4.0]))]
  [0.6, 0.8]
  """
  z = arrays.as_float(z)
  squares = jnp.sum(jnp.square(z), axis=axis, keepdims=True)
  # The gradient of the root at 0 is infinite; that of the safe one is 0.
  return z / (arrays.root(squares) + eps)


def _gathered(z: jax.Array, axis_name: str | None) -> jax.Array:
  if axis_name is None:
    return z
  return jax.lax.all_gather(z, axis_name, tiled=True)


def _checked(z_img, z_txt, mask, max_scale):
  """Both in float32 at least, zeros where the mask is zero."""
  checks.same_shape("z_txt", z_txt.shape, "z_img", z_img.shape)
  if z_img.ndim != 2:
    raise ValueError(f"z_img has shape {z_img.shape}: it must be [pairs, d].")
  if max_scale is not None:
    checks.in_range("max_scale", max_scale, 1e-30, _LARGEST_SCALE)
  if mask is not None:
    checks.same_shape("mask", mask.shape, "pairs", z_img.shape[:1])
  return tuple(arrays.kept(arrays.as_float(z), mask) for z in (z_img, z_txt))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _capped_exp(t: jax.Array, cap: float, axis_name: str | None) -> jax.Array:
  """min(exp(t), cap), finite for every finite t, with a one-sided gradient.

  At the cap and above, a gradient that has descent lower t passes, as large as
  at the cap; one that would raise t further is 0. So t is not stuck there, as
  with the gradient 0 of a minimum, and does not run away either.
  """
  del axis_name
  # The cap is float32's own, lest exp(log(cap)) be below it.
  return jnp.minimum(jnp.exp(jnp.minimum(t, math.log(cap) + 1)), cap)


def _capped_exp_fwd(t, cap, axis_name):
  scale = _capped_exp(t, cap, axis_name)
  return scale, scale


def _capped_exp_bwd(cap, axis_name, scale, g):
  # All shards decide alike, by the sum of their parts.
  total = g if axis_name is None else jax.lax.psum(g, axis_name)
  free = (scale < cap) | (total > 0)
  return (jnp.where(free, g * scale, 0.0),)


_capped_exp.defvjp(_capped_exp_fwd, _capped_exp_bwd)


def _scale(
  log_scale: jax.Array, max_scale: float | None, axis_name: str | None
) -> jax.Array:
  t = arrays.as_float(log_scale)
  cap = _LARGEST_SCALE if max_scale is None else max_scale
  return _capped_exp(t, float(cap), axis_name)


def _labels(num: int, axis_name: str | None) -> jax.Array:
  """`[num]`: the column of each row's partner."""
  first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * num
  return first + jnp.arange(num)


def _mean(
  x: jax.Array, mask: jax.Array | None, axis_name: str | None
) -> jax.Array:
  """Mean over rows `[n]` of all shards that the mask keeps; 0 of none."""
  live = jnp.ones(len(x), x.dtype) if mask is None else mask != 0
  sums = jnp.stack(
    [jnp.sum(arrays.kept(x, mask)), jnp.sum(live, dtype=x.dtype)]
  )
  total, num = sums if axis_name is None else jax.lax.psum(sums, axis_name)
  return arrays.ratio(total, num, 0.0)


def _columns(s, mask, axis_name: str | None, fill: float):
  """The table `[n, all]` with `fill` in the columns of masked pairs."""
  if mask is None:
    return s
  return jnp.where(_gathered(mask != 0, axis_name), s, fill)


def contrastive_softmax_loss(
  z_img: jax.Array,
  z_txt: jax.Array,
  log_scale: jax.Array,
  *,
  mask: jax.Array | None = None,
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
    mask: `[n]`, zero at pairs that count as removed, whatever they hold; None
      keeps all. Of no pairs the loss is 0.
    axis_name: mesh axis of the rows.
    max_scale: cap on exp(t), 100 in CLIP; None caps at 1e30, what sums in
      float32 can bear. The gradient by t is one-sided: from the cap on it is
      that at the cap where descent by it lowers t, and 0 where it would raise
      t, so that a temperature beyond the cap can come back.

  Returns:
    `(loss [], metrics)`: metrics are `image_to_text` and `text_to_image`, the
    accuracies within the batch (of a shard's rows).

  Raises:
    ValueError: shapes that differ.

  >>> z = jnp.eye(3)  # three pairs, each alike and unlike the others
  >>> loss, found = contrastive_softmax_loss(z, z, jnp.log(jnp.array(5.0)))
  >>> round(float(loss), 4), float(found["image_to_text"].value())
  (0.0134, 1.0)
  """
  z_img, z_txt = _checked(z_img, z_txt, mask, max_scale)
  labels = _labels(len(z_img), axis_name)
  scale, total, found = _scale(log_scale, max_scale, axis_name), 0.0, {}
  for name, rows, others in (
    ("image_to_text", z_img, z_txt),
    ("text_to_image", z_txt, z_img),
  ):
    s = scale * rows @ _gathered(others, axis_name).T
    own = jnp.take_along_axis(s, labels[:, None], axis=1)[:, 0]
    s = _columns(s, mask, axis_name, jnp.finfo(s.dtype).min)
    total += 0.5 * _mean(jax.nn.logsumexp(s, axis=1) - own, mask, axis_name)
    found[name] = metrics.accuracy(s, labels, mask)
  return total, found


def contrastive_sigmoid_loss(
  z_img: jax.Array,
  z_txt: jax.Array,
  log_scale: jax.Array,
  bias: jax.Array,
  *,
  mask: jax.Array | None = None,
  axis_name: str | None = None,
  max_scale: float | None = None,
) -> tuple[jax.Array, dict[str, metrics.Mean]]:
  """-mean_i sum_j log sigmoid(y_ij (s_ij + b)), y = 2 eye - 1 (SigLIP).

  Args:
    z_img, z_txt, log_scale, mask, axis_name, max_scale: as in
      `contrastive_softmax_loss`.
    bias: b `[]`, learned; -10 at the start.

  Returns:
    `(loss [], metrics)` with `image_to_text`, the accuracy within the batch.

  Raises:
    ValueError: shapes that differ.

  >>> z = jnp.eye(3)
  >>> scale, bias = jnp.log(jnp.array(10.0)), jnp.array(-5.0)
  >>> loss, found = contrastive_sigmoid_loss(z, z, scale, bias)
  >>> round(float(loss), 4), float(found["image_to_text"].value())
  (0.0201, 1.0)
  """
  z_img, z_txt = _checked(z_img, z_txt, mask, max_scale)
  scale = _scale(log_scale, max_scale, axis_name)
  s = scale * z_img @ _gathered(z_txt, axis_name).T + bias
  labels = _labels(len(z_img), axis_name)
  y = 2 * jax.nn.one_hot(labels, s.shape[1], dtype=s.dtype) - 1
  each = _columns(-jax.nn.log_sigmoid(y * s), mask, axis_name, 0.0)
  loss = _mean(jnp.sum(each, axis=1), mask, axis_name)
  s = _columns(s, mask, axis_name, jnp.finfo(s.dtype).min)
  return loss, {"image_to_text": metrics.accuracy(s, labels, mask)}
