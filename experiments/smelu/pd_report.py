"""The prediction-difference report of one's own models.

  python -m experiments.smelu.pd_report a.npz b.npz [...] \
    [--labels labels.npy] [--ensemble 3] [--json report.json]

Each PRED is what one model predicted for the same examples, in the same order:

* `.npy`: `[N]` probabilities of the positive outcome, or `[N, K]` of classes;
* `.npz`: such an array `predictions`, and if wanted `labels`, `weights` and
  `query_ids`, `[N]` each. `[M, N]` or `[M, N, K]` under `replicas`, in place of
  `predictions`, stands for M models;
* `.csv`: one column of probabilities, or one for each class; with a header,
  columns named `label`, `weight` and `query_id` are what they say;
* a folder with a `predictions.npz` in it;
* a run folder with a checkpoint, if the module that its config names in
  `experiment` has a function `predict(config, folder)`, which writes that file.

Labels, weights and queries of several files must be the same. The report gives
every quantity with two intervals: over examples (bootstrap; whole queries if
there are queries), and over models (jackknife, for three models or more).
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import pathlib
import sys
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from locojax.core import checks, files
from locojax.data import csv_rows
from locojax.methods.smelu import accumulator, intervals
from locojax.methods.smelu import reproducibility as pd
from locojax.report import tables

EXTRAS = ("labels", "weights", "query_ids")
_CSV_EXTRAS = {"label": "labels", "weight": "weights", "query_id": "query_ids"}
_CSV_EXTRAS |= {name: name for name in EXTRAS}
_MAX_UNITS = 20_000
NAMES = {
  "relative_pd_pairwise": "relative PD, pairwise",
  "relative_pd_deviation": "relative PD, deviation (half of it for 2 models)",
  "pairwise_pd": "PD, pairwise",
  "pd_1": "PD_1, deviation",
  "pd_2": "PD_2, deviation",
  "hellinger_pd": "Hellinger PD",
  "disagreement": "disagreement (churn)",
  "logit_difference": "logit difference",
  "label_relative_pd_pairwise": "true label: relative PD, pairwise",
  "label_relative_pd_deviation": "true label: relative PD, deviation",
  "label_pairwise_pd": "true label: PD, pairwise",
  "label_pd_1": "true label: PD_1, deviation",
  "swap_top_item": "swap rate of the top item",
  "swap_top_set": "swap rate of the top-n set",
  "log_loss": "log loss",
  "accuracy": "accuracy",
  "auc": "AUC",
  "query_auc": "AUC within queries",
  "ranking_loss": "ranking loss (1 - AUC)",
  "lowest_prediction": "lowest prediction",
}


def _read_csv(path: pathlib.Path) -> dict[str, np.ndarray]:
  rows = csv_rows.read(path)
  header = [cell.strip() for cell in rows[0].cells]
  if all(map(_is_number, header)):
    header = ["prediction"] * len(header)
  else:
    csv_rows.check_names(path, header)
    rows = rows[1:]
  if not rows:
    raise ValueError(f"{path} has a header and no rows.")
  lines = [row.line for row in rows]
  out, preds = {}, []
  for name, cells in zip(header, zip(*(row.cells for row in rows))):
    column = [cell.strip() for cell in cells]
    extra = _CSV_EXTRAS.get(name)
    if extra == "query_ids":
      values = np.array(column)
    else:
      values = _numbers(path, name, column, lines)
    if extra in out:
      raise ValueError(f"{path} has two columns of {extra}.")
    if extra:
      out[extra] = values
    else:
      preds.append(values)
  if preds:
    out["predictions"] = np.stack(preds, axis=-1)
  return out


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


def _numbers(path, name: str, column, lines) -> np.ndarray:
  for cell, line in zip(column, lines, strict=True):
    if not _is_number(cell):
      raise ValueError(
        f"{path}, line {line}: column {name!r} has {cell!r}, which is no "
        "number."
      )
  return np.array(column).astype(np.float64)


def _predictions_of(folder: pathlib.Path) -> pathlib.Path:
  """The predictions in a folder, made from its checkpoint if need be."""
  path = folder / "predictions.npz"
  if path.exists() or not (folder / "config.json").exists():
    return path
  config = ml_collections.ConfigDict(
    json.loads((folder / "config.json").read_text())
  )
  name = config.get("experiment", "")
  predict = getattr(importlib.import_module(name), "predict", None)
  if predict is None:
    raise ValueError(
      f"{folder} has no predictions.npz, and {name!r} has no function "
      "`predict(config, folder)` that would make it from the checkpoint."
    )
  predict(config, folder)
  return path


def _read(path: pathlib.Path, alone: str) -> dict[str, np.ndarray]:
  """The arrays of a file; a lone array goes by the name `alone`."""
  if path.is_dir():
    path = _predictions_of(path)
  if not path.exists():
    raise ValueError(f"{path} does not exist.")
  checks.one_of(f"suffix of {path}", path.suffix, (".npy", ".npz", ".csv"))
  if path.suffix == ".csv":
    return _read_csv(path)
  try:
    found = np.load(path, allow_pickle=False)
    return {alone: found} if path.suffix == ".npy" else dict(found)
  except (ValueError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} cannot be read: {error}") from error


def load_models(path: str | pathlib.Path) -> tuple[list, dict]:
  """Predictions of the models of a file, and its labels, weights, queries.

  Args:
    path: a file or a folder, see the head of this file.

  Returns:
    A list of `[N]` or `[N, K]` arrays, and a dict of `[N]` arrays.

  Raises:
    ValueError: not there, not readable, or without predictions.
  """
  found = _read(pathlib.Path(path), "predictions")
  if "predictions" in found:
    models = [found["predictions"]]
  elif "replicas" in found:
    models = list(found["replicas"])
  else:
    raise ValueError(
      f"{path} has no 'predictions' (nor 'replicas'): it has {sorted(found)}."
    )
  models = [m[:, 0] if m.shape[1:] == (1,) else m for m in models]
  for model in models:
    if model.ndim not in (1, 2) or model.dtype.kind not in "fiub":
      raise ValueError(
        f"{path}: predictions of type {model.dtype} and shape {model.shape} "
        "are not allowed: they must be numbers, [examples] or [examples, "
        "classes]."
      )
  return models, {name: found[name] for name in EXTRAS if name in found}


def load(paths: Sequence[str], labels: str | None = None) -> dict[str, Any]:
  """Everything the report needs.

  Args:
    paths: files or folders of predictions.
    labels: a file of labels, which go before those in `paths`.

  Returns:
    `preds`, `[M, N]` or `[M, N, K]`, and what is known of `labels`, `weights`
    and `query_ids`.

  Raises:
    ValueError: bad files, shapes that differ, fewer than two models.
  """
  models, extras = [], {}
  if labels is not None:
    found = _read(pathlib.Path(labels), "labels")
    if "labels" not in found and list(found) == ["predictions"]:
      width = found["predictions"].shape[1]
      checks.one_of(f"number of columns of {labels}", width, [1])
      found = {"labels": found["predictions"][:, 0]}  # A csv without a header.
    if "labels" not in found:
      raise ValueError(f"{labels} has no 'labels': it has {sorted(found)}.")
    extras["labels"] = (labels, found["labels"])
  for path in paths:
    more, also = load_models(path)
    for model in more:
      if models:
        checks.same_shape(path, model.shape, paths[0], models[0].shape)
      models.append(model)
    for name, values in also.items():
      _add_extra(extras, name, path, values, labels is not None)
  if len(models) < 2:
    raise ValueError(
      f"{len(models)} model is not enough: a difference needs predictions of "
      "two models or more."
    )
  for name, (path, values) in extras.items():
    checks.same_shape(
      f"{name} of {path}", values.shape, "predictions", models[0].shape[:1]
    )
  preds = np.stack(models)
  if preds.dtype.itemsize > 2:  # Half floats keep their type: a looser check.
    preds = preds.astype(np.float64)
  return {"preds": preds, **{k: v for k, (_, v) in extras.items()}}


def _add_extra(extras, name, path, values, labels_given) -> None:
  if name == "labels" and labels_given:
    return
  first, known = extras.setdefault(name, (path, values))
  if known.shape != values.shape or not (known == values).all():
    raise ValueError(
      f"{path} and {first} have different {name}: the files must be of the "
      "same examples in the same order."
    )


def _units(num_examples: int, query_ids) -> np.ndarray | None:
  """What is drawn: queries; neighbouring examples joined if there are many."""
  if query_ids is not None:
    return query_ids
  if num_examples <= _MAX_UNITS:
    return None
  return np.arange(num_examples) * _MAX_UNITS // num_examples


def _ends(interval: intervals.Interval, index=()) -> list[float]:
  return [float(np.asarray(e)[index]) for e in (interval.low, interval.high)]


def _over_models(found: dict[str, Any], level: float) -> dict[str, Any]:
  """Name -> [low, high] of pairwise quantities, of three models or more."""
  names = [n for n in accumulator.PAIRWISE if f"{n}_by_pair" in found]
  if found["num_models"] < 3:
    return {}
  pairs = np.array([found[f"{n}_by_pair"] for n in names])
  made = intervals.jackknife_models(pairs, level=level)
  return {n: _ends(made, i) for i, n in enumerate(names)}


def report(
  data: dict[str, Any],
  *,
  key: jax.Array,
  top_n: int = 1,
  eps: float = 0.0,
  threshold: float = 0.5,
  num_samples: int = 1000,
  level: float = 0.95,
) -> dict[str, Any]:
  """The report with intervals.

  Args:
    data: as `load` gives it.
    key: PRNG key of the bootstrap.
    top_n: length of the lists that swap rates compare.
    eps: floor of the denominator of relative differences.
    threshold: of the decisions for binary predictions.
    num_samples: bootstrap samples.
    level: confidence of the intervals.

  Returns:
    What `accumulator.pd_report` returns, and `over_examples` and
    `over_models`: name -> [low, high].
  """
  data = dict(data)
  query_ids = data.pop("query_ids", None)
  settings = {"eps": eps, "threshold": threshold}
  out = accumulator.pd_report(
    **data, query_ids=query_ids, top_n=top_n, **settings
  )
  values = accumulator.example_values(**data, **settings)
  found = intervals.bootstrap_examples(
    np.stack(list(values.values())),
    key=key,
    weights=data.get("weights"),
    groups=_units(data["preds"].shape[1], query_ids),
    num_samples=num_samples,
    level=level,
  )
  out["over_examples"] = {n: _ends(found, i) for i, n in enumerate(values)}
  out["over_models"] = _over_models(out, level)
  return {**out, "level": level, "top_n": top_n, **settings}


def _interval_text(ends: list[float] | None) -> str:
  if ends is None:
    return tables.MISSING
  return " to ".join(tables.number(x) for x in ends)


def render(found: dict[str, Any]) -> str:
  """The report as text."""
  level = f"{100 * found['level']:g} %"
  rows = [
    {
      "quantity": name,
      "value": tables.number(found[key]),
      f"{level} over examples": _interval_text(found["over_examples"].get(key)),
      f"{level} over models": _interval_text(found["over_models"].get(key)),
    }
    for key, name in NAMES.items()
    if key in found
  ]
  m = found["num_models"]
  signed = np.abs(found["signed_pd"]).max()
  lines = [
    f"{m} models, {m * (m - 1) // 2} pairs, {found['num_examples']} examples",
    "",
    tables.render(rows),
    "",
    f"Largest shift between two models (signed PD): {tables.number(signed)}",
    "Pairwise: |P_i - P_j|, relative over (P_i + P_j) / 2, averaged over pairs "
    "of models.",
    "Deviation: from the mean of the models; for two models half of pairwise.",
  ]
  if "log_loss" not in found:
    lines.append("Give labels: without a loss a difference says little.")
  return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m experiments.smelu.pd_report",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("predictions", nargs="+", metavar="PRED", help="file or run folder")
  add("--labels", help=".npy, .npz (key labels) or .csv")
  add("--ensemble", type=int, default=1, help="models in an ensemble")
  add("--json", help="file to write the report to")
  add("--top", type=int, default=1, help="length of lists for swap rates")
  add("--eps", type=float, default=0.0, help="floor for relative differences")
  add("--threshold", type=float, default=0.5, help="of binary decisions")
  add("--samples", type=int, default=1000, help="bootstrap samples")
  add("--level", type=float, default=0.95, help="confidence")
  add("--seed", type=int, default=0, help="of the bootstrap")
  return parser


def _run(args: argparse.Namespace) -> dict[str, Any]:
  data = load(args.predictions, args.labels)
  if args.ensemble != 1:
    data["preds"] = pd.ensemble(data["preds"], args.ensemble)
  return report(
    data,
    key=jax.random.key(checks.seed("seed", args.seed)),
    top_n=args.top,
    eps=args.eps,
    threshold=args.threshold,
    num_samples=args.samples,
    level=args.level,
  )


def _jsonable(value: Any) -> Any:
  """The same with null for numbers that JSON does not know."""
  if isinstance(value, dict):
    return {k: _jsonable(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_jsonable(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the report; errors in the input end with status 2."""
  parser = _parser()
  args = parser.parse_args(argv)
  try:
    with jax.enable_x64(True):
      found = _run(args)
  except ValueError as error:
    parser.error(str(error))
  print(render(found))
  if args.json:
    text = json.dumps(_jsonable(found), indent=2, allow_nan=False)
    files.write_text(args.json, text + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main())
