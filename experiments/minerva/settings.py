"""What the settings of the experiment may be."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from experiments.common import places, settings
from experiments.minerva import grading, texts
from locojax.core import checks
from locojax.data import pieces
from locojax.methods import minerva, smelu
from locojax.nn import attention, norms, transformer

ACTIVATIONS = {"swish": nn.swish, "gelu": nn.gelu, "smelu": smelu.smelu}
LAYOUTS = ("replicated", "fsdp")
_MULTIPLE = 64
_SIZES = ("num_layers", "d_model", "num_heads", "head_dim", "num_kv_heads")
_FLAGS = ("parallel", "fused", "tie_embeddings", "logit_scale", "scan_layers")

RULES: dict[str, settings.Rule] = {
  **settings.COMMON,
  "conditions": settings.several(
    settings.choice(texts.CONDITIONS), what="conditions"
  ),
  "condition": settings.choice(texts.CONDITIONS),
  "data.name": settings.choice(texts.SETS),
  "data.path": checks.text,
  "data.data_dir": places.there,
  "data.num_train": checks.nonnegative_int,
  "data.num_test": checks.positive_int,
  "data.size": settings.within(2, 10_000, whole=True),
  "data.tokenizer": settings.choice(texts.TOKENIZERS),
  "data.vocab_size": checks.nonnegative_int,
  "data.seed": settings.seed,
  "model.preset": settings.either("", settings.choice(minerva.PRESETS)),
  **{f"model.{name}": checks.positive_int for name in _SIZES},
  "model.d_ff": checks.nonnegative_int,
  "model.max_len": settings.within(8, 2**20, whole=True),
  "model.norm": settings.choice(norms.KINDS),
  "model.rope_style": settings.choice(attention.ROTARY_STYLES),
  **{f"model.{name}": checks.boolean for name in _FLAGS},
  "model.activation": settings.choice(ACTIVATIONS),
  "model.dtype": settings.choice(settings.DTYPES),
  "model.remat": settings.choice(transformer.REMATS),
  "model.kernel": settings.choice(attention.KERNELS),
  "z_loss": checks.nonnegative,
  "optimizer.peak": checks.positive,
  "optimizer.warm_constant": checks.positive,
  "optimizer.start_step": checks.nonnegative_int,
  "optimizer.final_drop": settings.share,
  "optimizer.final_fraction": settings.decay,
  "optimizer.clip_norm": checks.positive,
  "optimizer.momentum": settings.decay,
  "optimizer.decay_exponent": checks.positive,
  **dict.fromkeys(("batch_size", "num_steps"), checks.positive_int),
  **dict.fromkeys(
    ("eval_every", "eval_batches", "eval_batch_size", "log_every"),
    checks.positive_int,
  ),
  "save_every": checks.nonnegative_int,
  "sampling.num_samples": checks.positive_int,
  "sampling.max_new_tokens": checks.positive_int,
  "sampling.batch": checks.positive_int,
  "sampling.temperature": checks.nonnegative,
  "sampling.top_p": lambda name, found: settings.within(1e-6, 1.0)(name, found),
  "ks": settings.several(checks.positive_int, what="numbers of samples"),
  "grading.engine": settings.choice(grading.ENGINES),
  "grading.workers": checks.positive_int,
  "grading.cpu_seconds": checks.positive,
  "layout": settings.choice(LAYOUTS),
  "needs_data": checks.boolean,
}


def check(config) -> None:
  """Refuses what a run or the study cannot go on with.

  Raises:
    ValueError: names the key, its value, and what is allowed.
  """
  settings.check(config, RULES)
  model_config(config)
  settings.divides_mesh(config, "batch_size")
  most = config.sampling.num_samples
  for i, k in enumerate(config.ks):
    settings.within(1, most, whole=True)(f"ks[{i}]", k)
  settings.at_most(
    config,
    "sampling.max_new_tokens",
    max_len(config) - 1,
    "less than the longest sequence of the model",
  )
  if config.needs_data:
    _check_data(config)


def check_run(config) -> None:
  """What training needs besides: data.

  Raises:
    ValueError: names the key.
  """
  settings.must_read_data(config)


def _check_data(config) -> None:
  data = config.data
  if data.tokenizer == "pieces":
    settings.within(300, 2**20, whole=True)("data.vocab_size", data.vocab_size)
  if data.name == "problems":
    checks.positive_int("data.num_train", data.num_train)
  elif data.name == "file":
    places.path("data.path", data.path, "JSON lines of questions", folder=False)
  else:
    places.data_set("data.name", data.name, data.data_dir)
  for name in (config.condition, *config.conditions):
    if texts.CONDITIONS[name].first and data.name == "problems":
      checks.refuse(
        "condition",
        name,
        "one without drawn problems first, of which "
        "data.name='problems' has nothing else",
      )


def max_len(config) -> int:
  """The longest sequence of the model."""
  preset = config.model.preset
  return minerva.PRESETS[preset].max_len if preset else config.model.max_len


def vocab_size(config) -> int:
  """Of the model: a preset's without data, else the tokenizer's, rounded up.

  So that it can be spread over devices; what is above is never trained on.
  """
  if not config.needs_data and config.model.preset:
    return minerva.PRESETS[config.model.preset].vocab_size
  found = config.data.vocab_size
  if config.data.tokenizer == "bytes":
    found = pieces.Bytes.vocab_size
  return -(-found // _MULTIPLE) * _MULTIPLE


def model_config(config) -> minerva.PaLMConfig:
  """The model of a config.

  Raises:
    ValueError: sizes that do not fit, by their keys.
  """
  given: dict[str, Any] = config.model.to_dict()
  name = given.pop("preset")
  given["activation"] = ACTIVATIONS[given["activation"]]
  given["dtype"] = jnp.dtype(given["dtype"])
  given["d_ff"] = given["d_ff"] or None
  if name:
    for size in (*_SIZES, "d_ff", "max_len"):
      given.pop(size)
    base = dataclasses.asdict(minerva.PRESETS[name])
    given = {**base, **given}
  given["vocab_size"] = max(1, vocab_size(config))
  return settings.made("model", minerva.PaLMConfig, **given)
