"""What the settings of federated training may be."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

from experiments.common import datasets, places, settings
from experiments.dp_ftrl import mechanisms, tasks
from locojax.core import checks
from locojax.data import client_texts
from locojax.methods.dp_ftrl import next_word

SAMPLERS = ("epochs", "min_sep")
# `(config, number of clients)` -> participation that the sampler keeps to.
Setting = Callable[[Any, int], mechanisms.Participation]
# The server rates are compared on this seed alone.
TUNING_SEED = 1000
ADAPTIVE = "tree_honaker_adaptive"
TEXTS = ("stdlib", "roles", "folder")

_DATA: dict[str, dict[str, settings.Rule]] = {
  "classification": {
    "data.name": settings.choice(datasets.DATASETS),
    "data.data_dir": places.there,
    **dict.fromkeys(
      ("data.pool", "data.num_inputs", "data.num_clients"), checks.positive_int
    ),
    "data.examples_per_client": checks.positive_int,
    "data.alpha": checks.positive,
    "data.seed": settings.seed,
    "model.hidden": checks.sizes,
  },
  "next_word": {
    "data.name": settings.choice(TEXTS),
    "data.path": places.there,
    "data.unit": settings.choice(client_texts.UNITS),
    **dict.fromkeys(
      ("data.num_words", "data.length", "data.max_sentences"),
      checks.positive_int,
    ),
    **dict.fromkeys(
      ("data.min_sentences", "data.num_held_out", "data.num_test"),
      checks.positive_int,
    ),
    "data.seed": settings.seed,
    "model.preset": settings.choice(next_word.PRESETS),
    **{
      f"model.{name}": checks.positive_int
      for name in ("vocab_size", "embedding_size", "units", "num_layers")
    },
    "model.dtype": settings.choice(settings.DTYPES),
  },
}
RULES: dict[str, settings.Rule] = {
  **settings.COMMON,
  "needs_data": checks.boolean,
  "population": checks.nonnegative_int,
  **dict.fromkeys(("num_rounds", "cohort_size"), checks.positive_int),
  **dict.fromkeys(
    ("local_steps", "local_epochs", "batch_size"), checks.positive_int
  ),
  "client_rate": checks.positive,
  "clip_norm": checks.positive,
  "momentum": settings.decay,
  "clients_per_chunk": checks.positive_int,
  "sampler.name": settings.choice(SAMPLERS),
  "sampler.min_sep": checks.nonnegative_int,
  "sampler.max_participations": checks.nonnegative_int,
  "restart.period": checks.nonnegative_int,
  "restart.warmup": checks.nonnegative_int,
  "clip.quantile": settings.share,
  "clip.learning_rate": checks.positive,
  "clip.count_stddev": checks.nonnegative,
  "clip_norms": settings.several(checks.positive, least=0, what="norms"),
  "delta": lambda name, found: checks.between(name, found, 0.0, 1.0),
  "methods": settings.several(
    settings.choice(mechanisms.METHODS), what="methods"
  ),
  "rhos": settings.several(checks.positive, what="rhos"),
  "method": settings.choice(mechanisms.METHODS),
  "rho": checks.positive,
  "server_rate": checks.positive,
  "server_rates": settings.several(checks.positive, what="rates"),
  "eval_batch_size": checks.positive_int,
  "save_every": checks.nonnegative_int,
}


def check(config, setting: Setting) -> None:
  """Refuses what a run or the study cannot go on with.

  Args:
    config: of `configs/`.
    setting: the participation of a config.

  Raises:
    ValueError: names the key, its value, and what is allowed.
  """
  task = settings.choice(tasks.KINDS)("task", config.task)
  settings.check(config, {**RULES, **_DATA[task]})
  if TUNING_SEED in config.seeds:
    checks.refuse(
      "seeds",
      tuple(config.seeds),
      f"without {TUNING_SEED}, the seed on which server rates are chosen",
    )
  if config.sampler.name == "epochs":
    for name in ("min_sep", "max_participations"):
      if config.sampler[name]:
        checks.refuse(
          f"sampler.{name}",
          config.sampler[name],
          "0 with sampler.name='epochs'",
        )
  chunk = config.clients_per_chunk
  settings.divides_mesh(config, "cohort_size", times=chunk)
  if not config.needs_data:
    if not config.population:
      checks.refuse("population", 0, "1 or more with needs_data=False")
    check_clients(config, config.population, setting)
  elif task == "classification":
    _check_writers(config)
    check_clients(config, config.data.num_clients, setting)
  else:
    _check_texts(config)


def check_run(config) -> None:
  """What training needs besides: data, and the accountant of amplification.

  Raises:
    ValueError: names the key.
    ImportError: a package is missing.
  """
  settings.must_read_data(config)
  there = importlib.util.find_spec("dp_accounting") is not None
  if "amplified" in config.methods and not there:
    raise ImportError(
      "methods with 'amplified' need dp-accounting: pip install 'locojax[dp]'"
    )


def _check_writers(config) -> None:
  data = config.data
  settings.image_sides(config, "data.pool", settings.SIDES[data.name])
  most = settings.COUNTS[data.name]["num_train"] // data.examples_per_client
  why = f"for {data.name} with {data.examples_per_client} examples each"
  settings.at_most(config, "data.num_clients", most, why)
  places.data_set("data.name", data.name, data.data_dir)


def _check_texts(config) -> None:
  data = config.data
  if data.name == "roles":
    places.path("data.path", data.path, "JSON lines with a row for each role")
  if data.name == "folder":
    places.path("data.path", data.path, "a folder of text files", folder=True)


def room(config, poisson: bool, num_clients: int, num_devices: int = 1) -> int:
  """Places of a cohort: more than are expected for a Poisson sample.

  That is 7 deviations and some, but no more than there are clients.

  Args:
    config: of `configs/`.
    poisson: whether cohorts are Poisson samples.
    num_clients: of all.
    num_devices: that share an axis `mesh.data` of -1.

  Returns:
    `cohort_size`, or a multiple of the clients that all devices take at once.
  """
  if not poisson:
    return config.cohort_size
  most = config.cohort_size + 7 * math.sqrt(config.cohort_size) + 7
  most = min(most, num_clients)
  sizes = dict(config.mesh)
  data = sizes.pop("data", 1)
  if data == -1:
    data = max(1, num_devices // math.prod(max(1, s) for s in sizes.values()))
  once = config.clients_per_chunk * data
  return math.ceil(most / once) * once


def check_clients(config, num_clients: int, setting: Setting) -> None:
  """Refuses what does not fit so many clients.

  Args:
    config: of `configs/`, with what `check` allows.
    num_clients: of the data set, or `population`.
    setting: the participation of a config.

  Raises:
    ValueError: a cohort larger than the clients; participation, restarts or a
      mechanism that cannot be had with them.
  """
  why = "the number of clients"
  settings.at_most(config, "cohort_size", num_clients, why)
  per_epoch = num_clients // config.cohort_size
  sep = min(config.sampler.min_sep or per_epoch, config.num_rounds)
  if sep > per_epoch:
    checks.refuse(
      "sampler.min_sep",
      config.sampler.min_sep,
      f"at most {per_epoch}, the rounds for which {num_clients} clients last",
    )
  period = config.restart.period or min(per_epoch, config.num_rounds)
  if config.restart.warmup >= period:
    checks.refuse(
      "restart.warmup", config.restart.warmup, f"below the period, {period}"
    )
  names = {*config.methods, config.method}
  if ADAPTIVE in names:
    _check_adaptive(config, setting(config, num_clients))


def _check_adaptive(config, place: mechanisms.Participation) -> None:
  """The count of adaptive clipping leaves noise to spend on the updates."""
  own = [config.rho] if config.method == ADAPTIVE else []
  for rho in {*(config.rhos if ADAPTIVE in config.methods else ()), *own}:
    try:
      mechanisms.make(ADAPTIVE, place, rho)
    except ValueError as error:
      raise ValueError(
        f"clip.count_stddev={config.clip.count_stddev!r} is not allowed with "
        f"the method {ADAPTIVE!r} at rho={rho:g}: {error}"
      ) from error
