"""Empirical audit: what an observer of the released models learns of users.

  python -m experiments.dp_ftrl.audit --results FILE.json

Federated digits with canaries among the users (`dp_ftrl.canary_loss`), half of
them, by fair coins, taking part. From the sequence of models of one run each
canary gets a score by the filter that is matched to the correlated noise, and
the scores give a lower bound on eps (95 %, one run) and an estimate. Rows of a
sound mechanism must stay below the stated eps; two rows are broken on purpose
(a quarter of the noise; none), which the audit should find.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
import time
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import timing
from experiments.dp_ftrl import mechanisms, tasks
from locojax.core import checks
from locojax.data import clients as clients_lib
from locojax.data import cohorts
from locojax.methods import dp_ftrl
from locojax.report import results, tables

CLIP, DELTA, PER_EPOCH, EPOCHS = 0.5, 1e-5, 16, 2
ROUNDS = PER_EPOCH * EPOCHS
RATE = 0.1
# Method, rho that is stated, factor of its noise.
ROWS = (
  ("independent", 0.5, 1.0),
  ("tree_basic", 0.5, 1.0),
  ("tree_honaker", 0.5, 1.0),
  ("blt", 0.5, 1.0),
  ("independent", 4.0, 1.0),
  ("tree_basic", 4.0, 1.0),
  ("tree_honaker", 4.0, 1.0),
  ("blt", 4.0, 1.0),
  ("tree_honaker", 0.1, 1.0),
  ("tree_honaker", 0.1, 0.25),
  ("none", 0.1, 1.0),
)
COLUMNS = {
  "method": "method",
  "noise": "noise",
  "eps": "stated eps",
  "bound": "lower bound",
  "estimate": "estimate",
  "accuracy": "guesses right (%)",
}


def _with_canaries(data: clients_lib.ClientData, num: int):
  """The clients and then `num` canaries, of one blank example each."""
  size = len(data.arrays["label"])
  arrays = {
    name: np.concatenate([x, np.zeros((num, *x.shape[1:]), x.dtype)])
    for name, x in data.arrays.items()
  }
  arrays[dp_ftrl.CANARY] = np.concatenate(
    [np.zeros(size, np.int32), np.arange(1, num + 1, dtype=np.int32)]
  )
  rows = [*data.rows, *([size + i] for i in range(num))]
  return clients_lib.ClientData(arrays, rows)


def _server(mechanism, factor: float, key, num_clients: float):
  return dp_ftrl.dp_ftrl(
    RATE,
    noise_multiplier=factor * mechanism.noise_multiplier,
    clip_norm=CLIP,
    num_clients=num_clients,
    key=key,
    max_rounds=ROUNDS,
    allow_no_privacy=mechanism.name == "none",
    **mechanism.settings,
  )


def _scores(models, directions, comes, num_clients) -> np.ndarray:
  """`[canaries]` from the models `[rounds + 1, d]`.

  The covariance of what is no canary, noise and the other users together, is
  that of the released sums along random directions, `R R^T / d`.
  """
  released = (models[1:] - models[:-1]) * (num_clients / RATE / CLIP)
  covariance = released @ released.T / released.shape[1]
  weights = dp_ftrl.matched_filter(covariance, comes)
  return ((directions @ released.T) * weights).sum(axis=1)


@functools.lru_cache(maxsize=2)
def _task(num_clients: int):
  data = {
    "name": "digits",
    "data_dir": "",
    "pool": 1,
    "num_inputs": 64,
    "num_clients": num_clients,
    "examples_per_client": 5,
    "alpha": 0.3,
    "seed": 0,
  }
  return tasks.classification(data, {"hidden": (32,)}, needs_data=True)


def _models(task, data, sampler, included, tx, seed: int):
  """All models of a run, the canaries of coin 0 left out, `[rounds + 1, d]`."""
  loss = dp_ftrl.canary_loss(task.loss, key=jax.random.key(1))
  clip = dp_ftrl.Clip(CLIP)
  step = dp_ftrl.make_step(
    loss, tx, client_tx=optax.sgd(0.5), clip=clip, clients_per_chunk=4
  )
  init_key, run_key = jax.random.split(jax.random.key(seed))
  state = dp_ftrl.init_state(task.init(init_key), tx, clip=clip, key=run_key)
  settings = {"local_steps": 2, "batch_size": 5, "seed": seed}
  compiled, out = jax.jit(step), [state.params]
  for batch in cohorts.cohorts(data, sampler, num_rounds=ROUNDS, **settings)(0):
    number = batch[dp_ftrl.CANARY].max(axis=(1, 2)) - 1
    left_out = (number >= 0) & ~included[np.maximum(number, 0)]
    batch["client_mask"] = batch["client_mask"] * ~left_out
    state, _ = compiled(state, batch)
    out.append(state.params)
  flat = [np.asarray(jax.flatten_util.ravel_pytree(p)[0]) for p in out]
  return np.stack(flat).astype(np.float64)


def audit(
  method: str, rho: float, factor: float, *, num_canaries: int, seed: int
) -> dict[str, Any]:
  """One run: lower bound, estimate, and share of right guesses."""
  num_ordinary = num_canaries // 2
  task = _task(num_ordinary)
  data = _with_canaries(task.clients, num_canaries)
  size = len(data) // PER_EPOCH
  sampler = dp_ftrl.ShuffledEpochs(len(data), size, seed=seed)
  place = mechanisms.Participation(
    ROUNDS, EPOCHS, PER_EPOCH, size / len(data), DELTA
  )
  mechanism = mechanisms.make(method, place, rho)
  tx = _server(mechanism, factor, jax.random.key(1000 + seed), float(size))
  included = np.random.default_rng(seed).random(num_canaries) < 0.5
  models = _models(task, data, sampler, included, tx, seed)
  comes = np.zeros((len(data), ROUNDS))
  for t in range(ROUNDS):
    comes[sampler(t).clients, t] = 1
  params = task.init(jax.random.key(0))
  direction = lambda i: jax.flatten_util.ravel_pytree(
    dp_ftrl.canary_direction(jax.random.key(1), i, params)
  )[0]
  directions = np.asarray(jax.vmap(direction)(jnp.arange(num_canaries)))
  scores = _scores(models, directions, comes[num_ordinary:], float(size))
  guesses = num_canaries // 8 // 2 * 2
  order = np.argsort(scores)
  half = guesses // 2
  right = (~included[order[:half]]).sum() + included[order[-half:]].sum()
  return {
    "bound": dp_ftrl.one_run_eps(
      scores, included, num_guesses=guesses, delta=DELTA
    ),
    "estimate": dp_ftrl.gaussian_eps(scores, included, delta=DELTA),
    "accuracy": 100 * float(right) / guesses,
  }


def run(num_canaries: int, num_seeds: int) -> list[dict[str, Any]]:
  """A row for each of `ROWS`, lists over seeds."""
  out = []
  for method, rho, factor in ROWS:
    found = [
      audit(method, rho, factor, num_canaries=num_canaries, seed=s)
      for s in range(num_seeds)
    ]
    sound = method != "none" and factor == 1
    out.append(
      {
        "method": method,
        "noise": "none" if method == "none" else f"{factor:g} z",
        "sound": sound,
        "eps": dp_ftrl.zcdp_to_eps(rho, DELTA),
        **{name: [f[name] for f in found] for name in found[0]},
      }
    )
    print(tables.render(out[-1:], COLUMNS), flush=True)
  return out


def main(argv: list[str]) -> None:
  """Audits, prints the table, and writes the result file."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", help="result file to write")
  parser.add_argument("--canaries", type=int, default=512)
  parser.add_argument("--seeds", type=int, default=5)
  args, start = parser.parse_args(argv), time.perf_counter()
  checks.positive_int("seeds", args.seeds)
  checks.divisible("canaries", args.canaries, "rounds of an epoch", 32)
  rows = run(args.canaries, args.seeds)
  if args.results:
    results.save(
      args.results,
      command="python -m experiments.dp_ftrl.audit " + shlex.join(argv),
      seeds=list(range(args.seeds)),
      rows=rows,
      time_seconds=time.perf_counter() - start,
      device=timing.device_name(),
      notes=(
        f"{args.canaries} canaries and {args.canaries // 2} digits users, "
        f"{ROUNDS} rounds, each user in at most {EPOCHS}, {PER_EPOCH} apart, "
        f"delta {DELTA:g}; bound: 95 %, {args.canaries // 8} guesses of one "
        "run; estimate: two Gaussians; guesses: the most extreme scores."
      ),
    )
  print(tables.render(rows, COLUMNS))


if __name__ == "__main__":
  main(sys.argv[1:])
