"""Federated training under several mechanisms at equal privacy.

`build` makes one run: a method at a rho with a server rate. `run` searches the
server rate of each method by test loss on a seed of its own, trains the seeds,
and writes table and figure (`report.py`). Every run keeps a privacy ledger.
"""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.common import stages
from experiments.dp_ftrl import mechanisms, report, tasks
from locojax.core import checks
from locojax.data import cohorts, pipeline
from locojax.methods import dp_ftrl
from locojax.methods.dp_ftrl import participation
from locojax.train import distributed, experiment

Experiment = experiment.Experiment
TUNING_SEED = 1000
_NOISE = 0xD9
LEDGER = "ledger.jsonl"


def setting(config, num_clients: int) -> mechanisms.Participation:
  """Participation of shuffled epochs without reshuffling."""
  per_epoch = num_clients // config.cohort_size
  return mechanisms.Participation(
    num_rounds=config.num_rounds,
    max_participations=-(-config.num_rounds // per_epoch),
    min_sep=min(per_epoch, config.num_rounds),
    rate=config.cohort_size / num_clients,
    delta=config.delta,
  )


def _room(config, mechanism: mechanisms.Mechanism) -> int:
  """Places of a cohort: more than are expected for a Poisson sample."""
  if not mechanism.poisson:
    return config.cohort_size
  most = config.cohort_size + 7 * math.sqrt(config.cohort_size) + 7
  return math.ceil(most / config.clients_per_chunk) * config.clients_per_chunk


def _sampler(config, mechanism, num_clients: int):
  if mechanism.poisson:
    return participation.PoissonClients(
      num_clients,
      config.cohort_size / num_clients,
      seed=config.seed,
      max_cohort=_room(config, mechanism),
    )
  return participation.ShuffledEpochs(
    num_clients, config.cohort_size, seed=config.seed
  )


def noise_key(config) -> jax.Array:
  """The key of the noise of a simulation, from the seed.

  A real release takes `dp_ftrl.key_from_entropy()` instead.
  """
  return jax.random.fold_in(jax.random.key(config.seed), _NOISE)


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


def build(config, folder: pathlib.Path | None = None) -> Experiment:
  """One run: `config.method` at `config.rho` with `config.server_rate`.

  Args:
    config: of `configs/`.
    folder: where the ledger is kept; None keeps none.
  """
  task = tasks.make(config)
  place = setting(config, _num_clients(config, task))
  mechanism = _mechanism(config.method, place, config.rho)
  tx = _server(config, mechanism)
  clip = dp_ftrl.Clip(config.clip_norm)

  def init(key):
    init_key, run_key = jax.random.split(key)
    return dp_ftrl.init_state(task.init(init_key), tx, clip=clip, key=run_key)

  lead = (_room(config, mechanism), config.local_steps, config.batch_size)
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
  batches = functools.partial(_batches, config, task, mechanism, folder)
  return Experiment(
    init=init,
    step=step,
    batches=batches,
    num_steps=config.num_rounds,
    batch_shapes=shapes,
    rules=tuple((r, jax.P(*spec)) for r, spec in config.rules),
    evals=_evals(config, task),
    examples_per_step=math.prod(lead),
  )


def _batches(config, task, mechanism, folder, start: int) -> Iterator:
  """Cohorts from round `start` on, each in the ledger before it is used."""
  sampler = _sampler(config, mechanism, len(task.clients))
  rounds = cohorts.cohorts(
    task.clients,
    sampler,
    local_steps=config.local_steps,
    batch_size=config.batch_size,
    seed=config.seed,
    num_rounds=config.num_rounds,
    num_epochs=config.local_epochs,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )(start)
  if folder is None or not distributed.is_main():
    return rounds
  return _recorded(config, mechanism, sampler, folder, start, rounds)


def _recorded(config, mechanism, sampler, folder, start, rounds) -> Iterator:
  """The cohorts, each written down before it is handed out.

  A run that was stopped repeats the very same cohorts, which the ledger checks.
  """
  book = dp_ftrl.PrivacyLedger(folder / LEDGER)
  book.resume("run", start, policy="replay")
  log = participation.logged(sampler, start)
  key = dp_ftrl.key_fingerprint(noise_key(config))
  for t, cohort in enumerate(rounds, start):
    found = sampler(t)
    present = found.clients[found.mask]
    log.add(t, present)
    book.append(
      dp_ftrl.Release(
        run_id="run",
        key=key,
        tree_id=0,
        round=t,
        noise_multiplier=mechanism.noise_multiplier,
        clip_norm=config.clip_norm,
        num_clients=config.cohort_size,
        cohort=dp_ftrl.cohort_hash(present),
        max_participations=log.max_participations,
        min_sep=log.min_sep,
        mechanism=mechanism.kind,
      )
    )
    yield cohort


def _evals(config, task: tasks.Task) -> dict[str, experiment.Eval]:
  if not len(next(iter(task.test.values()))):
    return {}

  @jax.jit
  def measure(params, batch):
    _, (found, _) = task.loss(params, {}, batch, jax.random.key(0))
    return found["loss"], found[task.metric]

  def run(state) -> dict[str, float]:
    totals = None
    for batch in pipeline.padded_batches(
      dict(task.test), batch_size=config.eval_batch_size
    ):
      found = measure(state.params, batch)
      totals = found if totals is None else jax.tree.map(jnp.add, totals, found)
    loss, metric = (float(m.value()) for m in totals)
    return {"loss": loss, "accuracy": metric}

  return {"test": experiment.Eval(max(1, config.num_rounds // 5), run)}


def fit(config, folder: pathlib.Path) -> Mapping[str, Any]:
  """One run; its result, or why it diverged.

  Raises:
    ValueError: the folder has a finished run of another config.
  """
  found = stages.finished(config, folder, ignored=("results",))
  if found is not None:
    return found
  return stages.fit_or_diverge(
    build(config, folder),
    config,
    folder,
    log_every=max(1, config.num_rounds // 5),
    save_every=config.save_every or config.num_rounds,
    keep=1,
  )


def _score(result: Mapping[str, Any]) -> float:
  """Test loss; that of a run that diverged is infinite."""
  return result.get("values", {}).get("test/loss", math.inf)


def _point(config, method: str, rho: float, workdir: pathlib.Path):
  """Server rate of a method at a rho, and the runs of all seeds."""
  folder = report.folder(workdir, method, rho)
  scores = {}
  for rate in config.server_rates:
    one = stages.changed(
      config, method=method, rho=rho, server_rate=rate, seed=TUNING_SEED
    )
    scores[rate] = _score(fit(one, folder / "tuning" / f"{rate:g}"))
  best = min(scores, key=scores.get)
  stages.say(f"{method}, rho {rho:g}: server rate {best:g} of {scores}")
  for seed in config.seeds:
    one = stages.changed(
      config, method=method, rho=rho, server_rate=best, seed=seed
    )
    fit(one, folder / f"seed_{seed}")


def points(config) -> list[tuple[str, float]]:
  """(method, rho); `none` once."""
  out = [("none", config.rhos[0])] if "none" in config.methods else []
  return out + [
    (m, r) for r in config.rhos for m in config.methods if m != "none"
  ]


def run(config, workdir: str) -> dict[str, Any]:
  """All methods at all rhos over all seeds; resumes.

  Returns:
    The rows of the table and the paths of what was written.
  """
  workdir = pathlib.Path(workdir).absolute()
  checks.positive_int("cohort_size", config.cohort_size)
  for method, rho in points(config):
    _point(config, method, rho, workdir)
  place = setting(config, _num_clients(config, tasks.make(config)))
  out = report.write(config, workdir, points(config), place, _mechanism)
  stages.say(f"\n{out['markdown']}\n\ntable:  {out['table']}")
  stages.say(f"figure: {out['figure']}")
  return out
