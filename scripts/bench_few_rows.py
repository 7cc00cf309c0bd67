"""Time of products of a few rows in a loop, as written and by `few_rows`.

  python -m scripts.bench_few_rows --results results/nn/few_rows_cpu.json

A loop of layers of two matrices each, float32, as a step of generation has
them; together they are larger than the caches. A ratio is to the products as
written (`x @ kernel`), for the same number of rows, which take their turn in
the same rounds. The transposition before the loop is counted.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.common import benches, commands, timing
from locojax.core import checks
from locojax.nn import few_rows

SEED = 0
WAYS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  "few_rows": few_rows.product,
  "as written": jnp.matmul,
}


def made(args: argparse.Namespace) -> list[tuple[jax.Array, jax.Array]]:
  """Matrices `[width, 4 width]` and back, of all layers."""
  keys = jax.random.split(jax.random.key(SEED), 2 * args.layers)
  up, down = (args.width, 4 * args.width), (4 * args.width, args.width)
  draw = jax.nn.initializers.lecun_normal()
  return [
    (draw(a, up, jnp.float32), draw(b, down, jnp.float32))
    for a, b in zip(keys[::2], keys[1::2], strict=True)
  ]


def _loop(product: Callable[..., jax.Array], num: int) -> Callable[..., Any]:
  """Compiled: x through all layers, `num` times."""

  def whole(x, layers):
    def turn(_, x):
      for up, down in layers:
        x = jnp.tanh(product(jnp.tanh(product(x, up)), down))
      return x

    return lax.fori_loop(0, num, turn, x)

  return jax.jit(whole)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
  """A row for each number of rows and each way."""
  layers, rng = made(args), np.random.default_rng(SEED)
  out = []
  for num in args.rows:
    x = jax.random.normal(jax.random.key(SEED + 1), (num, args.width))
    programs = {
      name: functools.partial(_loop(product, args.steps), x, layers)
      for name, product in WAYS.items()
    }
    seconds = timing.rounds(programs, num=args.rounds, rng=rng)
    size = sum(k.nbytes for layer in layers for k in layer) * args.steps
    for name in programs:
      told = timing.summary(seconds, name, reference="as written")
      speed = size / 1e6 / told["ms"]
      out.append({"rows": num, "way": name, **told, "gb_per_second": speed})
  return out


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", required=True, help="result file to write")
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--layers", type=int, default=12)
  parser.add_argument("--steps", type=int, default=100)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument(
    "--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64]
  )
  return parser


def main(argv: Sequence[str]) -> None:
  """Measures and writes the result file."""
  args, start = _parser().parse_args(argv), time.perf_counter()
  for name in ("width", "layers", "steps", "rounds"):
    checks.positive_int(name, getattr(args, name))
  for num in args.rows:
    checks.positive_int("rows", num)
  benches.save(
    args.results,
    "scripts.bench_few_rows",
    argv,
    measure(args),
    start=start,
    device=timing.device_name(),
    seeds=[SEED],
    notes=(
      f"{args.steps} steps of {args.layers} layers of {args.width}/"
      f"{4 * args.width}, float32. ratio: median, with quartiles, of those to "
      f"'as written' within {args.rounds} interleaved rounds. gb_per_second: "
      "of matrices read."
    ),
  )


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
