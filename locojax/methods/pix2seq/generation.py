"""From images to detections: one encoding, and tokens one by one.

Keys and values of the image are projected once, those of the tokens are kept
(`locojax.nn.lm`); the loop, the filters and the constraints are those of
`locojax.decode`.

Letters: B batch, n samples of an image, N objects, T = 5 N tokens, V
vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from locojax import decode
from locojax.core import checks, types
from locojax.methods.pix2seq import boxes, model, sequences, vocabulary
from locojax.nn import lm

CONSTRAINTS = ("none", "slots", "boxes")


def generate(
  model: model.Pix2Seq,
  params: types.PyTree,
  images: jax.Array | None,
  vocab: vocabulary.Vocabulary,
  *,
  key: jax.Array | None = None,
  max_objects: int,
  model_state: types.PyTree = None,
  temperature: float | jax.Array = 1.0,
  top_k: int = 0,
  top_p: float | jax.Array = 0.4,
  top_p_rule: str = "official",
  constrain: str = "none",
  stop_at_eos: bool = False,
  eos_offset: float | jax.Array = 0.0,
  num_samples: int | None = None,
  over: str = "used",
  memory: jax.Array | None = None,
  mask: jax.Array | None = None,
  row_ids: jax.Array | None = None,
  data_axis: str | tuple[str, ...] | None = None,
) -> boxes.Detections:
  """Detects objects; for use under `jax.jit` (Pix2Seq, section 2.4).

  Without `stop_at_eos`, for models trained with noise objects, every image gets
  N detections, of which those that look like noise score low. With it, what
  comes behind the end of a sequence scores 0, and so does an object that the
  end cuts.

  A score is the probability of the class under the model as it is, before
  temperature, filters and constraints, but after `eos_offset`.

  Args:
    model: what was trained.
    params: its parameters.
    images: `[B, H, W, channels]`, floats in [0, 1] or bytes; None with
      `memory`.
    vocab: the tokens.
    key: typed PRNG key; not needed if the best token is taken (`top_k=1` or
      `temperature=0`).
    max_objects: N; 5 N is at most the `max_len` of the decoder.
    model_state: `batch_stats` of a residual network, as in training.
    temperature, top_k, top_p, top_p_rule: see `decode.Sampler`; 'official' is
      the stricter rule of the released code, 'nucleus' that of the textbook.
    constrain: 'none'; 'slots' allows bins where coordinates are due, and
      classes and noise at the fifth token (with `stop_at_eos` the end at the
      first, too); 'boxes' also keeps ymax >= ymin and xmax >= xmin.
    stop_at_eos: whether a sequence may end before N objects.
    eos_offset: what is taken off the logit of the end, to find more objects
      with `stop_at_eos`.
    num_samples: n sequences of each image, which share its encoding; None is
      one, without an axis for it.
    over: which ids classes are read from, see `sequences_to_boxes`.
    memory: `[B, L, D]`, what `Pix2Seq.encode` gave, in place of images: other
      settings for the same images need no new encoding.
    mask: `[B]`, zero at images that fill up the batch: nothing is generated.
    row_ids: `[B]` integers, names of the images for the keys, so that what is
      drawn for one does not depend on its place in a batch; None counts.
    data_axis: axis of the mesh that images and cache are laid out over, see
      `decode.generate`.

  Returns:
    `Detections` of `[B, N, ...]`, or `[B, n, N, ...]` with `num_samples`.

  Raises:
    ValueError: a bad setting, no key for a sampler that draws, a vocabulary
      that is not the model's, or not exactly one of images and memory.
  """
  num = _num_tokens(model, vocab, max_objects)
  sampler = decode.Sampler(temperature, top_k, top_p, top_p_rule)
  rule = _constraint(vocab, constrain, stop_at_eos)
  among = boxes.classes_over(vocab, over)
  if (images is None) == (memory is None):
    raise ValueError("exactly one of images and memory is needed.")
  if memory is None:
    variables = {"params": params, **_statistics(model_state)}
    memory = model.apply(variables, images, mask=mask, method="encode")
  step, cache, logits = _prompted(model, params, memory, vocab, num, data_axis)
  shift = jnp.zeros(vocab.size).at[vocab.eos].set(-eos_offset)
  out = decode.generate(
    lambda cache, tokens: _shifted(*step(cache, tokens), shift),
    cache,
    logits + shift,
    max_new_tokens=num,
    sampler=sampler,
    key=key,
    num_samples=1 if num_samples is None else num_samples,
    stop_tokens=(vocab.eos,) if stop_at_eos else (),
    pad_token=vocab.eos,
    constraint=rule,
    keep=decode.Keep(
      every=sequences.PER_OBJECT,
      offset=sequences.PER_OBJECT - 1,
      low=among.start,
      high=among.stop,
    ),
    rows=None if mask is None else jnp.asarray(mask) != 0,
    row_ids=row_ids,
    data_axis=data_axis,
    early_exit=stop_at_eos or mask is not None,
  )
  found = boxes.read(out.tokens, out.kept, vocab, among)
  if stop_at_eos:
    whole = boxes.before_eos(out.tokens, vocab)
    found = found._replace(scores=jnp.where(whole, found.scores, 0.0))
  if num_samples is None:
    found = jax.tree.map(lambda x: x[:, 0], found)
  return found


def _num_tokens(model, vocab, max_objects: int) -> int:
  """T, if the model has room for it and the vocabulary is its own."""
  most = model.decoder.max_len // sequences.PER_OBJECT
  checks.int_in_range("max_objects", max_objects, 1, most)
  vocab.check_decoder(model.decoder.vocab_size)
  return max_objects * sequences.PER_OBJECT


def _statistics(model_state: types.PyTree) -> dict[str, types.PyTree]:
  """What a model state has for `apply`."""
  state = model_state or {}
  return {k: state[k] for k in ("batch_stats",) if k in state}


def _prompted(model, params, memory, vocab, num: int, data_axis):
  """Step, cache and logits behind the prompt, with room for `num` tokens."""
  decoder = model.decoder.clone(cache_len=num)
  prompt = jnp.full((memory.shape[0], 1), vocab.prompt(), jnp.int32)
  own = params["decoder"]
  # A constant, which the compiler would else compute whole on every device.
  even = decode.cache.even(data_axis, prompt.shape[0])
  prompt, memory = decode.cache.shard((prompt, memory), even, axes=0)
  cache, kept, logits = lm.prefill(
    decoder, own, prompt, memory=memory, reserve=num - 1
  )
  return lm.next_token(decoder, own, kept), cache, logits


def _shifted(cache, logits, shift):
  return cache, logits + shift


def slot_constraint(
  vocab: vocabulary.Vocabulary, *, may_end: bool = False
) -> decode.ByPosition:
  """Bins at the first four tokens of an object, a class or noise at the fifth.

  Args:
    vocab: the tokens.
    may_end: whether the end may stand in place of an object's first token.
  """
  table = np.zeros((sequences.PER_OBJECT, vocab.size), bool)
  start = vocab.coord_start
  table[:-1, start : start + vocab.num_bins] = True
  table[-1, vocab.class_ids.start : vocab.class_ids.stop] = True
  table[-1, vocab.noise] = True
  table[0, vocab.eos] |= checks.boolean("may_end", may_end)
  return decode.by_position(table, periodic=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ProperBoxes(decode.Constraint):
  """No box ends before it begins: ymax >= ymin and xmax >= xmin.

  Looks at rows one by one. It says nothing of what is no bin; `slot_constraint`
  does.

  Attributes:
    bins: `[V]` int32, the bin of each token, -1 where it is none.
  """

  bins: jax.Array

  def start(self, num_rows: int) -> dict[str, jax.Array]:
    """As the base class: tokens so far, and bins where the box begins."""
    return {
      "count": jnp.zeros((num_rows,), jnp.int32),
      "low": jnp.full((num_rows, 2), -1, jnp.int32),
    }

  def allowed(self, state: Any, position: jax.Array) -> jax.Array:
    """As the base class."""
    slot = position % sequences.PER_OBJECT
    least = state["low"][:, jnp.where(slot == 2, 0, 1)]
    ends = (slot == 2) | (slot == 3)
    fits = (self.bins < 0) | (self.bins >= least[:, None])
    return fits | ~ends

  def advance(self, state: Any, tokens: jax.Array) -> Any:
    """As the base class."""
    slot = state["count"] % sequences.PER_OBJECT
    begins = slot[:, None] == jnp.arange(2)
    low = jnp.where(begins, self.bins[tokens][:, None], state["low"])
    return {"count": state["count"] + 1, "low": low}


def proper_boxes(vocab: vocabulary.Vocabulary) -> ProperBoxes:
  """A `ProperBoxes` of a vocabulary."""
  bins = np.full(vocab.size, -1, np.int32)
  start = vocab.coord_start
  bins[start : start + vocab.num_bins] = np.arange(vocab.num_bins)
  return ProperBoxes(jnp.asarray(bins))


def _constraint(vocab, constrain: str, stop_at_eos: bool):
  checks.one_of("constrain", constrain, CONSTRAINTS)
  checks.boolean("stop_at_eos", stop_at_eos)
  if constrain == "none":
    return None
  slots = slot_constraint(vocab, may_end=stop_at_eos)
  if constrain == "slots":
    return slots
  return decode.all_of(slots, proper_boxes(vocab))
