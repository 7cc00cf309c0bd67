"""Memory of a training step by the kernel of its attention, for a TPU.

  python -m scripts.bench_attention --results results/nn/attention_memory.json

A ViT at a high resolution is compiled ahead of time by libtpu, without a TPU,
once for each of `attention.KERNELS` and each way to compute blocks again. A
ratio is to the kernel `full` with the same `remat`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.common import benches, commands
from locojax.core import checks
from locojax.nn import attention, vit
from locojax.train import check, experiment, sharding, steps, topology

SEED = 0
TARGET = 0.5  # of the peak, at most
REMATS = ("none", "dots")
_GIB = 2**30


def made(args: argparse.Namespace, kernel: str, remat: str):
  """The step, without data."""
  net = vit.ViT(
    **vit.preset(args.preset),
    image_size=args.image_size,
    scan=True,
    remat=remat,
    dtype=jnp.bfloat16,
    kernel=kernel,
  )
  shape = (args.batch, args.image_size, args.image_size, 3)
  tx = optax.adam(1e-3)

  def loss_fn(params, model_state, batch, key):
    del key
    found = net.apply({"params": params}, batch["image"])
    return jnp.mean(jnp.square(found.astype(jnp.float32))), ({}, model_state)

  def init(key):
    image = jnp.zeros((1, *shape[1:]), jnp.bfloat16)
    return steps.init_state(net.init(key, image)["params"], tx, key=key)

  return experiment.Experiment(
    init=init,
    step=steps.from_loss(loss_fn, tx),
    batches=lambda start: iter(()),
    num_steps=1,
    batch_shapes={"image": jax.ShapeDtypeStruct(shape, jnp.bfloat16)},
    examples_per_step=args.batch,
  )


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
  """A row for each way to compute again and each kernel."""
  devices = topology.describe(args.where).devices
  mesh = sharding.make_mesh({"data": 1}, devices[:1])
  rows: list[dict[str, Any]] = []
  for remat in args.remat:
    for kernel in attention.KERNELS:
      begin = time.perf_counter()
      plan = check.compile_step(made(args, kernel, remat), mesh)
      took = time.perf_counter() - begin
      memory = plan.memory_analysis()
      rows.append(
        {
          "kernel": kernel,
          "remat": remat,
          "temporary_gib": memory.temp_size_in_bytes / _GIB,
          "peak_gib": memory.peak_memory_in_bytes / _GIB,
          "compile_seconds": took,
        }
      )
      full = next(r for r in rows if r["remat"] == remat)
      rows[-1]["ratio"] = rows[-1]["peak_gib"] / full["peak_gib"]
      rows[-1]["target"] = None if kernel == "full" else TARGET
  return rows


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", required=True, help="result file to write")
  parser.add_argument("--preset", default="L/16")
  parser.add_argument("--image-size", type=int, default=1024)
  parser.add_argument("--batch", type=int, default=1)
  parser.add_argument("--where", default="v5p:2x2x1", help="a TPU slice")
  parser.add_argument("--remat", nargs="+", default=REMATS)
  return parser


def _work(argv: Sequence[str]) -> None:
  args = _parser().parse_args(argv)
  for name in ("image_size", "batch"):
    checks.positive_int(name, getattr(args, name))
  start = time.perf_counter()
  benches.save(
    args.results,
    "scripts.bench_attention",
    argv,
    measure(args),
    start=start,
    seeds=(),
    notes=(
      f"ViT {args.preset}, {args.image_size} px, batch {args.batch}, bfloat16, "
      f"one scan over the layers; one device of {args.where}, compiled ahead "
      "of time by libtpu, without a TPU. peak: the compiler's account of a "
      "training step; ratio: to the kernel full with the same remat."
    ),
  )


if __name__ == "__main__":
  sys.exit(commands.run(lambda: _work(sys.argv[1:])))
