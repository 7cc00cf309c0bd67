"""Time of a student's training step, against as much arithmetic and by setting.

  python -m experiments.spl.bench_step --results FILE.json

Programs take turns in rounds:

  step             a student of `--variant`, gates on
  no gates         the same without self-gating
  groups           batch norm over groups of a quarter of the batch
  computed again   blocks computed again in the backward pass
  floor            matrix products of 512 with as many operations as `step`
  [1,3,3], ...     gradient of one convolution of stage 0, folded into two
                   dimensions as `nn.resnet_3d` has it
  [1,3,3] plain    the same by the compiler's convolution of three
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import benches, commands, stages, timing
from experiments.spl import phases
from experiments.spl.configs import weak
from locojax.core import checks, trees
from locojax.nn import resnet_3d
from locojax.report import tables
from locojax.train import flops

SEED, SIDE = 0, 512
COLUMNS = {
  "program": "program",
  "ms": "ms",
  "ratio": "of the step",
  "ratio_low": "low",
  "ratio_high": "high",
  "gflop": "Gflop",
  "parameters": "parameters",
}
Program = Callable[[], Any]


def _config(variant: str, **model: Any):
  config = weak.get_config(variant).copy_and_resolve_references()
  with config.unlocked():
    config.needs_data = False
    config.model.update(model)
  return stages.changed(config, stage="pretrain", method="spl_b")


def _student(config) -> tuple[Program, dict[str, Any]]:
  """A step on one batch, its state carried along; operations, parameters."""
  made = phases.student_shape(config, config.method)
  rng = np.random.default_rng(SEED)
  batch = {
    name: rng.integers(0, 2, s.shape).astype(s.dtype)
    for name, s in made.batch_shapes.items()
  }
  batch["clip"] = rng.integers(0, 256, batch["clip"].shape, np.uint8)
  batch = jax.device_put(batch)
  held = [jax.jit(made.init)(jax.random.key(SEED))]
  told = {
    "gflop": flops.count_flops(made.step, held[0], batch) / 1e9,
    "parameters": trees.num_params(held[0].params),
  }
  step = jax.jit(made.step, donate_argnums=0)

  def run():
    held[0], metrics = step(held[0], batch)
    return metrics

  return run, told


def _floor(gflop: float) -> tuple[Program, dict[str, Any]]:
  """Products of square matrices with as many operations."""
  num = max(1, round(gflop * 1e9 / (2 * SIDE**3)))
  x = jnp.eye(SIDE) * 0.5

  @jax.jit
  def products(x):
    return jax.lax.fori_loop(0, num, lambda _, y: y @ x, x)

  return lambda: products(x), {"gflop": num * 2 * SIDE**3 / 1e9}


def _convolution(x, size, *, folded: bool) -> tuple[Program, dict[str, Any]]:
  """The gradient of one convolution, of its input and its kernel."""
  kernel = jnp.ones((*size, x.shape[-1], x.shape[-1]), x.dtype)

  def total(x, kernel):
    if folded:
      return jnp.sum(jnp.sin(resnet_3d.conv_3d(x, kernel)))
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    y = jax.lax.conv_general_dilated(
      x, kernel, (1, 1, 1), "SAME", dimension_numbers=numbers
    )
    return jnp.sum(jnp.sin(y))

  grad = jax.grad(total, argnums=(0, 1))
  told = {"gflop": flops.count_flops(grad, x, kernel) / 1e9}
  run = jax.jit(grad)
  return lambda: run(x, kernel), told


def programs(variant: str) -> dict[str, tuple[Program, dict[str, Any]]]:
  """All programs by name, with what is counted of each."""
  config = _config(variant)
  out = {"step": _student(config)}
  quarter = config.batch_size // 4
  for name, model in (
    ("no gates", {"self_gating": False}),
    ("groups", {"bn_group_size": quarter}),
    ("computed again", {"remat": True}),
  ):
    out[name] = _student(_config(variant, **model))
  out["floor"] = _floor(out["step"][1]["gflop"])
  data, model = config.data, config.model
  stem = model.stem_spatial[1] * model.stem_spatial[2]
  frames = data.num_frames // (model.stem_temporal[1] * model.stem_temporal[2])
  side = data.size // stem
  shape = (config.batch_size, frames, side, side, model.width)
  x = jax.random.normal(jax.random.key(SEED), shape)
  for size in ((1, 3, 3), (3, 1, 1)):
    name = f"[{','.join(map(str, size))}]"
    out[name] = _convolution(x, size, folded=True)
    out[f"{name} plain"] = _convolution(x, size, folded=False)
  return out


def measure(variant: str, *, num: int, calls: int) -> list[dict[str, Any]]:
  """A row for each program."""
  found = programs(variant)
  seconds = timing.rounds(
    {name: run for name, (run, _) in found.items()},
    num=num,
    calls=calls,
    rng=np.random.default_rng(SEED),
  )
  return [
    {
      "program": name,
      **timing.summary(seconds, name, reference="step"),
      **told,
    }
    for name, (_, told) in found.items()
  ]


def main(argv: list[str]) -> None:
  """Measures, prints the table and writes the result file."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", help="result file to write")
  parser.add_argument("--variant", default="cpu")
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--calls", type=int, default=2)
  args, start = parser.parse_args(argv), time.perf_counter()
  checks.one_of("variant", args.variant, ("tiny", "cpu", "folder", "gpu"))
  rows = measure(args.variant, num=args.rounds, calls=args.calls)
  if args.results:
    benches.save(
      args.results,
      "experiments.spl.bench_step",
      argv,
      rows,
      start=start,
      seeds=[SEED],
      device=timing.device_name(),
      notes=(
        f"Steps of variant {args.variant!r}; medians of {args.rounds} rounds "
        f"of {args.calls} calls; a ratio is the median of those within rounds."
      ),
    )
  print(tables.render(rows, COLUMNS))


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
