"""The language model: causality, padding, cache, dtypes, gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import trees
from locojax.nn import lm, transformer

close = np.testing.assert_allclose
VOCAB = 11
POSITIONS = pytest.mark.parametrize("positions", lm.POSITIONS)


def _model(**kwargs):
  sizes = dict(num_layers=2, num_heads=2, model_size=8, max_len=8)
  return lm.DecoderLM(VOCAB, **{**sizes, **kwargs})


@functools.lru_cache
def _params(**kwargs):
  tokens = jnp.zeros((1, 2), jnp.int32)
  return jax.jit(_model(**kwargs).init)(jax.random.key(0), tokens)["params"]


def _tokens(batch=2, num=6, seed=1):
  return jax.random.randint(jax.random.key(seed), (batch, num), 0, VOCAB)


@functools.lru_cache
def _applied(**kwargs):
  model = _model(**kwargs)
  return jax.jit(lambda p, t, v: model.apply({"params": p}, t, valid=v))


def _apply(tokens, params=None, valid=None, **kwargs):
  params = _params(**kwargs) if params is None else params
  return _applied(**kwargs)(params, tokens, valid)


@POSITIONS
@pytest.mark.parametrize("place", [0, 3])
def test_a_token_moves_no_earlier_logits(positions, place):
  tokens = _tokens()
  changed = tokens.at[:, place].set((tokens[:, place] + 1) % VOCAB)
  a, b = (_apply(t, positions=positions) for t in (tokens, changed))
  np.testing.assert_array_equal(a[:, :place], b[:, :place])
  assert np.all(np.max(np.abs(a - b)[:, place:], axis=-1) > 1e-4)


@POSITIONS
def test_order_matters(positions):
  tokens = jnp.array([[1, 2, 3, 4]])
  swapped = jnp.array([[2, 1, 3, 4]])
  a, b = (_apply(t, positions=positions)[:, -1] for t in (tokens, swapped))
  assert float(jnp.max(jnp.abs(a - b))) > 1e-4


@POSITIONS
@pytest.mark.parametrize(
  "valid", [[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1]]
)
def test_padding_is_as_if_removed(positions, valid):
  valid = jnp.array([valid] * 2, bool)
  tokens = _tokens()
  got = _apply(tokens, valid=valid, positions=positions)[:, valid[0]]
  want = _apply(tokens[:, valid[0]], positions=positions)
  close(got, want, rtol=1e-5, atol=1e-5)
  assert bool(jnp.all(jnp.isfinite(_apply(tokens, valid=valid))))


@functools.partial(jax.jit, static_argnums=0)
def _decode(model, params, cache, tokens, valid=None):
  logits, new = model.apply(
    {"params": params, "cache": cache},
    tokens,
    valid=valid,
    decode=True,
    mutable="cache",
  )
  return logits, new["cache"]


@POSITIONS
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("pieces", [(1,) * 6, (6,), (3, 1, 2)])
def test_decoding_with_the_cache_is_the_full_forward(positions, scan, pieces):
  kwargs = dict(positions=positions, scan=scan)
  model, params, tokens = _model(**kwargs), _params(**kwargs), _tokens()
  want = _apply(tokens, **kwargs)
  cache, out = lm.init_cache(model, 2), []
  for piece in jnp.split(tokens, np.cumsum(pieces)[:-1], axis=1):
    logits, cache = _decode(model, params, cache, piece)
    out.append(logits)
  close(jnp.concatenate(out, axis=1), want, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(cache["length"], [6, 6])


@POSITIONS
def test_prompts_of_several_lengths_share_a_batch(positions):
  model, params = _model(positions=positions), _params(positions=positions)
  prompts = [[3, 1, 4, 1], [5, 9]]
  padded = jnp.array([[3, 1, 4, 1], [0, 5, 0, 9]])
  valid = jnp.array([[1, 1, 1, 1], [0, 1, 0, 1]], bool)
  cache = lm.init_cache(model, 2)
  _, cache = _decode(model, params, cache, padded, valid)
  np.testing.assert_array_equal(cache["length"], [4, 2])
  last = jnp.array([[7], [8]])
  got, _ = _decode(model, params, cache, last)
  for row, prompt in enumerate(prompts):
    whole = jnp.array([[*prompt, int(last[row, 0])]])
    want = _apply(whole, positions=positions)[0, -1]
    close(got[row, -1], want, rtol=1e-4, atol=1e-5)


def test_rows_of_the_cache_can_be_picked_as_beams():
  model, params, tokens = _model(), _params(), _tokens()
  _, cache = _decode(model, params, lm.init_cache(model, 2), tokens[:, :4])
  picked = jax.tree.map(lambda x: x[jnp.array([1, 1])], cache)
  got, _ = _decode(model, params, picked, tokens[:, 4:5])
  rows = jnp.concatenate(
    [tokens[jnp.array([1, 1]), :4], tokens[:, 4:5]], axis=1
  )
  close(got[:, 0], _apply(rows)[:, -1], rtol=1e-4, atol=1e-5)


def test_an_empty_cache_is_zero_and_init_leaves_it_so():
  cache = lm.init_cache(_model(), 3)
  assert all(not np.any(x) for x in jax.tree.leaves(cache))
  assert cache["decoder"]["block_1"]["attention"]["keys"].shape == (3, 2, 8, 4)


def test_scan_with_remat_gives_the_same_logits():
  params, tokens = _params(), _tokens()
  want = _apply(tokens)
  decoder = transformer.stack_blocks(params["decoder"])
  params = {**params, "decoder": decoder}
  got = _apply(tokens, params=params, scan=True, remat="block")
  close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tie_embedding", [False, True])
def test_tied_embedding_has_no_output_layer(tie_embedding):
  params = _params(tie_embedding=tie_embedding)
  assert ("output" in params) != tie_embedding
  logits = _apply(_tokens(), tie_embedding=tie_embedding)
  assert logits.shape == (2, 6, VOCAB)
  assert 0.1 < float(jnp.std(logits)) < 4


@POSITIONS
def test_bfloat16_computes_in_it_and_keeps_float32_parameters(positions):
  kwargs = dict(dtype=jnp.bfloat16, positions=positions)
  params = _params(**kwargs)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  logits = _apply(_tokens(), params=params, **kwargs)
  assert logits.dtype == jnp.bfloat16
  full = _apply(_tokens(), params=params, positions=positions)
  close(logits.astype(jnp.float32), full, atol=0.15)


@POSITIONS
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_gradient_is_finite_and_reaches_all_parameters(positions, dtype):
  kwargs = dict(positions=positions, dtype=dtype)
  tokens = _tokens()

  def loss(params):
    logits = _apply(tokens, params=params, **kwargs).astype(jnp.float32)
    return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 0])

  grads = trees.flatten(jax.jit(jax.grad(loss))(_params(**kwargs)))
  for path, grad in grads.items():
    assert bool(jnp.all(jnp.isfinite(grad))), path
    if not path.endswith("key/bias"):  # a softmax does not feel it
      assert float(jnp.max(jnp.abs(grad))) > 0, path


def test_mistakes_are_named():
  with pytest.raises(ValueError, match="did you mean 'rotary'"):
    _model(positions="rotory").init(jax.random.key(0), _tokens())
  with pytest.raises(ValueError, match="length of tokens=9"):
    _apply(_tokens(num=9))
  with pytest.raises(ValueError, match="batch_size=0"):
    lm.init_cache(_model(), 0)
