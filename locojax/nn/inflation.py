"""Weights of a network for images as the start of one for clips.

Carreira and Zisserman 2017, arXiv 1705.07750, section 2.4.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from locojax.core import checks, trees, types

MODES = ("mean", "centre")


def inflate_kernel(
  kernel: Any, frames: int, *, mode: str = "centre"
) -> np.ndarray:
  """A convolution of images as one of clips.

  'mean' puts 1 / k of it at every frame: a clip of equal frames gives what the
  image gives, but at its ends. 'centre' puts it at frame k // 2 and zeros
  elsewhere: so it does at its ends too.

  Args:
    kernel: `[h, w, in, out]`, or `[1, h, w, in, out]`.
    frames: k.
    mode: 'mean' or 'centre'.

  Returns:
    `[k, h, w, in, out]` of the same dtype.

  Raises:
    ValueError: another rank, more frames than one, a bad number or mode.
  """
  checks.positive_int("frames", frames)
  checks.one_of("mode", mode, MODES)
  found = np.asarray(kernel)
  if found.ndim == 5 and found.shape[0] == 1:
    found = found[0]
  if found.ndim != 4:
    raise ValueError(
      f"a kernel of shape {found.shape} is not allowed: it must be [height, "
      "width, in, out], or that with one frame in front."
    )
  if mode == "mean":
    return np.repeat(found[None] / frames, frames, axis=0).astype(found.dtype)
  out = np.zeros((frames, *found.shape), found.dtype)
  out[frames // 2] = found
  return out


def inflate_resnet2d(
  variables_2d: types.PyTree, fresh: types.PyTree, *, mode: str = "centre"
) -> types.PyTree:
  """Variables of a network for clips, begun from one for images.

  Whatever both have at the same path is taken from the images' network, with
  kernels inflated; batch statistics too. What it lacks (gates), and a head of
  another number of classes, stays fresh. With `resnet_v1.ResNet` take
  `ResNet3D(padding="symmetric")`; a `ResNet3D` whose temporal kernels are all
  1, applied to single frames, serves too.

  Args:
    variables_2d: `params` and `batch_stats` of the images' network.
    fresh: those of the network for clips, as `init` gives them.
    mode: see `inflate_kernel`.

  Returns:
    A tree like `fresh`.

  Raises:
    ValueError: an unknown mode, a layer that the network for clips does not
      have, or one of another shape.
  """
  checks.one_of("mode", mode, MODES)
  wanted, given = trees.flatten(fresh), trees.flatten(variables_2d)
  own = {p: x for p, x in given.items() if not p.startswith("params/head/")}
  missing = [path for path in own if path not in wanted]
  if missing:
    raise ValueError(
      f"variables_2d has {missing[0]!r} (and {len(missing) - 1} others), which "
      "the network for clips does not have: the stages must be alike."
    )
  new = {p: _fitted(p, x, wanted[p], mode) for p, x in own.items()}
  head = {p: x for p, x in given.items() if p not in own and p in wanted}
  if all(jnp.shape(x) == jnp.shape(wanted[p]) for p, x in head.items()):
    new |= head
  return trees.map_with_path(lambda path, x: new.get(path, x), fresh)


def _fitted(path: str, leaf: Any, fresh: Any, mode: str) -> Any:
  shape = jnp.shape(fresh)
  if len(shape) == 5:
    leaf = inflate_kernel(leaf, shape[0], mode=mode)
  if jnp.shape(leaf) != shape:
    raise ValueError(
      f"{path} has shape {jnp.shape(leaf)} and is {shape} in the network for "
      "clips: they must be equal."
    )
  return jnp.asarray(leaf, fresh.dtype)
