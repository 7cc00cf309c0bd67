"""A small corpus, tokenizer and model for the tests of completion."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from locojax.data import code, code_tokens
from locojax.methods import completion

SIZES = dict(
  model_size=16,
  hidden_size=24,
  num_heads=2,
  encoder_layers=1,
  decoder_layers=1,
)
LINES = ("for item in items:", "  total += item", "return total", "x = [1, 2]")
TEXT = "\n".join(f"def name_{i}(items):\n{LINES[i % 4]}" for i in range(200))


@functools.cache
def tokenizer() -> code_tokens.CodeTokenizer:
  """Of a little Python."""
  return code_tokens.train([TEXT], vocab_size=400, languages=["python", "go"])


@functools.cache
def model(kind="encoder_decoder"):
  """Module and parameters, large enough that tokens matter."""
  make = getattr(completion, kind)
  made = make(
    "cpu_tiny",
    max_inputs=32,
    max_targets=12,
    vocab_size=tokenizer().vocab_size,
    **SIZES,
  )
  tokens = jnp.zeros((1, 2), jnp.int32)
  given = {"inputs": tokens} if kind == "encoder_decoder" else {}
  params = jax.jit(made.init)(jax.random.key(0), tokens, **given)["params"]
  params = jax.tree.map(lambda x: 2.0 * x, params)
  # Bytes of no character are unlikely, as after any training.
  table = params["embed"]["embedding"]
  plain = jnp.array([p.isascii() for p in tokenizer().pieces])
  params["embed"]["embedding"] = jnp.where(plain[:, None], table, 0.0)
  return made, params


def file(package, text, path="a.py", language="python"):
  """A file of a package."""
  return code.SourceFile(package, path, language, text)


def masked(num):
  """Losses of both models, for the table of masks.

  Examples are masked, with their lengths.

  Returns:
    A function of parameters, inputs and mask; `num` inputs; parameters.
  """
  sizes = {**SIZES, "model_size": 4, "hidden_size": 4, "vocab_size": 9}
  sizes |= {"max_inputs": 5, "max_targets": 3}
  pair = completion.encoder_decoder("cpu_tiny", **sizes)
  alone = completion.decoder_only("cpu_tiny", **sizes)
  tokens, key = np.zeros((1, 2), np.int32), jax.random.key(0)
  params = {
    "pair": pair.init(key, tokens, inputs=tokens)["params"],
    "alone": alone.init(key, tokens)["params"],
  }
  make = completion.make_loss_fn
  losses = {"pair": make(pair), "alone": make(alone, context_weight=0.5)}

  def f(params, inputs, mask):
    batch = {**inputs, "mask": mask}
    return {
      k: loss(params[k], {}, batch, None)[0] for k, loss in losses.items()
    }

  whole = lambda n: (np.arange(num * n) % 9).reshape(num, n).astype(np.int32)
  inputs = {
    "inputs": whole(5),
    "num_inputs": np.full(num, 4, np.int32),
    "targets": whole(3),
    "num_targets": (1 + np.arange(num) % 3).astype(np.int32),
  }
  return f, inputs, params
