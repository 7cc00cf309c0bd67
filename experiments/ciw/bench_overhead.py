"""Time of a training step with CIW and CICW weights, against cross-entropy.

  python -m experiments.ciw.bench_overhead \\
    --results results/ciw/overhead_cpu.json

All steps train the same PreActResNet with SGD on the same batch. Rounds are
interleaved: each visits all methods, in an order of its own. A ratio is the
median over the rounds of the time over that of cross-entropy in the same round,
so that a slow moment of the machine cancels. `weights` is the time of the loss
and its gradient by the logits alone.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.ciw import methods
from experiments.common import commands, timing
from locojax.core import checks
from locojax.nn import resnet
from locojax.report import results, tables
from locojax.train import steps

SEED = 0
CLASSES = 10
BASELINE = "cross_entropy"
_KL = {"divergence": "kl", "lam": 0.5, "burnin": 0.0}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
  BASELINE: ("cross_entropy", {}),
  "ciw": ("ciw", _KL),
  "cicw_tv": ("cicw", {**_KL, "class_divergence": "tv", "gamma": 0.1}),
  "cicw_l2": ("cicw", {**_KL, "class_divergence": "l2", "gamma": 0.1}),
}


def _made(name: str, forward) -> methods.Method:
  setup = methods.Setup(forward, CLASSES, num_examples=1, num_updates=1)
  kind, options = METHODS[name]
  return methods.make(kind, setup, **options)


def _training(net, name: str, args) -> tuple[Callable, tuple]:
  """A compiled training step, and what it takes."""

  def forward(params, state, images):
    variables = {"params": params, **state}
    logits, new = net.apply(
      variables, images, train=True, mutable=["batch_stats"]
    )
    return logits, dict(new)

  tx = optax.sgd(0.1, momentum=0.9, nesterov=True)
  found = dict(net.init(jax.random.key(SEED), args["image"][:1], train=False))
  params = found.pop("params")
  state = steps.init_state(
    params, tx, key=jax.random.key(SEED), model_state={"net": found}
  )
  loss = _made(name, forward).loss
  step = steps.with_update(steps.from_loss(loss, tx))
  return jax.jit(step).lower(state, args).compile(), (state, args)


def _weighing(name: str, args) -> tuple[Callable, tuple]:
  """The loss and its gradient by the logits, compiled."""
  made = _made(name, lambda params, state, images: (params, state))

  def loss(logits, batch):
    batch = {**batch, "update": jnp.int32(1)}
    value, _ = made.loss(logits, {"net": {}}, batch, jax.random.key(0))
    return value

  shape = (args["label"].shape[0], CLASSES)
  logits = jax.random.normal(jax.random.key(SEED), shape)
  compiled = jax.jit(jax.value_and_grad(loss)).lower(logits, args).compile()
  return compiled, (logits, args)


def rounds(programs, *, num: int, calls: int) -> timing.Seconds:
  """Seconds a call of each program in each round, after a warm-up."""
  bound = {k: functools.partial(run, *a) for k, (run, a) in programs.items()}
  rng = np.random.default_rng(SEED)
  return timing.rounds(bound, num=num, calls=calls, rng=rng)


def _batch(batch: int, size: int) -> dict[str, jax.Array]:
  keys = jax.random.split(jax.random.key(SEED))
  image = jax.random.normal(keys[0], (batch, size, size, 3))
  label = jax.random.randint(keys[1], (batch,), 0, CLASSES)
  return {"image": image, "label": label}


def measure(
  *,
  batch: int,
  size: int,
  width: int,
  stage_sizes: Sequence[int],
  num: int,
  calls: int = 1,
) -> list[dict[str, Any]]:
  """A row for each of `METHODS`.

  Args:
    batch: examples.
    size: height and width of the images.
    width, stage_sizes: of the PreActResNet.
    num: rounds.
    calls: calls timed in a round; the weights alone have 50 times as many.
  """
  for name, value in dict(batch=batch, size=size, num=num, calls=calls).items():
    checks.positive_int(name, value)
  net = resnet.PreActResNet(CLASSES, tuple(stage_sizes), width)
  args = _batch(batch, size)
  training = {name: _training(net, name, args) for name in METHODS}
  weighing = {name: _weighing(name, args) for name in METHODS}
  step = rounds(training, num=num, calls=calls)
  alone = rounds(weighing, num=num, calls=50 * calls)
  return [_row(name, step, alone) for name in METHODS]


def _row(name: str, step, alone) -> dict[str, Any]:
  found = timing.summary(step, name, reference=BASELINE)
  base = 1e3 * min(step[BASELINE])
  own, plain = (1e3 * statistics.median(alone[n]) for n in (name, BASELINE))
  return {
    "method": name,
    **{f"step_{key}": value for key, value in found.items()},
    "step_least_ratio": found["least_ms"] / base,
    "weights_ms": own,
    "added_percent": 100 * (own - plain) / base,
  }


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", required=True, help="result file to write")
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--size", type=int, default=32, help="of the images")
  parser.add_argument("--width", type=int, default=16)
  parser.add_argument("--blocks", type=int, default=1, help="in each stage")
  parser.add_argument("--rounds", type=int, default=20)
  return parser


def main(argv: list[str]) -> None:
  """Measures, prints the table and writes the result file."""
  args, start = _parser().parse_args(argv), time.perf_counter()
  rows = measure(
    batch=args.batch,
    size=args.size,
    width=args.width,
    stage_sizes=(args.blocks,) * 4,
    num=args.rounds,
  )
  results.save(
    args.results,
    command=shlex.join(
      ["python", "-m", "experiments.ciw.bench_overhead", *argv]
    ),
    seeds=[SEED],
    rows=rows,
    time_seconds=time.perf_counter() - start,
    device=timing.device_name(),
    notes=(
      f"Training step of a PreActResNet of width {args.width}, {args.blocks} "
      f"block(s) in each of 4 stages, batch {args.batch}, images of "
      f"{args.size} pixels. step_ratio: median, with quartiles, of the ratios "
      f"to cross-entropy within {args.rounds} interleaved rounds. "
      "added_percent: time of loss and its gradient by the logits, less that "
      "of cross-entropy, as a share of the fastest cross-entropy step."
    ),
  )
  print(tables.render(rows))


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
