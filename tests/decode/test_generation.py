"""Generation: samples depend on their own prompt, key and place alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax import decode
from tests.decode import toy

close = np.testing.assert_allclose
PROMPTS = [[1, 2], [3, 4], [5, 1]]
WARM = decode.Sampler(temperature=1.5, top_p=0.9)


@functools.lru_cache
def _program(num, n, stops, early_exit, keep):
  def run(prompts, sampler, key, extra):
    cache, logits = toy.prefill(prompts)
    return decode.generate(
      toy.step,
      cache,
      logits,
      max_new_tokens=num,
      sampler=sampler,
      key=key,
      num_samples=n,
      stop_tokens=stops,
      early_exit=early_exit,
      keep=keep,
      **extra,
    )

  return jax.jit(run)


def _run(
  prompts=PROMPTS,
  sampler=WARM,
  *,
  seed=0,
  num=6,
  n=1,
  stops=(0,),
  early_exit=True,
  keep=None,
  **extra,
):
  run = _program(num, n, stops, early_exit, keep)
  key = jax.random.key(seed)
  return run(jnp.asarray(prompts), sampler, key, extra)


def _same(got, want, **kwargs):
  np.testing.assert_array_equal(got.tokens, want.tokens)
  np.testing.assert_array_equal(got.lengths, want.lengths)
  np.testing.assert_array_equal(got.finished, want.finished)
  close(got.log_probs, want.log_probs, rtol=1e-5, atol=1e-6)


def _at(out, *index):
  """Some rows or samples of what was generated."""
  pick = lambda x: x[index]
  return out._replace(
    tokens=pick(out.tokens),
    lengths=pick(out.lengths),
    finished=pick(out.finished),
    log_probs=pick(out.log_probs),
  )


@pytest.fixture(scope="module")
def sampled():
  return _run(n=3)


def test_greedy_is_a_loop_of_argmax():
  out = _run(sampler=decode.Sampler(0.0), stops=(0, 3))
  for row, prompt in enumerate(PROMPTS):
    text = []
    while len(text) < 6 and not {0, 3} & set(text):
      text.append(int(np.argmax(toy.log_probs(prompt + text))))
    length = int(out.lengths[row, 0])
    assert out.tokens[row, 0, :length].tolist() == text
    assert not np.any(out.tokens[row, 0, length:])
    assert bool(out.finished[row, 0]) == (text[-1] in (0, 3))


def test_log_probs_are_those_of_the_model(sampled):
  assert sampled.tokens.shape == (3, 3, 6)
  for row, prompt in enumerate(PROMPTS):
    for i in range(3):
      length = int(sampled.lengths[row, i])
      text = sampled.tokens[row, i].tolist()[:length]
      want = [toy.log_probs(prompt + text[:t])[text[t]] for t in range(length)]
      close(sampled.log_probs[row, i, :length], want, rtol=1e-4, atol=1e-5)
      assert not np.any(sampled.log_probs[row, i, length:])
      after = sampled.filtered_log_probs[row, i]
      assert np.all(np.isfinite(after)) and not np.any(after[length:])
      assert (text[-1] == 0) == bool(sampled.finished[row, i])
  assert len({tuple(t) for t in np.asarray(sampled.tokens[0]).tolist()}) > 1


def test_samples_do_not_depend_on_how_many_there_are(sampled):
  _same(_run(n=1), _at(sampled, slice(None), slice(1)))


def test_samples_do_not_depend_on_the_batch(sampled):
  alone = _run(PROMPTS[2:], n=3, row_ids=jnp.array([2]))
  _same(alone, _at(sampled, slice(2, None)))
  turned = _run(PROMPTS[::-1], n=3, row_ids=jnp.array([2, 1, 0]))
  _same(turned, _at(sampled, slice(None, None, -1)))
  twice = _run([PROMPTS[0]] * 3, n=3)
  assert np.any(twice.tokens[0] != twice.tokens[1])


def test_another_key_gives_other_samples(sampled):
  assert np.any(_run(n=3, seed=1).tokens != sampled.tokens)


def test_early_exit_changes_nothing_but_the_steps():
  stops = (0, 1, 2, 3)
  short, full = (
    _run(n=2, stops=stops, num=9, early_exit=e) for e in (True, False)
  )
  _same(short, full)
  close(short.filtered_log_probs, full.filtered_log_probs, atol=1e-6)
  assert int(full.num_steps) == 8
  assert int(short.num_steps) == int(np.max(short.lengths)) - 1 < 8


def test_rows_that_fill_up_and_limits(sampled):
  out = _run(n=3, rows=jnp.array([True, False, True]))
  np.testing.assert_array_equal(out.tokens[::2], sampled.tokens[::2])
  assert not np.any(out.tokens[1]) and not np.any(out.lengths[1])
  assert not np.any(out.finished[1])
  limits = np.array([0, 2, 9])
  out = _run(n=3, limits=jnp.asarray(limits))
  want = np.minimum(sampled.lengths, limits[:, None])
  np.testing.assert_array_equal(out.lengths, want)
  for t in range(6):
    hit = t < np.asarray(out.lengths)
    np.testing.assert_array_equal(
      np.asarray(out.tokens)[..., t][hit],
      np.asarray(sampled.tokens)[..., t][hit],
    )


def test_stop_sequences_and_forbidden_tokens_hold_for_samples():
  rule = decode.all_of(
    decode.never([0, 5], toy.VOCAB), decode.stop_sequences([(1, 2)], toy.VOCAB)
  )
  out = _run(n=8, stops=(), num=12, constraint=rule)
  for text, length, finished in zip(
    np.asarray(out.tokens).reshape(-1, 12).tolist(),
    np.asarray(out.lengths).ravel(),
    np.asarray(out.finished).ravel(),
  ):
    text = text[:length]
    assert not {0, 5} & set(text)
    pairs = list(zip(text, text[1:]))
    assert ((1, 2) in pairs) == finished
    assert (1, 2) not in pairs[:-1]
  assert np.any(out.finished)


def test_where_nothing_is_allowed_a_text_is_cut_and_not_finished():
  rule = decode.trie([(2, 4), (5,)], toy.VOCAB)
  out = _run(n=4, stops=(), constraint=rule)
  assert not np.any(out.finished) and not np.any(np.isnan(out.log_probs))
  texts = {
    tuple(t[:n])
    for t, n in zip(
      np.asarray(out.tokens).reshape(-1, 6).tolist(),
      np.asarray(out.lengths).ravel(),
    )
  }
  assert texts == {(2, 4), (5,)}


@pytest.mark.parametrize(("every", "offset"), [(3, 1), (1, 0), (5, 4)])
def test_kept_log_probs_are_those_of_the_model(every, offset):
  keep = decode.Keep(every=every, offset=offset, low=2, high=5)
  out = _run(n=2, num=7, stops=(0,), keep=keep)
  places = range(offset, 7, every)
  assert out.kept.shape == (3, 2, len(places), 3)
  for row, i in np.ndindex(3, 2):
    length = int(out.lengths[row, i])
    text = out.tokens[row, i].tolist()
    for k, t in enumerate(places):
      got = out.kept[row, i, k]
      if t >= length:
        assert np.all(np.isneginf(got))
        continue
      want = toy.log_probs(PROMPTS[row] + text[:t])[2:5]
      close(got, want, rtol=1e-4, atol=1e-5)


def test_sharded_is_single(sampled):
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  prompts = jnp.tile(jnp.asarray(PROMPTS[:2]), (4, 1))
  ids = jnp.arange(8)

  def run(prompts, ids, data_axis=None):
    cache, logits = toy.prefill(prompts)
    return decode.generate(
      toy.step,
      cache,
      logits,
      max_new_tokens=6,
      sampler=WARM,
      key=jax.random.key(0),
      num_samples=2,
      stop_tokens=(0,),
      row_ids=ids,
      data_axis=data_axis,
    )

  want = jax.jit(run)(prompts, ids)
  with jax.set_mesh(mesh):
    rows = jax.NamedSharding(mesh, jax.P("data"))
    got = jax.jit(run)(*jax.device_put((prompts, ids), rows))
    _same(got, want)
    assert not got.tokens.sharding.is_fully_replicated
    # One prompt, its samples over the devices.
    one = jax.jit(lambda p, i: run(p, i, "data"))
    with pytest.raises(ValueError, match="rows of the cache=2.*data=8"):
      one(prompts[:1], ids[:1])
    got = one(prompts[:4], ids[:4])
  _same(got, _at(want, slice(4)))


def _generate(logits=None, cache=None, step=toy.step, **kwargs):
  logits = jnp.zeros((2, 6)) if logits is None else logits
  cache = toy.cache(2) if cache is None else cache
  settings = dict(max_new_tokens=2)
  return decode.generate(step, cache, logits, **{**settings, **kwargs})


@pytest.mark.parametrize(
  ("kwargs", "words"),
  [
    (dict(logits=jnp.zeros((2, 1, 6))), r"logits have shape \(2, 1, 6\)"),
    (dict(max_new_tokens=0), "max_new_tokens=0"),
    (dict(num_samples=0), "num_samples=0"),
    (dict(pad_token=6), "pad_token=6"),
    (dict(stop_tokens=(1, 6)), "stop_tokens=6"),
    (dict(stop_tokens=(0.5,)), "stop_tokens has dtype"),
    (dict(sampler=WARM), "key=None"),
    (dict(early_exit=1), "early_exit=1"),
    (dict(keep=decode.Keep(high=7)), "high=7"),
    (dict(keep=decode.Keep(low=6)), "low=6"),
    (dict(rows=jnp.ones((3,))), r"rows has shape \(3,\)"),
    (dict(row_ids=jnp.ones((1,), int)), r"row_ids has shape \(1,\)"),
    (dict(limits=jnp.ones((3,), int)), r"limits has shape \(3,\)"),
    (dict(cache=toy.cache(3)), "'blocks'.*2 rows"),
    (dict(cache=toy.cache(2), axes=0), "'blocks'.*axis 0"),
    (dict(axes=3), "axis of rows of blocks=3"),
    (
      dict(step=lambda c, t: (c, jnp.zeros((2, 1, 6)))),
      r"logits of the step has shape \(2, 1, 6\)",
    ),
  ],
)
def test_mistakes_are_named(kwargs, words):
  with pytest.raises(ValueError, match=words):
    _generate(**kwargs)


@pytest.mark.parametrize(
  ("kwargs", "words"),
  [
    (dict(every=0), "every=0"),
    (dict(every=5, offset=5), "offset=5"),
    (dict(low=-1), "low=-1"),
    (dict(low=3, high=3), "high=3"),
  ],
)
def test_mistakes_of_what_to_keep_are_named(kwargs, words):
  with pytest.raises(ValueError, match=words):
    decode.Keep(**kwargs)
