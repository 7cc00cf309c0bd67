"""Which of several models the list is made by, and whether to trust it.

No label is known to be right, so all is measured by the given labels, on
examples that the model has not seen. Wrong labels cost every model alike, so
the order of the models is that of the truth unless most labels are wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# A class that is said less often than this share of its labels is not covered.
COVERED = 0.2
# Standard errors by which the accuracy must exceed the share of one class.
MARGIN = 3.0
# Below it a model is wrong about more examples than it is right about.
WEAK = 0.5


@dataclasses.dataclass(frozen=True)
class Candidate:
  """What one model says out of fold.

  Attributes:
    model: its name.
    setting: by name.
    probabilities: `[epochs, n, K]`; those of the later half count.
  """

  model: str
  setting: Mapping[str, Any]
  probabilities: np.ndarray


def later(values: np.ndarray) -> np.ndarray:
  """Mean over the later half of the epochs."""
  return values[len(values) // 2 :].mean(axis=0)


def measured(p: np.ndarray, labels: np.ndarray) -> dict[str, float]:
  """Accuracy and log-loss by the given labels.

  Args:
    p: `[n, K]` probabilities.
    labels: `[n]` integers, as given.
  """
  own = np.clip(p[np.arange(len(labels)), labels], 1e-12, None)
  return {
    "accuracy": float(np.mean(p.argmax(axis=-1) == labels)),
    "log_loss": float(-np.log(own).mean()),
  }


def choose(
  candidates: Sequence[Candidate], labels: np.ndarray
) -> tuple[np.ndarray, list[dict[str, Any]]]:
  """The mean of the candidates that are as good as the best one.

  Those whose accuracy out of fold, by the given labels, is within a standard
  error of the best: to choose one of them would be to choose by chance. A
  network that collapsed is never among them, unless all else did as badly.

  Args:
    candidates: one or more.
    labels: `[n]` integers, as given.

  Returns:
    Probabilities `[epochs, n, K]` (one epoch if several are averaged), and a
    row for each candidate: model, setting, accuracy, log-loss, chosen.
  """
  rows = [
    {
      "model": one.model,
      "setting": ", ".join(f"{k}={v}" for k, v in one.setting.items()),
      **measured(later(one.probabilities), labels),
    }
    for one in candidates
  ]
  top = max(row["accuracy"] for row in rows)
  least = top - np.sqrt(top * (1 - top) / len(labels))
  chosen = [row["accuracy"] >= least for row in rows]
  for row, taken in zip(rows, chosen, strict=True):
    row["chosen"] = "yes" if taken else "no"
  taken = [c.probabilities for c, yes in zip(candidates, chosen) if yes]
  if len(taken) == 1:
    return taken[0], rows
  return np.mean([later(p) for p in taken], axis=0)[None], rows


def _named(places: np.ndarray, classes: Sequence[str] | None, most: int = 8):
  names = [str(k if classes is None else classes[k]) for k in places]
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + more


def warnings(
  p: np.ndarray,
  labels: np.ndarray,
  *,
  classes: Sequence[str] | None = None,
  num_folds: int | None = None,
) -> list[str]:
  """Why a list by these probabilities is not to be trusted.

  Args:
    p: `[n, K]` probabilities.
    labels: `[n]` integers, as given.
    classes: `[K]` names.
    num_folds: of what is out of fold; a class must have an example in each.

  Returns:
    A sentence for each reason; none if there is no doubt.
  """
  out, n = [], len(labels)
  given = np.bincount(labels, minlength=p.shape[-1])
  said = np.bincount(p.argmax(axis=-1), minlength=p.shape[-1])
  accuracy, top = measured(p, labels)["accuracy"], given.max() / n
  if (given > 0).sum() < 2:
    return ["all labels are the same: there is nothing to compare."]
  margin = MARGIN * np.sqrt(top * (1 - top) / n)
  if accuracy < top + margin:
    out.append(
      f"the model agrees with {accuracy:.0%} of the labels, which is not "
      f"clearly more than the {top:.0%} of always saying the commonest class: "
      "it has learnt next to nothing."
    )
  elif accuracy < WEAK:
    out.append(
      f"the model agrees with {accuracy:.0%} of the labels: most of what it "
      "contradicts is likely to be its own mistake."
    )
  lost = np.flatnonzero((said < COVERED * given) & (given > 0))
  if len(lost):
    out.append(
      f"the model hardly ever says {len(lost)} of {(given > 0).sum()} classes "
      f"({_named(lost, classes)}): their examples are suspect whether right or "
      "wrong."
    )
  few = np.flatnonzero((given > 0) & (given < (num_folds or 0)))
  if len(few):
    out.append(
      f"{len(few)} classes ({_named(few, classes)}) have fewer examples than "
      f"the {num_folds} folds: some are judged by a model that saw none."
    )
  return out
