"""Generation by the models of `nn`: caches, padding, memory, layouts."""

from __future__ import annotations

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax import decode
from locojax.nn import lm, seq2seq, transformer
from tests import programs

close = np.testing.assert_allclose
same = np.testing.assert_array_equal
VOCAB, NEW = 11, 5
PROMPTS = [[3, 1, 4], [5], [9, 2, 6, 5, 3]]


def _decoder(**kwargs):
  sizes = dict(num_layers=2, num_heads=2, model_size=8, max_len=16)
  return lm.DecoderLM(VOCAB, **{**sizes, **kwargs})


def _seq2seq(**kwargs):
  sizes = dict(
    vocab_size=VOCAB,
    max_inputs=6,
    max_len=16,
    encoder_layers=1,
    decoder_layers=1,
    num_heads=2,
    model_size=8,
    output_bias=True,
    tie_embedding=False,
  )
  return seq2seq.Seq2SeqLM(**{**sizes, **kwargs})


@functools.lru_cache
def _params(make, **kwargs):
  """Parameters large enough that tokens matter."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  given = {"inputs": tokens} if make is _seq2seq else {}
  params = jax.jit(make(**kwargs).init)(jax.random.key(0), tokens, **given)
  return jax.tree.map(lambda x: x * 1.5, params["params"])


INPUTS = jax.random.randint(jax.random.key(4), (3, 6), 0, VOCAB)
INPUTS_VALID = jnp.array(
  [[1] * 6, [0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0]], bool
)


def _prefilled(model, params, tokens, valid, inputs=None):
  given = {}
  if isinstance(model, seq2seq.Seq2SeqLM):
    inputs, inputs_valid = inputs or (INPUTS, INPUTS_VALID)
    memory = model.apply(
      {"params": params}, inputs, valid=inputs_valid, method="encode"
    )
    given = dict(memory=memory, memory_valid=inputs_valid)
  return lm.prefill(model, params, tokens, valid=valid, reserve=NEW, **given)


def _generator(model, **settings):
  def run(params, tokens, valid, inputs=None, **more):
    cache, kept, logits = _prefilled(model, params, tokens, valid, inputs)
    step = lm.next_token(model, params, kept)
    return decode.generate(
      step, cache, logits, max_new_tokens=NEW, **settings, **more
    )

  return run


def _log_probs(model, params, new):
  """Of the tokens after each prompt followed by `new` `[3, T]`, uncached."""
  texts = np.zeros((3, 10), np.int32)
  for row, prompt in enumerate(PROMPTS):
    texts[row, : len(prompt) + NEW] = [*prompt, *new[row].tolist()]
  given = {}
  if isinstance(model, seq2seq.Seq2SeqLM):
    given = dict(inputs=INPUTS, inputs_valid=INPUTS_VALID)
  run = jax.jit(lambda p, t, kw: model.apply({"params": p}, t, **kw))
  found = decode.log_softmax(run(params, jnp.asarray(texts), given))
  starts = [len(prompt) - 1 for prompt in PROMPTS]
  return np.stack([x[s : s + NEW] for x, s in zip(np.asarray(found), starts)])


MODELS = pytest.mark.parametrize(
  ("make", "kwargs"),
  [
    (_decoder, dict(positions="rotary", scan=True)),
    (_seq2seq, dict(positions="learned", cache_len=13)),
    (_seq2seq, dict(positions="relative", scan=True)),
  ],
)


@MODELS
def test_cached_generation_is_the_uncached_forward(make, kwargs):
  model, params = make(**kwargs), _params(make, **kwargs)
  keep = decode.Keep()
  run = jax.jit(_generator(model, keep=keep))
  tokens, valid = decode.pad_prompts(PROMPTS, (6,), side="left")
  out = run(params, tokens, valid)
  want = _log_probs(model, params, out.tokens[:, 0])
  close(out.kept[:, 0], want, rtol=1e-4, atol=1e-4)
  same(out.tokens[:, 0], np.argmax(want, axis=-1))
  assert len(set(np.asarray(out.tokens).ravel().tolist())) > 1


def test_neither_side_nor_bucket_nor_batch_matters_and_lengths_compile_once():
  model, params = _seq2seq(), _params(_seq2seq)
  sampler = decode.Sampler(1.2, top_k=6)
  run = _generator(model, sampler=sampler, num_samples=2, keep=decode.Keep())
  run = jax.jit(chex.assert_max_traces(n=2)(run))  # one for each bucket
  key, out = jax.random.key(1), {}
  for side, bucket in (("left", 6), ("right", 6), ("right", 9)):
    tokens, valid = decode.pad_prompts(PROMPTS, (bucket,), side=side)
    out[side, bucket] = run(params, tokens, valid, key=key)
  want = out["left", 6]
  for got in out.values():
    same(got.tokens, want.tokens)
    close(got.kept, want.kept, rtol=1e-4, atol=1e-4)
  short = [p[:1] for p in PROMPTS[::-1]]
  run(params, *decode.pad_prompts(short, (6,)), key=key)  # other lengths


def test_a_row_depends_neither_on_the_batch_nor_on_the_number_of_samples():
  model, params = _seq2seq(), _params(_seq2seq)
  tokens, valid = decode.pad_prompts(PROMPTS, (6,))
  key, ids = jax.random.key(1), jnp.arange(3)
  run = lambda n: jax.jit(
    _generator(model, sampler=decode.Sampler(1.2), num_samples=n)
  )
  inputs = (INPUTS, INPUTS_VALID)
  want = run(2)(params, tokens, valid, inputs, key=key, row_ids=ids)
  some = lambda *x: [y[1:2] for y in x]
  alone = run(1)(
    params,
    *some(tokens, valid),
    tuple(some(*inputs)),
    key=key,
    row_ids=ids[1:2],
  )
  same(alone.tokens[0, 0], want.tokens[1, 0])
  close(alone.log_probs[0, 0], want.log_probs[1, 0], rtol=1e-4, atol=1e-5)


def test_samples_share_the_memory_and_its_rows_are_not_repeated():
  model, params = _seq2seq(), _params(_seq2seq)
  tokens, valid = decode.pad_prompts(PROMPTS, (6,))
  cache, kept, logits = jax.jit(functools.partial(_prefilled, model))(
    params, tokens, valid
  )
  rows = {x.shape[0] for x in jax.tree.leaves(kept)}
  assert rows == {3}
  keys = kept["decoder"]["decoder"]["block_0"]["cross_attention"]["keys"]
  assert keys.shape == (3, 2, 6, 4)
  step = jax.jit(lm.next_token(model, params, kept))
  new = jnp.arange(6)[:, None]
  _, got = step(decode.cache.repeat(cache, 2), new)
  twice = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), kept)
  alone = jax.jit(lm.next_token(model, params, twice))
  _, want = alone(decode.cache.repeat(cache, 2), new)
  close(got, want, rtol=1e-5, atol=1e-5)
  with pytest.raises(ValueError, match="rows of the input=4.*context=3"):
    step(decode.cache.gather(cache, jnp.arange(4)), new[:4])


def test_scan_is_unrolled_in_sampling_and_beams():
  params = _params(_decoder)
  stacked = transformer.stack_blocks(params["decoder"])
  tokens, valid = decode.pad_prompts(PROMPTS, (6,))
  out = []
  for scan, its in ((False, params), (True, {**params, "decoder": stacked})):
    model = _decoder(scan=scan)

    def run(params, tokens, valid, model=model):
      cache, kept, logits = lm.prefill(model, params, tokens, valid=valid)
      step = lm.next_token(model, params, kept)
      settings = dict(max_new_tokens=NEW, stop_tokens=(0,))
      drawn = decode.generate(
        step,
        cache,
        logits,
        sampler=decode.Sampler(),
        key=jax.random.key(2),
        num_samples=2,
        **settings,
      )
      return drawn, decode.beam_search(
        step, cache, logits, beam_size=3, **settings
      )

    out.append(jax.jit(run)(its, tokens, valid))
  (drawn, beams), (drawn_too, beams_too) = out
  same(drawn.tokens, drawn_too.tokens)
  same(beams.tokens, beams_too.tokens)
  close(beams.scores, beams_too.scores, rtol=1e-5)
  # The scores are those of the uncached model.
  best = beams.tokens[:, 0]
  found = _log_probs(_decoder(), params, best)
  found = np.take_along_axis(found, np.asarray(best)[..., None], axis=-1)
  real = np.arange(NEW) < np.asarray(beams.lengths)[:, :1]
  totals = np.sum(found[..., 0] * real, axis=-1)
  divisors = ((5 + real.sum(axis=-1)) / 6) ** 0.6
  close(beams.scores[:, 0], totals / divisors, rtol=1e-4)


def _beams(model):
  def run(params, tokens, valid, inputs, key):
    del key
    cache, kept, logits = _prefilled(model, params, tokens, valid, inputs)
    return decode.beam_search(
      lm.next_token(model, params, kept),
      *(cache, logits),
      beam_size=2,
      max_new_tokens=NEW,
      stop_tokens=(1,),
      data_axis="data",
    )

  return run


@pytest.mark.parametrize("beams", [False, True])
def test_sharded_is_single_and_devices_do_not_talk(beams):
  model, params = _seq2seq(), _params(_seq2seq)
  prompts = [PROMPTS[i % 3] for i in range(8)]
  inputs = tuple(x[jnp.arange(8) % 3] for x in (INPUTS, INPUTS_VALID))
  data = (*decode.pad_prompts(prompts, (6,)), inputs)
  run = _generator(
    model, sampler=decode.Sampler(), num_samples=2, data_axis="data"
  )
  run = _beams(model) if beams else run
  key = jax.random.key(5)
  want = jax.jit(run)(params, *data, key=key)
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  with jax.set_mesh(mesh):
    data = jax.device_put(data, jax.NamedSharding(mesh, jax.P("data")))
    program = jax.jit(run).lower(params, *data, key=key).compile()
    got = program(params, *data, key=key)
  # Whether all have ended is all that is asked around, besides the scores of
  # beams: XLA for CPUs does not divide `top_k`. Caches stay where they are.
  talks = programs.talks(program)
  ends = ("pred[]", "all-reduce")
  assert talks.count(ends) == 1
  scores = [shape for shape, kind in talks if (shape, kind) != ends]
  assert all(re.match(r"f32\[8,\d+\]\{", shape) for shape in scores)
  assert beams or not scores
  assert not got.tokens.sharding.is_fully_replicated
  same(got.tokens, want.tokens)
  close(got.log_probs, want.log_probs, rtol=1e-4, atol=1e-5)


def test_mistakes_are_named():
  model, params = _decoder(cache_len=7), _params(_decoder)
  tokens = jnp.zeros((1, 4), jnp.int32)
  with pytest.raises(ValueError, match="length of tokens and reserve=8"):
    lm.prefill(model, params, tokens, reserve=4)
  with pytest.raises(ValueError, match="reserve=-1"):
    lm.prefill(model, params, tokens, reserve=-1)
  with pytest.raises(ValueError, match="cross_attention=False"):
    lm.prefill(model, params, tokens, memory=jnp.zeros((1, 3, 8)))
  with pytest.raises(ValueError, match="context=None.*cross=True"):
    lm.prefill(_seq2seq(), _params(_seq2seq), tokens)
