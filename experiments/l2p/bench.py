"""A training step of L2P: its time, and the memory that freezing saves.

  python -m experiments.l2p.bench --results results/l2p/bench_cpu.json

Steps are those of the experiment (Adam, clipping, frozen weights in the model
state), on a vision transformer in float32:

  step      queries computed; held against its floor and against the peer
  cached    queries of the data set computed before; held against `step`
  query     the un-prompted forward pass, which needs the embedding of images
  prompted  the prompted forward pass from embedded images, and the backward
            pass through activations alone, to the prompts
  floor     query + prompted; all tokens of all blocks, while the step leaves
            out those of the last block that nothing looks at
  peer      the step of the PyTorch port in an environment of its own
            (`bench_peer.py`), and the same with fused attention

All take their turn in each round; a ratio is the median of those within each
round. `xla_flops` is the compiler's count and free of noise. Memory is what the
compiler plans for a step of the paper's size, nothing is run: ours against the
official way, where all weights are parameters, frozen by a second Adam of
learning rate 0, and the norm of all gradients clips.

Measure on a quiet machine: the threads of the peer wait for each other in every
operation, so that load costs it more, and the ratio to it looks better.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import benches, commands, peers, stages, timing
from experiments.l2p import experiment, learners, networks, tasks
from experiments.l2p.configs import streams
from locojax.core import trees
from locojax.methods import l2p
from locojax.report import tables
from locojax.train import check, flops, profiling, sharding, steps, topology

SEED = 0
# Targets of ratios, at most: (name, reference).
TARGETS = {
  ("step", "floor"): 1.15,
  ("cached", "step"): 0.75,
  ("step", "peer"): 0.8,
}
# Of bytes to those of the official way.
MEMORY_TARGETS = {"optimizer": 0.01, "peak": 0.6}
TIMM_SIZES = {"Ti": "tiny", "S": "small", "B": "base", "L": "large"}
# What the backward pass computes again. The compilers of accelerators keep
# little of elementwise work by themselves.
REMATS = {
  "cpu": ("none", "dots"),
  "tpu": ("none", "attention", "dots", "block"),
}
_PEER = pathlib.Path(__file__).with_name("bench_peer.py")
_PACKAGES = ("torch", "torchvision", "timm", "numpy")


def config_of(preset: str, image_size: int, batch: int, **changes: Any) -> Any:
  """The config `paper` at another size, in float32."""
  config = streams.get_config("paper").copy_and_resolve_references()
  with config.unlocked():
    config.model.update(preset=preset, dtype="float32")
    config.data.image_size, config.batch_size = image_size, batch
  return stages.changed(config, **changes)


def random_batch(shapes: Any) -> dict[str, jax.Array]:
  """Random images of the classes of a task."""
  rng = np.random.default_rng(SEED)
  image, label = shapes["image"].shape, shapes["label"].shape
  mask = shapes["class_mask"].shape
  num = min(10, mask[1])
  batch = {
    "image": rng.integers(256, size=image, dtype=np.uint8),
    "label": rng.integers(num, size=label, dtype=np.int32),
    "class_mask": np.broadcast_to(np.arange(mask[1]) < num, mask),
  }
  if "query" in shapes:
    batch["query"] = rng.normal(size=shapes["query"].shape).astype(np.float32)
  return jax.device_put(batch)


@dataclasses.dataclass(frozen=True)
class Program:
  """Something to be timed.

  Attributes:
    run: a call.
    flops: analytic operations.
    xla_flops: the compiler's count.
  """

  run: Callable[[], Any]
  flops: int | None = None
  xla_flops: float | None = None


def _compiled(fn, *args, **settings) -> tuple[Any, dict[str, Any]]:
  """A compiled function, and its operations."""
  made = jax.jit(fn, **settings).lower(*args).compile()
  return made, {
    "flops": flops.count_flops(fn, *args),
    "xla_flops": float(made.cost_analysis()["flops"]),
  }


def step_program(config: Any) -> tuple[Program, Any]:
  """The step of an experiment, which keeps its state; and the backbone's.

  The state is donated, as the loop does it.
  """
  made = experiment.build(config)
  state = jax.jit(made.init)(jax.random.key(SEED))
  params = jax.tree.map(jnp.array, state.model_state["frozen"]["backbone"])
  batch = random_batch(made.batch_shapes)
  step, counts = _compiled(made.step, state, batch, donate_argnums=0)
  held = [state]

  def run():
    held[0], metrics = step(held[0], batch)
    return metrics

  return Program(run, **counts), (params, batch)


def floor_programs(config: Any, params: Any, batch: Any) -> dict[str, Program]:
  """`query` and `prompted`: what a step cannot do without."""
  net = networks.backbone(config)
  apply = lambda params, *args, **settings: net.apply(
    {"params": params}, *args, **settings
  )

  def query(params, images):
    tokens = apply(params, networks.prepared(images), method="embed")
    return apply(params, tokens=tokens)[:, 0], tokens

  def prompted(params, tokens, prompts, weights):
    def value(prompts):
      x = apply(params, tokens=tokens, extra_tokens={0: prompts})
      return jnp.vdot(x[:, : prompts.shape[1]].mean(axis=1), weights)

    return jax.value_and_grad(value)(prompts)

  num = config.pool.top_k * config.pool.length
  keys = jax.random.split(jax.random.key(SEED))
  rows = config.batch_size
  prompts = jax.random.normal(keys[0], (rows, num, net.width))
  weights = jax.random.normal(keys[1], (rows, net.width))
  first, first_counts = _compiled(query, params, batch["image"])
  tokens = first(params, batch["image"])[1]
  given = (params, tokens, prompts, weights)
  second, second_counts = _compiled(prompted, *given)
  return {
    "query": Program(lambda: first(params, batch["image"]), **first_counts),
    "prompted": Program(lambda: second(*given), **second_counts),
  }


def our_programs(preset: str, image_size: int, batch: int) -> dict[str, Any]:
  """All programs of ours, compiled."""
  config = config_of(preset, image_size, batch)
  step, (params, data) = step_program(config)
  cached = stages.changed(config, cache_queries=True)
  return {
    "step": step,
    "cached": step_program(cached)[0],
    **floor_programs(config, params, data),
  }


def _sum(programs: dict[str, Program]) -> Program:
  """The counts of the floor."""
  parts = [programs[name] for name in ("query", "prompted")]
  return Program(
    lambda: None,
    flops=sum(p.flops for p in parts),
    xla_flops=sum(p.xla_flops for p in parts),
  )


def time_rows(
  programs: dict[str, Program], *, rounds: int
) -> list[dict[str, Any]]:
  """A row for each pair that is compared."""
  rng = np.random.default_rng(SEED)
  runs = {name: program.run for name, program in programs.items()}
  seconds = timing.rounds(runs, num=rounds, rng=rng)
  pairs = zip(seconds["query"], seconds["prompted"], strict=True)
  seconds["floor"] = [sum(pair) for pair in pairs]
  programs = {**programs, "floor": _sum(programs)}
  compared = [(name, "floor") for name in ("query", "prompted", "step")]
  compared.append(("cached", "step"))
  compared += [("step", n) for n in programs if n.startswith("peer")]
  rows = []
  for name, reference in compared:
    one, other = programs[name], programs[reference]
    known = one.flops and other.flops
    rows.append(
      {
        "what": "time",
        "name": name,
        "reference": reference,
        **timing.summary(seconds, name, reference=reference),
        "reference_ms": 1e3 * float(np.median(seconds[reference])),
        "reference_least_ms": 1e3 * min(seconds[reference]),
        "target": TARGETS.get((name, reference)),
        "flops": one.flops,
        "flops_ratio": one.flops / other.flops if known else None,
        "xla_flops_ratio": one.xla_flops / other.xla_flops if known else None,
      }
    )
  return rows


def official(config: Any) -> Any:
  """The experiment where frozen weights are trained with learning rate 0."""
  groups = tasks.class_groups(config.data.to_dict())
  num_classes = 1 + max(c for group in groups for c in group)
  net = networks.backbone(config)
  setup = learners.Setup(config, net, groups, num_classes, True)
  learner, made = learners.LEARNERS["l2p"](setup), experiment.build(config)

  def labels(params):
    mask = l2p.trainable_mask(params, learner.trainable)
    return jax.tree.map(lambda t: "trained" if t else "frozen", mask)

  rates = {"trained": config.learning_rate, "frozen": 0.0}
  parts = {name: optax.adam(rate) for name, rate in rates.items()}
  tx = optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.partition(parts, labels),
  )

  def init(key):
    state = made.init(key)
    params = l2p.merged(state.params, state.model_state)
    rest = {k: v for k, v in state.model_state.items() if k != "frozen"}
    return steps.init_state(params, tx, key=key, model_state=rest)

  step = steps.from_loss(learner.loss(), tx)
  return dataclasses.replace(made, init=init, step=step)


def _memory(made: Any, devices: Sequence[Any]) -> dict[str, Any]:
  """Bytes of a step on one device, as the compiler plans them."""
  state = jax.eval_shape(made.init, jax.random.key(SEED))
  mesh = sharding.make_mesh({"data": 1}, devices[:1])
  compiled = check.compile_step(made, mesh)
  plan = compiled.memory_analysis()
  size = lambda tree: sum(x.size * x.dtype.itemsize for x in tree)
  return {
    "trained": trees.num_params(state.params),
    "optimizer_bytes": size(jax.tree.leaves(state.opt_state)),
    "argument_bytes": plan.argument_size_in_bytes,
    "temporary_bytes": plan.temp_size_in_bytes,
    "peak_bytes": profiling.step_bytes(compiled),
    "xla_flops": float(compiled.cost_analysis()["flops"]),
  }


def memory_rows(
  preset: str, image_size: int, batch: int, *, where: str
) -> list[dict[str, Any]]:
  """Rows of the official way and of ours; `where` is `cpu` or a TPU slice."""
  cpu = where == "cpu"
  devices = jax.devices() if cpu else topology.describe(where).devices
  cases = [("official", official, "none")]
  remats = REMATS["cpu" if cpu else "tpu"]
  cases += [("ours", experiment.build, remat) for remat in remats]
  rows: list[dict[str, Any]] = []
  for name, make, remat in cases:
    config = config_of(preset, image_size, batch)
    with config.unlocked():
      config.model.remat = remat
    one = _memory(make(config), devices)
    rows.append(
      {"what": "memory", "name": name, "where": where, "remat": remat, **one}
    )
  for row in rows:
    ours = row["name"] == "ours"
    for part, target in MEMORY_TARGETS.items():
      size = f"{part}_bytes"
      row[f"{part}_ratio"] = row[size] / rows[0][size]
      row[f"{part}_target"] = target if ours else None
  return rows


@contextlib.contextmanager
def peer_programs(python: str | None, preset: str, image_size: int, batch: int):
  """The step of the port, with its attention and with a fused one.

  Yields:
    Programs by name, and the versions of the packages.
  """
  size, patch = preset.split("/")
  model = f"vit_{TIMM_SIZES[size]}_patch{patch}_224"
  sizes = {"model": model, "image-size": image_size, "batch": batch}
  options = {**sizes, "threads": timing.num_cores()}
  ways = {"peer": (), "peer_fused": ("--fused",)}
  with peers.steppers(
    _PEER, options, ways, python=python, packages=_PACKAGES
  ) as made:
    told = made["peer"].told
    versions = ", ".join(f"{n} {told[n]}" for n in ("torch", "timm"))
    threads = f"{told['threads']} threads"
    yield {n: Program(run) for n, run in made.items()}, f"{versions}, {threads}"


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", required=True, help="result file to write")
  parser.add_argument("--preset", default="S/16", help="of the timed steps")
  parser.add_argument("--image-size", type=int, default=224)
  parser.add_argument("--batch", type=int, default=4)
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument(
    "--peer", metavar="PYTHON", help="that has torch and timm"
  )
  parser.add_argument("--memory-preset", default="B/16")
  parser.add_argument("--memory-batch", type=int, default=32)
  parser.add_argument(
    "--where",
    nargs="+",
    default=["cpu", "v5e:1x1"],
    help="what memory is planned for: cpu or TPU slices",
  )
  return parser


def _notes(args: argparse.Namespace, versions: str) -> str:
  return (
    f"time: {args.preset}, {args.image_size} px, batch {args.batch}, float32, "
    "pool of 10 prompts of 5 tokens, 5 chosen. ratio: median, with quartiles, "
    f"of the ratios to the reference within {args.rounds} interleaved rounds; "
    "target: at most. floor: query + prompted, each by itself. memory: "
    f"{args.memory_preset}, {args.image_size} px, batch {args.memory_batch}, "
    "float32; peak: arguments, outputs not in their place, and temporaries, as "
    f"planned by the compiler. Peer: {versions}."
  )


def main(argv: list[str]) -> None:
  """Measures, prints the tables and writes the result file."""
  args, start = _parser().parse_args(argv), time.perf_counter()
  sizes = (args.preset, args.image_size, args.batch)
  with peer_programs(args.peer, *sizes) as (theirs, versions):
    programs = {**our_programs(*sizes), **theirs}
    rows = time_rows(programs, rounds=args.rounds)
  print(tables.render(rows), flush=True)
  planned = functools.partial(
    memory_rows, args.memory_preset, args.image_size, args.memory_batch
  )
  memory = [row for where in args.where for row in planned(where=where)]
  print(tables.render(memory))
  benches.save(
    args.results,
    "experiments.l2p.bench",
    argv,
    [*rows, *memory],
    start=start,
    device=timing.device_name(),
    seeds=[SEED],
    shown={args.peer: "PEER/bin/python"},
    notes=_notes(args, versions),
  )


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
