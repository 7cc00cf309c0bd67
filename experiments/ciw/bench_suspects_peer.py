"""cleanlab on sets with wrong labels, for `experiments.ciw.bench_suspects`.

  python experiments/ciw/bench_suspects_peer.py FOLDER

FOLDER has files `<number>.npz` with `features`, `labels`, `folds` and `ours`,
probabilities of another model. One line of JSON is printed: `versions`, and for
each file `told`, cleanlab's quality of every label by each of its scores, with
the probabilities of logistic regression on standardised columns out of these
folds (`lr/<score>`) and with the others (`ours/<score>`).
"""

from __future__ import annotations

import json
import pathlib
import sys
from importlib import metadata

import numpy as np
from cleanlab import rank
from sklearn import linear_model, model_selection, pipeline, preprocessing

# `adjusted`: self-confidence after cleanlab's own correction by thresholds.
SCORES = {
  "self_confidence": {"method": "self_confidence"},
  "normalized_margin": {"method": "normalized_margin"},
  "adjusted": {"method": "self_confidence", "adjust_pred_probs": True},
}


def logistic_regression(features, labels, folds) -> np.ndarray:
  """Probabilities out of fold."""
  model = pipeline.make_pipeline(
    preprocessing.StandardScaler(),
    linear_model.LogisticRegression(max_iter=1000),
  )
  return model_selection.cross_val_predict(
    model,
    features,
    labels,
    cv=model_selection.PredefinedSplit(folds),
    method="predict_proba",
  )


def told(found) -> dict[str, list[float]]:
  """Qualities of the labels of one file."""
  labels = found["labels"]
  several = {
    "lr": logistic_regression(found["features"], labels, found["folds"]),
    "ours": found["ours"],
  }
  return {
    f"{name}/{score}": rank.get_label_quality_scores(
      labels, p, **settings
    ).tolist()
    for name, p in several.items()
    for score, settings in SCORES.items()
  }


if __name__ == "__main__":
  results = {}
  for path in sorted(pathlib.Path(sys.argv[1]).glob("*.npz")):
    with np.load(path) as arrays:
      results[path.stem] = told(arrays)
  versions = {n: metadata.version(n) for n in ("cleanlab", "scikit-learn")}
  print(json.dumps({"told": results, "versions": versions}))
