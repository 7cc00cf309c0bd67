"""The backbone and what is put on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from locojax.methods import l2p
from locojax.nn import vit

# What a task of CODA-Prompt adds, and blocks of the prefixes.
CODA_PER_TASK = 4


def prepared(images: jax.Array) -> jax.Array:
  """uint8 images in [-1, 1], the range of the released backbones."""
  return images.astype(jnp.float32) / 127.5 - 1.0


def backbone(config, settings: dict[str, Any] | None = None) -> vit.ViT:
  """The vision transformer of a config.

  Args:
    config: of the experiment.
    settings: of a loaded checkpoint, in place of the sizes of the config.
  """
  model = config.model.to_dict()
  own = {n: model[n] for n in ("remat", "scan")}
  own["dtype"] = jnp.dtype(model["dtype"])
  if settings is not None:
    sizes = settings
  elif model["preset"]:
    sizes = vit.preset(model["preset"])
  else:
    names = ("patch_size", "width", "num_layers", "num_heads", "hidden_size")
    sizes = {n: model[n] for n in names}
  return vit.ViT(**{**sizes, **own, "image_size": config.data.image_size})


def plain(net: vit.ViT, num_classes: int) -> l2p.PromptedViT:
  """The backbone with a linear head on [cls] that starts at 0; no prompts."""
  return l2p.PromptedViT(net, num_classes, None, head="token")


def pool(config, **changes: Any) -> l2p.PromptPoolConfig:
  """The pool of a config."""
  settings = config.pool.to_dict()
  settings.pop("head")
  if settings["key_init"] == "kmeans":  # of the first queries, in `learners`
    settings["key_init"] = "uniform_small"
  return l2p.PromptPoolConfig(**{**settings, **changes})


def prompted(
  config, net: vit.ViT, num_classes: int, *, head: str = "", **changes: Any
):
  """L2P: a pool of prompts in front of the first block."""
  return l2p.PromptedViT(
    net, num_classes, pool(config, **changes), head=head or config.pool.head
  )


def single(config, net: vit.ViT, num_classes: int) -> l2p.PromptedViT:
  """One prompt for all, as long as those that the pool would choose."""
  length = config.pool.length * config.pool.top_k
  general = l2p.GeneralPromptConfig(length, prompt_init=config.pool.prompt_init)
  head = config.pool.head
  return l2p.PromptedViT(net, num_classes, None, general=general, head=head)


def dual(config, net: vit.ViT, num_classes: int, num_tasks: int):
  """DualPrompt; of its blocks those that the backbone has."""
  general = tuple(range(min(2, net.num_layers - 1)))
  task = tuple(range(len(general), min(len(general) + 3, net.num_layers)))
  return l2p.dual_prompt(
    net,
    num_classes=num_classes,
    num_tasks=num_tasks,
    general_layers=general,
    task_layers=task,
    general_length=config.pool.length,
    task_length=config.pool.length,
  )


def coda(config, net: vit.ViT, num_classes: int, num_tasks: int):
  """CODA-Prompt: `CODA_PER_TASK` components for each task."""
  layers = tuple(range(min(5, net.num_layers)))
  length = config.pool.length + config.pool.length % 2
  if CODA_PER_TASK * num_tasks > net.width:
    raise ValueError(
      f"methods: coda_prompt with {num_tasks} tasks is not allowed for a model "
      f"of width {net.width}: its {CODA_PER_TASK} components a task are "
      "orthogonal, so that they can be no more than the width."
    )
  components = l2p.CodaConfig(
    num_components=CODA_PER_TASK * num_tasks,
    length=length,
    num_layers=len(layers),
  )
  return l2p.PromptedViT(
    net, num_classes, components, layers=layers, head="token"
  )


def features(net: vit.ViT) -> Callable[[Any, jax.Array], jax.Array]:
  """[cls] of the frozen backbone: the query, and what probes look at.

  Returns:
    `(params, images [n, ...] uint8) -> [n, E]` float32, jitted.
  """

  def run(params, images):
    tokens = net.apply({"params": params}, prepared(images), num_rows=1)
    return tokens[:, 0].astype(jnp.float32)

  return jax.jit(run)
