"""Models of a config, and a finished one as it is asked."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

from experiments.completion import conditions, corpora
from locojax.core import types
from locojax.data import code_tokens
from locojax.methods import completion


def module(config, vocab_size: int):
  """The module of a config's method, over a vocabulary."""
  settings = config.model.to_dict()
  made = conditions.CONDITIONS[config.method]
  make = (
    completion.decoder_only
    if made.kind == "decoder"
    else completion.encoder_decoder
  )
  return make(
    settings["preset"],
    max_inputs=settings["max_inputs"],
    max_targets=settings["max_targets"],
    scan=settings["scan"],
    remat=settings["remat"],
    dtype=jnp.dtype(settings["dtype"]),
    **{**settings["sizes"], "vocab_size": vocab_size},
  )


def loss(config, model) -> types.LossFn:
  """The loss of a config's method."""
  made = conditions.CONDITIONS[config.method]
  weight = config.model.context_weight if made.context else 0.0
  return completion.make_loss_fn(
    model, z_loss=config.model.z_loss, context_weight=weight
  )


def completer(
  config, params: types.PyTree, tokenizer: code_tokens.CodeTokenizer
) -> completion.Completer:
  """A trained model as an editor asks it."""
  return completion.Completer(
    module(config, tokenizer.vocab_size),
    params,
    tokenizer,
    max_inputs=config.model.max_inputs,
    prefix_share=config.model.prefix_share,
    order=config.model.order,
    with_suffix=conditions.CONDITIONS[config.method].with_suffix,
    **config.ask.to_dict(),
  )


class NGrams:
  """The baseline over all languages, one model for each."""

  def __init__(self, config):
    self._files = corpora.load(config).train
    self._settings = config.ngram.to_dict()
    self._of = functools.cache(self._model)

  def _model(self, language: str) -> completion.NGramCache:
    files = corpora.of_language(self._files, language)
    texts = [f.text for f in files]
    return completion.NGramCache(texts, language=language, **self._settings)

  def names(self, prefix: str, suffix: str, language: str) -> list[Any]:
    """As of `Completer.names`."""
    return self._of(language).names(prefix)

  def lines(
    self, prefix: str, suffix: str, language: str, *, forced: str = ""
  ) -> list[Any]:
    """As of `Completer.lines`."""
    return self._of(language).lines(prefix, forced=forced)

  def continue_focused(
    self, prefix: str, suffix: str, language: str, item: str
  ) -> list[Any]:
    """As of `Completer.continue_focused`."""
    typed = completion.typed(prefix, language)
    return self.lines(prefix, suffix, language, forced=item[len(typed) :])
