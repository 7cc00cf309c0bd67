"""The examples of one's own data set that are most likely mislabelled.

  python -m experiments.ciw.suspects SOURCE --workdir DIR

SOURCE is one of

* a folder of images, `SOURCE/<class>/<anything>.png` (`--size 32` resizes);
* a table, a `.csv` file with a header: `--label` names the column of labels,
  the others are features, numbers or categories, but those of `--ignore`;
* an `.npz` file with `labels` `[n]` and `images` uint8 `[n, height, width,
  channels]` or `features` `[n, ...]`, and if wanted `names`, `classes` and
  `is_noisy`;
* an `.npz` file with `labels` and what a model of your own said of them:
  `probabilities` `[n, K]` or `[epochs, n, K]`, or `losses` `[n]` or
  `[epochs, n]`; then nothing is trained here. Your model should not have been
  trained on the examples that it judges;
* a finished trial of the study of noisy labels (`configs/noise.py`), a folder
  `WORKDIR/trials/<noise>/<method>/<number>`: its training set, and what its
  network says at the end; `--replica` is the noise and seed in it;
* a known data set with made noise, `digits@symmetric:0.4`, to see how it does.

Without losses or probabilities models are trained, each on all folds of the
examples but one (`--folds`), and each example is judged by the model that has
not seen its label. CIW's weights keep them from learning wrong labels. Of
several models, the mean of those counts that agree best with the given labels
out of fold, within a standard error. `--model`:

  auto     linear and kernel; seconds
  linear   logistic regression on standardised columns of a table, or pixels
           and histograms of gradients of images
  kernel   the same on the features of a radial kernel of these
  mlp, resnet   a network for images; minutes, and a folder to resume from
  all      auto, and both networks if there are images

Examples are ranked by the loss of their label (of networks, averaged over the
later half of the epochs). DIR gets

  suspects.csv    rank, index, name, given label, what the model says instead,
                  loss, weight (1 is an average example's), whether the list is
                  to be trusted (yes, no, or unchecked: losses alone)
  verdict.json    the same for all, why, and how each model did
  suspects.png    contact sheet of the first ones, if there are images
  weights.png     histograms of the weights; of right and of wrong labels apart
                  where these are known
  detection.json  precision, recall and AUC of "low weight = mislabelled", if so

Exit codes: 0 done; 2 a mistake in what was asked; 3 the list is written, but
not to be trusted: the model hardly agrees with the labels, or never says some
of the classes. Then the list, the sheet and the verdict say so as well.
"""

from __future__ import annotations

import argparse
import csv
import io
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.ciw import (
  suspects_cheap,
  suspects_choice,
  suspects_data,
  suspects_folds,
  suspects_sources,
  suspects_train,
  suspects_views,
)
from experiments.common import commands
from locojax.core import checks, files
from locojax.methods import ciw
from locojax.methods.ciw import diagnostics
from locojax.report import curves, figures, tables

COLUMNS = ("rank", "index", "name", "label", "suggested", "loss", "weight")
NOT_TRUSTED = "this list is not to be trusted."
CHEAP = tuple(suspects_cheap.SETTINGS)
MODELS = ("auto", "all", *CHEAP, *suspects_train.MODELS)
_UNTRUSTED_CODE = 3
late = suspects_choice.later


def _check_arrays(found: dict[str, Any], args) -> np.ndarray:
  """What the models see: images, or rows of features."""
  key = "features" if "features" in found else "images"
  if not {key, "labels"} <= set(found):
    missing = sorted({key, "labels"} - set(found))
    raise ValueError(
      f"{args.source} has no {missing}: it needs labels and images or "
      "features, or labels and losses or probabilities."
    )
  rows, labels = found[key], np.asarray(found["labels"])
  if key == "images" and (rows.ndim != 4 or rows.dtype != np.uint8):
    raise ValueError(
      f"images of dtype {rows.dtype} and shape {rows.shape} are not "
      "allowed: they must be uint8 [n, height, width, channels]."
    )
  checks.same_shape(key, rows.shape[:1], "labels", labels.shape)
  return rows


def candidates(
  rows: np.ndarray,
  labels: np.ndarray,
  folds: np.ndarray,
  args,
  num_classes: int,
) -> list[suspects_choice.Candidate]:
  """What each model that is asked for says out of fold."""
  has_images = suspects_views.are_images(rows)
  nets = suspects_train.MODELS if has_images else ()
  kinds = {"auto": CHEAP, "all": (*CHEAP, *nets)}.get(args.model, (args.model,))
  cheap = [kind for kind in kinds if kind in CHEAP]
  out = []
  if cheap:
    found = suspects_cheap.probabilities(
      cheap, rows, labels, folds, num_classes=num_classes, seed=args.seed
    )
    out += [suspects_choice.Candidate(k, s, p[None]) for k, s, p in found]
  for kind in kinds:
    if kind in cheap:
      continue
    checks.one_of("model without images", kind, (*CHEAP, *nets))
    p = suspects_train.probabilities(
      rows,
      labels,
      folds,
      num_classes=num_classes,
      workdir=pathlib.Path(args.workdir) / "training" / kind,
      model=kind,
      num_epochs=args.epochs,
      batch_size=args.batch_size,
      seed=args.seed,
    )
    out.append(suspects_choice.Candidate(kind, {}, p))
  return out


def judged(found: dict[str, Any], args) -> tuple[dict[str, Any], list[Any]]:
  """The arrays with the probabilities of the best model; how each did."""
  rows = _check_arrays(found, args)
  if "classes" in found:
    num_classes = len(found["classes"])
  else:
    num_classes = int(checks.integers("labels", found["labels"]).max()) + 1
  labels = suspects_data.check_labels(found["labels"], num_classes)
  folds = suspects_folds.stratified(labels, args.folds, seed=args.seed)
  several = candidates(rows, labels, folds, args, num_classes)
  p, measured = suspects_choice.choose(several, labels)
  kept = {k: v for k, v in found.items() if k != "features"}
  return {**kept, "probabilities": p}, measured


def verdict(
  data: suspects_data.Collected,
  *,
  models: Sequence[dict[str, Any]] = (),
  num_folds: int | None = None,
) -> dict[str, Any]:
  """Whether the list is to be trusted, why not, and how each model did.

  Args:
    data: with the probabilities of the model that was chosen.
    models: rows of `suspects_choice.choose`.
    num_folds: of what is out of fold; None where it is not known to be.
  """
  out = {"folds": num_folds, "models": list(models)}
  if data.probabilities is None:
    return {"trusted": "unchecked", "warnings": [], **out}
  p = late(data.probabilities)
  found = suspects_choice.warnings(
    p, data.labels, classes=data.classes, num_folds=num_folds
  )
  measured = suspects_choice.measured(p, data.labels)
  top = np.unique(data.labels, return_counts=True)[1].max() / len(data.labels)
  return {
    "trusted": "no" if found else "yes",
    "warnings": found,
    **measured,
    "commonest_class": float(top),
    **out,
  }


def say(found: dict[str, Any]) -> None:
  """Prints how the models did, and loudly what is wrong."""
  if found["models"]:
    columns = ("model", "setting", "accuracy", "log_loss", "chosen")
    print("By the given labels, out of fold:\n")
    print(tables.render(found["models"], columns), "\n")
  if found["trusted"] == "no":
    stars = "*" * 72
    print(f"{stars}\nWARNING: {NOT_TRUSTED}", file=sys.stderr)
    for reason in found["warnings"]:
      print(f"- {reason}", file=sys.stderr)
    print(stars, file=sys.stderr, flush=True)


def weights(losses: np.ndarray, lam: float) -> np.ndarray:
  """CIW weights (KL) of each epoch, mean 1, `[E, n]`."""
  made = [ciw.instance_weights(row, divergence="kl", lam=lam) for row in losses]
  return np.stack(jax.device_get(made)).astype(np.float64) * losses.shape[1]


def rank(data: suspects_data.Collected, lam: float) -> list[dict[str, Any]]:
  """A row of the list for each example, the most suspect first."""
  losses, weight = late(data.losses), late(weights(data.losses, lam))
  said = None
  if data.probabilities is not None:
    said = late(data.probabilities).argmax(axis=-1)

  def word(label):
    return str(label if data.classes is None else data.classes[label])

  return [
    {
      "rank": place + 1,
      "index": int(i),
      "name": "" if data.names is None else str(data.names[i]),
      "label": word(data.labels[i]),
      "suggested": "" if said is None else word(said[i]),
      "loss": float(losses[i]),
      "weight": float(weight[i]),
    }
    for place, i in enumerate(diagnostics.suspects(losses, kind="losses"))
  ]


def detection(data: suspects_data.Collected, lam: float) -> dict[str, float]:
  """How well low weights tell the labels that are known to be wrong."""
  scores, rate = -late(data.losses), float(data.is_noisy.mean())
  by_rate = diagnostics.detection_scores(scores, data.is_noisy, rate=rate)
  weight = late(weights(data.losses, lam))
  low = diagnostics.detection_scores(weight, data.is_noisy, threshold=0.5)
  out = {"wrong_labels": rate}
  out["auc"] = diagnostics.noise_detection_auc(scores, data.is_noisy)
  out |= {f"{k}_of_as_many": v for k, v in by_rate.items()}
  return out | {f"{k}_below_half": v for k, v in low.items()}


def contact_sheet(
  data: suspects_data.Collected,
  ranked,
  path: pathlib.Path,
  columns: int = 12,
  title: str | None = None,
) -> pathlib.Path:
  """The images of the first rows, with given and suggested label."""
  rows = -(-len(ranked) // columns)
  figure, grid = figures.axes(columns, num_rows=rows, width=1.0, height=1.25)
  for ax in grid.flat:
    ax.set_axis_off()
  for ax, row in zip(grid.flat, ranked):
    image = data.images[row["index"]]
    ax.imshow(image.squeeze(), cmap="gray" if image.shape[-1] == 1 else None)
    words = f"{row['label']} → {row['suggested']}"
    ax.set_title(words, fontsize=7, pad=2)
  if title:
    figure.suptitle(title, color="red")
  return figures.save(figure, path)


def histograms(
  data: suspects_data.Collected, lam: float, path: pathlib.Path
) -> pathlib.Path:
  """Weights after some of the epochs, right and wrong labels apart."""
  each = weights(data.losses, lam)
  shown = np.unique(np.linspace(0, len(each) - 1, 4).round().astype(int))
  figure, grid = figures.axes(len(shown), width=3.6, height=3.0)
  known = data.is_noisy is not None
  wrong = data.is_noisy if known else np.zeros(each.shape[1], bool)
  for ax, epoch in zip(grid[0], shown):
    found = diagnostics.weight_histograms(each[epoch], wrong, num_bins=24)
    edges = found["edges"]
    for key, colour in zip(("clean", "noisy") if known else ("clean",), (0, 1)):
      label = {"clean": "right", "noisy": "wrong"}[key] if known else "all"
      ax.stairs(found[key], edges, label=label, color=curves.COLOURS[colour])
    if len(each) > 1:
      ax.set_title(f"epoch {epoch + 1}", fontsize=10)
    ax.set_xlabel("weight")
    figures.plain(ax)
  grid[0][0].set_ylabel("examples")
  grid[0][-1].legend(frameon=False, fontsize=8)
  return figures.save(figure, path)


def write(
  data: suspects_data.Collected,
  workdir: pathlib.Path,
  *,
  lam: float,
  top: int,
  found: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
  """Writes the files of the head of this module; the rows of the list.

  Args:
    data: what is known of the examples.
    workdir: the folder.
    lam: of the weights.
    top: rows on the contact sheet.
    found: of `verdict`; None for that of the data alone.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  found = verdict(data) if found is None else found
  ranked = [{**row, "trusted": found["trusted"]} for row in rank(data, lam)]
  text = io.StringIO(newline="")
  out = csv.DictWriter(text, (*COLUMNS, "trusted"))
  out.writeheader()
  out.writerows(ranked)
  files.write_text(workdir / "suspects.csv", text.getvalue())
  files.write_json(workdir / "verdict.json", found)
  if data.images is not None:
    title = NOT_TRUSTED if found["trusted"] == "no" else None
    sheet = workdir / "suspects.png"
    contact_sheet(data, ranked[:top], sheet, title=title)
  histograms(data, lam, workdir / "weights.png")
  if data.is_noisy is not None and 0 < data.is_noisy.mean() < 1:
    scores = detection(data, lam)
    files.write_json(workdir / "detection.json", scores)
    print(tables.render([scores], list(scores)))
  return ranked


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("source")
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--top", type=int, default=48, help="on the sheet")
  parser.add_argument("--lam", type=float, default=0.5, help="of the weights")
  parser.add_argument("--size", type=int, help="resize images of a folder")
  parser.add_argument("--label", default="label", help="column of a table")
  parser.add_argument("--names", help="column of a table that names its rows")
  parser.add_argument("--ignore", nargs="+", default=[], help="its columns")
  parser.add_argument("--replica", type=int, default=0, help="of a trial")
  parser.add_argument("--num-train", type=int, default=1400)
  parser.add_argument("--model", default="auto", choices=MODELS)
  parser.add_argument("--folds", type=int, default=5)
  parser.add_argument(
    "--epochs",
    type=int,
    help="of a network; else 20, or more where they have few batches",
  )
  parser.add_argument("--batch-size", type=int, default=64)
  parser.add_argument("--seed", type=int, default=0)
  return parser


def main(argv: list[str]) -> int:
  """Ranks, writes the files, and prints the first rows; the exit code."""
  args = _parser().parse_args(argv)
  checks.positive("lam", args.lam)
  checks.positive_int("top", args.top)
  found, models, num_folds = suspects_sources.read(args), [], None
  if not {"losses", "probabilities"} & set(found):
    found, models = judged(found, args)
    num_folds = args.folds
  data = suspects_data.collected(found)
  told = verdict(data, models=models, num_folds=num_folds)
  workdir = pathlib.Path(args.workdir)
  ranked = write(data, workdir, lam=args.lam, top=args.top, found=told)
  print(tables.render(ranked[:10], COLUMNS))
  print(f"\nlist: {workdir / 'suspects.csv'}")
  say(told)
  return _UNTRUSTED_CODE if told["trusted"] == "no" else 0


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
