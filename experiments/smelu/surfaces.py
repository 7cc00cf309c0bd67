"""Figures without training: what smoothness does to a surface.

  python -m experiments.smelu.surfaces --workdir runs/smelu_figures

`surfaces.png`: output of one random network over its two inputs, with ReLU and
with SmeLU of widening transition; `activations.png`: the activations and their
derivatives. `surfaces.json`, a result file, has the roughness of each surface:
number of strict local minima on the grid and mean absolute second difference.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import commands
from locojax.core import checks
from locojax.methods.smelu import activations
from locojax.nn import mlp
from locojax.report import curves, figures, results, tables

SURFACES = ("relu", "smelu:0.5", "smelu:1", "smelu:2", "smelu:8")
ACTIVATIONS = (
  "relu",
  "smelu:0.5",
  "smelu:1",
  "smelu:2",
  "swish:1",
  "softplus:1",
  "gelu:1",
)


def surface(
  activation: str,
  *,
  key: jax.Array,
  hidden: Sequence[int] = (64, 64, 64, 64),
  extent: float = 4.0,
  num_points: int = 161,
) -> np.ndarray:
  """Output of a random network over a square of its two inputs.

  Args:
    activation: a name of `activations.get_activation`.
    key: of the weights, normal with standard deviation sqrt(2 / inputs), and
      of the biases, standard normal.
    hidden: sizes of the hidden layers.
    extent: both inputs go from `-extent` to `extent`.
    num_points: of the grid along each input.

  Returns:
    float32 `[num_points, num_points]`, standardised: mean 0, deviation 1.
  """
  checks.positive("extent", extent)
  checks.positive_int("num_points", num_points)
  model = mlp.MLP(
    (*hidden, 1),
    activation=activations.get_activation(activation),
    kernel_init=jax.nn.initializers.he_normal(),
    bias_init=jax.nn.initializers.normal(1.0),
  )
  line = jnp.linspace(-extent, extent, num_points)
  grid = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), -1)
  variables = model.init(key, jnp.zeros((1, 2)))
  out = np.asarray(jax.jit(model.apply)(variables, grid)[..., 0])
  return (out - out.mean()) / out.std()


def roughness(z: np.ndarray) -> dict[str, float]:
  """Local minima inside the grid, and the mean absolute second difference."""
  inner = z[1:-1, 1:-1]
  lower = np.ones_like(inner, bool)
  for i in (0, 1, 2):
    for j in (0, 1, 2):
      if (i, j) != (1, 1):
        other = z[i : i + inner.shape[0], j : j + inner.shape[1]]
        lower &= inner < other
  second = np.abs(np.diff(z, n=2, axis=0)).mean()
  second += np.abs(np.diff(z, n=2, axis=1)).mean()
  return {
    "local_minima": int(lower.sum()),
    "second_difference": float(second) / 2,
  }


def draw_surfaces(
  path: pathlib.Path, *, key: jax.Array, names: Sequence[str] = SURFACES
) -> dict[str, dict[str, float]]:
  """Draws the surfaces side by side; the roughness of each."""
  figure, grid = figures.axes(
    len(names), width=3.0, height=3.0, subplot_kw={"projection": "3d"}
  )
  line = np.linspace(-1, 1, 161)
  x, y = np.meshgrid(line, line, indexing="ij")
  out = {}
  for ax, name in zip(grid[0], names):
    z = surface(name, key=key)
    out[name] = roughness(z)
    ax.plot_surface(x, y, z, cmap="viridis", rcount=80, ccount=80, lw=0)
    ax.set_title(name.replace("smelu:", "SmeLU β = ").replace("relu", "ReLU"))
    ax.set(xticks=[], yticks=[], zticks=[])
    ax.view_init(elev=35, azim=-60)
  figures.save(figure, path)
  return out


def draw_activations(
  path: pathlib.Path, names: Sequence[str] = ACTIVATIONS
) -> pathlib.Path:
  """Draws the activations and their first derivatives."""
  x = jnp.linspace(-4, 4, 401)
  data = {}
  for name in names:
    f = activations.get_activation(name)
    for i, y in enumerate((f(x), jax.vmap(jax.grad(f))(x))):
      y = np.asarray(y)
      data[name, i] = curves.Curve(np.asarray(x), y, y, y)
  panels = [
    curves.Panel("y", x="x", title="activation"),
    curves.Panel("dy/dx", x="x", title="derivative"),
  ]
  return curves.draw(data, list(names), panels, path)


def main(argv: Sequence[str] | None = None) -> None:
  """Writes both figures and the roughness."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--seed", type=int, default=0)
  args, start = parser.parse_args(argv), time.perf_counter()
  path = args.workdir / "surfaces.png"
  rough = draw_surfaces(
    path, key=jax.random.key(checks.seed("seed", args.seed))
  )
  rows = [{"activation": name, **found} for name, found in rough.items()]
  given = sys.argv[1:] if argv is None else list(argv)
  results.save(
    args.workdir / "surfaces.json",
    command="python -m experiments.smelu.surfaces " + shlex.join(given),
    seeds=[args.seed],
    rows=rows,
    time_seconds=time.perf_counter() - start,
  )
  other = draw_activations(args.workdir / "activations.png")
  print(f"{tables.render(rows, list(rows[0]))}\n\n{path}\n{other}")


if __name__ == "__main__":
  sys.exit(commands.run(main))
