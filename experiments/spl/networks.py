"""Networks for clips and for images, on uint8."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from locojax.core import types
from locojax.methods import spl
from locojax.nn import resnet, resnet_3d

KINDS = ("resnet", "resnet_3d")
HEAD = "head"


def _clips_module(model: Mapping[str, Any], num_outputs: int):
  kernels = model["temporal_kernels"]
  return resnet_3d.ResNet3D(
    num_outputs,
    depth=model["depth"],
    stage_sizes=tuple(model["stage_sizes"]) or None,
    temporal_kernel_sizes=tuple(map(tuple, kernels)) or None,
    width=model["width"],
    stem_temporal=tuple(model["stem_temporal"]),
    stem_spatial=tuple(model["stem_spatial"]),
    self_gating=model["self_gating"],
    dropout=model["dropout"],
    bn_group_size=model["bn_group_size"] or None,
    dtype=jnp.dtype(model["dtype"]),
    remat=model["remat"],
  )


def module(model: Mapping[str, Any], num_outputs: int) -> Any:
  """The network of a config, with a head of so many outputs."""
  if model["kind"] == "resnet_3d":
    return _clips_module(model, num_outputs)
  return resnet.PreActResNet(
    num_outputs,
    stage_sizes=tuple(model["stage_sizes"]),
    width=model["width"],
    dtype=jnp.dtype(model["dtype"]),
  )


def images_module(model: Mapping[str, Any], num_outputs: int):
  """The same network for single frames: no kernel reaches beyond one."""
  net = _clips_module({**model, "self_gating": False}, num_outputs)
  kernels = jax.tree.map(lambda _: 1, net.kernels())
  return net.clone(temporal_kernel_sizes=kernels, stem_temporal=(1, 1, 1))


@dataclasses.dataclass(frozen=True)
class Net:
  """A network on clips or images in [0, 255].

  Attributes:
    module: of this file.
    mean, std: of the channels, in units of [0, 1].
  """

  module: Any
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def normalize(self, clips: jax.Array) -> jax.Array:
    """uint8 as the network sees them, float32."""
    mean, std = (jnp.asarray(v, jnp.float32) for v in (self.mean, self.std))
    return (clips.astype(jnp.float32) / 255.0 - mean) / std

  def init(self, key: jax.Array, shape) -> types.PyTree:
    """Fresh variables for clips of a shape."""
    clips = jnp.zeros((1, *shape), jnp.float32)
    return dict(self.module.init(key, clips, train=False))

  def train(self, params, state, clips, key):
    """Logits of a batch, and the new batch statistics."""
    logits, new = self.module.apply(
      {"params": params, **state},
      self.normalize(clips),
      train=True,
      rngs={"dropout": key},
      mutable=["batch_stats"],
    )
    return logits, dict(new)

  def predict(self, variables, clips) -> tuple[jax.Array, jax.Array]:
    """Logits and features in evaluation, float32."""
    return self.module.apply(
      variables, self.normalize(clips), train=False, return_features=True
    )


def make(config, num_outputs: int) -> Net:
  """The network of a config."""
  data = config.data
  made = module(config.model.to_dict(), num_outputs)
  return Net(made, tuple(data.mean), tuple(data.std))


def inflated(variables_2d, net: Net, shape, key: jax.Array) -> types.PyTree:
  """Fresh variables of a network for clips, begun from one for images."""
  fresh = jax.jit(lambda k: net.init(k, shape))(key)
  return spl.inflate_resnet2d(variables_2d, fresh)
