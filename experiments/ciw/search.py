"""The hyperparameters that are tried, the same number for every method.

`rate` multiplies the learning rate of the config. The other names are options
of the method (`methods.py`); `burnin` is a share of the run. Which trial counts
is decided by the accuracy on *noisy* validation labels alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from locojax.core import checks

Trial = dict[str, Any]
_KL = {"divergence": "kl"}
_HEAVY = {"divergence": "alpha", "order": 0.1}


def _weights(base: Mapping, lam: float, burnin: float, **more) -> Trial:
  return {**base, "lam": lam, "burnin": burnin, **more}


def _classes(divergence: str, gamma: float) -> Trial:
  return {"class_divergence": divergence, "gamma": gamma}


SPACES: dict[str, tuple[Trial, ...]] = {
  "cross_entropy": (
    {"rate": 1.0},
    {"rate": 0.3},
    {"rate": 0.1},
    {"rate": 2.0},
  ),
  "label_smoothing": (
    {"smoothing": 0.2},
    {"smoothing": 0.5},
    {"smoothing": 0.8},
    {"smoothing": 0.5, "rate": 0.3},
  ),
  "bi_tempered": (
    {"t1": 0.8, "t2": 1.2},
    {"t1": 0.5, "t2": 1.5},
    {"t1": 0.2, "t2": 1.2},
    {"t1": 0.2, "t2": 2.0},
  ),
  "nce_rce": (
    {"alpha": 1.0, "beta": 1.0},
    {"alpha": 1.0, "beta": 0.1},
    {"alpha": 10.0, "beta": 0.1},
    {"alpha": 1.0, "beta": 1.0, "rate": 0.3},
  ),
  "generalized_ce": (
    {"q": 0.7},
    {"q": 0.4},
    {"q": 0.9},
    {"q": 0.7, "rate": 0.3},
  ),
  "bootstrap_hard": (
    {"share": 0.2},
    {"share": 0.5},
    {"share": 0.8},
    {"share": 0.5, "rate": 0.3},
  ),
  "dynamic_bootstrapping": (
    {"burnin": 0.1, "prediction": "hard"},
    {"burnin": 0.2, "prediction": "hard"},
    {"burnin": 0.1, "prediction": "soft"},
    {"burnin": 0.1, "prediction": "hard", "rate": 0.3},
  ),
  "mixup": (
    {"mixup_alpha": 1.0},
    {"mixup_alpha": 0.2},
    {"mixup_alpha": 4.0},
    {"mixup_alpha": 1.0, "rate": 0.3},
  ),
  "dynamic_mixup": (
    {"burnin": 0.1, "mixup_alpha": 1.0},
    {"burnin": 0.2, "mixup_alpha": 1.0},
    {"burnin": 0.3, "mixup_alpha": 4.0},
    {"burnin": 0.1, "mixup_alpha": 1.0, "rate": 0.3},
  ),
  "ciw": (
    _weights(_KL, 0.5, 0.1),
    _weights(_KL, 1.0, 0.05),
    _weights(_HEAVY, 0.1, 0.1),
    _weights(_KL, 0.5, 0.1, rate=0.3),
  ),
  "cicw": (
    _weights(_KL, 0.5, 0.1, **_classes("tv", 0.1)),
    _weights(_KL, 0.5, 0.1, **_classes("tv", 0.4)),
    _weights(_HEAVY, 0.1, 0.1, **_classes("l2", 0.1)),
    _weights(_KL, 0.5, 0.1, **_classes("tv", 0.4), rate=0.3),
  ),
  "cicw_mixup": (
    _weights(_KL, 0.5, 0.1, mixup_alpha=2.0, **_classes("tv", 0.1)),
    _weights(
      _HEAVY,
      2.5,
      0.1,
      mixup_alpha=2.0,
      reweight_mixed=True,
      **_classes("kl", 0.01),
    ),
    _weights(_KL, 0.3, 0.1, mixup_alpha=2.0, **_classes("tv", 0.3)),
    _weights(_KL, 0.5, 0.1, mixup_alpha=2.0, **_classes("tv", 0.1), rate=0.3),
  ),
  "ciw_label_smoothing": (
    _weights(_HEAVY, 10.0, 0.1, mixup_alpha=0.2),
    _weights(_KL, 1.0, 0.1, mixup_alpha=0.2),
    _weights(_KL, 0.3, 0.1, mixup_alpha=1.0),
    _weights(_KL, 1.0, 0.1, mixup_alpha=0.2, rate=0.3),
  ),
}
MOST = min(map(len, SPACES.values()))


def trials(method: str, num: int) -> list[Trial]:
  """The first `num` trials of a method.

  Raises:
    ValueError: an unknown method, or a number that not all methods have.
  """
  space = checks.lookup("method", method, SPACES)
  checks.one_of("num_trials", num, range(1, MOST + 1))
  return [dict(t) for t in space[:num]]


def text(trial: Mapping[str, Any]) -> str:
  """A trial as it stands in a table.

  >>> text({"lam": 0.5, "divergence": "kl"})
  'lam=0.5, divergence=kl'
  """
  return ", ".join(
    f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
    for k, v in trial.items()
  )
