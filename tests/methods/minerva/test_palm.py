"""The decoder of PaLM: sizes, conventions, fused products, cache, packing."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from locojax import decode
from locojax.methods import minerva
from locojax.nn import attention, lm, norms, transformer
from tests import programs

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
# h p = 12 is not d = 8.
TINY = minerva.PaLMConfig(
  vocab_size=11,
  num_layers=2,
  d_model=8,
  num_heads=2,
  head_dim=6,
  d_ff=16,
  max_len=16,
)
TOKENS = jax.random.randint(jax.random.key(1), (2, 7), 0, 11)


def _made(config=TINY, **changes):
  config = dataclasses.replace(config, **changes)
  model = minerva.palm_model(config)
  params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
  return model, params


@functools.cache
def _tiny():
  model, params = _made()
  full = jax.jit(lambda t: model.apply({"params": params}, t))
  return model, params, np.asarray(full(TOKENS))


@pytest.mark.parametrize(
  "name, count",
  [
    ("palm_8b", 8_632_012_800),
    ("palm_62b", 62_495_662_080),
    ("palm_540b", 540_356_474_880),
    ("palm_tiny", None),
  ],
)
def test_presets_have_the_published_sizes(name, count):
  config = minerva.preset(name)
  model = minerva.palm_model(config)
  tokens = jnp.zeros((1, 2), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
  found = sum(x.size for x in jax.tree.leaves(shapes))
  assert found == minerva.count_params(config) == (count or found)


@pytest.mark.parametrize(
  "changes",
  [
    {"tie_embeddings": False, "num_kv_heads": 2},
    {"parallel": False, "norm": "layer"},
    {"fused": True},
  ],
)
def test_parameters_are_counted_for_other_settings(changes):
  config = dataclasses.replace(TINY, **changes)
  init = minerva.palm_model(config).init
  shapes = jax.eval_shape(init, jax.random.key(0), TOKENS)["params"]
  found = sum(x.size for x in jax.tree.leaves(shapes))
  assert found == minerva.count_params(config)
  assert not [x for x in jax.tree.leaves(shapes) if x.ndim == 1 and x.size > 8]


def test_rotary_positions_in_both_conventions():
  x = jnp.arange(1.0, 5.0).reshape(1, 1, 1, 4)
  half = [-1.41335252078, 1.879118066688, -2.828857481741, 4.058191135401]
  inter = [-1.27223251272, -1.838864985141, 2.878668100437, 4.088186635603]
  for style, want in (("half", half), ("interleaved", inter)):
    got = attention.rotary(x, jnp.array([[3]]), style=style)
    close(got.reshape(-1), want)
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 4))
    at = [
      jnp.sum(
        attention.rotary(q, jnp.array([[i]]), style=style)
        * attention.rotary(k, jnp.array([[j]]), style=style)
      )
      for i, j in ((9, 4), (105, 100))
    ]
    close(at[0], at[1], rtol=1e-4)
  with pytest.raises(ValueError, match="rotary_style='halve'.*'half'"):
    attention.rotary(x, jnp.array([[3]]), style="halve")


def test_angles_are_exact_where_bfloat16_is_not():
  x = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
  near, far = (
    attention.rotary(x, jnp.array([[n]])).astype(jnp.float32)
    for n in (256, 257)
  )
  assert float(jnp.abs(near - far).max()) > 0.1


def test_norms_and_gate_are_their_formulas():
  x = jnp.arange(1.0, 5.0)
  wants = {
    "rms": [0.365148347327, 0.730296694654, 1.095445041981, 1.460593389308],
    "layer": [
      *(-1.341640249844, -0.447213416615, 0.447213416615, 1.341640249844),
    ],
  }
  for kind, want in wants.items():
    norm = norms.make(kind, eps=1e-6, dtype=None, use_bias=False, name=None)
    params = norm.init(jax.random.key(0), x)
    assert jax.tree.leaves(params)[0].shape == (4,)
    assert len(jax.tree.leaves(params)) == 1
    close(norm.apply(params, x), want, rtol=1e-6)
  kernels = {"gate": 1.5, "up": 0.7, "down": 1.0}
  params = {n: {"kernel": jnp.full((1, 1), v)} for n, v in kernels.items()}
  swiglu = transformer.FeedForward(
    1, activation=nn.swish, gated=True, use_bias=False
  )
  one = swiglu.apply({"params": params}, jnp.ones((1,)))
  close(one, 0.8584532000033, rtol=1e-6)


def test_the_block_is_its_formula():
  """One layer against NumPy, in float64."""
  model, params = _made(num_layers=1)
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  block, table = p["decoder"]["block_0"], p["embed"]["embedding"]
  x = table[np.asarray(TOKENS)]
  norm = lambda a: a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6)
  y = norm(x)
  kernel = lambda part, name: block[part][name]["kernel"]
  turn = lambda a: np.asarray(
    attention.rotary(jnp.asarray(a, jnp.float32), jnp.arange(7)[None])
  )
  q = turn((y @ kernel("attention", "query")).reshape(2, 7, 2, 6))
  k = turn((y @ kernel("attention", "key")).reshape(2, 7, 1, 6))[:, :, 0]
  v = y @ kernel("attention", "value")
  scores = np.einsum("bthp,bsp->bhts", q, k) / np.sqrt(6)
  weights = np.where(np.tril(np.ones((7, 7), bool)), np.exp(scores), 0)
  weights /= weights.sum(-1, keepdims=True)
  mixed = np.einsum("bhts,bsp->bthp", weights, v).reshape(2, 7, 12)
  gate, up = (y @ kernel("feed_forward", n) for n in ("gate", "up"))
  hidden = gate / (1 + np.exp(-gate)) * up
  out = mixed @ kernel("attention", "out")
  x = x + out + hidden @ kernel("feed_forward", "down")
  want = norm(x) @ table.T / np.sqrt(8)
  got = jax.jit(model.apply)({"params": params}, TOKENS)
  close(got, want, rtol=1e-4, atol=1e-4)


def test_fused_and_scanned_are_the_same_function():
  _, params, want = _tiny()
  fused = minerva.palm_model(dataclasses.replace(TINY, fused=True))
  other = minerva.fuse(params, TINY)
  apply = lambda m, p: jax.jit(m.apply)({"params": p}, TOKENS)
  close(apply(fused, other), want)
  both = {"fused": True, "scan_layers": True, "remat": "block"}
  scanned = dataclasses.replace(TINY, **both)
  stack = transformer.stack_blocks(params["decoder"])
  stacked = minerva.fuse({**params, "decoder": stack}, scanned)
  close(apply(minerva.palm_model(scanned), stacked), want)


@pytest.mark.parametrize("fused", [False, True])
def test_the_cache_gives_what_the_whole_gives(fused):
  _, params, want = _tiny()
  model = minerva.palm_model(
    dataclasses.replace(TINY, fused=fused), cache_len=9
  )
  params = minerva.fuse(params, TINY) if fused else params
  cache, _, logits = lm.prefill(model, params, TOKENS[:, :4], reserve=3)
  keys = [x for x in jax.tree.leaves(cache) if x.ndim == 4]
  assert {x.shape for x in keys} == {(2, 1, 9, 6)}  # one head of keys
  close(logits, want[:, 3])
  step = jax.jit(lm.next_token(model, params))
  for t in (4, 5, 6):
    cache, logits = step(cache, TOKENS[:, t : t + 1])
    close(logits, want[:, t])


def test_packed_texts_do_not_see_each_other():
  model, params, want = _tiny()
  packed = jnp.concatenate([TOKENS[0, :5], TOKENS[1]])[None]
  ids = jnp.array([[4] * 5 + [2] * 7])
  apply = jax.jit(
    lambda t, ids: model.apply({"params": params}, t, segment_ids=ids)
  )
  got = apply(packed, ids)[0]
  close(got[:5], want[0, :5])
  close(got[5:], want[1])
  changed = apply(packed.at[0, 2].set(1 - packed[0, 2] % 2), ids)[0]
  np.testing.assert_array_equal(changed[5:], got[5:])
  assert np.abs(changed[2:5] - got[2:5]).max() > 1e-3
  with pytest.raises(ValueError, match="decode=True"):
    model.apply({"params": params}, packed, segment_ids=ids, decode=True)


def test_samples_share_their_prefill_and_are_what_each_would_be():
  model, params, _ = _tiny()

  @jax.jit
  def run(temperature):
    out = minerva.sample(
      model,
      params,
      TOKENS[:, :5],
      num_samples=3,
      max_new_tokens=4,
      key=jax.random.key(1),
      top_p=1.0,
      temperature=temperature,
    )
    texts = [jnp.repeat(TOKENS[:, :5], 3, axis=0), out.tokens.reshape(6, 4)]
    weights = jnp.zeros((6, 9)).at[:, 5:].set(1.0)
    told = minerva.log_likelihoods(
      model, params, jnp.concatenate(texts, axis=1), weights
    )
    return out, told.reshape(2, 3)

  (greedy, _), (cold, _), (many, told) = (run(t) for t in (0.0, 1e-6, 1.0))
  np.testing.assert_array_equal(cold.tokens, greedy.tokens)
  assert (np.asarray(greedy.tokens) == greedy.tokens[:, :1]).all()
  assert len({tuple(t) for t in np.asarray(many.tokens).reshape(6, 4)}) > 3
  close(told, many.log_probs.sum(-1), rtol=1e-4)
  close(many.log_probs, many.filtered_log_probs)


def test_prompts_on_several_devices_are_answered_alone():
  model, params, _ = _tiny()
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((2,), ("data",), axis_types=auto)

  def run(params, prompts):
    return minerva.sample(
      model,
      params,
      prompts,
      num_samples=2,
      max_new_tokens=4,
      top_p=1.0,
      key=jax.random.key(3),
      data_axis="data",
    )

  want = jax.jit(run)(params, TOKENS)
  with jax.set_mesh(mesh):
    rows = jax.NamedSharding(mesh, jax.P("data"))
    prompts = jax.device_put(TOKENS, rows)
    program = jax.jit(run).lower(params, prompts).compile()
    found = program(params, prompts)
  np.testing.assert_array_equal(found.tokens, want.tokens)
  close(found.log_probs, want.log_probs)
  assert programs.talks(program) == [("pred[]", "all-reduce")]


def test_the_filter_is_temperature_then_nucleus():
  logits = jnp.array([2.0, 1.0, 0.5, 0.0, -1.0])
  soft = lambda how: np.exp(decode.log_softmax(how.filter(logits)))
  hot = minerva.sampler(0.6, 1.0)
  want = [0.761398588875, 0.143809617473, 0.06249940212, 0.027162128194]
  close(soft(hot), [*want, 0.005130263337], rtol=2e-6)
  kept = [0.786806450845, 0.14860854272, 0.064585006435, 0, 0]
  close(soft(minerva.sampler()), kept, rtol=2e-6)
  with pytest.raises(ValueError, match="top_k=3 .*top_p=0.95"):
    minerva.sampler(top_k=3)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"head_dim": 5}, "head_dim=5"),
    ({"fused": True, "d_ff": 17}, "d_ff=17.*num_heads=2"),
    ({"fused": True, "parallel": False}, "parallel, with fused=True"),
    ({"num_kv_heads": 3}, "num_heads=2.*num_kv_heads=3"),
    ({"num_layers": 0}, "num_layers=0"),
    ({"norm": "rmsnorm"}, "norm='rmsnorm'.*'rms'"),
    ({"rope_style": "both"}, "rope_style='both'"),
  ],
)
def test_bad_settings_are_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(TINY, **changes)


def test_more_is_refused_in_plain_words():
  with pytest.raises(ValueError, match="palm_8B.*mean 'palm_8b'"):
    minerva.preset("palm_8B")
  with pytest.raises(ValueError, match="setting of PaLM.*layers"):
    minerva.preset("palm_8b", layers=3)
  model, params, _ = _tiny()
  with pytest.raises(ValueError, match="prompts of 7 .*at most 6"):
    minerva.sample(
      model, params, TOKENS, num_samples=1, key=None, max_new_tokens=10
    )
