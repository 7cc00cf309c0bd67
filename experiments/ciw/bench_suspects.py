"""`suspects` beside cleanlab where the wrong labels are known.

  python -m experiments.ciw.bench_suspects --results FILE.json [--peer PYTHON]

A fifth of the labels of seven sets is made wrong, by symmetric noise and by
noise that moves each class to the next. Each list is cut where there are as
many suspects as wrong labels: the share of wrong ones is its precision, and its
recall too. All see the same folds. cleanlab has the probabilities of its usual
model, logistic regression on standardised columns, or ours; `_best` is the best
of its scores on this very set, as nobody could choose it. Its packages go to an
environment that is removed afterwards, or are those of `--peer`.

Settings of `suspects` were chosen on these sets with seeds 0 and 1; the seeds
here, of noise, folds and which images are taken, are others. Two classes have
no noise but the symmetric one.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from experiments.ciw import suspects_cheap, suspects_choice, suspects_folds
from experiments.common import benches, commands, datasets, peers
from locojax.core import checks, files
from locojax.data import label_noise
from locojax.methods.ciw import diagnostics
from locojax.report import tables

PEER = pathlib.Path(__file__).with_name("bench_suspects_peer.py")
PACKAGES = ("cleanlab==2.9.0", "scikit-learn==1.9.1")
TABLES = ("iris", "wine", "breast_cancer")
IMAGES = ("digits", "mnist", "fashion_mnist", "cifar10")
NOISES = ("symmetric", "next")
RATE, FOLDS = 0.2, 5
SHOWN = (
  *("data", "noise", "examples", "wrong", "ours", "ours_unweighted"),
  *("cleanlab_lr", "cleanlab_lr_best", "cleanlab_ours", "trusted"),
)


def load(name: str, num: int, rng: np.random.Generator):
  """Rows, as `suspects_views.of` takes them, and true labels.

  Args:
    name: of `TABLES` or `IMAGES`.
    num: images that are drawn from sets of images with more of them.
    rng: of the draw.
  """
  if name in TABLES:
    from sklearn import datasets as tables_of

    found = getattr(tables_of, f"load_{name}")()
    return found.data.astype(np.float32), found.target.astype(np.int64)
  split = datasets.load(name, splits=("train",))["train"]
  most = len(split["label"]) if name == "digits" else num
  taken = rng.permutation(len(split["label"]))[:most]
  return split["image"][taken], split["label"][taken].astype(np.int64)


def ours(rows, labels, folds, *, num_classes: int, seed: int, weighted: bool):
  """What `suspects --model auto` says, `[n, K]`; or the same without CIW."""
  settings = suspects_cheap.SETTINGS
  if not weighted:
    plain = lambda one: {**one, "lam": None}
    settings = {k: tuple(map(plain, v)) for k, v in settings.items()}
  found = suspects_cheap.probabilities(
    tuple(settings),
    rows,
    labels,
    folds,
    num_classes=num_classes,
    seed=seed,
    settings=settings,
  )
  made = [suspects_choice.Candidate(k, s, p[None]) for k, s, p in found]
  return suspects_choice.choose(made, labels)[0][0]


def scores_of(quality: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
  """How well low quality tells wrong labels."""
  rate = float(wrong.mean())
  found = diagnostics.detection_scores(quality, wrong, rate=rate)
  twice = diagnostics.detection_scores(quality, wrong, rate=min(1.0, 2 * rate))
  return {
    "precision": found["precision"],
    "recall_twice": twice["recall"],
    "auc": diagnostics.noise_detection_auc(quality, wrong),
  }


def case(name: str, noise: str, seed: int, num: int) -> dict[str, Any]:
  """Noisy labels, folds and what we say of them."""
  rng = np.random.default_rng(seed)
  rows, true = load(name, num, rng)
  num_classes = int(true.max()) + 1
  matrix = label_noise.transition_matrix(noise, RATE, num_classes)
  labels = label_noise.corrupt(true, matrix, rng=rng, exact=True)
  folds = suspects_folds.stratified(labels, FOLDS, seed=seed)
  settings = dict(num_classes=num_classes, seed=seed)
  weighted, plain = (
    ours(rows, labels, folds, weighted=w, **settings) for w in (True, False)
  )
  return {
    "features": rows.reshape(len(rows), -1).astype(np.float32),
    "labels": labels,
    "wrong": labels != true,
    "folds": folds,
    "ours": weighted,
    "unweighted": plain,
  }


def _own(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
  return p[np.arange(len(labels)), labels]


def judged(made: dict[str, Any], told: dict[str, np.ndarray]) -> dict[str, Any]:
  """Numbers of one case.

  Args:
    made: of `case`.
    told: the peer's quality of each label: `lr/<score>` and `ours/<score>`.
  """
  labels, wrong = made["labels"], made["wrong"]
  lists = {
    "ours": _own(made["ours"], labels),
    "ours_unweighted": _own(made["unweighted"], labels),
    "cleanlab_lr": told["lr/self_confidence"],
    "cleanlab_ours": told["ours/self_confidence"],
  }
  found = {name: scores_of(quality, wrong) for name, quality in lists.items()}
  out = {name: found[name]["precision"] for name in lists}
  for p in ("lr", "ours"):
    several = [q for n, q in told.items() if n.startswith(f"{p}/")]
    best = max(scores_of(q, wrong)["precision"] for q in several)
    out[f"cleanlab_{p}_best"] = best
  for name in ("ours", "cleanlab_lr"):
    out |= {f"{name}_{k}": found[name][k] for k in ("recall_twice", "auc")}
  reasons = suspects_choice.warnings(made["ours"], labels, num_folds=FOLDS)
  out["agrees"] = suspects_choice.measured(made["ours"], labels)["accuracy"]
  out["trusted"] = float(not reasons)
  return out


def peer(cases: dict[str, dict[str, Any]], python: str) -> dict[str, Any]:
  """cleanlab's qualities by case, and versions."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for number, made in enumerate(cases.values()):
      given = {k: made[k] for k in ("features", "labels", "folds", "ours")}
      files.write_arrays(folder / f"{number}.npz", **given)
    printed = subprocess.run(
      [python, "-P", str(PEER), name], check=True, stdout=subprocess.PIPE
    ).stdout
  found = json.loads(printed)
  told = {
    key: {n: np.array(v) for n, v in found["told"][str(number)].items()}
    for number, key in enumerate(cases)
  }
  return {"told": told, "versions": found["versions"]}


def cases_of(sets, seeds, num: int) -> dict[tuple, dict[str, Any]]:
  """`case` by set, noise and seed."""
  out = {}
  for name in sets:
    for noise in NOISES:
      for seed in seeds:
        if noise == "next" and name == "breast_cancer":
          continue
        out[name, noise, seed] = case(name, noise, seed, num)
      print(name, noise, flush=True)
  return out


def rows_of(cases, told) -> list[dict[str, Any]]:
  """A row for each set and noise, with a number of each seed."""
  rows = []
  for name, noise in dict.fromkeys((n, k) for n, k, _ in cases):
    keys = [key for key in cases if key[:2] == (name, noise)]
    several = [judged(cases[key], told[key]) for key in keys]
    first = cases[keys[0]]
    row = {"data": name, "noise": noise, "examples": len(first["labels"])}
    row["wrong"] = int(first["wrong"].sum())
    for column in several[0]:
      row[column] = [float(one[column]) for one in several]
    rows.append(row)
  return rows


def measure(sets, seeds, *, num: int, python: str | None) -> dict[str, Any]:
  """Rows, and the versions of the peer."""
  cases = cases_of(sets, seeds, num)
  with tempfile.TemporaryDirectory() as folder:
    if python is None:
      python = peers.environment(pathlib.Path(folder) / "venv", PACKAGES)
    found = peer(cases, python)
  return {"rows": rows_of(cases, found["told"]), "versions": found["versions"]}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", required=True, help="result file to write")
  parser.add_argument("--peer", help="Python that has cleanlab; else made")
  parser.add_argument("--sets", nargs="+", default=[*TABLES, *IMAGES])
  parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12])
  parser.add_argument("--images", type=int, default=600, help="of large sets")
  return parser


def main(argv: list[str]) -> None:
  """Measures, prints the table, writes the file."""
  args, start = _parser().parse_args(argv), time.perf_counter()
  for name in args.sets:
    checks.one_of("sets", name, (*TABLES, *IMAGES))
  for seed in args.seeds:
    checks.seed("seeds", seed)
  checks.positive_int("images", args.images)
  found = measure(args.sets, args.seeds, num=args.images, python=args.peer)
  versions = ", ".join(f"{n} {v}" for n, v in found["versions"].items())
  benches.save(
    args.results,
    "experiments.ciw.bench_suspects",
    argv,
    found["rows"],
    start=start,
    seeds=args.seeds,
    shown={args.peer: "PYTHON"},
    notes=(
      f"{RATE:.0%} of the labels wrong, {FOLDS} folds, the same for all. "
      "Precision where as many are listed as are wrong. Settings were chosen "
      f"on these sets with seeds 0 and 1. {versions}."
    ),
  )
  print(tables.render(found["rows"], SHOWN))


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
