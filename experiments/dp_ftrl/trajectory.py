"""The figure of the blog: noisy paths around the path of the true gradient.

  python -m experiments.dp_ftrl.trajectory --workdir runs/dp_trajectory \\
    --results FILE.json

Two parameters, T steps with the true gradient (1, 0), all mechanisms at equal
rho: independent noise has variance 1 a step. A step of DP-FTRL is off by more,
but errors cancel along the path. Left: paths of one seed. Middle and right:
mean squared errors of steps and of prefix sums over all seeds, with the theory
as lines. The result file holds both.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import timing
from locojax.core import checks
from locojax.methods import dp_ftrl
from locojax.methods.dp_ftrl import matrix, noise, tree
from locojax.report import curves, figures, results, tables

DIMENSION = 2
METHODS = ("independent", "tree_basic", "tree_honaker", "sqrt_toeplitz")
NAMES = {
  "independent": "DP-SGD",
  "tree_basic": "DP-FTRL, basic tree",
  "tree_honaker": "DP-FTRL, Honaker",
  "sqrt_toeplitz": "sqrt-Toeplitz",
}


def sensitivity(method: str, num_steps: int) -> float:
  """zeta^2 for one participation."""
  if method.startswith("tree_"):
    return dp_ftrl.tree_squared_sensitivity(num_steps, 1, 1)
  c = np.eye(1, num_steps)[0]
  if method == "sqrt_toeplitz":
    c = matrix.sqrt_coefficients(num_steps)
  return dp_ftrl.toeplitz_squared_sensitivity(
    c, num_rounds=num_steps, max_participations=1, min_sep=1
  )


def factor(method: str, num_steps: int) -> np.ndarray:
  """`[T, noises]`: the noise of each prefix sum at unit node noise."""
  if method == "independent":
    return np.tril(np.ones((num_steps, num_steps)))
  if method == "sqrt_toeplitz":
    c = matrix.toeplitz_matrix(matrix.sqrt_coefficients(num_steps), num_steps)
    return np.cumsum(np.linalg.inv(c), axis=0)
  levels = tree.num_levels(num_steps)
  nodes = [(k, i) for k in range(levels) for i in range(num_steps >> k)]
  place = np.zeros((levels, num_steps), int)
  for n, node in enumerate(nodes):
    place[node] = n
  at = jnp.asarray(place)
  draw = lambda level, index: jax.nn.one_hot(at[level, index], len(nodes))
  estimator = method.removeprefix("tree_")

  def step(buffers, t):
    buffers, _ = tree.advance(buffers, t, draw, estimator)
    return buffers, tree.prefix(buffers, t + 1, estimator)

  first = jnp.zeros((levels, len(nodes)))
  _, rows = jax.lax.scan(step, first, jnp.arange(num_steps))
  return np.asarray(rows, np.float64)


def theory(method: str, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
  """Variances of steps and of prefix sums in units of DP-SGD's, `[T]` each."""
  rows = factor(method, num_steps)
  ratio = sensitivity(method, num_steps) / sensitivity("independent", num_steps)
  steps = np.diff(rows, axis=0, prepend=0.0)
  return ratio * (steps**2).sum(axis=1), ratio * (rows**2).sum(axis=1)


def sample(
  method: str, num_steps: int, num_seeds: int, seed: int
) -> np.ndarray:
  """Noise that the optax transformation adds, `[seeds, T, 2]`."""
  z = np.sqrt(sensitivity(method, num_steps))

  def one(key):
    shared = {"key": key, "max_rounds": num_steps}
    if method.startswith("tree_"):
      estimator = method.removeprefix("tree_")
      tx = noise.add_tree_noise(z, 1.0, estimator=estimator, **shared)
    else:
      strategy = matrix.identity()
      if method == "sqrt_toeplitz":
        strategy = matrix.sqrt_toeplitz(num_steps)
      tx = noise.add_matrix_noise(strategy, z, 1.0, **shared)
    zero = jnp.zeros(DIMENSION)

    def step(state, _):
      updates, state = tx.update(zero, state)
      return state, updates

    return jax.lax.scan(step, tx.init(zero), None, length=num_steps)[1]

  keys = jax.random.split(jax.random.key(checks.seed("seed", seed)), num_seeds)
  return np.asarray(jax.jit(jax.vmap(one))(keys))


def measure(num_steps: int, num_seeds: int, seed: int) -> dict[str, Any]:
  """By method: noise, and mean squared errors measured and in theory."""
  out = {}
  for method in METHODS:
    found = sample(method, num_steps, num_seeds, seed)
    sums = np.cumsum(found, axis=1)
    out[method] = {
      "noise": found,
      "step": (found**2).mean(axis=(0, 2)),
      "prefix": (sums**2).mean(axis=(0, 2)),
      "theory": theory(method, num_steps),
    }
  return out


def rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
  """A row for each method: mean over steps, and the last step."""
  out = []
  for method, values in found.items():
    step, prefix = values["theory"]
    out.append(
      {
        "method": NAMES[method],
        "step_mse": float(values["step"].mean()),
        "step_theory": float(step.mean()),
        "prefix_mse": float(values["prefix"].mean()),
        "prefix_theory": float(prefix.mean()),
        "final_mse": float(values["prefix"][-1]),
        "final_theory": float(prefix[-1]),
      }
    )
  return out


def draw(found: Mapping[str, Any], path: pathlib.Path) -> pathlib.Path:
  """The three panels."""
  figure, grid = figures.axes(3, width=4.6, height=3.9)
  paths, steps, sums = grid[0]
  num = len(next(iter(found.values()))["step"])
  truth = np.stack([np.arange(num + 1), np.zeros(num + 1)], axis=1)
  paths.plot(*truth.T, color="#888888", lw=2, label="true gradient")
  for i, (method, values) in enumerate(found.items()):
    colour = curves.COLOURS[i]
    noisy = np.vstack([np.zeros(2), np.cumsum(values["noise"][0], axis=0)])
    paths.plot(*(truth + noisy).T, color=colour, lw=1.1, label=NAMES[method])
    x = np.arange(1, num + 1)
    for ax, key, line in zip(
      (steps, sums), ("step", "prefix"), values["theory"]
    ):
      ax.plot(x, values[key], ".", color=colour, ms=3, label=NAMES[method])
      ax.plot(x, line, color=colour, lw=0.8, alpha=0.7)
  paths.set(
    title="one seed", xlabel="first parameter", ylabel="second parameter"
  )
  steps.set(title="error of a step", xlabel="step", ylabel="mean squared error")
  sums.set(title="error of the prefix sum", xlabel="step", yscale="log")
  steps.set_yscale("log")
  for ax in (paths, steps, sums):
    figures.plain(ax)
  paths.legend(frameon=False, fontsize=8)
  return figures.save(figure, path)


def main(argv: list[str]) -> None:
  """Measures, draws, prints the table, and writes the result file."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--steps", type=int, default=64)
  parser.add_argument("--seeds", type=int, default=1000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--results", help="result file to write")
  args, start = parser.parse_args(argv), time.perf_counter()
  checks.positive_int("steps", args.steps)
  checks.positive_int("seeds", args.seeds)
  found = measure(args.steps, args.seeds, args.seed)
  path = draw(found, args.workdir / "trajectory.png")
  made = rows(found)
  if args.results:
    results.save(
      args.results,
      command="python -m experiments.dp_ftrl.trajectory " + shlex.join(argv),
      seeds=[args.seed],
      rows=made,
      time_seconds=time.perf_counter() - start,
      device=timing.device_name(),
      notes=(
        f"{args.steps} steps, {args.seeds} keys; errors in each coordinate in "
        "units of the variance of a step of DP-SGD at the same rho."
      ),
    )
  print(f"{tables.render(made, list(made[0]))}\n\n{path}")


if __name__ == "__main__":
  main(sys.argv[1:])
