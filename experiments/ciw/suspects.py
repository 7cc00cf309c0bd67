"""The examples of one's own data set that are most likely mislabelled.

  python -m experiments.ciw.suspects SOURCE --workdir DIR

SOURCE is one of

* a folder of images, `SOURCE/<class>/<anything>.png` (`--size 32` resizes);
* an `.npz` file with `images` uint8 `[n, height, width, channels]` and `labels`
  `[n]`, and if wanted `names`, `classes` and `is_noisy`;
* an `.npz` file with `labels` and what a model of your own said of them:
  `probabilities` `[n, K]` or `[epochs, n, K]`, or `losses` `[n]` or
  `[epochs, n]`; then nothing is trained here;
* a finished trial of the study of noisy labels (`configs/noise.py`), a folder
  `WORKDIR/trials/<noise>/<method>/<number>`: its training set, and what its
  network says at the end; `--replica` is the noise and seed in it;
* a known data set with made noise, `digits@symmetric:0.4`, to see how it does.

For images without losses or probabilities a small network is trained with CICW,
whose weights keep it from learning wrong labels. Examples are ranked by the
loss of their label, averaged over the later half of the epochs. DIR gets

  suspects.csv    rank, index, name, given label, what the model says instead,
                  loss, weight (1 is an average example's)
  suspects.png    contact sheet of the first ones, if there are images
  weights.png     histograms of the weights over the epochs; of right and of
                  wrong labels apart where these are known
  detection.json  precision, recall and AUC of "low weight = mislabelled", if so
"""

from __future__ import annotations

import argparse
import csv
import io
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from experiments.ciw import (
  experiment,
  noisy_images,
  suspects_data,
  suspects_train,
)
from experiments.common import commands
from locojax.core import checks, files
from locojax.data import sources
from locojax.methods import ciw
from locojax.methods.ciw import diagnostics
from locojax.report import curves, figures, tables

COLUMNS = ("rank", "index", "name", "label", "suggested", "loss", "weight")


def _from_folder(path: pathlib.Path, size: int | None) -> dict[str, Any]:
  source = sources.from_image_folder(path, size=(size, size) if size else None)
  rows = [source[i] for i in range(len(source))]
  shapes = sorted({row["image"].shape for row in rows})
  if len(shapes) > 1:
    raise ValueError(
      f"the images of {path} have several sizes, {shapes[0]} and {shapes[1]} "
      "among them: give --size."
    )
  return {
    "images": np.stack([row["image"] for row in rows]),
    "labels": np.array([row["label"] for row in rows]),
    "names": np.array([str(pathlib.Path(f).name) for f in source.files]),
    "classes": np.array(source.classes),
  }


def _from_known(text: str, num_train: int, seed: int) -> dict[str, Any]:
  name, _, noise = text.partition("@")
  data = {"name": name, "data_dir": "", "validation": 0.0, "pool": 1}
  data |= {"num_train": num_train, "num_test": 1, "exact": False}
  part = noisy_images.make(data, noise, seed)["train"]
  return {"images": part.image, "labels": part.label, "is_noisy": part.wrong}


def _read(path: pathlib.Path) -> dict[str, Any]:
  checks.one_of(f"suffix of {path}", path.suffix, [".npz"])
  try:
    with np.load(path, allow_pickle=False) as f:
      return dict(f)
  except (ValueError, OSError) as error:
    raise ValueError(f"{path} cannot be read: {error}") from error


def _arrays(args) -> dict[str, Any]:
  path = pathlib.Path(args.source)
  if (path / "config.json").is_file():
    return experiment.training_set(path.absolute(), args.replica)
  if path.is_dir():
    return _from_folder(path, args.size)
  if path.is_file():
    return _read(path)
  if "@" in args.source:
    return _from_known(args.source, args.num_train, args.seed)
  raise ValueError(
    f"source={args.source!r} is not allowed: it must be a folder of images or "
    "of a finished trial, an .npz file, or a data set with noise, as "
    "'digits@symmetric:0.4'."
  )


def _trained(found: dict[str, Any], args) -> dict[str, Any]:
  """With the probabilities of a network that is trained on the images."""
  missing = {"images", "labels"} - set(found)
  if missing:
    raise ValueError(
      f"{args.source} has no {sorted(missing)}: it needs images and labels, or "
      "labels and losses or probabilities."
    )
  images, labels = found["images"], np.asarray(found["labels"])
  if images.ndim != 4 or images.dtype != np.uint8:
    raise ValueError(
      f"images of dtype {images.dtype} and shape {images.shape} are not "
      "allowed: they must be uint8 [n, height, width, channels]."
    )
  checks.same_shape("images", images.shape[:1], "labels", labels.shape)
  if "classes" in found:
    classes = len(found["classes"])
  else:
    classes = checks.integers("labels", labels).max() + 1
  found["probabilities"] = suspects_train.probabilities(
    images,
    labels,
    num_classes=int(classes),
    workdir=pathlib.Path(args.workdir) / "training",
    model=args.model,
    num_epochs=args.epochs,
    batch_size=min(args.batch_size, len(labels)),
    seed=args.seed,
  )
  return found


def weights(losses: np.ndarray, lam: float) -> np.ndarray:
  """CIW weights (KL) of each epoch, mean 1, `[E, n]`."""
  made = [ciw.instance_weights(row, divergence="kl", lam=lam) for row in losses]
  return np.stack(jax.device_get(made)).astype(np.float64) * losses.shape[1]


def late(values: np.ndarray) -> np.ndarray:
  """Mean over the later half of the epochs."""
  return values[len(values) // 2 :].mean(axis=0)


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
  data: suspects_data.Collected, ranked, path: pathlib.Path, columns: int = 12
) -> pathlib.Path:
  """The images of the first rows, with given and suggested label."""
  rows = -(-len(ranked) // columns)
  figure, grid = figures.axes(columns, num_rows=rows, width=1.0, height=1.25)
  for ax in grid.flat:
    ax.set_axis_off()
  for ax, row in zip(grid.flat, ranked):
    image = data.images[row["index"]]
    ax.imshow(image.squeeze(), cmap="gray" if image.shape[-1] == 1 else None)
    title = f"{row['label']} → {row['suggested']}"
    ax.set_title(title, fontsize=7, pad=2)
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
  data: suspects_data.Collected, workdir: pathlib.Path, *, lam: float, top: int
) -> list[dict[str, Any]]:
  """Writes the files of the head of this module; the rows of the list."""
  workdir.mkdir(parents=True, exist_ok=True)
  ranked = rank(data, lam)
  text = io.StringIO(newline="")
  out = csv.DictWriter(text, COLUMNS)
  out.writeheader()
  out.writerows(ranked)
  files.write_text(workdir / "suspects.csv", text.getvalue())
  if data.images is not None:
    contact_sheet(data, ranked[:top], workdir / "suspects.png")
  histograms(data, lam, workdir / "weights.png")
  if data.is_noisy is not None and 0 < data.is_noisy.mean() < 1:
    found = detection(data, lam)
    files.write_json(workdir / "detection.json", found)
    print(tables.render([found], list(found)))
  return ranked


def main(argv: list[str]) -> None:
  """Ranks, writes the files, and prints the first rows."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("source")
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--top", type=int, default=48, help="on the sheet")
  parser.add_argument("--lam", type=float, default=0.5, help="of the weights")
  parser.add_argument("--size", type=int, help="resize images of a folder")
  parser.add_argument("--replica", type=int, default=0, help="of a trial")
  parser.add_argument("--num-train", type=int, default=1400)
  parser.add_argument("--model", default="auto", choices=suspects_train.MODELS)
  parser.add_argument("--epochs", type=int, default=20)
  parser.add_argument("--batch-size", type=int, default=64)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args(argv)
  checks.positive("lam", args.lam)
  checks.positive_int("top", args.top)
  found = _arrays(args)
  if not {"losses", "probabilities"} & set(found):
    found = _trained(found, args)
  data = suspects_data.collected(found)
  ranked = write(data, pathlib.Path(args.workdir), lam=args.lam, top=args.top)
  print(tables.render(ranked[:10], COLUMNS))
  print(f"\nlist: {pathlib.Path(args.workdir) / 'suspects.csv'}")


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
