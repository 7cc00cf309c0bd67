"""Label spaces over pairs of a weak label and a teacher's prediction.

Li et al. 2021, arXiv 2101.03713: the pair is the class. A space says which
class each pair is. With w the weak label (row) and t the prediction (column):

  raw        w T + t, all W T pairs
  occupied   pairs that occur, numbered row by row
  spl_b      2 w + [t is not w]: agreed and disagreed of each row
  top_k      the k most frequent pairs
  min_count  pairs of `min_count` clips or more
  cluster    k groups of pairs with similar features (`clusters.py`)
  weak       w, whatever t is
  teacher    t, whatever w is
  agreement  w where t agrees; other clips are dropped

The paper's text says which pairs become classes, not how they are numbered or
what happens to others; that, `top_k`, `min_count` and `cluster` are defined
here. Letters: W, T as in `counts.py`, K classes of the space.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import arrays, checks
from locojax.methods.spl import counts as counts_lib

FORMAT = "locojax.spl.label_space.1"
_KEYS = (
  *("format", "method", "num_classes", "lookup", "confusion"),
  "weak_to_teacher",
)


@dataclasses.dataclass(frozen=True, eq=False)
class LabelSpace:
  """Which class each pair of labels is.

  Made by `build_label_space` from the training clips, once, on the host, and
  kept with the checkpoints: built from a part of the clips, the numbers would
  be others.

  Attributes:
    num_classes: K.
    lookup: `[W, T]` int32, the class of each pair; -1 is dropped.
    confusion: `[W, T]` counts that it was made from.
    method: how it was made.
    weak_to_teacher: `[W]` int32, the prediction that agrees with each weak
      label, or None.

  >>> from locojax import spl
  >>> space = spl.build_label_space(np.array([[4, 2], [1, 3]]), "spl_b")
  >>> space.num_classes, space.lookup.tolist()
  (4, [[0, 1], [3, 2]])
  >>> LabelSpace.from_json(space.to_json()).method
  'spl_b'
  """

  num_classes: int
  lookup: np.ndarray
  confusion: np.ndarray
  method: str
  weak_to_teacher: np.ndarray | None = None

  def __post_init__(self):
    _check_space(self)
    for name in ("lookup", "confusion", "weak_to_teacher"):
      found = getattr(self, name)
      if found is not None:
        found = np.array(found)
        found.setflags(write=False)
        object.__setattr__(self, name, found)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, LabelSpace) and self.to_json() == other.to_json()

  def __hash__(self) -> int:
    return hash(self.to_json())

  @property
  def num_weak(self) -> int:
    """W."""
    return self.lookup.shape[0]

  @property
  def num_teacher(self) -> int:
    """T."""
    return self.lookup.shape[1]

  @functools.cached_property
  def counts(self) -> np.ndarray:
    """`[K]`: training clips of each class."""
    kept = self.lookup >= 0
    out = np.zeros(self.num_classes, self.confusion.dtype)
    np.add.at(out, self.lookup[kept], self.confusion[kept])
    return out

  @functools.cached_property
  def pairs(self) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The pairs (weak, teacher) of each class, row by row."""
    out: list[list[tuple[int, int]]] = [[] for _ in range(self.num_classes)]
    for w, t in zip(*(x.tolist() for x in np.nonzero(self.lookup >= 0))):
      out[self.lookup[w, t]].append((w, t))
    return tuple(map(tuple, out))

  @functools.cached_property
  def shared(self) -> tuple[np.ndarray, np.ndarray]:
    """`[K]` int32 each: the labels that all pairs of a class have, else -1."""
    both = np.full((2, self.num_classes), -1, np.int32)
    for k, pairs in enumerate(self.pairs):
      for axis, found in enumerate(zip(*pairs)):
        if len(set(found)) == 1:
          both[axis, k] = found[0]
    return both[0], both[1]

  def encode(self, weak: ArrayLike, teacher: ArrayLike) -> jax.Array:
    """Classes of clips; may be traced.

    Args:
      weak: `[...]` integers in [0, W).
      teacher: as `weak`, in [0, T).

    Returns:
      `[...]` int32 in [0, K), or -1 where the pair is dropped. Traced ids out
      of range give K, which is no class: losses of it are NaN.

    Raises:
      ValueError: shapes that differ, or ids that are not traced and out of
        range.
    """
    checks.same_shape("weak", np.shape(weak), "teacher", np.shape(teacher))
    if arrays.is_concrete(weak, teacher):
      flat = [np.asarray(x).reshape(-1) for x in (weak, teacher)]
      counts_lib.check_ids("weak", flat[0], self.num_weak)
      counts_lib.check_ids("teacher", flat[1], self.num_teacher)
    weak = checks.index_array("weak", weak)
    teacher = checks.index_array("teacher", teacher)
    good = (weak >= 0) & (weak < self.num_weak)
    good &= (teacher >= 0) & (teacher < self.num_teacher)
    safe = [jnp.where(good, x, 0) for x in (weak, teacher)]
    found = jnp.asarray(self.lookup)[safe[0], safe[1]]
    return jnp.where(good, found, self.num_classes)

  def decode(self, ids: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """What classes stand for; may be traced.

    Args:
      ids: `[...]` classes in [0, K).

    Returns:
      Weak label and prediction, `[...]` int32: of all pairs of the class, or -1
      where they differ (in `spl_b` the prediction of disagreed clips) and for
      ids that are no class.

    Raises:
      ValueError: ids that are not traced and out of range.
    """
    if arrays.is_concrete(ids):
      flat = np.asarray(ids).reshape(-1)
      counts_lib.check_ids("ids", flat, self.num_classes)
    ids = checks.index_array("ids", ids)
    good = (ids >= 0) & (ids < self.num_classes)
    safe = jnp.where(good, ids, 0)
    weak, teacher = (jnp.asarray(x)[safe] for x in self.shared)
    return jnp.where(good, weak, -1), jnp.where(good, teacher, -1)

  def names(self, weak_names, teacher_names=None) -> list[str]:
    """A name for each class, such as 'baking cookies & whisking eggs'.

    A pair of equal names is that name alone.

    Args:
      weak_names: W names.
      teacher_names: T names; by default those of the weak classes.

    Raises:
      ValueError: another number of names.
    """
    if teacher_names is None:
      teacher_names = weak_names
    for what, given, num in (
      ("weak_names", weak_names, self.num_weak),
      ("teacher_names", teacher_names, self.num_teacher),
    ):
      if len(given) != num:
        checks.refuse(f"len({what})", len(given), f"{num}, one for each class")
    return [
      _name(self, k, weak_names, teacher_names) for k in range(self.num_classes)
    ]

  def stats(self, *, num_pairs: int = 20) -> dict[str, Any]:
    """What the space makes of the training clips; entropies in nats.

    Args:
      num_pairs: how many pairs `top_pairs` lists.

    Returns:
      `num_classes` K; `num_clips`; `share_kept`; `num_occupied` classes with a
      clip; `effective_classes`, exp of the entropy of the kept clips;
      `largest` and `median` class; `share_rare`, of clips kept that are in
      classes of under 10 clips; `agreement`, the share of clips whose labels
      agree (None where no map says which do); `entropy`, `entropy_weak`,
      `entropy_teacher`, `mutual_information`; `top_pairs`
      (`counts.top_pairs`).
    """
    confusion, own = self.confusion, self.counts
    total, kept = confusion.sum(), own.sum()
    agreed = counts_lib.agreeing(confusion.shape, self.weak_to_teacher)
    rare = own[own < counts_lib.RARE].sum()
    return {
      "num_classes": self.num_classes,
      "num_clips": total.item(),
      "share_kept": float(kept / total),
      "num_occupied": int((own > 0).sum()),
      "effective_classes": float(np.exp(counts_lib.entropy(own))),
      "largest": own.max().item(),
      "median": float(np.median(own)),
      "share_rare": float(rare / kept),
      "agreement": (
        float(confusion[agreed].sum() / total) if agreed.any() else None
      ),
      "entropy": counts_lib.entropy(own),
      "entropy_weak": counts_lib.entropy(confusion.sum(1)),
      "entropy_teacher": counts_lib.entropy(confusion.sum(0)),
      "mutual_information": counts_lib.mutual_information(confusion),
      "top_pairs": counts_lib.top_pairs(
        confusion, num=num_pairs, weak_to_teacher=self.weak_to_teacher
      ),
    }

  def to_json(self) -> str:
    """The space as a text, the same for equal spaces."""
    agreeing = self.weak_to_teacher
    values = {
      "format": FORMAT,
      "method": self.method,
      "num_classes": self.num_classes,
      "lookup": self.lookup.tolist(),
      "confusion": self.confusion.tolist(),
      "weak_to_teacher": None if agreeing is None else agreeing.tolist(),
    }
    return json.dumps(values)

  @classmethod
  def from_json(
    cls,
    text: str,
    *,
    num_weak: int | None = None,
    num_teacher: int | None = None,
  ) -> LabelSpace:
    """A space as `to_json` wrote it.

    Args:
      text: of `to_json`.
      num_weak: W that is wanted; None takes any.
      num_teacher: T that is wanted; None takes any.

    Raises:
      ValueError: no label space, a damaged one, or one for other numbers of
        classes.
    """
    space = cls(**_fields(text))
    for name, wanted in (("num_weak", num_weak), ("num_teacher", num_teacher)):
      if wanted is not None and getattr(space, name) != wanted:
        checks.refuse(
          f"{name} of the label space", getattr(space, name), str(wanted)
        )
    return space


def _fields(text: str) -> dict[str, Any]:
  try:
    found = json.loads(text)
  except ValueError as error:
    raise ValueError(f"the text is no label space: {error}.") from error
  if not isinstance(found, dict) or set(found) != set(_KEYS):
    listed = sorted(found) if isinstance(found, dict) else type(found).__name__
    checks.refuse("keys of the label space", listed, ", ".join(_KEYS))
  checks.one_of("format of the label space", found.pop("format"), (FORMAT,))
  try:
    found["lookup"] = checks.integers("lookup", found["lookup"])
    found["confusion"] = np.asarray(found["confusion"])
  except (ValueError, TypeError) as error:
    raise ValueError(f"the label space is damaged: {error}") from error
  if found["weak_to_teacher"] is not None:
    found["weak_to_teacher"] = checks.integers(
      "weak_to_teacher", found["weak_to_teacher"]
    )
  return found


def _check_space(space: LabelSpace) -> None:
  confusion = counts_lib.check_confusion(space.confusion)
  lookup = np.asarray(space.lookup)
  checks.same_shape("lookup", lookup.shape, "confusion", confusion.shape)
  checks.text("method", space.method)
  checks.positive_int("num_classes", space.num_classes)
  if space.num_classes < 2:
    checks.refuse("num_classes", space.num_classes, "2 or more")
  if lookup.dtype != np.int32 or not np.all(
    (lookup >= -1) & (lookup < space.num_classes)
  ):
    raise ValueError(
      f"lookup of dtype {lookup.dtype} with values from {lookup.min()} to "
      f"{lookup.max()} is not allowed: it must be int32 in [-1, "
      f"{space.num_classes - 1}]."
    )
  if not confusion[lookup >= 0].sum():
    raise ValueError(
      f"all {confusion.sum()} clips are dropped by method={space.method!r}, "
      "which is not allowed: a label space must keep some."
    )
  counts_lib.agreeing(confusion.shape, space.weak_to_teacher)


def _name(space: LabelSpace, k: int, weak_names, teacher_names) -> str:
  weak, teacher = (x[k] for x in space.shared)
  pairs = space.pairs[k]
  if weak >= 0 and teacher >= 0:
    names = (weak_names[weak], teacher_names[teacher])
    return names[0] if names[0] == names[1] else " & ".join(names)
  if weak >= 0:
    whole = len(pairs) == space.num_teacher
    return weak_names[weak] if whole else f"{weak_names[weak]} & other"
  if teacher >= 0:
    whole = len(pairs) == space.num_weak
    name = teacher_names[teacher]
    return name if whole else f"other & {name}"
  if not pairs:
    return "nothing"
  w, t = max(pairs, key=lambda p: (space.confusion[p], -p[0], -p[1]))
  return f"{weak_names[w]} & {teacher_names[t]} + {len(pairs) - 1} more"
