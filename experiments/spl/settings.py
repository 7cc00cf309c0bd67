"""What the settings of a study of weak labels may be."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from experiments.common import places, settings
from experiments.spl import methods, networks, phases, sets
from locojax.core import checks
from locojax.methods.spl import building
from locojax.nn import resnet_3d

STARTS = ("fresh", "images")
_COUNT = checks.nonnegative_int


def _noise(name: str, found: str) -> str:
  """The rule of a noise: a kind, and a rate where there is one."""
  if not checks.text(name, found):
    return found
  try:
    sets.parse_noise(found)
  except ValueError as error:
    raise ValueError(f"{name}={found!r} is not allowed: {error}") from error
  return found


def _kernels(name: str, found: Any) -> Any:
  """Temporal kernels, stage by stage; or none, for those of the depth."""
  return settings.several(
    settings.several(checks.positive_int, distinct=False),
    least=0,
    distinct=False,
    what="stages",
  )(name, found)


def _three(name: str, found: Any) -> Any:
  """Kernel, stride, and stride of the maximum."""
  rule = settings.several(checks.positive_int, least=3, distinct=False)
  if len(rule(name, found)) != 3:
    checks.refuse(name, found, "kernel, stride, stride of the maximum")
  return found


def _digest(name: str, found: str) -> str:
  """What the study sets: the labels that a student is trained on."""
  if not re.fullmatch(r"([0-9a-f]{16})?", checks.text(name, found)):
    checks.refuse(name, found, "'', or 16 digits, which the study sets")
  return found


_PHASE = {"num_epochs": checks.positive_int, "learning_rate": checks.positive}
RULES: dict[str, settings.Rule] = {
  **settings.COMMON,
  "data.name": settings.choice(sets.NAMES),
  "data.data_dir": places.there,
  "data.path": checks.text,
  "data.seed": settings.seed,
  "data.validation": lambda name, found: checks.between(name, found, 0.0, 1.0),
  **dict.fromkeys(
    (
      *("data.num_videos", "data.train_per_class", "data.test_per_class"),
      *("data.num_frames", "data.stride", "data.eval_clips"),
      *("data.num_target", "data.num_weak", "data.num_test"),
      *("data.size", "data.short_side"),
    ),
    checks.positive_int,
  ),
  "data.num_classes": _COUNT,
  "data.channels": settings.choice((1, 3)),
  **dict.fromkeys(("data.right", "data.context"), settings.share),
  **dict.fromkeys(("data.rate", "data.pixel_noise"), checks.nonnegative),
  "data.in_memory": checks.boolean,
  "data.num_workers": _COUNT,
  "data.mean": settings.several(settings.share, distinct=False),
  "data.std": settings.several(checks.positive, distinct=False),
  "noise": _noise,
  "data.backbone": settings.several(
    settings.choice(sets.IMAGES), least=0, what="data sets"
  ),
  "images.num_train": _COUNT,
  "augment.crop_pad": _COUNT,
  "augment.flip": checks.boolean,
  "augment.resized_crop": checks.boolean,
  "model.kind": settings.choice(networks.KINDS),
  "model.depth": settings.choice(resnet_3d.DEPTHS),
  "model.stage_sizes": settings.several(
    checks.positive_int, least=0, distinct=False
  ),
  "model.temporal_kernels": _kernels,
  "model.width": checks.positive_int,
  "model.stem_temporal": _three,
  "model.stem_spatial": _three,
  "model.self_gating": checks.boolean,
  "model.dropout": settings.decay,
  "model.bn_group_size": _COUNT,
  "model.dtype": settings.choice(settings.DTYPES),
  "model.remat": checks.boolean,
  **{
    f"{phase}.{key}": rule
    for phase in ("images", "teacher", "pretrain")
    for key, rule in _PHASE.items()
  },
  "finetune.num_epochs": checks.positive_int,
  "finetune.learning_rates": settings.several(
    checks.positive, what="learning rates"
  ),
  "teacher_confidence": settings.share,
  "space.k": lambda name, found: settings.within(2, 10**9, whole=True)(
    name, found
  ),
  "space.min_count": checks.positive,
  "space.fallback": settings.choice(building.FALLBACKS),
  "losses.temperature": checks.positive,
  "losses.weight": checks.nonnegative,
  "losses.data_rate": checks.positive,
  "losses.data_decay": checks.nonnegative,
  "losses.ciw_lambda": checks.positive,
  "methods": settings.several(methods.rule, what="methods"),
  "method": methods.rule,
  "clips_per_video": settings.several(checks.positive_int, what="numbers"),
  "clips": _COUNT,
  "stage": settings.choice(phases.PHASES),
  "start": settings.choice(STARTS),
  "rate": checks.nonnegative,
  "labels": _digest,
  "batch_size": checks.positive_int,
  "momentum": settings.decay,
  "weight_decay": checks.nonnegative,
  "clip_norm": checks.nonnegative,
  "warmup": settings.share,
  "eval_batch_size": checks.positive_int,
  "log_every": checks.positive_int,
  "save_every": _COUNT,
  "pictures": _COUNT,
  "needs_data": checks.boolean,
}


def check(config) -> None:
  """Refuses what a run or the study cannot go on with.

  Raises:
    ValueError: names the key, its value, and what is allowed.
  """
  settings.check(config, RULES)
  _check_model(config)
  path = config.data.path
  if config.data.name != sets.FILES:
    places.there("data.path", path)
  elif path:
    places.writable("data.path", path, pathlib.Path(path).absolute())
  if config.data.name in sets.VIDEOS:
    _check_videos(config)
  else:
    _check_images(config)
  settings.divides_mesh(config, "batch_size")
  group = config.model.bn_group_size
  if group and config.batch_size % group:
    checks.refuse(
      "model.bn_group_size",
      group,
      f"0 or a divisor of batch_size={config.batch_size}",
    )


def check_run(config) -> None:
  """What training needs besides: data, and enough of them.

  Raises:
    ValueError: names the key.
  """
  settings.must_read_data(config)
  data = config.data
  if data.name == sets.OWN:
    what = "a folder with `weak`, `train` and perhaps `test`, of class folders"
    places.path("data.path", data.path, what, folder=True)
  elif data.name not in sets.VIDEOS:
    places.data_set("data.name", data.name, data.data_dir)
  starts = {methods.parse(m)[0].start for m in config.methods}
  if "images" in (*starts, config.start):
    if len(data.backbone) != 1:
      checks.refuse(
        "data.backbone", tuple(data.backbone), "one data set, for 'images'"
      )
    places.data_set("data.backbone", data.backbone[0], data.data_dir)


def _check_model(config) -> None:
  model, clips = config.model, config.data.name in sets.VIDEOS
  wanted = "resnet_3d" if clips else "resnet"
  if model.kind != wanted:
    checks.refuse(
      "model.kind",
      model.kind,
      f"{wanted!r} with data.name={config.data.name!r}",
    )
  if not clips:
    if not model.stage_sizes:
      checks.refuse("model.stage_sizes", (), "one stage or more for images")
    for key in ("start", "methods", "method"):
      names = config[key] if key == "methods" else (config[key],)
      if "images" in names:
        checks.refuse(
          key, config[key], "without 'images': that is a start for clips"
        )
  elif model.temporal_kernels:
    sizes = tuple(map(len, model.temporal_kernels))
    if sizes != tuple(model.stage_sizes):
      checks.refuse(
        "model.temporal_kernels",
        tuple(model.temporal_kernels),
        f"of stages of {tuple(model.stage_sizes)} blocks, as model.stage_sizes",
      )


def _check_videos(config) -> None:
  data = config.data
  if data.channels != 3:
    checks.refuse("data.channels", data.channels, "3 for videos")
  for key in ("mean", "std"):
    if len(data[key]) not in (1, 3):
      checks.refuse(f"data.{key}", tuple(data[key]), "1 or 3 numbers")
  if config.augment.resized_crop and data.in_memory:
    checks.refuse("augment.resized_crop", True, "False with data.in_memory")
  if data.name == sets.OWN:
    if data.in_memory is False and data.short_side < data.size:
      checks.refuse(
        "data.short_side", data.short_side, f"data.size={data.size} or more"
      )
    return
  checks.int_in_range("data.num_classes", data.num_classes, 2, 12)
  settings.made("data", sets.recipe, data.to_dict())
  if data.num_videos < data.num_classes:
    checks.refuse(
      "data.num_videos", data.num_videos, "data.num_classes or more"
    )


def _check_images(config) -> None:
  data = config.data
  if len(config.clips_per_video) > 1:
    checks.refuse(
      "clips_per_video",
      tuple(config.clips_per_video),
      "one number: images are of no video",
    )
  for key in ("mean", "std"):
    if len(data[key]) not in (1, data.channels):
      checks.refuse(
        f"data.{key}", tuple(data[key]), f"1 or {data.channels} numbers"
      )
  most = settings.COUNTS[data.name]
  if data.num_target + data.num_weak > most["num_train"]:
    checks.refuse(
      "data.num_weak",
      data.num_weak,
      f"at most {most['num_train'] - data.num_target}, what data.num_target="
      f"{data.num_target} leaves of {data.name}",
    )
  if not config.noise:
    checks.refuse("noise", "", "a kind of noise, such as 'next:0.4'")
  if config.noise.startswith("human") and data.name != "cifar10":
    checks.refuse("noise", config.noise, "another one: cifar10 alone has that")
  if config.augment.resized_crop:
    checks.refuse("augment.resized_crop", True, "False for images")
  if not data.in_memory:
    checks.refuse("data.in_memory", False, "True for images")
