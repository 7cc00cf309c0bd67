"""A pre-trained network for new classes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import checks, types


def finetune_from(
  pretrained: types.PyTree,
  num_classes: int,
  *,
  key: jax.Array,
  head: str = "head",
  kernel_init: Any = None,
) -> types.PyTree:
  """The variables of a network with another last layer; all else is kept.

  Batch statistics stay, as starting values: do not freeze them, for those of
  weakly labelled clips differ from the target's.

  Args:
    pretrained: variables of a linen network, with `params`.
    num_classes: of the new head.
    key: of its weights.
    head: the name of the dense layer, with slashes if it is within others.
    kernel_init: an initialiser; None is normal of deviation 0.01.

  Returns:
    A new tree of the same collections. The kernel `[F, num_classes]` is drawn
    anew, a bias is zero, dtypes as before.

  Raises:
    ValueError: no `params`, no such head (the last layers are listed), or a
      head that is no dense layer.

  >>> head = {"kernel": jnp.ones((8, 40)), "bias": jnp.ones(40)}
  >>> pretrained = {"params": {"stem": jnp.ones(3), "head": head}}
  >>> made = finetune_from(pretrained, 5, key=jax.random.key(0))
  >>> made["params"]["head"]["kernel"].shape, float(made["params"]["stem"][0])
  ((8, 5), 1.0)
  """
  checks.positive_int("num_classes", num_classes)
  if "params" not in pretrained:
    checks.refuse(
      "keys of pretrained", sorted(pretrained), "those of variables: 'params'"
    )
  found = _at(pretrained["params"], head)
  kernel = found.get("kernel")
  if kernel is None or jnp.ndim(kernel) != 2 or set(found) - {"kernel", "bias"}:
    shapes = {k: jnp.shape(v) for k, v in found.items()}
    checks.refuse(f"layer {head!r}", shapes, "a dense layer")
  init = kernel_init or nn.initializers.normal(0.01)
  new = {"kernel": init(key, (kernel.shape[0], num_classes), kernel.dtype)}
  if "bias" in found:
    new["bias"] = jnp.zeros(num_classes, found["bias"].dtype)
  params = _replaced(pretrained["params"], head.split("/"), new)
  return {**pretrained, "params": params}


def _at(params: types.PyTree, head: str) -> dict[str, Any]:
  place = params
  for name in head.split("/"):
    if not isinstance(place, dict) or name not in place:
      there = sorted(place) if isinstance(place, dict) else []
      checks.one_of("head", head, there)
      checks.refuse("head", head, "the path of a layer")
    place = place[name]
  if not isinstance(place, dict):
    checks.refuse("head", head, "the path of a layer, not of an array")
  return place


def _replaced(tree: types.PyTree, path: list[str], new: Any) -> types.PyTree:
  if not path:
    return new
  return {**tree, path[0]: _replaced(tree[path[0]], path[1:], new)}
