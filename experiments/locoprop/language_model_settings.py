"""What the settings of the language model may be."""

from __future__ import annotations

import inspect

from experiments.common import places, settings
from experiments.locoprop import corpus
from locojax.core import checks
from locojax.methods import locoprop
from locojax.nn import lm, transformer
from locojax.train import optimizers

METHODS = ("adamw", "locoprop")
ACTIVATIONS = ("relu", "squared_relu", "leaky_relu", "elu", "smelu")
OUTPUTS = ("softmax", "linear")
LAYOUTS = ("replicated", "model", "fsdp")
DTYPES = ("float32", "bfloat16")
# One more than the largest byte; the grammar has small letters only.
_VOCABULARIES = {"python": 256, "grammar": ord("z") + 1}
# What `corpus.load` takes of the grammar where no number is given.
_GRAMMAR_BYTES = 100_000

_LOCOPROP: dict[str, settings.Rule] = {
  **dict.fromkeys(
    inspect.signature(locoprop.locoprop).parameters, settings.anything
  ),
  "learning_rate": checks.positive,
  "inner": settings.choice(locoprop.INNER),
  "gamma": checks.positive,
  "output": settings.choice(OUTPUTS),
  "output_gamma": checks.positive,
  "num_local_iters": checks.positive_int,
  "max_rows": checks.positive_int,
  "rotate_rows": checks.boolean,
  "comm": settings.choice(("all_reduce", "gather")),
  "fallback_ratio": checks.nonnegative,
  "weight_decay": checks.nonnegative,
  "clip_norm": checks.positive,
}
RULES: dict[str, settings.Rule] = {
  **settings.COMMON,
  "data.name": settings.choice(corpus.NAMES),
  "data.num_bytes": checks.nonnegative_int,
  "data.path": places.there,
  **{
    f"model.{name}": checks.positive_int
    for name in ("vocab_size", "max_len", "num_layers", "num_heads")
  },
  "model.model_size": checks.positive_int,
  "model.hidden_size": checks.positive_int,
  "model.activation": settings.choice(ACTIVATIONS),
  "model.positions": settings.choice(lm.POSITIONS),
  "model.tie_embedding": checks.boolean,
  "model.remat": settings.choice(transformer.REMATS),
  "model.dtype": settings.choice(DTYPES),
  "methods": settings.several(settings.choice(METHODS), what="methods"),
  "method": settings.choice(METHODS),
  "adamw": settings.group(
    {
      **dict.fromkeys(
        ("learning_rate", "weight_decay", "clip_norm"), checks.positive
      ),
      "b2": settings.share,
    },
    required=("learning_rate", "weight_decay", "clip_norm", "b2"),
  ),
  "locoprop": settings.group(_LOCOPROP),
  "schedule": settings.choice(optimizers.SCHEDULES),
  "warmup_steps": checks.nonnegative_int,
  **dict.fromkeys(("num_steps", "batch_size"), checks.positive_int),
  **dict.fromkeys(
    ("eval_every", "eval_batches", "eval_batch_size"), checks.positive_int
  ),
  **dict.fromkeys(("log_every", "save_every"), checks.positive_int),
  "layout": settings.choice(LAYOUTS),
}


def check(config) -> None:
  """Refuses what the language model cannot be trained with.

  Raises:
    ValueError: names the key, its value, and what is allowed.
  """
  settings.check(config, RULES)
  model = config.model
  _check_heads(model)
  settings.at_most(config, "warmup_steps", config.num_steps, "the num_steps")
  settings.divides_mesh(config, "batch_size")
  least = _VOCABULARIES.get(config.data.name, 1)
  if model.vocab_size < least:
    checks.refuse(
      "model.vocab_size",
      model.vocab_size,
      f"{least} or more with data.name={config.data.name!r}",
    )
  num = config.data.num_bytes
  num = num or (_GRAMMAR_BYTES if config.data.name == "grammar" else 0)
  if num and config.data.name != "file":
    _check_length(config, num)


def check_run(config) -> None:
  """What training needs besides: the file of tokens.

  Raises:
    ValueError: names the key.
  """
  if config.data.name == "file":
    what = "a `.npy` file of tokens, with data.name='file'"
    places.path("data.path", config.data.path, what, folder=False)


def _check_heads(model) -> None:
  key, size = "model.model_size", model.model_size
  checks.divisible(key, size, "model.num_heads", model.num_heads)
  if model.positions == "rotary" and size // model.num_heads % 2:
    checks.refuse(key, size, "of an even size a head with positions='rotary'")


def _check_length(config, num: int) -> None:
  """Both splits hold windows; the last twentieth is for the test."""
  length, test = config.model.max_len, num // 20
  if test <= length:
    checks.refuse(
      "model.max_len",
      length,
      f"below {test}, the bytes of the test split of {num}",
    )
  windows = (num - test - length - 1) // length + 1
  settings.at_most(config, "batch_size", windows, "the windows of the corpus")
