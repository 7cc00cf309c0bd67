"""Generation by the models of `nn`: caches, padding, memory, layouts."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax import decode
from locojax.nn import lm, seq2seq, transformer

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
    decoder_layers=2,
    num_heads=2,
    model_size=8,
    output_bias=True,
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


def _memory(model, params, inputs=INPUTS, valid=INPUTS_VALID):
  memory = model.apply({"params": params}, inputs, valid=valid, method="encode")
  return dict(memory=memory, memory_valid=valid)


def _prefilled(model, params, tokens, valid, inputs=None):
  given = {}
  if isinstance(model, seq2seq.Seq2SeqLM):
    given = _memory(model, params, *(inputs or ()))
  return lm.prefill(model, params, tokens, valid=valid, reserve=NEW, **given)


def _generator(model, **settings):
  def run(params, tokens, valid, inputs=None, **more):
    cache, kept, logits = _prefilled(model, params, tokens, valid, inputs)
    step = lm.next_token(model, params, kept)
    return decode.generate(
      step, cache, logits, max_new_tokens=NEW, **settings, **more
    )

  return run


def _logits(model, params, prompt, row):
  """Uncached logits after a prompt without padding, `[V]`."""
  given = {}
  if isinstance(model, seq2seq.Seq2SeqLM):
    given = _memory(model, params, INPUTS[row][INPUTS_VALID[row]][None], None)
  tokens = jnp.asarray([prompt + [0] * (10 - len(prompt))])  # one shape
  run = _uncached(model)
  return run(params, tokens, given)[0, len(prompt) - 1]


@functools.lru_cache
def _uncached(model):
  return jax.jit(
    lambda params, tokens, given: model.apply(
      {"params": params}, tokens, **given
    )
  )


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
  for row, prompt in enumerate(PROMPTS):
    text = list(prompt)
    for t in range(NEW):
      logits = _logits(model, params, text, row)
      want = decode.log_softmax(logits)
      close(out.kept[row, 0, t], want, rtol=1e-4, atol=1e-4)
      text.append(int(jnp.argmax(logits)))
    assert out.tokens[row, 0].tolist() == text[len(prompt) :]
  assert len(set(np.asarray(out.tokens).ravel().tolist())) > 1


def test_neither_side_nor_bucket_nor_batch_matters_and_lengths_compile_once():
  model, params = _seq2seq(), _params(_seq2seq)
  sampler = decode.Sampler(1.2, top_k=6)
  run = _generator(model, sampler=sampler, num_samples=2, keep=decode.Keep())
  run = jax.jit(chex.assert_max_traces(n=2)(run))  # one for each bucket
  key, out = jax.random.key(1), {}
  for side in decode.SIDES:
    for bucket in (6, 9):
      tokens, valid = decode.pad_prompts(PROMPTS, (bucket,), side=side)
      out[side, bucket] = run(params, tokens, valid, key=key)
  want = out["left", 6]
  for got in out.values():
    same(got.tokens, want.tokens)
    close(got.kept, want.kept, rtol=1e-4, atol=1e-4)
  short = [p[:1] for p in PROMPTS[::-1]]
  run(params, *decode.pad_prompts(short, (6,)), key=key)  # other lengths
  turned = (INPUTS[::-1], INPUTS_VALID[::-1])
  tokens, valid = decode.pad_prompts(PROMPTS[::-1], (6,))
  again = jax.jit(_generator(model, sampler=sampler, num_samples=2))(
    params, tokens, valid, turned, key=key, row_ids=jnp.array([2, 1, 0])
  )
  same(again.tokens[::-1], want.tokens)


def test_samples_share_the_memory_and_its_rows_are_not_repeated():
  model, params = _seq2seq(), _params(_seq2seq)
  tokens, valid = decode.pad_prompts(PROMPTS, (6,))
  cache, kept, logits = jax.jit(functools.partial(_prefilled, model))(
    params, tokens, valid
  )
  rows = {x.shape[0] for x in jax.tree.leaves(kept)}
  assert rows == {3}
  keys = kept["decoder"]["decoder"]["block_1"]["cross_attention"]["keys"]
  assert keys.shape == (3, 6, 2, 4)
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
  model = _decoder()
  for row, prompt in enumerate(PROMPTS):
    text, total = list(prompt), 0.0
    for token in beams.tokens[row, 0, : beams.lengths[row, 0]].tolist():
      total += float(
        decode.log_softmax(_logits(model, params, text, row))[token]
      )
      text.append(token)
    length = len(text) - len(prompt)
    close(beams.scores[row, 0], total / ((5 + length) / 6) ** 0.6, rtol=1e-4)


def test_sharded_is_single():
  model, params = _seq2seq(), _params(_seq2seq)
  prompts = [PROMPTS[i % 3] for i in range(8)]
  inputs = tuple(x[jnp.arange(8) % 3] for x in (INPUTS, INPUTS_VALID))
  data = (*decode.pad_prompts(prompts, (6,)), inputs)
  run = _generator(
    model, sampler=decode.Sampler(), num_samples=2, data_axis="data"
  )
  key = jax.random.key(5)
  want = jax.jit(run)(params, *data, key=key)
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  with jax.set_mesh(mesh):
    data = jax.device_put(data, jax.NamedSharding(mesh, jax.P("data")))
    got = jax.jit(run)(params, *data, key=key)
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
