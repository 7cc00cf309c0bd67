"""A detector of a config: its loss, its beginning, and how it is asked."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pix2seq import conditions, detr, matching, networks, scoring
from locojax import decode
from locojax.core import types
from locojax.methods import pix2seq

# `(params, model_state)` of a key.
_Begin = Callable[[jax.Array], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Asked:
  """How a finished model is asked.

  Numbers, so that one program answers all.

  Attributes:
    temperature: 0 takes the best token.
    top_p: share of probability that tokens are drawn from.
    eos_offset: what is taken off the logit of the end of the sequence.
  """

  temperature: float = 0.0
  top_p: float = 1.0
  eos_offset: float = 0.0


@dataclasses.dataclass(frozen=True)
class Detector:
  """All that training and scoring need of a method.

  Attributes:
    vocab: the tokens; None of set prediction.
    stops: whether sequences end by themselves.
    loss: a `LossFn`; images of its batch are bytes.
    begin: parameters and model state of a key.
    find: `(params, model_state, images, rows, key, asked) -> scoring.Found`;
      rows name the images for the key; traceable, the numbers of `asked` too.
  """

  vocab: pix2seq.Vocabulary | None
  stops: bool
  loss: types.LossFn
  begin: _Begin
  find: Callable[..., scoring.Found]


def make(config, num_classes: int) -> Detector:
  """The detector of `config.method`.

  Args:
    config: of a run.
    num_classes: of the vocabulary, or of the slots.
  """
  if conditions.CONDITIONS[config.method].kind == "detr":
    return _sets(config, num_classes)
  return _sequences(config, num_classes)


def _images(config) -> jax.Array:
  side = config.data.image_size
  return jnp.zeros((1, side, side, 3), jnp.float32)


def _prepared(config, loss: types.LossFn) -> types.LossFn:
  """The loss of images as the model sees them."""

  @functools.wraps(loss)
  def of_bytes(params, model_state, batch, key):
    images = networks.prepared(config, batch["image"])
    return loss(params, model_state, {**batch, "image": images}, key)

  return of_bytes


def _split(variables: Mapping[str, Any]) -> tuple[Any, Any]:
  state = dict(variables)
  return state.pop("params"), state


def _sequences(config, num_classes: int) -> Detector:
  found = networks.sequence(config)
  vocab = networks.vocabulary(config, num_classes)
  net = networks.model(config, vocab.size)
  num = found["max_objects"]
  loss = pix2seq.make_loss_fn(
    net,
    vocab,
    max_objects=num,
    inject_noise=found["augment"],
    **{
      k: found[k]
      for k in ("order", "corruption", "noise_weight", "eos_weight", "jitter")
    },
  )

  def begin(key):
    tokens = jnp.zeros((1, pix2seq.PER_OBJECT * num), jnp.int32)
    return _split(net.init(key, _images(config), tokens))

  def find(params, model_state, images, rows, key, asked):
    out = pix2seq.generate(
      net,
      params,
      networks.prepared(config, images),
      vocab,
      key=key,
      max_objects=num,
      model_state=model_state,
      temperature=asked.temperature,
      top_k=config.decode.top_k,
      top_p=asked.top_p,
      top_p_rule=config.decode.top_p_rule,
      constrain=config.decode.constrain,
      stop_at_eos=not found["augment"],
      eos_offset=asked.eos_offset,
      row_ids=rows,
      data_axis=decode.cache.even("data", images.shape[0]),
    )
    return _said(out)

  return Detector(
    vocab, not found["augment"], _prepared(config, loss), begin, find
  )


def _sets(config, num_classes: int) -> Detector:
  net = networks.set_model(config, num_classes)
  weights = matching.Weights(**config.detr.to_dict())

  def find(params, model_state, images, rows, key, asked):
    del rows, key, asked
    images = networks.prepared(config, images)
    out = net.apply({"params": params, **model_state}, images)
    return _said(detr.detections(out))

  return Detector(
    vocab=None,
    stops=False,
    loss=_prepared(config, detr.make_loss_fn(net, weights)),
    begin=lambda key: _split(net.init(key, _images(config))),
    find=find,
  )


def _said(out: pix2seq.Detections) -> scoring.Found:
  return scoring.Found(
    out.boxes, out.classes, out.scores, out.scores > 0, out.tokens
  )


class Asker:
  """Asks a detector, whose program is compiled once for all settings.

  Args:
    config: of a run.
    detector: of it.
  """

  def __init__(self, config, detector: Detector):
    self._config, self._detector = config, detector
    self._programs: dict[Any, Callable] = {}

  def default(self) -> Asked:
    """As the config says."""
    given = self._config.decode
    return Asked(given.temperature, given.top_p, given.eos_offset)

  def _program(self, whole: Any) -> Callable:
    """Gives its results on every process whole."""
    if whole not in self._programs:
      self._programs[whole] = jax.jit(self._find, out_shardings=whole)
    return self._programs[whole]

  def _find(self, params, model_state, images, rows, key, numbers):
    even = decode.cache.even("data", images.shape[0])
    images = decode.cache.shard(images, even, axes=0)
    asked = Asked(*numbers)
    return self._detector.find(params, model_state, images, rows, key, asked)

  def on(
    self, state: types.TrainState, asked: Asked | None = None
  ) -> scoring.Detector:
    """A `scoring.Detector` of a state.

    Args:
      state: of the run.
      asked: how; None as the config says.
    """
    asked = self.default() if asked is None else asked
    run = self._program(state.step.sharding)
    key = jax.random.key(self._config.seed)
    numbers = (asked.temperature, asked.top_p, asked.eos_offset)
    numbers = tuple(np.float32(n) for n in numbers)

    def detect(batch: Mapping[str, np.ndarray]) -> scoring.Found:
      out = run(
        state.params,
        state.model_state,
        batch["image"],
        batch["row"],
        key,
        numbers,
      )
      return scoring.Found(*map(np.asarray, out))

    return detect
