"""Replicas by vmap against one by one: how many are trained in a second.

  python -m experiments.smelu.bench_replicas \\
    --results results/smelu/replicas_cpu.json

A small MLP on random features. Each way trains the same replicas for the same
number of steps; the ways take turns, and the median over rounds counts. Only
steps are timed: batches lie on the device, compilation comes before.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from experiments.common import commands, timing
from locojax.core import checks
from locojax.data import pipeline
from locojax.nn import mlp
from locojax.report import results, tables
from locojax.train import experiment, replicas, steps

NUM_INPUTS = 24
NUM_EXAMPLES = 4096
_COLUMNS = (
  "batch_size",
  "way",
  "replicas_per_second",
  "ratio",
  "seconds_low",
  "seconds_high",
)


def build(
  *, hidden: Sequence[int], batch_size: int, seed: int
) -> tuple[experiment.Experiment, Callable]:
  """The experiment, and its batches as a function of a seed."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(NUM_EXAMPLES, NUM_INPUTS)).astype(np.float32)
  label = (x.sum(axis=1) + rng.normal(size=NUM_EXAMPLES) > 0).astype(np.float32)
  model, tx = mlp.MLP((*hidden, 1)), optax.adagrad(0.05)

  def loss_fn(params, model_state, batch, key):
    logits = model.apply({"params": params}, batch["x"])[:, 0]
    each = optax.sigmoid_binary_cross_entropy(logits, batch["label"])
    return each.mean(), ({}, model_state)

  def batches(seed):
    data = {"x": x, "label": label}
    return pipeline.array_batches(data, batch_size=batch_size, seed=seed)

  made = experiment.Experiment(
    init=lambda key: steps.init_state(
      model.init(key, x[:1])["params"], tx, key=key
    ),
    step=steps.from_loss(loss_fn, tx),
    batches=batches(seed),
    num_steps=1,
    batch_shapes=jax.eval_shape(lambda: next(batches(seed)(0))),
    examples_per_step=batch_size,
  )
  return made, batches


def _runner(made: experiment.Experiment, key, num_steps: int):
  """Trains the experiment for some steps; compiled, batches on the device."""
  init = jax.jit(made.init)
  step = jax.jit(made.step, donate_argnums=0)
  data = made.batches(0)
  fed = [jax.device_put(next(data)) for _ in range(num_steps)]

  def run():
    state = init(key)
    for batch in fed:
      state, _ = step(state, batch)
    return state

  return run


def ways(
  *, num_replicas: int, num_steps: int, seed: int, **model
) -> dict[str, Callable[[], Any]]:
  """Each way to train all replicas, compiled and ready to be timed."""
  made, batches = build(seed=seed, **model)
  key = jax.random.key(checks.seed("seed", seed))
  order = {"batches": batches, "order_seed": seed}
  out = {}
  for name, vary, more in (
    ("same batches", {"init"}, {}),
    ("own batches", {"init", "order"}, order),
  ):
    for how in replicas.HOW:
      several = replicas.from_experiment(
        made, num_replicas=num_replicas, vary=vary, how=how, **more
      )
      out[f"{how}, {name}"] = _runner(several, key, num_steps)
    alone = replicas.single(made, replica=0, vary=vary, **more)
    run = _runner(alone, key, num_steps)
    out[f"one by one, {name}"] = lambda run=run: [
      run() for _ in range(num_replicas)
    ]
  return out


def measure(
  timed: dict[str, Callable[[], Any]], *, num_replicas: int, rounds: int
) -> list[dict[str, Any]]:
  """A row for each way; `ratio` is to one by one on the same batches."""
  rng = np.random.default_rng(0)
  seconds = timing.rounds(timed, num=rounds, rng=rng)
  rows = []
  for name, values in seconds.items():
    reference = seconds[f"one by one, {name.split(', ')[1]}"]
    median = statistics.median(values)
    rows.append(
      {
        "way": name,
        "replicas_per_second": num_replicas / median,
        "ratio": statistics.median(reference) / median,
        "seconds_low": min(values),
        "seconds_high": max(values),
      }
    )
  return rows


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
  """Measures, prints the table, and writes the result file if asked."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--num-replicas", type=int, default=8)
  parser.add_argument("--num-steps", type=int, default=100)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 256])
  parser.add_argument("--hidden", type=int, nargs="+", default=[64, 32])
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--results", help="a result file to write")
  args = parser.parse_args(argv)
  checks.positive_int("rounds", args.rounds)
  checks.positive_int("num_steps", args.num_steps)
  started = time.perf_counter()
  rows = []
  for size in args.batch_sizes:
    timed = ways(
      num_replicas=args.num_replicas,
      num_steps=args.num_steps,
      seed=args.seed,
      batch_size=size,
      hidden=args.hidden,
    )
    found = measure(timed, num_replicas=args.num_replicas, rounds=args.rounds)
    rows += [{"batch_size": size, **row} for row in found]
  print(tables.render(rows, _COLUMNS))
  if args.results:
    _save(args, rows, time.perf_counter() - started, argv)
  return rows


def _save(args, rows, seconds, argv) -> None:
  given = sys.argv[1:] if argv is None else list(argv)
  results.save(
    args.results,
    command="python -m experiments.smelu.bench_replicas " + shlex.join(given),
    seeds=[args.seed],
    rows=rows,
    time_seconds=seconds,
    device=timing.device_name(),
    notes=(
      f"{args.num_replicas} replicas of an MLP {NUM_INPUTS}-"
      f"{'-'.join(map(str, args.hidden))}-1, AdaGrad; "
      f"a replica is {args.num_steps} steps; median of {args.rounds} rounds, "
      "all ways in turn."
    ),
  )


if __name__ == "__main__":
  sys.exit(commands.run(main))
