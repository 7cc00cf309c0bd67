"""Table and figures of the Two Moons experiment."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import study
from locojax.core import files
from locojax.report import curves, figures, runs
from locojax.train import distributed

_CLASSES = ("#0072b2", "#d55e00")
_FILL = ("#b8d4ea", "#f6d3b5")
_GRID = 160
_MARGIN = 0.35
_DOT = 22.0  # area of a dot with the mean weight, in points squared
_MOST = 5.0  # greatest area, in dots of the mean weight
_LABELS = {"ce": "cross-entropy", "ciw_kl": "CIW (KL)"}
_COLUMNS = {
  "method": "method",
  "burnin_epochs": "burn-in epochs",
  "accuracy_last": "accuracy, last epoch (%)",
  "accuracy_best": "accuracy, best epoch (%)",
  "detection_auc": "AUC of flipped against clean, last",
  "detection_auc_best": "AUC, best epoch",
  "flipped_weight": "weight on flipped (%)",
  "seconds": "seconds",
}


def _box(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Coordinates of the grid along either axis."""
  low, high = x.min(0) - _MARGIN, x.max(0) + _MARGIN
  return tuple(
    np.linspace(a, b, _GRID, dtype=np.float32) for a, b in zip(low, high)
  )


def picture(config, made, dataset):
  """`state -> arrays` of what is shown of one replica.

  Args:
    config: with `pictured_replica`.
    made: the `two_moons.Method`.
    dataset: `two_moons.dataset`.

  Returns:
    A function that gives `x`, `label`, `true`, `weights` (of the whole
    training set, summing to one), `across`, `up` (the grid), `chance` (of
    class 1 on the grid), `flipped_weight`, `epoch`.
  """
  data = dataset(config, config.pictured_replica)
  across, up = _box(data["x"])
  grid = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)

  @jax.jit
  def shown(params, epoch):
    params = jax.tree.map(lambda p: p[config.pictured_replica], params)
    chance = jax.nn.softmax(made.logits(params, grid))[:, 1]
    step = epoch * made.per_epoch
    _, w = made.scored(params, data["x"], data["label"], step)
    flipped = jnp.sum(w * (data["label"] != data["true"]))
    return chance.reshape(len(up), len(across)), w, flipped

  def run(state) -> dict[str, np.ndarray]:
    found = jax.device_get(shown(state.params, state.step))
    names = ("chance", "weights", "flipped_weight")
    kept = {k: data[k] for k in ("x", "label", "true")}
    axes = {"across": across, "up": up, "epoch": np.asarray(state.step)}
    return {**kept, **axes, **dict(zip(names, found))}

  return run


def keep_frame(folder: pathlib.Path, epoch: int, found: Mapping) -> None:
  """Writes what `picture` gave to `<folder>/<epoch>.npz`, at one stroke."""
  files.write_arrays(folder / f"{epoch:06d}.npz", **found)


def _colours(labels: np.ndarray) -> np.ndarray:
  return np.asarray(_CLASSES)[labels]


def _areas(weights: np.ndarray) -> np.ndarray:
  share = weights * len(weights)
  return _DOT * np.clip(share, 0.04, _MOST)


def _points(ax, shown, areas) -> None:
  """Given labels as colours; flipped examples have a dark ring."""
  flipped = shown["label"] != shown["true"]
  order = np.argsort(flipped, kind="stable")
  ax.scatter(
    *shown["x"][order].T,
    s=np.broadcast_to(areas, flipped.shape)[order],
    c=_colours(shown["label"])[order],
    edgecolors=np.where(flipped, "#111111", "white")[order],
    linewidths=np.where(flipped, 0.9, 0.4)[order],
    zorder=3,
  )


def _frame(ax, shown, title: str) -> None:
  ax.set(xticks=[], yticks=[], aspect="equal")
  ax.set_xlim(shown["across"][0], shown["across"][-1])
  ax.set_ylim(shown["up"][0], shown["up"][-1])
  ax.set_title(title, fontsize=11)


def _boundary(ax, shown) -> None:
  grid = (shown["across"], shown["up"], shown["chance"])
  ax.contourf(*grid, levels=[-1, 0.5, 2], colors=_FILL, zorder=0)
  ax.contour(*grid, levels=[0.5], colors="#333333", linewidths=1.6, zorder=4)


def panels(pictures: Mapping[str, Mapping], title: str | None = None):
  """The noisy data, then the boundary of each method; a figure.

  The area of a dot is its weight times the number of examples.

  Args:
    pictures: method -> what `picture` gave.
    title: above all panels.
  """
  first = next(iter(pictures.values()))
  figure, grid = figures.axes(1 + len(pictures), width=4.4, height=3.5)
  axes = grid[0]
  _points(axes[0], first, _DOT)
  flips = np.mean(first["label"] != first["true"])
  _frame(axes[0], first, f"training data, {100 * flips:.0f} % flipped (ringed)")
  for ax, (name, shown) in zip(axes[1:], pictures.items()):
    _boundary(ax, shown)
    _points(ax, shown, _areas(shown["weights"]))
    note = "equal weights" if np.ptp(shown["weights"]) == 0 else "area = weight"
    _frame(ax, shown, f"{_LABELS.get(name, name)}, {note}")
  if title:
    figure.suptitle(title, fontsize=12)
  return figure


def animation(
  workdir: pathlib.Path, names: Sequence[str], path: pathlib.Path
) -> pathlib.Path | None:
  """The panels over the epochs as a GIF; None if no frames were kept.

  Raises:
    ImportError: pillow is not installed.
  """
  found = [
    {p.stem: p for p in (workdir / name / "frames").glob("*.npz")}
    for name in names
  ]
  stems = sorted(set.intersection(*map(set, found))) if found else []
  if not stems:
    return None
  try:
    from PIL import Image
  except ImportError as e:
    raise ImportError(
      "animations need pillow: pip install 'locojax[experiments]'"
    ) from e
  images = []
  for stem in stems:
    shown = {n: files.read_arrays(f[stem]) for n, f in zip(names, found)}
    figure = panels(shown, title=f"epoch {int(stem)}")
    figure.set_dpi(80)
    figure.canvas.draw()
    images.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())))
  images = [image.convert("RGB").quantize(64) for image in images]
  durations = [200] * (len(images) - 1) + [2000]
  play = {"append_images": images[1:], "duration": durations, "loop": 0}
  return files.write(
    path, lambda f: images[0].save(f, format="GIF", save_all=True, **play)
  )


def _series(run: runs.Run, name: str, num_replicas: int):
  """Epochs, and values `[replicas, evaluations]`."""
  pairs = [
    runs.series(run, f"eval/replica_{r}/{name}") for r in range(num_replicas)
  ]
  return pairs[0][0], np.stack([y for _, y in pairs])


def _row(config, name: str, one, run: runs.Run) -> dict[str, Any]:
  """What one run did, over replicas."""
  count = config.num_replicas
  _, accuracy = _series(run, "accuracy", count)
  _, auc = _series(run, "detection_auc", count)
  _, flipped = _series(run, "flipped_weight", count)
  return {
    "run": name,
    "method": one.method,
    "burnin_epochs": one.burnin_epochs,
    "accuracy_last": list(100 * accuracy[:, -1]),
    "accuracy_best": list(100 * accuracy.max(axis=1)),
    "detection_auc": list(auc[:, -1]),
    "detection_auc_best": list(auc.max(axis=1)),
    "flipped_weight": list(100 * flipped[:, -1]),
    "seconds": run.result["seconds"],
  }


def _uses_burnin(one) -> bool:
  options = one.table[one.method]
  return "instance" in options or "classes" in options


def rows(config, configs: Mapping[str, Any], workdir: pathlib.Path):
  """The rows of the table: methods, then the lengths of burn-in."""
  out = []
  for name, one in configs.items():
    row = _row(config, name, one, runs.load(workdir / name))
    out.append(row if _uses_burnin(one) else {**row, "burnin_epochs": None})
  return out


def _sweep(config, configs: Mapping[str, Any]) -> list[str]:
  """Runs of the method of the sweep, by length of burn-in."""
  same = {config.burnin_method} | (set(configs) - set(config.methods))
  return sorted(same, key=lambda name: configs[name].burnin_epochs)


def _curves(config, configs, workdir: pathlib.Path, path) -> pathlib.Path:
  """Accuracy against epochs: the methods, and the lengths of burn-in."""

  def curve(name):
    x, y = _series(runs.load(workdir / name), "accuracy", config.num_replicas)
    return curves.average([(x[1:], 100 * v[1:]) for v in y], band="none")

  shared = dict(
    key="accuracy",
    x="epoch",
    x_log=True,
    y_label="accuracy on clean test data (%)",
    y_limits=(75, 100.5),
  )
  shown = [curves.Panel(title="methods", **shared)]
  data = {(name, 0): curve(name) for name in config.methods}
  sweep = _sweep(config, configs)
  if len(sweep) > 1:
    title = f"epochs of burn-in, {config.burnin_method}"
    shown.append(curves.Panel(title=title, **shared))
    for name in sweep:
      label = f"burn-in {configs[name].burnin_epochs}"
      data[label, 1] = curve(name)
  labels = list(dict.fromkeys(label for label, _ in data))
  return curves.draw(data, labels, shown, path)


def write(made: study.Study, configs, pictures) -> dict[str, Any]:
  """Writes table, figures and, if the config names one, a result file.

  Args:
    made: the study.
    configs: of each run, by name.
    pictures: of the methods that are pictured, see `picture`.

  Returns:
    The rows of the table and the paths of what was written.
  """
  config, workdir = made.config, made.workdir
  gif, lines = None, workdir / "curves.png"
  if distributed.is_main():
    _curves(config, configs, workdir, lines)
    gif = animation(workdir, config.pictured, workdir / "epochs.gif")
  out = made.write(
    rows(config, configs, workdir),
    _COLUMNS,
    draw=lambda path: figures.save(panels(pictures), path),
    seeds=range(config.num_replicas),
    digits=3,
    best={"accuracy_last": "max", "accuracy_best": "max"},
  )
  return {**out, "curves": str(lines), "animation": gif and str(gif)}
