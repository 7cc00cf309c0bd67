"""What noise and rounds cost, in ratios within one run.

  python -m experiments.dp_ftrl.bench --results FILE.json

`server`: the server's update of the production model (1,412,250 parameters, or
`--preset`) with each mechanism, against the update without noise; with
`--num-params N` that of one array of N, and nothing else. `clients`: a
round of next-word clients at several chunk sizes, against a Python loop over
clients with a compiled training of one.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import timing
from locojax.core import checks
from locojax.methods import dp_ftrl
from locojax.methods.dp_ftrl import clipping, matrix
from locojax.report import results, tables

SEED, ROUNDS = 0, 2000
COLUMNS = ("part", "setting", "ms", "ratio", "ratio_low", "ratio_high", "mib")


def _params(preset: str):
  model = dp_ftrl.next_word_model(preset)
  tokens = jnp.zeros((1, 4), jnp.int32)
  return model, model.init(jax.random.key(SEED), tokens)["params"]


def _servers() -> dict[str, Any]:
  key = jax.random.key(SEED)
  shared = {"key": key, "max_rounds": ROUNDS}
  blt = matrix.blt([0.99, 0.9, 0.5], [0.05, 0.1, 0.2])
  return {
    "no noise": None,
    "independent": dp_ftrl.add_matrix_noise(dp_ftrl.identity(), 1, 1, **shared),
    "tree, basic": dp_ftrl.add_tree_noise(1, 1, estimator="basic", **shared),
    "tree, Honaker": dp_ftrl.add_tree_noise(1, 1, **shared),
    "BLT, 3 buffers": dp_ftrl.add_matrix_noise(blt, 1, 1, **shared),
    "basic, secure": dp_ftrl.add_tree_noise(
      1, 1, estimator="basic", secure=True, grid=2.0**-10, **shared
    ),
  }


def _bytes(tree) -> int:
  arrays = [
    x
    for x in jax.tree.leaves(tree)
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  ]
  return sum(x.nbytes for x in arrays)


def server(params: Any, *, num: int) -> list[dict[str, Any]]:
  """A row for each mechanism; momentum 0.9 in all."""
  total = jax.tree.map(jnp.ones_like, params)
  programs, sizes = {}, {}
  for name, noise in _servers().items():
    tx = dp_ftrl.server_sgd(0.1, num_clients=100, noise=noise, momentum=0.9)
    held = [jax.jit(tx.init)(params)]
    sizes[name] = _bytes(held[0]) / 2**20
    update = jax.jit(tx.update, donate_argnums=1)

    def run(update=update, held=held):
      updates, held[0] = update(total, held[0], params)
      return updates

    programs[name] = run
  seconds = timing.rounds(
    programs, num=num, calls=4, rng=np.random.default_rng(SEED)
  )
  return [
    {
      "part": "server",
      "setting": name,
      **timing.summary(seconds, name, reference="no noise"),
      "mib": sizes[name],
    }
    for name in programs
  ]


def _loop(loss_fn, client_tx, clip_norm):
  """One client, compiled; a round is a Python loop over it."""

  @jax.jit
  def one(params, batch, total):
    def step(carry, piece):
      w, opt_state = carry
      grads = jax.grad(lambda w: loss_fn(w, {}, piece, jax.random.key(0))[0])(w)
      updates, opt_state = client_tx.update(grads, opt_state, w)
      return (optax.apply_updates(w, updates), opt_state), None

    (new, _), _ = jax.lax.scan(step, (params, client_tx.init(params)), batch)
    delta = jax.tree.map(jnp.subtract, new, params)
    clipped, _, _ = clipping.clip_update(delta, clip_norm)
    return jax.tree.map(jnp.add, total, clipped)

  return one


def clients(
  preset: str, *, num: int, num_clients: int, length: int = 16
) -> list[dict[str, Any]]:
  """A row for each chunk size, and one for the loop (the reference)."""
  model, params = _params(preset)
  loss_fn, client_tx = dp_ftrl.next_word_loss(model), optax.sgd(0.5)
  shape = (num_clients, 2, 8, length + 1)
  tokens = jax.random.randint(jax.random.key(1), shape, 4, model.vocab_size)
  cohort = {
    "tokens": tokens,
    "mask": jnp.ones(shape[:3]),
    "client_mask": jnp.ones(num_clients),
  }
  tx, clip = optax.sgd(0.1), dp_ftrl.Clip(1.0)
  programs = {}
  for size in (1, 4, 16):
    step = dp_ftrl.make_step(
      loss_fn, tx, client_tx=client_tx, clip=clip, clients_per_chunk=size
    )
    state = dp_ftrl.init_state(params, tx, clip=clip, key=jax.random.key(SEED))
    compiled = jax.jit(step)
    programs[f"chunks of {size}"] = lambda compiled=compiled, state=state: (
      compiled(state, cohort)[0].params
    )
  one = _loop(loss_fn, client_tx, 1.0)
  rows = [
    {"tokens": tokens[i], "mask": cohort["mask"][i]} for i in range(num_clients)
  ]

  def loop():
    total = jax.tree.map(jnp.zeros_like, params)
    for row in rows:
      total = one(params, row, total)
    return total

  programs["Python loop"] = loop
  seconds = timing.rounds(programs, num=num, rng=np.random.default_rng(SEED))
  return [
    {
      "part": f"{num_clients} clients",
      "setting": name,
      **timing.summary(seconds, name, reference="Python loop"),
      "mib": None,
    }
    for name in programs
  ]


def main(argv: list[str]) -> None:
  """Measures, prints the table, and writes the result file."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", help="result file to write")
  parser.add_argument("--preset", default="cifg_production")
  parser.add_argument("--num-params", type=int, default=0)
  parser.add_argument("--client-preset", default="cifg_cpu")
  parser.add_argument("--num-clients", type=int, default=32)
  parser.add_argument("--rounds", type=int, default=10)
  args, start = parser.parse_args(argv), time.perf_counter()
  checks.positive_int("num_clients", args.num_clients)
  checks.divisible("num_clients", args.num_clients, "a chunk", 16)
  if args.num_params:
    rows = server({"w": jnp.zeros(args.num_params)}, num=args.rounds)
  else:
    rows = server(_params(args.preset)[1], num=args.rounds)
    rows += clients(
      args.client_preset, num=args.rounds, num_clients=args.num_clients
    )
  if args.results:
    results.save(
      args.results,
      command="python -m experiments.dp_ftrl.bench " + shlex.join(argv),
      seeds=[SEED],
      rows=rows,
      time_seconds=time.perf_counter() - start,
      device=timing.device_name(),
      notes=(
        f"server: {args.num_params or args.preset}, noise for {ROUNDS} rounds, "
        f"MiB of the optimiser's state; clients: {args.client_preset}, 2 steps "
        f"of 8 sentences. Medians of {args.rounds} rounds, ratios within "
        "rounds."
      ),
    )
  print(tables.render(rows, COLUMNS))


if __name__ == "__main__":
  main(sys.argv[1:])
