"""Grad-CAM: where in an input a class is seen (Selvaraju et al. 2016).

arXiv 1610.02391. With A `[..., C]` the output of a layer over places (frames
and pixels) and y the score of a class,

  alpha_k = mean over places of dy / dA_k,    map = relu(sum_k alpha_k A_k).

The layer is found and its output moved by flax's interception of methods, so
any linen network will do as it is; `nn.remat` or `jit` around the layer will
not. `grad_cam` itself may be jitted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike

from locojax.core import arrays, checks, types
from locojax.core import labels as labels_lib

# (variables, inputs) -> logits [B, K], in evaluation.
ApplyFn = Callable[[types.PyTree, Any], jax.Array]


def _is_map(x: Any) -> bool:
  return hasattr(x, "ndim") and x.ndim >= 3


def layers(
  apply_fn: ApplyFn, variables: types.PyTree, inputs: Any
) -> dict[str, tuple[int, ...]]:
  """Layers whose output has places, in the order in which they end.

  Args:
    apply_fn, variables, inputs: as for `grad_cam`.

  Returns:
    Path -> shape `[B, ..., C]` of the output. A layer that is called again is
    not listed: its output is not one.
  """
  found: dict[str, tuple[int, ...]] = {}
  calls: list[str] = []

  def note(next_fun, args, kwargs, context):
    out = next_fun(*args, **kwargs)
    path = "/".join(context.module.path)
    if context.method_name == "__call__" and path:
      calls.append(path)
      if _is_map(out):
        found[path] = tuple(out.shape)
    return out

  with nn.intercept_methods(note):
    # A new function, for jax would remember what it traced of another one.
    jax.eval_shape(lambda v, x: apply_fn(v, x), variables, inputs)
  return {p: s for p, s in found.items() if calls.count(p) == 1}


def _chosen(layer: str | None, found: dict[str, tuple[int, ...]]) -> str:
  if layer is not None:
    return checks.one_of("layer", layer, found)
  outer = [p for p in found if "/" not in p] or list(found)
  if not outer:
    raise ValueError(
      "layer=None is not allowed: no layer of the network has an output with "
      "places, [batch, ..., channels] (apply_fn must not be jitted itself)."
    )
  return outer[-1]


def _score(logits: jax.Array, classes: ArrayLike) -> jax.Array:
  """The sum over the batch of logits, or of log sum_k b_k exp z_k."""
  logits = arrays.as_float(logits)
  shape, integers = np.shape(classes), jnp.asarray(classes).dtype
  if jnp.issubdtype(integers, jnp.integer):
    if shape not in ((), logits.shape[:1]):
      checks.same_shape("classes", shape, "the batch", logits.shape[:1])
    ids = jnp.broadcast_to(classes, logits.shape[:1])
    index, bad = labels_lib.check("classes", ids, logits.shape[-1])
    own = jnp.take_along_axis(logits, index[:, None], axis=1)[:, 0]
    return jnp.sum(labels_lib.spoil(own, bad))
  if shape not in (logits.shape[1:], logits.shape):
    checks.same_shape("classes", shape, "the logits", logits.shape)
  weights = arrays.as_float(classes)
  return jnp.sum(jax.nn.logsumexp(logits, axis=-1, b=weights))


def grad_cam(
  apply_fn: ApplyFn,
  variables: types.PyTree,
  inputs: Any,
  classes: ArrayLike,
  layer: str | None = None,
  *,
  upsample_to: tuple[int, ...] | None = None,
  normalize: bool = True,
) -> jax.Array:
  """Maps of where a class is seen, of images, clips or anything with places.

  Args:
    apply_fn: a network in evaluation, `functools.partial(net.apply,
      train=False)`: each example's logits depend on that example alone.
    variables: its first argument.
    inputs: its second argument, a batch.
    classes: the class whose logit is explained, `[]` or `[B]` integers; or
      weights b `[K]` or `[B, K]` (booleans or floats, 0 or more), for the
      score log sum_k b_k exp z_k: of several classes together.
    layer: path of the layer, such as `stage_3_block_2`; None is the last of
      the outermost layers whose output has places: for the residual networks
      of `locojax.nn` the last block, after gate, addition and activation.
    upsample_to: size of the places, such as (T, H, W), by linear
      interpolation; None keeps the layer's.
    normalize: whether the largest value of each example is 1; maps of zeros
      stay so.

  Returns:
    `[B, ...places]` float32, 0 or more.

  Raises:
    ValueError: no such layer (those that there are are listed), a class that
      does not exist, or shapes that do not fit.
  """
  found = layers(apply_fn, variables, inputs)
  layer = _chosen(layer, found)
  shape = found[layer]
  if upsample_to is not None and len(upsample_to) != len(shape) - 2:
    checks.refuse("upsample_to", upsample_to, f"{len(shape) - 2} sizes")

  def score(delta):
    seen = []

    def move(next_fun, args, kwargs, context):
      out = next_fun(*args, **kwargs)
      here = "/".join(context.module.path) == layer
      if not here or context.method_name != "__call__":
        return out
      seen.append(out)
      return out + delta.astype(out.dtype)

    with nn.intercept_methods(move):
      logits = apply_fn(variables, inputs)
    if logits.ndim != 2:
      raise ValueError(
        f"logits of shape {logits.shape} are not allowed: apply_fn must give "
        "[batch, classes]."
      )
    return _score(logits, classes), seen[0]

  grads, features = jax.grad(score, has_aux=True)(jnp.zeros(shape))
  places = tuple(range(1, len(shape) - 1))
  alpha = jnp.mean(grads, axis=places, keepdims=True)
  maps = jax.nn.relu(jnp.sum(alpha * arrays.as_float(features), axis=-1))
  if normalize:
    top = jnp.max(maps, axis=places, keepdims=True)
    maps = arrays.ratio(maps, top, 0.0)
  if upsample_to is not None:
    maps = jax.image.resize(maps, (shape[0], *upsample_to), "linear")
  return maps
