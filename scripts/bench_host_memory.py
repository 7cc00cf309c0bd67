"""What it costs to give memory back to the system after every step, on CPU.

  python -m scripts.bench_host_memory \\
    --results results/core/host_memory_cpu.json

Each config's step, without data, in two processes that take turns: one keeps
what it frees (`locojax.core.host_memory`), as all programs of this project do
where there is no accelerator, the other leaves the C library as it is. Also
minor faults of a step, which are pages taken anew, and how much memory either
process needed at most.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import benches, commands, launch, peers, timing
from locojax.core import checks, host_memory
from scripts import check_paper

WAYS = ("kept", "returned")
CONFIGS = (
  "experiments/locoprop/configs/autoencoder.py:cpu",
  "experiments/ciw/configs/noise.py:cpu",
  "experiments/limoe/configs/pairs.py:cpu",
  "experiments/l2p/configs/streams.py:mnist",
  "experiments/pix2seq/configs/detection.py:cpu",
  "experiments/completion/configs/models.py:cpu",
  "experiments/minerva/configs/reasoning.py:cpu",
  "experiments/spl/configs/weak.py:cpu",
)
SEED = 0
_MIB = 2**10  # of what `getrusage` tells on Linux


def step_of(text: str) -> Callable[[], None]:
  """A function that takes a step of a config's experiment, and waits for it."""
  config = check_paper.load(text)
  with config.unlocked():
    config.needs_data = False
    if config.get("data", {}).get("num_classes", 1) == 0:  # those of the data
      config.data.num_classes = 4
  made = launch.module_of(config).build(config)
  state = jax.jit(made.init)(jax.random.key(SEED))
  batch = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), dict(made.batch_shapes)
  )
  step = jax.jit(made.step, donate_argnums=0)

  def take():
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready((state.params, metrics))

  return take


def take_steps(text: str, num: int) -> None:
  """The process of one way, which does as `peers.Stepper` asks."""
  take = step_of(text)
  for _ in range(3):
    take()
  begin = resource.getrusage(resource.RUSAGE_SELF)
  for _ in range(num):
    take()
  end = resource.getrusage(resource.RUSAGE_SELF)
  told = {
    "faults": (end.ru_minflt - begin.ru_minflt) / num,
    "peak_mib": end.ru_maxrss / _MIB,
  }
  print(json.dumps(told), flush=True)
  for _ in sys.stdin:
    for _ in range(num):
      take()
    print("{}", flush=True)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
  """Two rows for each config."""
  rng, rows = np.random.default_rng(SEED), []
  for text in args.config:
    command = [sys.executable, "-m", "scripts.bench_host_memory", "--step"]
    line = [*command, text, f"--steps={args.steps}"]
    with contextlib.ExitStack() as stack:
      steps = {
        way: stack.enter_context(
          peers.stepper(line, {host_memory.VARIABLE: str(int(way == "kept"))})
        )
        for way in WAYS
      }
      seconds = timing.rounds(steps, num=args.rounds, rng=rng)
    for way in WAYS:
      found = timing.summary(seconds, way, reference="returned")
      for name in ("ms", "least_ms"):
        found[name] /= args.steps
      told = steps[way].told
      rows.append({"config": _short(text), "memory": way, **found, **told})
      print(json.dumps(rows[-1]), flush=True)
  return rows


def _short(text: str) -> str:
  """System, file and variant."""
  _, system, _, file = text.split("/")
  return f"{system} {file.replace('.py', '')}"


def main(argv: Sequence[str]) -> int:
  """Measures; the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  parser.add_argument("--results", help="Of the table, as JSON.")
  parser.add_argument("--config", nargs="+", default=CONFIGS)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--steps", type=int, default=5, help="Of a visit.")
  parser.add_argument("--step", help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  if args.step:
    take_steps(args.step, args.steps)
    return 0
  if not args.results:
    return commands.refuse("--results is missing: where the table is written.")

  def work() -> None:
    checks.positive_int("--rounds", args.rounds)
    checks.positive_int("--steps", args.steps)
    start = time.perf_counter()
    benches.save(
      args.results,
      "scripts.bench_host_memory",
      argv,
      measure(args),
      start=start,
      seeds=(SEED,),
      notes=(
        f"{timing.num_cores()} cores. ratio: median, with quartiles, of those "
        f"to 'returned' within {args.rounds} interleaved rounds of "
        f"{args.steps} steps. faults: pages taken anew in a step. peak_mib: "
        "of the process, compilation included."
      ),
    )

  return commands.run(work)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
