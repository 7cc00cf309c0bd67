"""Models of seconds for pixels and tables, taught with CIW's weights.

`linear` is multinomial logistic regression on standardised features, `kernel`
the same on the features of a radial kernel (Nystroem). Both are first fitted
with equal weights, which is the burn-in, then a few times with CIW's: those
(KL) of the losses that the last fit left on all its examples at once.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.ciw import suspects_folds, suspects_views
from locojax.core import checks
from locojax.methods import ciw

# Each fit after the first one has the weights of the one before.
ROUNDS = 4
MOST_COMPONENTS = 100
MOST_LANDMARKS = 300
# `inverse_l2` is scikit-learn's C; `lam` of the weights, None for none.
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
  "linear": (
    {"inverse_l2": 0.01, "lam": 1.0},
    {"inverse_l2": 0.1, "lam": 0.5},
    {"inverse_l2": 1.0, "lam": 0.5},
  ),
  "kernel": (
    {"inverse_l2": 10.0, "lam": 0.5},
    {"inverse_l2": 10.0, "lam": 1.0},
  ),
}


@functools.partial(jax.jit, static_argnames="lam")
def _instance_weights(losses: jax.Array, lam: float) -> jax.Array:
  return ciw.instance_weights(losses, divergence="kl", lam=lam)


def _weights(losses: np.ndarray, lam: float) -> np.ndarray:
  """CIW's weights, mean 1."""
  found = jax.device_get(_instance_weights(losses, lam))
  return found.astype(np.float64) * len(losses)


def _scaled(features: np.ndarray, seed: int) -> list[Any]:
  """Steps: standardised columns, and their first principal components."""
  from sklearn import decomposition, preprocessing

  steps: list[Any] = [preprocessing.StandardScaler()]
  most = min(MOST_COMPONENTS, *features.shape)
  if most < features.shape[1]:
    steps.append(
      decomposition.PCA(most, svd_solver="randomized", random_state=seed)
    )
  return steps


def _landmarks(scaled: np.ndarray, seed: int) -> Any:
  """A radial kernel as wide as the median distance of some of the rows."""
  from sklearn import kernel_approximation, metrics

  some = np.random.default_rng(seed).permutation(len(scaled))[:MOST_LANDMARKS]
  apart = metrics.pairwise.euclidean_distances(scaled[some], squared=True)
  width = np.median(apart[np.triu_indices(len(some), 1)])
  return kernel_approximation.Nystroem(
    gamma=1.0 / max(width, 1e-12),
    n_components=len(some),
    random_state=seed,
  )


def _regression(
  features: np.ndarray,
  labels: np.ndarray,
  *,
  inverse_l2: float,
  lam: float | None,
) -> Any:
  """Logistic regression, fitted again and again with CIW's weights."""
  from sklearn import exceptions, linear_model

  model = linear_model.LogisticRegression(
    C=inverse_l2, max_iter=300, tol=1e-3, warm_start=True
  )
  weights = np.ones(len(labels))
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
    model.fit(features, labels)
    places = np.searchsorted(model.classes_, labels)
    for _ in range(0 if lam is None else ROUNDS):
      p = model.predict_proba(features)[np.arange(len(labels)), places]
      weights = _weights(-np.log(np.clip(p, 1e-12, None)), lam)
      model.fit(features, labels, sample_weight=weights)
  return model


def _applied(steps: Sequence[Any], rows: np.ndarray) -> np.ndarray:
  return functools.reduce(lambda x, step: step.transform(x), steps, rows)


def _fitted(
  rows: np.ndarray,
  labels: np.ndarray,
  settings: Mapping[str, Sequence[Mapping[str, Any]]],
  seed: int,
) -> list[tuple[list[Any], Any]]:
  """Steps that make features, and a regression, for each setting."""
  scaled = _scaled(rows, seed)
  for step in scaled:
    rows = step.fit_transform(rows)
  out = []
  for kind, several in settings.items():
    steps, seen = scaled, rows
    if kind == "kernel":
      steps = [*scaled, _landmarks(rows, seed)]
      seen = steps[-1].fit_transform(rows)
    out += [(steps, _regression(seen, labels, **one)) for one in several]
  return out


def probabilities(
  kinds: Sequence[str],
  rows: np.ndarray,
  labels: np.ndarray,
  folds: np.ndarray,
  *,
  num_classes: int,
  seed: int,
  settings: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> list[tuple[str, dict[str, Any], np.ndarray]]:
  """What models say of each example out of fold, from each view of it.

  Scaling, components and landmarks are those of the other folds too.

  Args:
    kinds: of models, keys of `SETTINGS`.
    rows: images or features, as `suspects_views.of` takes them.
    labels: `[n]` integers in [0, K).
    folds: `[n]`, of `suspects_folds.stratified`.
    num_classes: K.
    seed: of components and landmarks.
    settings: of the models by kind; None for `SETTINGS`.

  Returns:
    Kind, setting and `[n, K]` of each model.

  Raises:
    ImportError: scikit-learn is not installed.
    ValueError: an unknown kind, or features that are no finite numbers.
  """
  settings = SETTINGS if settings is None else settings
  settings = {k: checks.lookup("kind", k, dict(settings)) for k in kinds}
  named = [(kind, one) for kind in kinds for one in settings[kind]]

  def fit(x, y):
    models = _fitted(x, y, settings, seed)

    def predict(x):
      out = np.zeros((len(x), len(models), num_classes))
      for i, (steps, model) in enumerate(models):
        out[:, i, model.classes_] = model.predict_proba(_applied(steps, x))
      return out.reshape(len(x), -1)

    return predict

  out = []
  for view, features in suspects_views.of(rows).items():
    width = len(named) * num_classes
    try:
      p = suspects_folds.out_of_fold(fit, features, labels, folds, width)
    except ModuleNotFoundError as error:
      raise ImportError(
        f"models {list(kinds)} need scikit-learn: "
        "pip install 'locojax[experiments]'"
      ) from error
    p = p.reshape(len(labels), len(named), num_classes)
    for i, (kind, one) in enumerate(named):
      out.append((kind, {"of": view, **one}, p[:, i]))
  return out
