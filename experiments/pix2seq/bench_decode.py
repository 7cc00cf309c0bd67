"""Time of decoding: keys and values kept, or projected at every step.

  python -m experiments.pix2seq.bench_decode \\
    --results results/pix2seq/bench_decode_cpu.json

The decoder of ViT-B (6 layers, 512/2048/16, vocabulary 3000) says 100 objects,
500 tokens, of an encoded image of 640 pixels (1600 places), the best token each
time, in float32. Weights are drawn: they do not change the time.

  cached    ours, `pix2seq.generate` with the class probabilities that detection
            needs
  official  as the released code: all tokens so far and the whole image are
            projected at every step (`official_decoding.py`); the same tokens
  peer      `generate` of Hugging Face with its cache, on a BART of the same
            sizes in an environment of its own (`bench_decode_peer.py`), with
            torch's `scaled_dot_product_attention`; peer_eager without it

All take their turn in each round; a ratio is the median of those to `cached`
within each round. Measure on a quiet machine: the threads of the peer wait for
each other in every operation, so that load costs it more.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import benches, commands, peers, timing
from experiments.pix2seq import official_decoding
from locojax.core import checks
from locojax.methods import pix2seq
from locojax.report import tables

SEED = 0
# Of ratios, at least.
TARGETS = {"official": 10.0, "peer": 2.0}
VOCAB = pix2seq.Vocabulary(90, 1000, layout="official")
_PEER = pathlib.Path(__file__).with_name("bench_decode_peer.py")
_PACKAGES = ("torch", "transformers", "numpy")


def made(args: argparse.Namespace) -> tuple[Any, Any, jax.Array]:
  """Model, parameters and an encoded batch."""
  for name in ("batch", "side", "objects", "layers", "heads"):
    checks.positive_int(name, getattr(args, name))
  sizes = dict(
    num_layers=args.layers,
    model_size=args.width,
    num_heads=args.heads,
    hidden_size=4 * args.width,
  )
  net = pix2seq.preset(
    "vit_b",
    VOCAB.size,
    max_len=max(512, 5 * args.objects),
    encoder=dict(width=args.width, num_layers=1, num_heads=args.heads),
    decoder=sizes,
  )
  init = lambda key: net.init(
    key, jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 1), jnp.int32)
  )
  params = jax.jit(init)(jax.random.key(SEED))["params"]
  shape = (args.batch, args.side**2, args.width)
  return net, params, jax.random.normal(jax.random.key(SEED + 1), shape)


def our_programs(args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
  """`cached` and `official`, compiled, both giving tokens `[B, T]`."""
  net, params, memory = made(args)
  generate = functools.partial(
    pix2seq.generate,
    net,
    images=None,
    vocab=VOCAB,
    max_objects=args.objects,
    temperature=0.0,
    top_p=1.0,
  )
  cached = jax.jit(lambda params, memory: generate(params, memory=memory))
  official = jax.jit(
    functools.partial(
      official_decoding.decode,
      net.decoder,
      prompt=VOCAB.prompt(),
      num_tokens=5 * args.objects,
      chunk=args.chunk,
    )
  )
  return {
    "cached": lambda: cached(params, memory).tokens,
    "official": lambda: official(params["decoder"], memory),
  }


def gigamacs(args: argparse.Namespace, name: str) -> float:
  """Products of matrices of a sequence in 10^9, attention included."""
  places, num, d = args.side**2, 5 * args.objects, args.width
  fixed = 4 * d * d + 8 * d * d  # queries, outputs, feed-forward layers
  attend = 2 * d * (places + (num + 1) / 2)
  project = 2 * d * d  # the keys and values of one place
  once = places * project / num + project
  again = (places + (num + 1) / 2) * project
  kept = again if name == "official" else once
  layers = args.layers * (fixed + attend + kept)
  return num * (layers + d * VOCAB.size) / 1e9


def measure(
  programs: dict[str, Callable[[], Any]], args: argparse.Namespace
) -> list[dict[str, Any]]:
  """A row for each program."""
  tokens = [np.asarray(programs[name]()) for name in ("cached", "official")]
  same = float((tokens[0] == tokens[1]).mean())
  rng = np.random.default_rng(SEED)
  seconds = timing.rounds(programs, num=args.rounds, rng=rng)
  number = args.batch * 5 * args.objects
  rows = []
  for name in programs:
    told = timing.summary(seconds, name, reference="cached")
    rows.append(
      {
        "name": name,
        **told,
        "target": TARGETS.get(name),
        "tokens_per_second": 1e3 * number / told["ms"],
        "gigamacs": gigamacs(args, name),
        "same_tokens": same if name == "official" else None,
      }
    )
  return rows


@contextlib.contextmanager
def peer_programs(args: argparse.Namespace):
  """The peer with a fused attention and without; and its versions."""
  names = ("batch", "side", "objects", "layers", "heads", "width")
  options = {name: getattr(args, name) for name in names}
  options |= {"vocab": VOCAB.size, "threads": timing.num_cores()}
  ways = {"peer": (), "peer_eager": ("--eager",)}
  with peers.steppers(
    _PEER, options, ways, python=args.peer, packages=_PACKAGES
  ) as made:
    told = made["peer"].told
    versions = ", ".join(f"{n} {told[n]}" for n in ("torch", "transformers"))
    yield made, f"{versions}, {told['threads']} threads"


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", required=True, help="result file to write")
  parser.add_argument("--batch", type=int, default=4)
  parser.add_argument("--side", type=int, default=40, help="places in a row")
  parser.add_argument("--objects", type=int, default=100)
  parser.add_argument("--layers", type=int, default=6)
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--heads", type=int, default=16)
  parser.add_argument("--chunk", type=int, default=50)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument(
    "--peer", metavar="PYTHON", help="that has torch and transformers"
  )
  return parser


def _notes(args: argparse.Namespace, versions: str) -> str:
  return (
    f"{args.layers} layers, {args.width}/{4 * args.width}/{args.heads}, "
    f"vocabulary {VOCAB.size}, {args.side**2} places, {5 * args.objects} "
    f"tokens, batch {args.batch}, float32, greedy. ratio: median, with "
    f"quartiles, of those to cached within {args.rounds} interleaved rounds; "
    "target: at least. gigamacs: of one sequence. official: cache in chunks of "
    f"{args.chunk} tokens. Peer: {versions}."
  )


def main(argv: list[str]) -> None:
  """Measures, prints the table and writes the result file."""
  args, start = _parser().parse_args(argv), time.perf_counter()
  with peer_programs(args) as (theirs, versions):
    rows = measure({**our_programs(args), **theirs}, args)
  print(tables.render(rows))
  benches.save(
    args.results,
    "experiments.pix2seq.bench_decode",
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
