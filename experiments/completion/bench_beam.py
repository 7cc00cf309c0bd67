"""Time of a beam search with its cache, beside Hugging Face's `generate`.

  python -m experiments.completion.bench_beam \\
    --results results/completion/bench_beam_cpu.json

The model `cpu_tiny` (or `--preset`) looks for four lines of 24 tokens behind an
encoded prompt of 128, in float32, as the server asks it. Weights are drawn:
they do not change the time.

  ours   `decode.beam_search` over the cache of the model
  peer   `generate` of a T5 1.1 of the same sizes, with its cache, on torch in
         an environment of its own (`bench_beam_peer.py`), that is fetched,
         gigabytes of it, unless `--peer` names the Python of one

Both take their turn in each round; the ratio is the median of those to `ours`
within each round. Measure on a quiet machine: the threads of the peer wait for
each other in every operation, so that load costs it more.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import benches, commands, peers, timing
from locojax import decode
from locojax.core import checks
from locojax.methods import completion
from locojax.nn import lm
from locojax.report import tables

SEED = 0
TARGETS = {"peer": 2.0}  # of ratios, at least
_PEER = pathlib.Path(__file__).with_name("bench_beam_peer.py")
_PACKAGES = ("torch", "transformers", "numpy")
_EOS = 1


def program(args: argparse.Namespace) -> Callable[[], Any]:
  """Our search, compiled, giving tokens `[1, beams, T]`."""
  for name in ("inputs", "tokens", "beams"):
    checks.positive_int(name, getattr(args, name))
  made = completion.encoder_decoder(
    args.preset, max_inputs=args.inputs, max_targets=args.tokens
  )
  start = jnp.zeros((1, 1), jnp.int32)
  begin = jax.jit(lambda key: made.init(key, start, inputs=start)["params"])
  params = begin(jax.random.key(SEED))
  width = completion.sizes(args.preset)["model_size"]
  shape = (1, args.inputs, width)
  memory = jax.random.normal(jax.random.key(SEED + 1), shape)
  model = made.clone(cache_len=1 + args.tokens)

  # As the peer: exactly so many tokens, so that no search ends early.
  long = decode.never([_EOS], completion.sizes(args.preset)["vocab_size"])

  def search(params, memory):
    cache, kept, logits = lm.prefill(model, params, start, memory=memory)
    return decode.beam_search(
      lm.next_token(model, params, kept),
      cache,
      logits,
      beam_size=args.beams,
      max_new_tokens=args.tokens,
      stop_tokens=(_EOS,),
      alpha=0.6,
      constraint=long,
    ).tokens

  compiled = jax.jit(search)
  return lambda: compiled(params, memory)


@contextlib.contextmanager
def peer_program(args: argparse.Namespace) -> Iterator[tuple[Any, str]]:
  """The peer, and its versions."""
  sizes = completion.sizes(args.preset)
  options = {
    **{name: getattr(args, name) for name in ("inputs", "tokens", "beams")},
    "encoder": sizes["encoder_layers"],
    "decoder": sizes["decoder_layers"],
    "width": sizes["model_size"],
    "hidden": sizes["hidden_size"],
    "heads": sizes["num_heads"],
    "vocab": sizes["vocab_size"],
    "threads": timing.num_cores(),
  }
  with peers.steppers(
    _PEER, options, {"peer": ()}, python=args.peer, packages=_PACKAGES
  ) as made:
    told = made["peer"].told
    versions = ", ".join(f"{n} {told[n]}" for n in ("torch", "transformers"))
    yield made, f"{versions}, {told['threads']} threads"


def measure(
  programs: dict[str, Callable[[], Any]], args: argparse.Namespace
) -> list[dict[str, Any]]:
  """A row for each program."""
  tokens = np.asarray(programs["ours"]())
  checks.same_shape(
    "tokens", tokens.shape, "asked", (1, args.beams, args.tokens)
  )
  rng = np.random.default_rng(SEED)
  seconds = timing.rounds(programs, num=args.rounds, rng=rng, calls=args.calls)
  rows = []
  for name in programs:
    told = timing.summary(seconds, name, reference="ours")
    step = {"step_ms": told["ms"] / args.tokens}
    rows.append({"name": name, **told, **step, "target": TARGETS.get(name)})
  return rows


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add("--results", required=True, help="result file to write")
  add("--preset", default="cpu_tiny", choices=tuple(completion.PRESETS))
  add("--inputs", type=int, default=128)
  add("--tokens", type=int, default=24)
  add("--beams", type=int, default=4)
  add("--rounds", type=int, default=15)
  add("--calls", type=int, default=3, help="searches of a visit")
  add("--peer", metavar="PYTHON", help="that has torch and transformers")
  return parser


def main(argv: list[str]) -> None:
  """Measures, prints the table and writes the result file."""
  args, start = _parser().parse_args(argv), time.perf_counter()
  with peer_program(args) as (theirs, versions):
    rows = measure({"ours": program(args), **theirs}, args)
  print(tables.render(rows))
  benches.save(
    args.results,
    "experiments.completion.bench_beam",
    argv,
    rows,
    start=start,
    device=timing.device_name(),
    seeds=[SEED],
    shown={args.peer: "PEER/bin/python"},
    notes=(
      f"{args.preset}, {args.inputs} tokens read, {args.tokens} written, "
      f"{args.beams} beams, float32. ms: of a search; ratio: "
      "median, with quartiles, of those to ours within "
      f"{args.rounds} interleaved rounds; target: at least. Peer: {versions}."
    ),
  )


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
