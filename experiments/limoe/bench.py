"""Time of a layer with experts by dispatcher, and of a training step.

  python -m experiments.limoe.bench --results results/limoe/bench_cpu.json

Layers: forward and backward of one feed-forward layer in training: dense (one
expert's size, so equal active operations), and 8 experts of that size with each
dispatcher at capacity factor 1.05, the router included. `vmoe_einsum` is the
peer: V-MoE's formulation written out (one-hot masks of group, token, expert and
place, and einsums with them); its cost grows with the group.
Steps: a training step of one-tower LIMoE against the dense one-tower model.
Rounds are interleaved; a ratio is the median of those within each round.
`of_peak` is the rate of a step's operations by that of a large matrix product.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.common import commands, timing
from locojax.core import checks
from locojax.methods import limoe
from locojax.nn import transformer
from locojax.report import results, tables
from locojax.train import flops, steps

SEED = 0
DENSE = "dense"
FACTOR = 1.05
PEER = "vmoe_einsum"


class EinsumPeer(nn.Module):
  """A layer with experts as V-MoE states it: masks `[G, S, E, C]`, einsums."""

  num_experts: int
  hidden_size: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    num, size = self.num_experts, x.shape[-1]
    capacity = limoe.compute_capacity(x.shape[1], num, FACTOR)
    gates = jax.nn.softmax(
      nn.Dense(num, use_bias=False, name="router")(x), axis=-1
    )
    chosen = jax.nn.one_hot(gates.argmax(-1), num)
    order = jnp.argsort(-gates.max(-1), axis=1, stable=True)
    served = jnp.take_along_axis(chosen, order[..., None], axis=1)
    place = (jnp.cumsum(served, axis=1) - 1) * served
    back = jnp.argsort(order, axis=1)
    place = jnp.take_along_axis(place, back[..., None], axis=1)
    place = jnp.where(chosen > 0, place, -1).astype(jnp.int32)
    dispatch = jax.nn.one_hot(place, capacity)
    combine = dispatch * gates[..., None]
    y = jnp.einsum("gsec,gsd->gecd", dispatch, x)
    y = y.swapaxes(0, 1).reshape(num, -1, size)
    experts = limoe.ExpertMlp(num, self.hidden_size, name="experts")
    y = experts(y).reshape(num, x.shape[0], capacity, size).swapaxes(0, 1)
    return jnp.einsum("gsec,gecd->gsd", combine, y)


def _layers(num_experts: int, hidden: int) -> dict[str, Callable]:
  """Name -> (x, key of the noise) -> module and arguments."""
  out = {DENSE: transformer.FeedForward(hidden)}
  for name in ("gather", "einsum", "ragged"):
    out[name] = limoe.MoeMlp(
      num_experts, hidden, capacity_factor=FACTOR, dispatcher=name
    )
  out[PEER] = EinsumPeer(num_experts, hidden)
  return out


def _gradient(module, x) -> Callable[[], Any]:
  """The compiled gradient of a layer by parameters and input."""
  key = jax.random.key(SEED)
  moe = isinstance(module, limoe.MoeMlp)
  settings = {"train": True} if moe else {}
  params = module.init({"params": key, "gating": key}, x, **settings)

  def loss(params, x):
    out = module.apply(params, x, rngs={"gating": key}, **settings)
    y = out[0] if moe else out
    return jnp.sum(jnp.square(y.astype(jnp.float32)))

  run = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile()
  return functools.partial(run, params, x)


def layer_rows(
  *, width, hidden, num_experts, tokens, groups, rounds, dtype
) -> list[dict[str, Any]]:
  """A row for each layer and number of groups that the tokens are cut into."""
  rows = []
  for group_size in groups:
    checks.divisible("tokens", tokens, "group size", group_size)
    shape = (tokens // group_size, group_size, width)
    x = jax.random.normal(jax.random.key(SEED), shape, dtype)
    made = {
      name: _gradient(module, x)
      for name, module in _layers(num_experts, hidden).items()
    }
    rng = np.random.default_rng(SEED)
    seconds = timing.rounds(made, num=rounds, rng=rng)
    rows += [
      {
        "what": "layer",
        "name": name,
        "group_size": group_size,
        **timing.summary(seconds, name, reference=DENSE),
      }
      for name in made
    ]
  return rows


def _peak(rng, rounds: int, size: int = 2048) -> float:
  """Operations a second of a square matrix product, float32."""
  a = jnp.asarray(rng.normal(size=(size, size)), jnp.float32)
  run = jax.jit(jnp.matmul)
  seconds = timing.rounds({"matmul": lambda: run(a, a)}, num=rounds, rng=rng)
  return 2 * size**3 / min(seconds["matmul"])


def _step(kind: str, args) -> tuple[Callable[[], Any], int]:
  """A compiled training step of a model, and its operations."""
  changes = {"vocab_size": 1000, "max_text_len": 16}
  if kind == "limoe":
    changes |= {
      "experts": {"num_experts": args.experts, "capacity_factor": FACTOR},
      "moe_layers": tuple(range(1, args.blocks, 2)),
    }
  net = limoe.limoe_model(
    "S/32",
    kind=kind,
    **changes,
    **{"width": args.width, "hidden_size": args.hidden},
    num_layers=args.blocks,
    num_heads=max(1, args.width // 64),
  )
  aux = limoe.limoe_aux(args.experts, {"image": 49, "text": 16})
  image = jnp.zeros((args.batch, 224, 224, 3))
  text = jnp.ones((args.batch, 16), jnp.int32)
  batch = {"image": image, "text": text}

  @steps.couples_examples
  def loss(params, model_state, batch, key):
    out = net.apply(
      {"params": params},
      batch["image"],
      batch["text"],
      train=True,
      rngs={"gating": key},
    )
    value, _ = limoe.contrastive_softmax_loss(
      out.z_image, out.z_text, out.log_scale
    )
    if out.infos:
      value += limoe.auxiliary_loss(out.infos, out.modality, aux)[0]
    return value, ({}, model_state)

  tx = optax.adam(1e-3)
  params = net.init(jax.random.key(SEED), image[:1], text[:1])["params"]
  state = steps.init_state(params, tx, key=jax.random.key(SEED))
  step = steps.from_loss(loss, tx)
  num = flops.count_flops(step, state, batch)
  run = jax.jit(step).lower(state, batch).compile()
  return functools.partial(run, state, batch), num


def step_rows(args) -> list[dict[str, Any]]:
  """Training steps of LIMoE and of the dense one-tower model."""
  made = {kind: _step(kind, args) for kind in ("one_tower", "limoe")}
  rng = np.random.default_rng(SEED)
  peak = _peak(rng, args.rounds)
  seconds = timing.rounds(
    {k: run for k, (run, _) in made.items()}, num=args.rounds, rng=rng
  )
  rows = []
  for kind, (_, num) in made.items():
    found = timing.summary(seconds, kind, reference="one_tower")
    rows.append(
      {
        "what": "step",
        "name": kind,
        "group_size": args.batch * (49 + 16),
        **found,
        "of_peak": num / (1e-3 * found["ms"]) / peak,
        "flops": num,
      }
    )
  return rows


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", required=True, help="result file to write")
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--hidden", type=int, default=2048)
  parser.add_argument("--experts", type=int, default=8)
  parser.add_argument("--tokens", type=int, default=4096)
  parser.add_argument("--groups", type=int, nargs="+", default=[512, 4096])
  parser.add_argument("--blocks", type=int, default=8, help="of the model")
  parser.add_argument("--batch", type=int, default=32, help="of the model")
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--dtype", default="float32")
  return parser


def main(argv: list[str]) -> None:
  """Measures, prints the table and writes the result file."""
  args, start = _parser().parse_args(argv), time.perf_counter()
  rows = layer_rows(
    width=args.width,
    hidden=args.hidden,
    num_experts=args.experts,
    tokens=args.tokens,
    groups=args.groups,
    rounds=args.rounds,
    dtype=jnp.dtype(args.dtype),
  )
  rows += step_rows(args)
  results.save(
    args.results,
    command=shlex.join(["python", "-m", "experiments.limoe.bench", *argv]),
    seeds=[SEED],
    rows=rows,
    time_seconds=time.perf_counter() - start,
    device=timing.device_name(),
    notes=(
      f"Layers of width {args.width}, hidden size {args.hidden}, "
      f"{args.experts} experts, {args.tokens} tokens in groups, capacity "
      f"factor {FACTOR}, forward and backward. Steps: {args.blocks} blocks, "
      f"every second with experts, {args.batch} pairs of 49 and 16 tokens, "
      "Adam. ratio: median, with quartiles, of the ratios to the dense layer "
      f"or model within {args.rounds} interleaved rounds."
    ),
  )
  print(tables.render(rows))


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
