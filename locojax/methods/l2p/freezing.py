"""What is trained and what is frozen, by explicit paths.

Two ways, for any model and any loss:

    trained, frozen = freezing.freeze(params, ("prompt_pool", "head"))

and the frozen part goes to the model state (`{"frozen": frozen}`), where the
losses of this package find it. Gradients are taken in what is trained alone, so
no gradient of a frozen weight is built, none is in the optimiser's state, and
clipping sees what is trained. Or, with all of them in one tree,

    tx = freezing.optimizer(optax.adam(0.03), trainable, clip_norm=1.0)

which can clip as the released code does, by a norm that frozen weights have a
part in (`clip_scope="all"`); this needs the gradients of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax

from locojax.core import checks, trees, types

Trainable = Iterable[str | Callable[[str], bool]]
CLIP_SCOPES = ("trained", "all")
TRAINABLE = ("prompt_pool", "head")
FROZEN = "frozen"  # the collection in the model state


def _hits(entry: str | Callable[[str], bool], path: str) -> bool:
  if callable(entry):
    return bool(entry(path))
  return path == entry or path.startswith(entry + "/")


def trainable_mask(params: types.PyTree, trainable: Trainable) -> types.PyTree:
  """A tree of bools: is the parameter trained?

  Args:
    params: a nested dict.
    trainable: paths, each of a parameter or of a whole subtree ('head' is
      'head' and 'head/kernel', never 'overhead/kernel'), or predicates of a
      path.

  Raises:
    ValueError: none given, or one that hits nothing, with the paths there are.
  """
  if isinstance(trainable, str):
    checks.refuse("trainable", trainable, "a tuple of paths or predicates")
  entries, paths = tuple(trainable), list(trees.flatten(params))
  if not entries:
    checks.refuse("trainable", entries, "one path or more")
  for entry in entries:
    if not any(_hits(entry, path) for path in paths):
      raise ValueError(
        f"trainable={entry!r} hits no parameter; paths are "
        f"{', '.join(paths[:12])}{', ...' if len(paths) > 12 else '.'}"
      )
  return trees.map_with_path(
    lambda path, _: any(_hits(entry, path) for entry in entries), params
  )


def trainable_paths(
  params: types.PyTree, trainable: Trainable = TRAINABLE
) -> list[str]:
  """The paths of what is trained, to be shown."""
  mask = trees.flatten(trainable_mask(params, trainable))
  return [path for path, trained in mask.items() if trained]


def _nested(leaves: dict[str, Any]) -> dict[str, Any]:
  """'a/b' names to nested dicts."""
  out: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *folders, name = path.split("/")
    place = out
    for folder in folders:
      place = place.setdefault(folder, {})
    place[name] = leaf
  return out


def freeze(
  params: types.PyTree, trainable: Trainable = TRAINABLE
) -> tuple[types.PyTree, types.PyTree]:
  """Cuts parameters into `(trained, frozen)`, two nested dicts.

  Args:
    params: a nested dict.
    trainable: as in `trainable_mask`.

  Raises:
    ValueError: as `trainable_mask`.

  >>> freeze({"head": {"bias": 1}, "backbone": {"bias": 2}}, ("head",))
  ({'head': {'bias': 1}}, {'backbone': {'bias': 2}})
  """
  mask = trees.flatten(trainable_mask(params, trainable))
  leaves = trees.flatten(params)
  trained = {path: leaf for path, leaf in leaves.items() if mask[path]}
  frozen = {path: leaf for path, leaf in leaves.items() if not mask[path]}
  return _nested(trained), _nested(frozen)


def merge(trained: types.PyTree, frozen: types.PyTree) -> types.PyTree:
  """The parameters of both parts, the inverse of `freeze`.

  Raises:
    ValueError: a path that is in both.
  """
  leaves, other = trees.flatten(trained), trees.flatten(frozen)
  both = sorted(set(leaves) & set(other))
  if both:
    raise ValueError(f"trained and frozen both have {', '.join(both[:8])}.")
  return _nested({**leaves, **other})


def merged(params: types.PyTree, model_state: types.PyTree) -> types.PyTree:
  """All parameters: those trained and those in the state's `frozen`."""
  frozen = model_state.get(FROZEN, {}) if model_state else {}
  return merge(params, frozen) if frozen else params


def optimizer(
  tx: optax.GradientTransformation,
  trainable: Trainable = TRAINABLE,
  *,
  clip_norm: float | None = None,
  clip_scope: str = "trained",
) -> optax.GradientTransformationExtraArgs:
  """`tx` on what is trained; zero updates and no state for all else.

  Args:
    tx: any transformation.
    trainable: as in `trainable_mask`.
    clip_norm: largest global norm of the gradient; None does not clip.
    clip_scope: whose norm is meant. `trained`: what is trained. `all`: the
      gradient of frozen weights too, as the released code has it, which scales
      the step by something that has nothing to do with it; the parameters must
      then hold the frozen ones.

  Raises:
    ValueError: a bad setting; from `init`, paths that hit nothing, or `all`
      with nothing frozen among the parameters.
  """
  trainable = tuple(trainable) if not isinstance(trainable, str) else trainable
  checks.one_of("clip_scope", clip_scope, CLIP_SCOPES)
  if clip_norm is not None:
    checks.positive("clip_norm", clip_norm)
  elif clip_scope == "all":
    checks.refuse("clip_norm", clip_norm, "a number with clip_scope='all'")
  parts = {"trained": tx, FROZEN: optax.set_to_zero()}
  if clip_norm is not None and clip_scope == "trained":
    clipped = optax.chain(optax.clip_by_global_norm(clip_norm), tx)
    parts["trained"] = clipped

  def labels(params):
    mask = trainable_mask(params, trainable)
    if clip_scope == "all" and all(jax.tree.leaves(mask)):
      raise ValueError(
        "clip_scope='all' is not allowed: no frozen parameter is among those "
        "of the optimiser, so that its gradient has no part in the norm."
      )
    return jax.tree.map(lambda t: "trained" if t else FROZEN, mask)

  chosen = optax.partition(parts, labels)
  if clip_scope == "all":
    chosen = optax.chain(optax.clip_by_global_norm(clip_norm), chosen)
  return optax.with_extra_args_support(chosen)
