"""Time and memory of activations, forward and backward, against ReLU.

  python -m experiments.smelu.bench_activations --results FILE.json

Two programs are timed, forward and backward: `layer`, Dense + activation with
the gradients of kernel, bias and input; and `bare`, the activation alone.
Rounds are interleaved: each visits all activations, in an order of its own,
and times a few calls of each. A ratio is the median over the rounds of the time
over that of ReLU in the same round, so that a slow moment of the machine
cancels.

Memory is measured on a stack of Dense + activation layers: what the backward
function of `jax.vjp` holds besides parameters and input, in bytes for each
activation of the stack (4 are the input of the next layer, in float32), and the
temporary bytes of the compiled gradient.
"""

from __future__ import annotations

import argparse
import functools
import math
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import commands, timing
from locojax.core import checks
from locojax.methods.smelu import activations
from locojax.report import results, tables

Activation = Callable[[jax.Array], jax.Array]
SEED = 0
LAYERS = 6
ACTIVATIONS: dict[str, Activation] = {
  "relu": jax.nn.relu,
  "smelu": activations.smelu,
  "gsmelu": activations.get_activation("gsmelu"),
  "rescu_triangle": activations.get_activation("rescu_triangle"),
  "swish": activations.swish,
  "gelu": activations.gelu,
  "gelu_tanh": activations.get_activation("gelu_tanh"),
  "softplus": activations.softplus,
  "mish": activations.mish,
  "jax.nn.swish": jax.nn.swish,
  "jax.nn.gelu": functools.partial(jax.nn.gelu, approximate=False),
  "jax.nn.gelu (tanh)": jax.nn.gelu,
  "jax.nn.softplus": jax.nn.softplus,
}


def _layer(activation: Activation):
  """Dense + activation and its gradients, as (params, x, cotangent) -> ..."""

  def forward(params, x):
    kernel, bias = params
    return activation(x @ kernel + bias)

  def both(params, x, cotangent):
    y, backward = jax.vjp(forward, params, x)
    return y, backward(cotangent)

  return both


def _bare(activation: Activation):
  def both(params, x, cotangent):
    y, backward = jax.vjp(activation, x)
    return y, backward(cotangent)

  return both


def _stack(activation: Activation):
  """The sum of the output of a stack of layers, `[layers, size, size]`."""

  def loss(kernels, x):
    for kernel in kernels:
      x = activation(x @ kernel)
    return jnp.sum(x)

  return loss


def _inputs(batch: int, size: int, dtype):
  """Parameters, input and cotangent; normal, as after initialisation."""
  keys = jax.random.split(jax.random.key(SEED), 3)
  kernel = jax.random.normal(keys[0], (size, size), dtype) / math.sqrt(size)
  x = jax.random.normal(keys[1], (batch, size), dtype)
  cotangent = jax.random.normal(keys[2], (batch, size), dtype)
  return (kernel, jnp.zeros((size,), dtype)), x, cotangent


def rounds(build, args, *, num: int, calls: int) -> timing.Seconds:
  """Seconds a call of each activation in each round, after one warm-up."""
  compiled = {
    name: jax.jit(build(fn)).lower(*args).compile()
    for name, fn in ACTIVATIONS.items()
  }
  programs = {k: functools.partial(run, *args) for k, run in compiled.items()}
  rng = np.random.default_rng(SEED)
  return timing.rounds(programs, num=num, calls=calls, rng=rng)


def held_bytes(activation: Activation, batch: int, size: int, dtype) -> float:
  """Bytes an activation that the backward function of a stack holds."""
  kernels, x = _stack_inputs(batch, size, dtype)
  given = {a.unsafe_buffer_pointer() for a in (*kernels, x)}
  _, backward = jax.vjp(_stack(activation), kernels, x)
  arrays = [a for a in jax.tree.leaves(backward) if isinstance(a, jax.Array)]
  held = {a.unsafe_buffer_pointer(): a.nbytes for a in arrays}
  kept = sum(n for pointer, n in held.items() if pointer not in given)
  return kept / (LAYERS * batch * size)


def _stack_inputs(batch: int, size: int, dtype):
  (kernel, _), x, _ = _inputs(batch, size, dtype)
  # Copies, so that each layer has a buffer of its own.
  return tuple(kernel + 0 for _ in range(LAYERS)), x


def temporary_bytes(activation: Activation, batch: int, size: int, dtype):
  """Temporary bytes of the compiled gradient of a stack; None if not known."""
  args = _stack_inputs(batch, size, dtype)
  compiled = jax.jit(jax.grad(_stack(activation))).lower(*args).compile()
  analysis = compiled.memory_analysis()
  return None if analysis is None else analysis.temp_size_in_bytes


def _times(prefix: str, seconds: timing.Seconds, name: str):
  """Median and least time, and the ratio to ReLU with its quartiles."""
  found = timing.summary(seconds, name, reference="relu")
  return {f"{prefix}_{k}": value for k, value in found.items()}


def measure(
  *, batch: int, size: int, num: int, calls: int, dtype=jnp.float32
) -> list[dict[str, Any]]:
  """One row for each activation.

  Args:
    batch, size: of the layer; the bare activation has `[batch, size]`.
    num: rounds.
    calls: calls timed in a round; the bare activation has 8 times as many.
    dtype: of everything.

  Returns:
    Rows with times in milliseconds, ratios to ReLU and bytes.
  """
  for name, value in dict(batch=batch, size=size, num=num, calls=calls).items():
    checks.positive_int(name, value)
  args = _inputs(batch, size, dtype)
  layer = rounds(_layer, args, num=num, calls=calls)
  bare = rounds(_bare, args, num=num, calls=8 * calls)
  rows = []
  for name, fn in ACTIVATIONS.items():
    row = {"activation": name, "dtype": jnp.dtype(dtype).name}
    row |= _times("layer", layer, name) | _times("bare", bare, name)
    row["held_bytes"] = held_bytes(fn, batch, size, dtype)
    temporary = temporary_bytes(fn, batch, size, dtype)
    row["temporary_mib"] = temporary / 2**20 if temporary is not None else None
    rows.append(row)
  return rows


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", required=True, help="result file to write")
  parser.add_argument("--batch", type=int, default=1024)
  parser.add_argument("--size", type=int, default=1024)
  parser.add_argument("--rounds", type=int, default=30)
  parser.add_argument("--calls", type=int, default=2)
  parser.add_argument(
    "--dtype", default="float32", choices=("float32", "bfloat16", "float16")
  )
  return parser


def main(argv: list[str]) -> None:
  """Measures, prints the table and writes the result file."""
  args, start = _parser().parse_args(argv), time.perf_counter()
  rows = measure(
    batch=args.batch,
    size=args.size,
    num=args.rounds,
    calls=args.calls,
    dtype=jnp.dtype(args.dtype),
  )
  command = ["python", "-m", "experiments.smelu.bench_activations", *argv]
  results.save(
    args.results,
    command=shlex.join(command),
    seeds=[SEED],
    rows=rows,
    time_seconds=time.perf_counter() - start,
    device=timing.device_name(),
    notes=(
      f"Dense({args.size}) + activation on a batch of {args.batch}; forward "
      f"and backward. Medians of {args.rounds} interleaved rounds; a ratio is "
      "the median of the ratios to ReLU within a round, with quartiles. "
      f"held_bytes: of a stack of {LAYERS} layers, for each activation."
    ),
  )
  columns = [c for c in rows[0] if not c.endswith(("least_ms", "low", "high"))]
  print(tables.render(rows, columns))


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
