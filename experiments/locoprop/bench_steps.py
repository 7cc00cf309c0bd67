"""Time of a training step by setting, as a ratio to Adam's.

  python -m experiments.locoprop.bench_steps --results FILE.json

Settings of the `ablation` variant and the methods of `cpu`, on the autoencoder
and batch of `--variant`. Steps take turns in rounds. `floor` is the ratio of
arithmetic (6 + 4 T) / 6 of T plain local iterations to a first-order step.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from typing import Any

import jax
import numpy as np

from experiments.common import commands, timing
from experiments.locoprop import experiment
from experiments.locoprop.configs import autoencoder
from locojax.core import checks
from locojax.report import results, tables

SEED = 0
REFERENCE = "adam"
COLUMNS = ("setting", "ms", "ratio", "ratio_low", "ratio_high", "floor")
CHOSEN = (
  "adam",
  "rmsprop",
  "muon",
  "shampoo",
  "soap",
  "T=1_lr=1e-03",
  "T=2_lr=1e-03",
  "T=5_lr=1e-03",
  "T=10_lr=1e-03",
  "T=20_lr=1e-03",
  "rows=250",
  "rows=125",
  "rows=62",
  "rows=31",
  "stacked",
  "gauss_seidel_10%_lr=2e-04",
  "s_gram",
  "s_no_gram",
  "s_exact",
)


def _config(variant: str):
  """The variant, with the settings of the ablation beside its own."""
  config = autoencoder.get_config(variant).copy_and_resolve_references()
  ablation = autoencoder.get_config("ablation").optimizers.to_dict()
  base = ablation["T=5_lr=1e-03"]
  with config.unlocked():
    for name, options in ablation.items():
      config.optimizers[name] = options
    config.optimizers["stacked"] = {**base, "stack_equal_shapes": True}
  return config


def _program(config, method: str):
  """A step on one batch, its state carried from call to call."""
  with config.unlocked():
    config.method = method
  made = experiment.build(config)
  step = jax.jit(made.step, donate_argnums=0)
  batch = jax.device_put(next(made.batches(0)))
  held = [jax.jit(made.init)(jax.random.key(SEED))]

  def run():
    held[0], metrics = step(held[0], batch)
    return metrics

  return run


def _floor(options) -> float | None:
  if options["kind"] != "locoprop" or options.get("solver") == "exact":
    return None
  return (6 + 4 * options["num_local_iters"]) / 6


def measure(variant: str, *, num: int, calls: int) -> list[dict[str, Any]]:
  """A row for each of `CHOSEN`."""
  config = _config(variant)
  options = config.optimizers.to_dict()
  programs = {name: _program(config, name) for name in CHOSEN}
  seconds = timing.rounds(
    programs, num=num, calls=calls, rng=np.random.default_rng(SEED)
  )
  return [
    {
      "setting": name,
      **timing.summary(seconds, name, reference=REFERENCE),
      "floor": _floor(options[name]),
    }
    for name in CHOSEN
  ]


def main(argv: list[str]) -> None:
  """Measures, prints the table and writes the result file."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", help="result file to write")
  parser.add_argument("--variant", default="cpu")
  parser.add_argument("--rounds", type=int, default=25)
  parser.add_argument("--calls", type=int, default=10)
  args, start = parser.parse_args(argv), time.perf_counter()
  checks.one_of("variant", args.variant, autoencoder.VARIANTS)
  rows = measure(args.variant, num=args.rounds, calls=args.calls)
  if args.results:
    results.save(
      args.results,
      command="python -m experiments.locoprop.bench_steps " + shlex.join(argv),
      seeds=[SEED],
      rows=rows,
      time_seconds=time.perf_counter() - start,
      device=timing.device_name(),
      notes=(
        f"Steps of variant {args.variant!r}; medians of {args.rounds} rounds "
        f"of {args.calls} steps; a ratio is the median of those within rounds."
      ),
    )
  print(tables.render(rows, COLUMNS))


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
