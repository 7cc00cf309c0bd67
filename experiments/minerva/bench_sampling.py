"""Time of sampling many solutions of one prompt, against Hugging Face.

  python -m experiments.minerva.bench_sampling \\
    --results results/minerva/bench_sampling_cpu.json

64 samples of 128 tokens each follow a prompt of 512 tokens, at temperature 0.6
and top-p 0.95, in float32; multi-query attention and SwiGLU of equal sizes.
Weights are drawn: they do not change the time.

  ours      `minerva.sample`: the prompt is read once, its cache repeated
  apart     ours without sharing: the prompt 64 times, one sample each
  peer      `generate` of transformers, `num_return_sequences=64`, on a Llama of
            one head of keys and values in an environment of its own
            (`bench_sampling_peer.py`), with torch's fused attention; its blocks
            have the same kernels, one behind the other
  peer_shared   the same, whose prompt is read once and whose cache is repeated
            by hand before `generate`

All take their turn in each round; a ratio is the median of those to `ours`
within each round. Measure on a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import benches, commands, peers, timing
from locojax.core import checks
from locojax.methods import minerva
from locojax.report import tables

SEED = 0
# Of the ratio, at least.
TARGETS = {"peer": 2.0}
_PEER = pathlib.Path(__file__).with_name("bench_sampling_peer.py")
_PACKAGES = ("torch", "transformers", "numpy")
_SIZES = (
  *("layers", "width", "heads", "head_dim", "hidden", "vocab"),
  *("prompt", "tokens", "samples"),
)


def config_of(args: argparse.Namespace) -> minerva.PaLMConfig:
  """The decoder of the sizes given."""
  return minerva.PaLMConfig(
    vocab_size=args.vocab,
    num_layers=args.layers,
    d_model=args.width,
    num_heads=args.heads,
    head_dim=args.head_dim,
    d_ff=args.hidden,
    max_len=args.prompt + args.tokens,
  )


def our_programs(args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
  """`ours` and `apart`, compiled, both giving tokens `[samples, tokens]`."""
  for name in _SIZES:
    checks.positive_int(name, getattr(args, name))
  model = minerva.palm_model(config_of(args))
  key = jax.random.key(SEED)
  prompt = jax.random.randint(key, (1, args.prompt), 0, args.vocab)
  params = jax.jit(model.init)(key, prompt)["params"]

  def program(rows, num_samples):
    @jax.jit
    def run(params, prompt):
      out = minerva.sample(
        model,
        params,
        jnp.repeat(prompt, rows, axis=0),
        num_samples=num_samples,
        max_new_tokens=args.tokens,
        key=key,
      )
      return out.tokens.reshape(args.samples, args.tokens)

    return lambda: run(params, prompt)

  return {
    "ours": program(1, args.samples),
    "apart": program(args.samples, 1),
  }


def gigamacs(args: argparse.Namespace, name: str) -> float:
  """Products of matrices of all samples in 10^9, attention included."""
  config = config_of(args)
  kernels = minerva.count_params(config) - args.vocab * args.width
  attend = 2 * args.layers * args.heads * args.head_dim
  shared = name in ("ours", "peer_shared")
  reads = 1 if shared else args.samples
  read = args.prompt * (kernels + attend * (args.prompt + 1) / 2)
  mean = args.prompt + (args.tokens + 1) / 2
  step = kernels + args.vocab * args.width + attend * mean
  return (reads * read + args.samples * args.tokens * step) / 1e9


def measure(
  programs: dict[str, Callable[[], Any]], args: argparse.Namespace
) -> list[dict[str, Any]]:
  """A row for each program."""
  rng = np.random.default_rng(SEED)
  seconds = timing.rounds(programs, num=args.rounds, rng=rng)
  number, rows = args.samples * args.tokens, []
  for name in programs:
    told = timing.summary(seconds, name, reference="ours")
    rows.append(
      {
        "name": name,
        **told,
        "target": TARGETS.get(name),
        "tokens_per_second": 1e3 * number / told["ms"],
        "gigamacs": gigamacs(args, name),
      }
    )
  return rows


@contextlib.contextmanager
def peer_programs(args: argparse.Namespace):
  """The peer as it is and with a shared prompt; and its versions."""
  options = {name: getattr(args, name) for name in _SIZES}
  options |= {"threads": timing.num_cores()}
  ways = {"peer": (), "peer_shared": ("--shared",)}
  with peers.steppers(
    _PEER, options, ways, python=args.peer, packages=_PACKAGES
  ) as made:
    told = made["peer"].told
    ours = minerva.count_params(config_of(args))
    if told["kernels"] != ours - (args.layers + 1) * args.width:
      raise ValueError(
        f"the peer has {told['kernels']} parameters but for norms, and ours "
        f"{ours - (args.layers + 1) * args.width}."
      )
    versions = ", ".join(f"{n} {told[n]}" for n in ("torch", "transformers"))
    yield made, f"{versions}, {told['threads']} threads"


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", required=True, help="result file to write")
  for name, size in (
    *(("layers", 8), ("width", 512), ("heads", 8), ("head_dim", 64)),
    *(("hidden", 2048), ("vocab", 8000), ("prompt", 512), ("tokens", 128)),
    *(("samples", 64), ("rounds", 3)),
  ):
    parser.add_argument(f"--{name}", type=int, default=size)
  parser.add_argument(
    "--peer", metavar="PYTHON", help="that has torch and transformers"
  )
  return parser


def _notes(args: argparse.Namespace, versions: str) -> str:
  return (
    f"{args.layers} layers, {args.width}/{args.hidden}/{args.heads} heads of "
    f"{args.head_dim}, one of keys and values, vocabulary {args.vocab}; "
    f"{args.samples} samples of {args.tokens} tokens after {args.prompt}, "
    "float32, temperature 0.6, top-p 0.95. ratio: median, with quartiles, of "
    f"those to ours within {args.rounds} interleaved rounds; target: at "
    f"least. Peer: {versions}."
  )


def main(argv: list[str]) -> None:
  """Measures, prints the table and writes the result file."""
  args, start = _parser().parse_args(argv), time.perf_counter()
  with peer_programs(args) as (theirs, versions):
    rows = measure({**our_programs(args), **theirs}, args)
  print(tables.render(rows))
  benches.save(
    args.results,
    "experiments.minerva.bench_sampling",
    argv,
    rows,
    start=start,
    device=timing.device_name(),
    seeds=[SEED],
    shown={args.peer: "PEER/bin/python"},
    notes=_notes(args, versions),
  )


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
