"""A small corpus, tokenizer and model for the tests of completion."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

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
