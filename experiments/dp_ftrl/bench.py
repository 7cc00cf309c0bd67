"""What noise and rounds cost, in ratios within one run.

  python -m experiments.dp_ftrl.bench --results FILE.json

`server`: the server's update of the production model (1,412,250 parameters, or
`--preset`) with each mechanism, against the update without noise; with
`--num-params N` that of one array of N, and nothing else. `clients`: a
round of next-word clients at several chunk sizes, against a Python loop over
clients with a compiled training of one, and against one vmap over all clients
whose updates are then added up (FedJAX's `for_each_client` under `jit`), with
the memory that each takes besides its arguments.
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


def _training(loss_fn, client_tx, clip_norm):
  """`(params, batches of a client) -> its clipped update`, written plainly."""

  def one(params, batch):
    def step(carry, piece):
      w, opt_state = carry
      grads = jax.grad(lambda w: loss_fn(w, {}, piece, jax.random.key(0))[0])(w)
      updates, opt_state = client_tx.update(grads, opt_state, w)
      return (optax.apply_updates(w, updates), opt_state), None

    (new, _), _ = jax.lax.scan(step, (params, client_tx.init(params)), batch)
    delta = jax.tree.map(jnp.subtract, new, params)
    return clipping.clip_update(delta, clip_norm)[0]

  return one


def _references(loss_fn, client_tx, clip_norm, params, batches):
  """`Python loop` and `one vmap`: functions of nothing, and MiB of memory.

  Args:
    loss_fn, client_tx, clip_norm: of the clients' training.
    params: of the server.
    batches: leaves `[clients, local_steps, batch, ...]`.
  """
  train = _training(loss_fn, client_tx, clip_norm)

  def add_one(params, batch, total):
    return jax.tree.map(jnp.add, total, train(params, batch))

  def all_at_once(params, batches):
    updates = jax.vmap(train, in_axes=(None, 0))(params, batches)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), updates)

  num = len(jax.tree.leaves(batches)[0])
  rows = [jax.tree.map(lambda x, i=i: x[i], batches) for i in range(num)]
  zeros = jax.tree.map(jnp.zeros_like, params)
  one = jax.jit(add_one).lower(params, rows[0], zeros).compile()
  every = jax.jit(all_at_once).lower(params, batches).compile()

  def loop():
    total = zeros
    for row in rows:
      total = one(params, row, total)
    return total

  programs = {"Python loop": loop, "one vmap": lambda: every(params, batches)}
  return programs, {
    "Python loop": _temporary(one),
    "one vmap": _temporary(every),
  }


def _temporary(compiled) -> float:
  """MiB that a program takes besides arguments and results."""
  return compiled.memory_analysis().temp_size_in_bytes / 2**20


def clients(
  preset: str, *, num: int, num_clients: int, length: int = 16
) -> list[dict[str, Any]]:
  """A row for each chunk size, for one vmap, and for the loop (reference)."""
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
  batches = {"tokens": tokens, "mask": cohort["mask"]}
  programs, sizes = _references(loss_fn, client_tx, 1.0, params, batches)
  for size in (1, 4, 16):
    step = dp_ftrl.make_step(
      loss_fn, tx, client_tx=client_tx, clip=clip, clients_per_chunk=size
    )
    state = dp_ftrl.init_state(params, tx, clip=clip, key=jax.random.key(SEED))
    compiled = jax.jit(step).lower(state, cohort).compile()
    name = f"chunks of {size}"
    programs[name] = lambda compiled=compiled, state=state: (
      compiled(state, cohort)[0].params
    )
    sizes[name] = _temporary(compiled)
  seconds = timing.rounds(programs, num=num, rng=np.random.default_rng(SEED))
  return [
    {
      "part": f"{num_clients} clients",
      "setting": name,
      **timing.summary(seconds, name, reference="Python loop"),
      "mib": sizes[name],
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
        "of 8 sentences, MiB besides arguments and results. Medians of "
        f"{args.rounds} rounds, ratios within rounds."
      ),
    )
  print(tables.render(rows, COLUMNS))


if __name__ == "__main__":
  main(sys.argv[1:])
