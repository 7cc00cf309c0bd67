"""What the settings of the study of noisy labels may be."""

from __future__ import annotations

import functools
from typing import Any

from experiments.ciw import methods, noisy_images, search
from experiments.common import datasets, noisy_labels, places, settings
from locojax.core import checks
from locojax.data import label_noise
from locojax.train import optimizers, replicas

KINDS = ("mlp", "resnet")
STEPS = "steps"
_WITH_HUMAN_LABELS = ("cifar10", "cifar10_n")


def _noise(name: str, found: str) -> str:
  """The rule of a noise: a kind, and a rate where there is one."""
  checks.text(name, found)
  try:
    kind, rate = noisy_images.parse_noise(found)
  except ValueError as error:
    raise ValueError(f"{name}={found!r} is not allowed: {error}") from error
  human = kind.startswith(noisy_labels.HUMAN)
  if human != (rate is None) or (rate is not None and not 0 <= rate <= 1):
    what = "as 'human_worst'" if human else "a rate in [0, 1]: 'symmetric:0.4'"
    checks.refuse(name, found, what)
  return found


# 0 of a folder: as many as there are.
_COUNTED = ("data.num_train", "data.num_test", "data.num_classes")
_NOISES = settings.several(_noise, what="noises")
RULES: dict[str, settings.Rule] = {
  **settings.COMMON,
  "data.name": settings.choice(noisy_images.NAMES),
  **dict.fromkeys(("data.data_dir", "data.path"), places.there),
  "data.side": checks.positive_int,
  **dict.fromkeys(_COUNTED, checks.nonnegative_int),
  "data.validation": lambda name, found: checks.between(name, found, 0.0, 1.0),
  "data.pool": checks.positive_int,
  "data.exact": checks.boolean,
  "data.mean": settings.several(settings.share, distinct=False),
  "data.std": settings.several(checks.positive, distinct=False),
  "crop_pad": checks.nonnegative_int,
  "model.kind": settings.choice(KINDS),
  "model.hidden": checks.sizes,
  "model.width": checks.positive_int,
  "model.stage_sizes": settings.several(checks.positive_int, distinct=False),
  "model.dtype": settings.choice(settings.DTYPES),
  "batch_size": checks.positive_int,
  "num_epochs": checks.positive_int,
  "updates_per_step": checks.nonnegative_int,
  "learning_rate": checks.positive,
  "momentum": settings.decay,
  "weight_decay": checks.nonnegative,
  "schedule": settings.choice((*optimizers.SCHEDULES, STEPS)),
  "warmup_updates": checks.nonnegative_int,
  "drops": settings.several(checks.positive, least=0, what="epochs"),
  "methods": settings.several(settings.choice(methods.METHODS), what="methods"),
  "num_trials": settings.within(1, search.MOST, whole=True),
  "noises": _NOISES,
  "noise": _NOISES,
  "noise_together": checks.boolean,
  "num_seeds": checks.positive_int,
  "how": settings.choice(replicas.HOW),
  "method": settings.choice(methods.METHODS),
  "options": settings.anything,
  "mixup_groups": checks.positive_int,
  "eval_batch_size": checks.positive_int,
  "eval_epochs": checks.positive,
  "detect_epochs": checks.positive,
  "save_every": checks.nonnegative_int,
}


def check(config) -> None:
  """Refuses what a trial or the study cannot run with.

  Raises:
    ValueError: names the key, its value, and what is allowed.
  """
  settings.check(config, RULES)
  config = _counted(config)
  _check_images(config)
  _check_sizes(config)
  _check_drops(config)
  fits = settings.several(functools.partial(_check_noise, config))
  for key in ("noise", "noises"):
    fits(key, tuple(config[key]))
  options = config.options.to_dict()
  checks.positive("options.rate", options.pop("rate", 1.0))
  setup = methods.Setup(None, _classes(config), config.data.num_train, 1)
  settings.made("options", methods.make, config.method, setup, **options)


def check_run(config) -> None:
  """What the study needs besides: data.

  Raises:
    ValueError: names the key.
  """
  name, data_dir = config.data.name, config.data.data_dir
  if name == noisy_images.FOLDER:
    return
  if name not in datasets.DATASETS:
    checks.refuse(
      "data.name", name, f"one of {list(datasets.DATASETS)} to be read"
    )
  places.data_set("data.name", name, data_dir)


def _counted(config):
  """With the sizes of a folder; other sets must have theirs."""
  data = config.data
  if data.name == noisy_images.FOLDER:
    what = "a folder with a folder of images for each class"
    places.path("data.path", data.path, what, folder=True)
    return noisy_images.resolved(config)
  for key in ("num_train", "num_test"):
    checks.positive_int(f"data.{key}", data[key])
  return config


def _classes(config) -> int:
  return noisy_images.num_classes(config.data)


def _check_images(config) -> None:
  data, model = config.data, config.model
  height, _, channels = noisy_images.raw_shape(data)
  settings.image_counts(config)
  settings.image_sides(config, "data.pool", height)
  for key in ("mean", "std"):
    if len(data[key]) not in (1, channels):
      checks.refuse(
        f"data.{key}", tuple(data[key]), f"1 or {channels} numbers, of channels"
      )
  if model.kind == "mlp" and model.dtype != "float32":
    checks.refuse("model.dtype", model.dtype, "'float32' with model.kind='mlp'")


def _check_sizes(config) -> None:
  """Batches fit the data, the mesh, the groups of mixup, and the steps."""
  num_train = config.data.num_train - noisy_images.num_validation(config.data)
  why = "the training examples without those for validation"
  settings.at_most(config, "batch_size", num_train, why)
  settings.divides_mesh(config, "batch_size")
  size, groups = config.batch_size, config.mixup_groups
  if size % groups:
    checks.refuse("mixup_groups", groups, f"a divisor of batch_size={size}")
  per_epoch = num_train // size
  if config.updates_per_step and per_epoch % config.updates_per_step:
    checks.refuse(
      "updates_per_step",
      config.updates_per_step,
      f"0 or a divisor of {per_epoch}, the updates in an epoch",
    )


def _check_drops(config) -> None:
  drops = tuple(config.drops)
  if drops and config.schedule != STEPS:
    checks.refuse("drops", drops, f"() but with schedule={STEPS!r}")
  if drops and max(drops) >= config.num_epochs:
    checks.refuse("drops", drops, f"below num_epochs={config.num_epochs}")


def _check_noise(config, name: str, noise: str) -> None:
  """The noise is one of these data."""
  kind, rate = noisy_images.parse_noise(noise)
  try:
    _check_kind(config, kind, rate)
  except ValueError as error:
    raise ValueError(f"{name}={noise!r} is not allowed: {error}") from error


def _check_kind(config, kind: str, rate: Any) -> None:
  if kind in label_noise.KINDS:
    label_noise.transition_matrix(kind, rate, _classes(config))
    return
  if kind.startswith(noisy_labels.HUMAN):
    checks.one_of("data.name", config.data.name, _WITH_HUMAN_LABELS)
  checks.one_of(f"data.exact with {kind!r}", config.data.exact, [False])
