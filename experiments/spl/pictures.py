"""Where a student of pairs looks: strips of frames, and moving pictures."""

from __future__ import annotations

import functools
import io
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from experiments.common import restoring
from experiments.spl import methods, networks, phases, report, sets
from locojax.core import files
from locojax.methods import spl
from locojax.report import figures

STRIPS, MOVING = "grad_cam.png", "grad_cam_{}.gif"
_SHOWN = 8  # frames of a strip


def student_of(config) -> str | None:
  """The method whose student is looked into: the first one of pairs."""
  names = [m for m in config.methods if m.startswith("spl_")]
  return names[0] if names else None


def chosen(
  space: spl.LabelSpace, weak, teacher, num: int
) -> list[tuple[int, bool]]:
  """Clips to show: of the largest pairs, agreed and not, in turn."""
  agreed = np.eye(space.num_weak, dtype=bool)
  kept = np.where(space.lookup >= 0, space.confusion, 0)
  out: list[tuple[int, bool]] = []
  orders = []
  for same in (False, True):
    counts = np.where(agreed == same, kept, 0).ravel()
    order = np.argsort(-counts, kind="stable")
    orders.append([i for i in order if counts[i] > 0])
  for rank in range(num):
    for same, order in zip((False, True), orders):
      if rank < len(order) and len(out) < num:
        w, t = divmod(int(order[rank]), space.num_teacher)
        clip = np.flatnonzero((weak == w) & (teacher == t))
        if len(clip):
          out.append((int(clip[0]), same))
  return out


def overlaid(frames: np.ndarray, maps: np.ndarray) -> np.ndarray:
  """Frames with maps in red above them.

  Args:
    frames: `[..., H, W, C]` uint8, C of 1 or 3.
    maps: `[..., H, W]` in [0, 1].

  Returns:
    `[..., H, W, 3]` uint8.
  """
  frames = np.broadcast_to(frames, (*frames.shape[:-1], 3)).astype(np.float32)
  heat = np.stack(
    [255 * maps, 90 * maps * (1 - maps), np.zeros_like(maps)], axis=-1
  )
  share = 0.6 * maps[..., None]
  return np.round(frames * (1 - share) + heat * share).astype(np.uint8)


def explained(config, workdir: pathlib.Path):
  """The student's clips with their maps, or None without one of pairs.

  Returns:
    Titles, clips `[n, T, H, W, C]` uint8 (one frame for images), and maps by
    name `[n, T, H, W]`.
  """
  name = student_of(config)
  if name is None:
    return None
  per_video, seed = config.clips_per_video[-1], config.seeds[0]
  root = report.seed_folder(workdir, seed)
  place = report.folder(root, per_video, name)
  text = (place / report.SPACE).read_text(encoding="utf-8")
  space = spl.LabelSpace.from_json(text)
  kept = files.read_arrays(
    report.clips_folder(root, per_video) / "predictions.npz"
  )
  data = sets.load(config, per_video)
  weak, teacher = data.weak.label, kept["probs"].argmax(axis=1)
  rows = chosen(space, weak, teacher, config.pictures)
  if not rows:
    return None
  clips = [i for i, _ in rows]
  shown = _sized(config, data.weak.some(clips))
  maps = _maps(config, place, space, shown, weak[clips], teacher[clips])
  titles = [
    f"{data.classes[weak[i]]}  /  {data.classes[teacher[i]]}" for i in clips
  ]
  if shown.ndim == 4:  # images are clips of one frame
    shown = shown[:, None]
    maps = {k: v[:, None] for k, v in maps.items()}
  return titles, shown, maps


def _sized(config, clips: np.ndarray) -> np.ndarray:
  side = config.data.size
  if clips.shape[-3:-1] == (side, side):
    return clips
  return np.stack([phases.centred(c, side) for c in clips])


def _maps(config, place, space, clips, weak, teacher):
  num = space.num_classes
  method, _ = methods.parse(place.name.replace("_at_", "@"))
  num += space.num_teacher if method.loss == "two_heads" else 0
  found = restoring.read_json(
    place / "pretrain", "config.json", such_as=str(place / "pretrain")
  )
  own = restoring.config_of(found)
  task = phases.student_task(own, method, num, len(weak))
  state = restoring.state_of(phases.make(own, task, 1), place / "pretrain")
  variables = phases.variables_of(state)
  net = networks.make(config, num)
  apply = lambda v, x: net.predict(v, x)[0]
  size = clips.shape[1:-1]

  @jax.jit
  def run(variables, clips):
    return spl.pair_grad_cam(
      apply, variables, clips, weak, teacher, space, upsample_to=size
    )

  found = run(variables, clips)
  return {k: np.asarray(found[k]) for k in ("pair", "weak", "teacher")}


def draw_strips(
  titles: Sequence[str], clips, maps, path: pathlib.Path
) -> pathlib.Path:
  """A block of rows for each clip: frames, and each of the maps above them."""
  names = ["frames", *maps]
  times = np.linspace(0, clips.shape[1] - 1, min(_SHOWN, clips.shape[1]))
  times = times.astype(int)
  figure, grid = figures.axes(
    len(clips), width=0.62 * len(times) + 1.0, height=0.62 * len(names) + 0.5
  )
  for i, ax in enumerate(grid[0]):
    rows = [clips[i][times]]
    rows += [overlaid(clips[i][times], maps[n][i][times]) for n in maps]
    rows = [np.broadcast_to(r, (*r.shape[:-1], 3)) for r in rows]
    tiled = np.concatenate([np.concatenate(list(r), axis=1) for r in rows])
    ax.imshow(tiled, interpolation="nearest")
    ax.set_title(titles[i], fontsize=8)
    side = clips.shape[2]
    ax.set_xticks([])
    ax.set_yticks(
      [side * (j + 0.5) for j in range(len(names))],
      names if i == 0 else [""] * len(names),
      fontsize=7,
    )
  return figures.save(figure, path)


def write_moving(clip, maps, path: pathlib.Path, *, zoom: int = 4):
  """A GIF: the clip, and its maps beside it."""
  from PIL import Image

  parts = [np.broadcast_to(clip, (*clip.shape[:-1], 3))]
  parts += [overlaid(clip, m) for m in maps]
  frames = np.concatenate(parts, axis=2)
  frames = frames.repeat(zoom, axis=1).repeat(zoom, axis=2)
  images = [Image.fromarray(np.ascontiguousarray(f)) for f in frames]
  held = io.BytesIO()
  images[0].save(
    held,
    format="GIF",
    save_all=True,
    append_images=images[1:],
    duration=80,
    loop=0,
  )
  return files.write(path, lambda file: file.write(held.getvalue()))


def write(config, workdir: pathlib.Path) -> list[str]:
  """Strips and moving pictures of the first seed's student of pairs.

  A run of several processes has none: one process, which reads the checkpoint
  of the student alone, draws them when it is given the finished folder.
  """
  if not config.pictures or jax.process_count() > 1:
    return []
  found = explained(config, workdir)
  if found is None:
    return []
  titles, clips, maps = found
  strips = functools.partial(draw_strips, titles, clips, maps)
  out = [strips(workdir / STRIPS)]
  if config.results:
    beside = pathlib.Path(config.results)
    strips(beside.with_name(f"{beside.stem}_{STRIPS}"))
  if clips.shape[1] > 1:
    for i, clip in enumerate(clips):
      each = [m[i] for m in maps.values()]
      out.append(write_moving(clip, each, workdir / MOVING.format(i)))
  return [str(p) for p in out]
