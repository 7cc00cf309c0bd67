"""Federated training under several mechanisms at equal privacy.

`build` makes one run: a method at a rho with a server rate. `run` searches the
server rate of each method by test loss on a seed of its own, trains the seeds,
and writes table and figure (`report.py`), also at several (initial) clipping
norms, `config.clip_norms`. Every run keeps a privacy ledger.
"""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import stages, study
from experiments.dp_ftrl import mechanisms, record, report, settings, tasks
from locojax.core import checks, trees
from locojax.data import cohorts, pipeline
from locojax.methods import dp_ftrl
from locojax.methods.dp_ftrl import participation
from locojax.train import distributed, experiment
from locojax.train import folder as run_folder

Experiment = experiment.Experiment
TUNING_SEED = settings.TUNING_SEED
_NOISE, _COUNT_NOISE = 0xD9, 0xD90C
LEDGER = record.LEDGER
SAMPLERS = settings.SAMPLERS
check_run = settings.check_run
# What does not change a run: which others there are.
_LISTS = ("methods", "rhos", "clip_norms", "seeds")
_NOT_IN_A_RUN = (*_LISTS, "server_rates")
# What does not change the sum of a round.
_NOT_IN_A_ROUND = (*_NOT_IN_A_RUN, *run_folder.MAY_DIFFER)


def setting(config, num_clients: int) -> mechanisms.Participation:
  """Participation that the sampler keeps to.

  `epochs`: shuffled epochs without reshuffling, b = the rounds of an epoch, and
  k = ceil(T / b), which bounds what `ShuffledEpochs` does. `min_sep`:
  devices check in by themselves, at most once in `sampler.min_sep` rounds (0:
  an epoch) and `sampler.max_participations` times (0: as often as that allows).
  """
  checks.int_in_range("cohort_size", config.cohort_size, 1, num_clients)
  per_epoch = num_clients // config.cohort_size
  name = checks.one_of("sampler.name", config.sampler.name, SAMPLERS)
  own = config.sampler if name == "min_sep" else {}
  min_sep = min(own.get("min_sep", 0) or per_epoch, config.num_rounds)
  most = -(-config.num_rounds // min_sep)
  return mechanisms.Participation(
    num_rounds=config.num_rounds,
    max_participations=min(own.get("max_participations", 0) or most, most),
    min_sep=min_sep,
    rate=config.cohort_size / num_clients,
    delta=config.delta,
    restart=_restart(config, per_epoch),
    num_clients=config.cohort_size,
    count_stddev=config.clip.count_stddev or None,
  )


def _restart(config, per_epoch: int) -> dp_ftrl.RestartPolicy:
  """Of the methods that restart: a tree for each epoch, unless told."""
  period = config.restart.period or min(per_epoch, config.num_rounds)
  return dp_ftrl.RestartPolicy(period, warmup=config.restart.warmup)


def _room(config, mechanism: mechanisms.Mechanism, num_clients: int) -> int:
  """Places of a cohort: more than are expected for a Poisson sample."""
  devices = jax.device_count()
  return settings.room(config, mechanism.poisson, num_clients, devices)


def _sampler(config, mechanism, num_clients: int):
  if mechanism.poisson:
    return participation.PoissonClients(
      num_clients,
      config.cohort_size / num_clients,
      seed=config.seed,
      max_cohort=_room(config, mechanism, num_clients),
    )
  if config.sampler.name == "min_sep":
    place = setting(config, num_clients)
    return participation.MinSepSampler(
      num_clients,
      config.cohort_size,
      min_sep=place.min_sep,
      max_participations=place.max_participations,
      seed=config.seed,
    )
  return participation.ShuffledEpochs(
    num_clients, config.cohort_size, seed=config.seed
  )


def noise_key(config) -> jax.Array:
  """The key of the noise of a simulation, from the seed.

  A real release takes `dp_ftrl.key_from_entropy()` instead.
  """
  return jax.random.fold_in(jax.random.key(config.seed), _NOISE)


def _count_key(config) -> jax.Array:
  """The key of the noise on the count of adaptive clipping."""
  return jax.random.fold_in(jax.random.key(config.seed), _COUNT_NOISE)


def _num_clients(config, task: tasks.Task) -> int:
  return config.population if task.clients is None else len(task.clients)


@functools.lru_cache(maxsize=64)
def _mechanism(name, place, rho) -> mechanisms.Mechanism:
  return mechanisms.make(name, place, rho)


def _server(config, mechanism) -> optax.GradientTransformation:
  return dp_ftrl.dp_ftrl(
    config.server_rate,
    noise_multiplier=mechanism.noise_multiplier,
    clip_norm=config.clip_norm,
    num_clients=config.cohort_size,
    key=noise_key(config),
    max_rounds=config.num_rounds,
    momentum=config.momentum,
    allow_no_privacy=mechanism.name == "none",
    **mechanism.settings,
  )


def _clip(config, mechanism) -> dp_ftrl.Clip | dp_ftrl.QuantileClip:
  """At `config.clip_norm`, or from there on at a quantile."""
  if mechanism.count_multiplier is None:
    return dp_ftrl.Clip(config.clip_norm)
  restart = mechanism.settings["restart"]
  return dp_ftrl.QuantileClip(
    config.clip_norm,
    dp_ftrl.add_tree_noise(
      mechanism.count_multiplier,
      dp_ftrl.COUNT_SENSITIVITY,
      key=_count_key(config),
      max_rounds=config.num_rounds,
      estimator=mechanism.settings["estimator"],
      restart=restart,
    ),
    num_clients=config.cohort_size,
    starts_tree=restart.starts_tree,
    quantile=config.clip.quantile,
    learning_rate=config.clip.learning_rate,
  )


def check(config) -> None:
  """Refuses what a run or the study cannot go on with; names the key."""
  settings.check(config, setting)


def build(config, folder: pathlib.Path | None = None) -> Experiment:
  """One run: `config.method` at `config.rho` with `config.server_rate`.

  Args:
    config: of `configs/`.
    folder: where the ledger is kept; None keeps none.
  """
  check(config)
  task = tasks.make(config)
  settings.check_clients(config, _num_clients(config, task), setting)
  place = setting(config, _num_clients(config, task))
  mechanism = _mechanism(config.method, place, config.rho)
  tx = _server(config, mechanism)
  clip = _clip(config, mechanism)

  def init(key):
    init_key, run_key = jax.random.split(key)
    return dp_ftrl.init_state(task.init(init_key), tx, clip=clip, key=run_key)

  room = _room(config, mechanism, _num_clients(config, task))
  lead = (room, config.local_steps, config.batch_size)
  shapes = {
    name: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype)
    for name, x in task.example.items()
  }
  shapes["mask"] = jax.ShapeDtypeStruct(lead, jnp.float32)
  shapes["client_mask"] = jax.ShapeDtypeStruct(lead[:1], jnp.float32)
  step = dp_ftrl.make_step(
    task.loss,
    tx,
    client_tx=optax.sgd(config.client_rate),
    clip=clip,
    clients_per_chunk=config.clients_per_chunk,
  )
  batches = functools.partial(_batches, config, task, mechanism)
  return Experiment(
    init=init,
    step=step,
    batches=batches,
    num_steps=config.num_rounds,
    batch_shapes=shapes,
    rules=tuple((r, jax.P(*spec)) for r, spec in config.rules),
    evals=_evals(config, task),
    examples_per_step=math.prod(lead),
    journal=_recorder(config, task, mechanism, clip, folder),
    diagnose=dp_ftrl.check_open,
  )


def _batches(config, task, mechanism, start: int) -> Iterator:
  """Cohorts from round `start` on."""
  return cohorts.cohorts(
    task.clients,
    _sampler(config, mechanism, len(task.clients)),
    local_steps=config.local_steps,
    batch_size=config.batch_size,
    seed=config.seed,
    num_rounds=config.num_rounds,
    num_epochs=config.local_epochs,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )(start)


def _recorder(config, task, mechanism, clip, folder) -> record.Recorder | None:
  """The ledger in `folder`; of process 0, without which no sum is made."""
  if folder is None or task.clients is None or not distributed.is_main():
    return None
  adaptive = mechanism.count_multiplier is not None
  place = setting(config, len(task.clients))
  declared = (place.max_participations, place.min_sep)
  k, b = (None, None) if mechanism.poisson else declared
  settings = {
    n: v for n, v in config.to_dict().items() if n not in _NOT_IN_A_ROUND
  }
  secret = np.asarray(jax.random.key_data(noise_key(config))).tobytes()
  settings["clients"] = task.clients.fingerprint(secret)
  return record.Recorder(
    folder / LEDGER,
    sampler=_sampler(config, mechanism, len(task.clients)),
    clip=clip,
    restart=mechanism.settings.get("restart"),
    settings=settings,
    num_rounds=config.num_rounds,
    max_participations=k,
    min_sep=b,
    release=dp_ftrl.Release(
      run_id=record.RUN,
      key=dp_ftrl.key_fingerprint(noise_key(config)),
      tree_id=0,
      round=0,
      noise_multiplier=mechanism.noise_multiplier,
      clip_norm=config.clip_norm,
      num_clients=config.cohort_size,
      cohort="",
      max_participations=0,
      min_sep=0,
      mechanism=mechanism.kind,
      count_multiplier=mechanism.count_multiplier,
      count_key=(
        dp_ftrl.key_fingerprint(_count_key(config)) if adaptive else None
      ),
    ),
  )


def _evals(config, task: tasks.Task) -> dict[str, experiment.Eval]:
  if not len(next(iter(task.test.values()))):
    return {}

  @jax.jit
  def measure(params, batch):
    _, (found, _) = task.loss(params, {}, batch, jax.random.key(0))
    return found["loss"], found[task.metric]

  def run(state) -> dict[str, float]:
    totals = np.zeros((2, 2))  # in float64: float32 ends counting at 2^24
    for batch in pipeline.padded_batches(
      dict(task.test), batch_size=config.eval_batch_size
    ):
      found = jax.device_get(measure(state.params, batch))
      totals += [(m.total, m.weight) for m in found]
    loss, metric = (float(total / weight) for total, weight in totals)
    return {"loss": loss, "accuracy": metric}

  return {"test": experiment.Eval(max(1, config.num_rounds // 5), run)}


def fit(config, folder: pathlib.Path) -> Mapping[str, Any]:
  """One run; its result, or why it diverged.

  Raises:
    ValueError: the folder has a run of another config, or its ledger is not
      the one that the run wrote.
  """
  found = stages.finished(config, folder, may_differ=_NOT_IN_A_RUN)
  if found is not None:
    if distributed.is_main():
      record.check_end(folder / LEDGER, found)
    return found
  return stages.fit_or_diverge(
    build(config, folder),
    config,
    folder,
    log_every=max(1, config.num_rounds // 5),
    save_every=config.save_every,
    may_differ=_NOT_IN_A_RUN,
  )


def _tell_noise(config, name: str) -> None:
  """Says how large the noise of a method is, and warns where it drowns all."""
  task = tasks.make(config)
  place = setting(config, _num_clients(config, task))
  mechanism = _mechanism(config.method, place, config.rho)
  if not mechanism.noise_multiplier:
    return
  found = dp_ftrl.noise_strength(
    trees.num_params(jax.eval_shape(task.init, jax.random.key(0))),
    noise_multiplier=mechanism.noise_multiplier,
    num_clients=config.cohort_size,
    num_rounds=config.num_rounds,
    independent=mechanism.name in ("independent", "amplified"),
  )
  stages.say(
    f"{name}: noise multiplier {mechanism.noise_multiplier:.3g}, "
    f"{config.cohort_size} clients a round; noise over the largest update: "
    f"{found.round:.3g} in a round, {found.run:.3g} over all rounds"
  )
  if found.run > 1:
    stages.say(
      f"warning: {name}: the noise is longer than all updates together can be "
      "(above 1 over all rounds), so nothing can be learnt. Take more clients "
      "a round (`cohort_size`), more rounds, a smaller model or a larger rho."
    )


def _score(result: Mapping[str, Any]) -> float:
  """Test loss; that of a run that diverged is infinite."""
  return result.get("values", {}).get("test/loss", math.inf)


def _point(made: study.Study, point: report.Point) -> None:
  """Server rate of a method at a rho and a norm, and the runs of all seeds."""
  folder = report.folder(made.workdir, made.config, point)
  config = stages.changed(made.config, **point._asdict())
  name = f"{point.method}, rho {point.rho:g}, norm {point.clip_norm:g}"
  _tell_noise(config, name)
  scores = {}
  for rate in config.server_rates:
    one = stages.changed(config, server_rate=rate, seed=TUNING_SEED)
    where = folder / "tuning" / f"{rate:g}"
    tuning = f"{name}: tuning, server rate {rate:g}"
    found = made.cell(tuning, where, functools.partial(fit, one, where))
    scores[rate] = _score(found)
  best = min(scores, key=scores.get)
  stages.say(f"{name}: server rate {best:g} of {scores}")
  for seed in config.seeds:
    one = stages.changed(config, server_rate=best, seed=seed)
    where = folder / f"seed_{seed}"
    made.cell(f"{name}, seed {seed}", where, functools.partial(fit, one, where))


def points(config) -> list[report.Point]:
  """What is trained; `none` at one rho only."""
  norms = config.clip_norms or (config.clip_norm,)
  return [
    report.Point(method, rho, norm)
    for method, rho in _methods(config)
    for norm in norms
  ]


def _methods(config) -> list[tuple[str, float]]:
  out = [("none", config.rhos[0])] if "none" in config.methods else []
  return out + [
    (m, r) for r in config.rhos for m in config.methods if m != "none"
  ]


def run(config, workdir: str) -> dict[str, Any]:
  """All methods at all rhos over all seeds; resumes.

  Returns:
    The rows of the table and the paths of what was written.
  """
  checks.positive_int("cohort_size", config.cohort_size)
  several = points(config)
  cells = len(several) * (len(config.server_rates) + len(config.seeds))
  with study.opened(
    config, workdir, num_cells=cells, may_differ=_LISTS
  ) as made:
    for point in several:
      _point(made, point)
    place = setting(config, _num_clients(config, tasks.make(config)))
    return report.write(made, several, place, _mechanism)
