"""Where pairs of labels are seen: Grad-CAM with both of its marginals."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from locojax.core import types
from locojax.methods.spl import counts as counts_lib
from locojax.methods.spl import label_space, relabel
from locojax.nn import grad_cam


def pair_grad_cam(
  apply_fn: grad_cam.ApplyFn,
  variables: types.PyTree,
  clips: Any,
  weak: ArrayLike,
  teacher: ArrayLike,
  space: label_space.LabelSpace,
  layer: str | None = None,
  **settings: Any,
) -> dict[str, jax.Array]:
  """Maps of a pair, of its weak label alone and of its prediction alone.

  The weak label's score is log sum of exp of the logits of its row, that of
  the prediction of its column; classes of several rows or columns count in
  parts (`marginal_matrix`).

  Args:
    apply_fn: a network of the K classes of `space`; see `grad_cam.grad_cam`.
    variables: its first argument.
    clips: its second argument, B clips (or images).
    weak: `[B]` weak labels.
    teacher: `[B]` predictions.
    space: the label space that the network was trained with.
    layer: see `grad_cam.grad_cam`.
    **settings: of `grad_cam.grad_cam`.

  Returns:
    `pair`, `weak`, `teacher`: maps as of `grad_cam.grad_cam`.

  Raises:
    ValueError: labels out of range, a pair that the space drops; as
      `grad_cam.grad_cam`.

  >>> import flax.linen as nn
  >>> import jax
  >>> import numpy as np
  >>> from locojax import spl
  >>> class Net(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, x):
  ...     x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
  ...     return nn.Dense(4, name="head")(x.mean(axis=(1, 2)))
  ...
  >>> space = spl.build_label_space(np.array([[4, 2], [1, 3]]), "raw")
  >>> images = np.ones((2, 6, 6, 1), np.float32)
  >>> variables = Net().init(jax.random.key(0), images)
  >>> found = pair_grad_cam(
  ...   Net().apply, variables, images, [0, 1], [1, 1], space
  ... )
  >>> {name: x.shape for name, x in found.items()}
  {'pair': (2, 6, 6), 'weak': (2, 6, 6), 'teacher': (2, 6, 6)}
  """
  counts_lib.same_clips(weak, teacher)
  labels, kept = relabel.relabel(weak, teacher, space)
  if not kept.all():
    first = int((~kept).argmax())
    raise ValueError(
      f"the pair ({int(weak[first])}, {int(teacher[first])}) is dropped by the "
      "label space, which is not allowed: it must be a class."
    )
  rows = relabel.marginal_matrix(space, "weak").T[np.asarray(weak)]
  columns = relabel.marginal_matrix(space, "teacher").T[np.asarray(teacher)]
  wanted = {"pair": labels, "weak": rows, "teacher": columns}
  return {
    name: grad_cam.grad_cam(
      apply_fn, variables, clips, classes, layer, **settings
    )
    for name, classes in wanted.items()
  }
