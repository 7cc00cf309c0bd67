"""What is known of the examples whose labels are in doubt, and its file."""

from __future__ import annotations

import dataclasses
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from locojax.core import checks, files

# Rows of probabilities may be off by this, as those of half floats are.
_SLACK = 2e-2
KEYS = (
  *("losses", "probabilities", "labels"),
  *("images", "names", "classes", "is_noisy"),
)


@dataclasses.dataclass(frozen=True)
class Collected:
  """Losses of N examples over E epochs (or models); made by `collected`.

  Attributes:
    losses: `[E, N]` float64, of the given labels.
    labels: `[N]`, the given labels: integers, or text without probabilities.
    probabilities: `[E, N, K]` of the classes.
    images: `[N, height, width]` or `[N, height, width, channels]`.
    names: `[N]` text.
    classes: `[K]` text.
    is_noisy: `[N]` bool, true where the label is known to be wrong.
  """

  losses: np.ndarray
  labels: np.ndarray
  probabilities: np.ndarray | None = None
  images: np.ndarray | None = None
  names: np.ndarray | None = None
  classes: np.ndarray | None = None
  is_noisy: np.ndarray | None = None


def _numbers(name: str, x: Any, ndims: tuple[int, int], axes: str):
  """`x` with the leading axis of epochs, float64."""
  x = np.asarray(x)
  if x.ndim not in ndims or x.dtype.kind not in "fiub" or not x.size:
    raise ValueError(
      f"{name} of dtype {x.dtype} and shape {x.shape} are not allowed: they "
      f"must be numbers, {axes}, with a leading axis of epochs or models if "
      "there are several."
    )
  x = x.astype(np.float64)
  if np.isnan(x).any():
    raise ValueError(f"{name} hold NaN: they must be numbers.")
  return x if x.ndim == ndims[1] else x[None]


def _probabilities(x: Any) -> np.ndarray:
  axes = "[examples, classes]"
  x = _numbers("probabilities", x, (2, 3), axes)
  off = np.abs(x.sum(axis=-1) - 1).max()
  if x.min() < 0 or off > _SLACK:
    raise ValueError(
      f"probabilities with the least value {x.min():.4g} and sums off by "
      f"{off:.4g} are not allowed: each row must be 0 or more and sum to 1. "
      "Logits go through a softmax first."
    )
  return x


def check_labels(labels: Any, num_classes: int | None) -> np.ndarray:
  """Labels of N examples.

  Args:
    labels: `[N]` integers in [0, num_classes); without `num_classes`, any
      integers or text.
    num_classes: K, or None.

  Raises:
    ValueError: another shape or type, or a label out of range.
  """
  labels = np.asarray(labels)
  if labels.ndim != 1 or labels.dtype.kind not in "iuU":
    raise ValueError(
      f"labels of dtype {labels.dtype} and shape {labels.shape} are not "
      "allowed: they must be integers (or text, with losses), [examples]."
    )
  if num_classes is None:
    return labels
  if labels.dtype.kind == "U":
    raise ValueError(
      "labels are text, which is not allowed with probabilities: give "
      "integers, and the text of each class as `classes`."
    )
  if not labels.size:
    raise ValueError("labels are empty, which is not allowed.")
  low, high = labels.min(), labels.max()
  if low < 0 or high >= num_classes:
    raise ValueError(
      f"labels from {low} to {high} are not allowed: there are the classes 0 "
      f"to {num_classes - 1}."
    )
  return labels.astype(np.int64)


def _given_losses(probabilities, labels) -> np.ndarray:
  """-log p of the given labels, `[E, N]`; zero counts as the least float."""
  p = probabilities[:, np.arange(len(labels)), labels]
  return -np.log(np.clip(p, np.finfo(np.float64).tiny, None))


def _images(images: Any) -> np.ndarray:
  images = np.asarray(images)
  colours = images.ndim == 4 and images.shape[3] in (1, 3, 4)
  if images.dtype.kind not in "fiub" or not (images.ndim == 3 or colours):
    raise ValueError(
      f"images of dtype {images.dtype} and shape {images.shape} are not "
      "allowed: they must be numbers, [examples, height, width] or [examples, "
      "height, width, 1, 3 or 4 channels]."
    )
  return images


def collected(found: Mapping[str, Any]) -> Collected:
  """Checks arrays and brings them to one form.

  Args:
    found: `labels` `[N]` and at least one of `losses` (`[N]` or `[E, N]`) and
      `probabilities` (`[N, K]` or `[E, N, K]`); if wanted `images`, `names`,
      `is_noisy`, all in the same order, and `classes` `[K]`.

  Returns:
    See `Collected`. Without losses they are -log of the probability of the
    given label.

  Raises:
    ValueError: an array is missing, unknown, or of a wrong shape or type.
  """
  for name in found:
    checks.one_of("array", name, KEYS)
  if "labels" not in found or not {"losses", "probabilities"} & set(found):
    raise ValueError(
      f"the arrays {sorted(found)} are not enough: 'labels' is needed, and "
      "'losses' or 'probabilities'."
    )
  out: dict[str, Any] = {}
  if "probabilities" in found:
    out["probabilities"] = _probabilities(found["probabilities"])
  p = out.get("probabilities")
  out["labels"] = check_labels(
    found["labels"], None if p is None else p.shape[-1]
  )
  if p is not None:
    checks.same_shape(
      "probabilities", p.shape[1:2], "labels", out["labels"].shape
    )
  if "losses" in found:
    out["losses"] = _numbers("losses", found["losses"], (1, 2), "[examples]")
  else:
    out["losses"] = _given_losses(p, out["labels"])
  if "images" in found:
    out["images"] = _images(found["images"])
  for name, dtype in (("names", str), ("classes", str), ("is_noisy", bool)):
    if name in found:
      out[name] = _as(name, found[name], dtype)
  _check_sizes(out)
  return Collected(**out)


def _as(name: str, values: Any, dtype: type) -> np.ndarray:
  """Text, or booleans, which zeros and ones may stand for."""
  values = np.asarray(values)
  if dtype is bool and (
    values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all()
  ):
    raise ValueError(
      f"{name} of dtype {values.dtype} is not allowed: it must be booleans, or "
      "zeros and ones."
    )
  return values.astype(dtype)


def _check_sizes(out: Mapping[str, np.ndarray]) -> None:
  p, count = out.get("probabilities"), out["labels"].shape
  checks.same_shape("losses", out["losses"].shape[1:], "labels", count)
  if p is not None:
    checks.same_shape(
      "losses", out["losses"].shape, "probabilities", p.shape[:2]
    )
  for name in ("names", "is_noisy"):
    if name in out:
      checks.same_shape(name, out[name].shape, "labels", count)
  if "images" in out:
    checks.same_shape("images", out["images"].shape[:1], "labels", count)
  if "classes" in out:
    _check_classes(out["classes"], out["labels"], p)


def _check_classes(classes, labels, p) -> None:
  if labels.dtype.kind == "U":
    raise ValueError("classes are not allowed with labels that are text.")
  needed = labels.max() + 1 if p is None else p.shape[-1]
  if classes.ndim != 1 or len(classes) < needed or labels.min() < 0:
    raise ValueError(
      f"classes of shape {classes.shape} are not allowed: there must be a name "
      f"for each class, 0 to {needed - 1}."
    )


def load(path: str | pathlib.Path) -> Collected:
  """The arrays of an `.npz` file; see `collected`.

  Raises:
    ValueError: not there, not readable, or not as `collected` needs it.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f"{path} does not exist.")
  checks.one_of(f"suffix of {path}", path.suffix, [".npz"])
  try:
    with np.load(path, allow_pickle=False) as f:
      found = dict(f)
  except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  try:
    return collected(found)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def save(data: Collected, path: str | pathlib.Path) -> pathlib.Path:
  """Writes what `load` reads, in single precision; folders are made."""
  fields = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
  known = {name: x for name, x in fields.items() if x is not None}
  for name in ("losses", "probabilities"):
    if name in known:
      known[name] = known[name].astype(np.float32)
  return files.write_arrays(path, **known)
