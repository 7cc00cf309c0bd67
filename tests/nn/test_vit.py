"""The vision transformer: its formula, its two hooks, its sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import trees
from locojax.nn import attention, transformer, vit
from locojax.train import sharding

close = np.testing.assert_allclose
SIZES = dict(patch_size=4, width=8, num_layers=2, num_heads=2, hidden_size=16)


def _model(**changes):
  return vit.ViT(**{**SIZES, **changes})


def _normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(scope="module")
def images():
  return _normal(1, 8, 8, 12, 3)


@pytest.fixture(scope="module")
def params(images):
  """Parameters none of which is at a value that hides it."""
  made = jax.jit(_model().init)(jax.random.key(0), images)["params"]
  leaves, tree = jax.tree.flatten(made)
  moved = [x + 0.3 * _normal(i, *x.shape) for i, x in enumerate(leaves)]
  return jax.tree.unflatten(tree, moved)


@pytest.fixture(scope="module")
def run(params):
  """`(inputs, method, settings)` to the output of the compiled model."""

  def apply(*args, method="__call__", model=None, params=params, **kwargs):
    model = model or _model()
    call = lambda p, a, k: model.apply({"params": p}, *a, method=method, **k)
    return jax.jit(call)(params, args, kwargs)

  return apply


def test_names_and_shapes_of_the_parameters(params):
  shapes = {n: x.shape for n, x in trees.flatten(params).items()}
  assert shapes["cls"] == (1, 1, 8)
  assert shapes["pos_embedding"] == (1, 1 + 6, 8)
  assert shapes["patches/projection/kernel"] == (4, 4, 3, 8)
  assert {n.split("/")[0] for n in shapes} == {
    *("cls", "pos_embedding", "patches", "encoder")
  }
  bare = jax.eval_shape(
    _model(use_cls=False).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1))
  )["params"]
  assert "cls" not in bare and bare["pos_embedding"].shape == (1, 4, 8)


@pytest.mark.parametrize(
  ("name", "num"),
  [
    ("Ti/16", 5_524_416),
    ("S/16", 21_665_664),
    ("S/32", 22_493_952),
    ("B/32", 87_455_232),
    ("B/16", 85_798_656),
    ("L/16", 303_301_632),
    ("L/32", 305_510_400),
  ],
)
def test_presets_have_the_published_sizes(name, num):
  image = jnp.zeros((1, 224, 224, 3))
  init = vit.ViT(**vit.preset(name)).init
  assert trees.num_params(jax.eval_shape(init, jax.random.key(0), image)) == num


def test_presets_are_copies_and_named():
  assert set(vit.PRESETS) >= {"Ti/16", "S/4", "S/16", "B/16", "B/32", "L/16"}
  vit.preset("B/16")["width"] = 1
  assert vit.preset("B/16")["width"] == 768
  with pytest.raises(ValueError, match="preset='B/15'.*did you mean 'B/1"):
    vit.preset("B/15")


def test_embed_is_patches_cls_and_positions_by_hand(images, params, run):
  kernel = np.asarray(params["patches"]["projection"]["kernel"], np.float64)
  bias = params["patches"]["projection"]["bias"]
  x = np.asarray(images, np.float64)
  rows = [
    np.einsum("bijc,ijce->be", x[:, i : i + 4, j : j + 4], kernel) + bias
    for i in (0, 4)
    for j in (0, 4, 8)
  ]
  cls = np.broadcast_to(params["cls"][:, 0], (8, 8))
  want = np.stack([cls, *rows], axis=1) + np.asarray(params["pos_embedding"])
  embedded = run(images, method="embed")
  close(embedded, want, rtol=1e-4, atol=1e-5)
  close(
    run(tokens=embedded), run(images), rtol=1e-5, atol=1e-5
  )  # the same network after it


def _reference(params, x, tokens=(), key_values=()):
  """The model in NumPy, float64, from the embedded images on."""
  tokens, key_values = dict(tokens), dict(key_values)

  def norm(p, y, eps=1e-6):
    mean, var = y.mean(-1, keepdims=True), y.var(-1, keepdims=True)
    return (y - mean) / np.sqrt(var + eps) * p["scale"] + p["bias"]

  def dense(p, y):
    return y @ np.asarray(p["kernel"], np.float64) + p["bias"]

  def gelu(y):
    return 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))

  def attend(p, y, extra):
    q, k, v = (
      dense(p[n], y).reshape(*y.shape[:2], 2, 4)
      for n in ("query", "key", "value")
    )
    if extra is not None:
      wide = [np.broadcast_to(e, (len(y), *e.shape[1:])) for e in extra]
      k, v = (np.concatenate([e, z], 1) for e, z in zip(wide, (k, v)))
    scores = np.einsum("bthd,bshd->bhts", q, k) / 2.0
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bhts,bshd->bthd", weights, v)
    return dense(p["out"], out.reshape(*y.shape))

  x = np.asarray(x, np.float64)
  for i in range(2):
    p = params["encoder"][f"block_{i}"]
    if i in tokens:
      extra = np.broadcast_to(tokens[i], (len(x), *tokens[i].shape[1:]))
      x = np.concatenate([extra, x], axis=1)
    y = norm(p["attention_norm"], x)
    x = x + attend(p["attention"], y, key_values.get(i))
    y = norm(p["feed_forward_norm"], x)
    mlp = p["feed_forward"]
    x = x + dense(mlp["down"], gelu(dense(mlp["up"], y)))
  return norm(params["encoder"]["norm"], x)


def test_the_model_is_its_formula(images, params, run):
  want = _reference(params, run(images, method="embed"))
  close(run(images), want, rtol=1e-4, atol=1e-5)


def test_extra_tokens_stand_in_front_and_stay(images, params, run):
  first, second = _normal(2, 8, 3, 8), _normal(3, 1, 2, 8)
  embedded = run(images, method="embed")
  got = run(images, extra_tokens={0: first, 1: second})
  assert got.shape == (8, 2 + 3 + 1 + 6, 8)
  want = _reference(params, embedded, tokens={0: first, 1: second})
  close(got, want, rtol=1e-4, atol=1e-5)
  by_hand = run(tokens=jnp.concatenate([first, embedded], axis=1))
  at_input = run(images, extra_tokens={0: first})
  close(at_input, by_hand, rtol=1e-5, atol=1e-5)


def test_prefix_is_keys_and_values_in_front(images, params, run):
  prefix = {0: (_normal(4, 8, 3, 2, 4), _normal(5, 8, 3, 2, 4))}
  prefix[1] = (_normal(6, 1, 2, 2, 4), _normal(7, 1, 2, 2, 4))
  got = run(images, extra_key_values=prefix)
  assert got.shape == (8, 7, 8)
  embedded = run(images, method="embed")
  want = _reference(params, embedded, key_values=prefix)
  close(got, want, rtol=1e-4, atol=1e-5)
  assert float(jnp.max(jnp.abs(got - run(images)))) > 0.1


def test_nothing_extra_is_the_plain_model(images, run):
  none = {1: jnp.zeros((1, 0, 8))}
  nothing = {0: (jnp.zeros((8, 0, 2, 4)),) * 2}
  got = run(images, extra_tokens=none, extra_key_values=nothing)
  close(got, run(images), rtol=1e-5, atol=1e-6)
  close(run(images, extra_tokens={}), run(images), rtol=1e-6, atol=1e-6)


def test_some_rows_of_a_model_with_hooks(images, params, run):
  extra = {1: _normal(2, 8, 3, 8)}, {1: (_normal(3, 1, 2, 2, 4),) * 2}
  hooks = dict(zip(("extra_tokens", "extra_key_values"), extra))
  for rows in (1, 4):
    got = jax.jit(
      lambda rows=rows: _model().apply(
        {"params": params}, images, **hooks, num_rows=rows
      )
    )()
    close(got, run(images, **hooks)[:, :rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("remat", transformer.REMATS)
def test_hooks_under_remat_have_the_same_gradients(images, params, remat):
  def loss(model, extra):
    tokens, prefix = extra
    out = model.apply(
      {"params": params},
      images,
      extra_tokens={1: tokens},
      extra_key_values={0: (prefix, 2 * prefix)},
    )
    return jnp.sum(jnp.sin(out))

  extra = _normal(2, 8, 3, 8), _normal(3, 1, 2, 2, 4)
  got = jax.jit(jax.grad(lambda e: loss(_model(remat=remat), e)))(extra)
  want = jax.jit(jax.grad(lambda e: loss(_model(), e)))(extra)
  assert all(float(jnp.max(jnp.abs(g))) > 1e-3 for g in want)
  jax.tree.map(lambda a, b: close(a, b, rtol=1e-4, atol=1e-4), got, want)


def test_scan_is_the_unrolled_model(images, params, run):
  stacked = transformer.stack_blocks(params["encoder"])
  both = dict(model=_model(scan=True), params={**params, "encoder": stacked})
  close(run(images, **both), run(images), rtol=1e-5, atol=1e-5)
  extra = {0: _normal(2, 1, 3, 8)}
  got = run(images, extra_tokens=extra, **both)
  close(got, run(images, extra_tokens=extra), rtol=1e-5, atol=1e-5)
  for hook in (
    {"extra_tokens": {1: extra[0]}},
    {"extra_key_values": {0: (jnp.zeros((1, 1, 2, 4)),) * 2}},
  ):
    with pytest.raises(ValueError, match="not allowed with scan=True"):
      run(images, **hook, **both)


def test_bfloat16_has_its_dtype_and_is_near(images, run):
  hooks = {
    "extra_tokens": {0: _normal(2, 1, 3, 8)},
    "extra_key_values": {1: (_normal(4, 1, 2, 2, 4), _normal(5, 1, 2, 2, 4))},
  }
  got = run(images, model=_model(dtype=jnp.bfloat16), **hooks)
  assert got.dtype == jnp.bfloat16
  want = run(images, **hooks)
  assert want.dtype == jnp.float32
  assert float(jnp.mean(jnp.abs(got.astype(jnp.float32) - want))) < 0.03


def test_eight_devices_are_one(images, params, run):
  hooks = {
    "extra_tokens": {0: _normal(2, 8, 3, 8), 1: _normal(3, 1, 2, 8)},
    "extra_key_values": {1: (_normal(4, 8, 2, 2, 4), _normal(5, 8, 2, 2, 4))},
  }
  mesh = sharding.make_mesh({"data": 8})
  place = lambda x, *spec: jax.device_put(
    x, jax.NamedSharding(mesh, jax.P(*spec))
  )
  split = lambda x: place(x, "data") if len(x) == 8 else place(x)
  copies = jax.tree.map(place, params)
  with jax.set_mesh(mesh):
    got = run(split(images), params=copies, **jax.tree.map(split, hooks))
  assert len(got.sharding.device_set) == 8
  close(got, run(images, **hooks), rtol=1e-5, atol=1e-5)


def test_padding_stays_hidden_behind_extra_tokens():
  x, extra = _normal(1, 2, 5, 8), _normal(2, 1, 2, 8)
  model = transformer.Stack(2, 2, 16)
  params = jax.jit(model.init)(jax.random.key(0), x)
  apply = jax.jit(
    lambda x, valid=None: model.apply(
      params, x, valid=valid, extra_tokens={1: extra}
    )
  )
  valid = jnp.array([[True, True, False, True, False]] * 2)
  got, want = apply(x, valid), apply(x[:, valid[0]])
  close(got[:, :2], want[:, :2], rtol=1e-5, atol=1e-5)
  close(got[:, 2:][:, valid[0]], want[:, 2:], rtol=1e-5, atol=1e-5)


def test_norm_eps_reaches_every_norm():
  x = 1e-3 * _normal(1, 1, 3, 8)
  model = transformer.Stack(1, 2, 16, norm_eps=1e-6)
  params = model.init(jax.random.key(0), x)
  small = model.clone(norm_eps=1e-12)
  std = lambda y: jnp.std(y, axis=-1)
  for m, lowest, highest in ((model, 0.0, 0.9), (small, 0.99, 1.01)):
    _, seen = m.apply(params, x, capture_intermediates=True)
    block = seen["intermediates"]["block_0"]
    first = std(block["attention_norm"]["__call__"][0])
    assert lowest < float(first.min()) and float(first.max()) < highest
  with pytest.raises(ValueError, match="norm_eps=0"):
    model.clone(norm_eps=0.0).apply(params, x)


@pytest.fixture(scope="module")
def attend():
  """`(inputs, settings of the module)` to `(output, cache)`; and inputs."""
  x = _normal(1, 2, 4, 8)
  prefix = (_normal(2, 1, 3, 2, 4), _normal(3, 1, 3, 2, 4))
  model = attention.MultiHeadAttention(2)
  params = jax.jit(model.init)(jax.random.key(0), x)["params"]

  def call(x, cache=None, *, settings=None, **kwargs):
    module = model.clone(**settings or {})
    run = lambda p, x, k: module.apply(p, x, mutable="cache", **k)
    return jax.jit(run)({"params": params, **(cache or {})}, x, kwargs)

  return call, x, prefix


def test_every_query_sees_the_prefix_whatever_is_masked(attend):
  call, x, prefix = attend
  got, _ = call(x, settings={"causal": True}, prefix=prefix)
  alone, _ = call(x[:, :1], prefix=prefix)
  close(got[:, :1], alone, rtol=1e-5, atol=1e-6)
  valid = jnp.array([[True, False, True, True]] * 2)
  want, _ = call(x[:, valid[0]], prefix=prefix)
  for mask in ({"valid": valid}, {"mask": valid[:, None, None, :]}):
    got = call(x, prefix=prefix, **mask)[0][:, valid[0]]
    close(got, want, rtol=1e-5, atol=1e-6)
  none = jnp.zeros((1, 1, 1, 1), bool)
  hidden, seen = call(x, mask=none)[0], call(x, mask=none, prefix=prefix)[0]
  close(hidden, np.broadcast_to(hidden[:1, :1], hidden.shape))  # the bias
  assert float(jnp.max(jnp.abs(seen - hidden))) > 0.1


def test_prefix_stands_before_what_the_cache_holds(attend):
  call, x, prefix = attend
  want, _ = call(x, settings={"causal": True}, prefix=prefix)
  cache, settings = {}, {"decode": True, "max_len": 4}
  for i in range(4):
    at, one = jnp.array([[i]]), x[:, i : i + 1]
    out, cache = call(
      one, cache, settings=settings, positions=at, prefix=prefix
    )
    close(out, want[:, i : i + 1], rtol=1e-5, atol=1e-6)


def test_mistakes_are_named(images, params):
  apply = lambda *a, model=None, **k: jax.eval_shape(
    lambda p: (model or _model()).apply({"params": p}, *a, **k), params
  )
  with pytest.raises(ValueError, match="exactly one of images and tokens"):
    apply()
  with pytest.raises(ValueError, match=r"tokens have shape .*\[B, T, 8\]"):
    apply(tokens=jnp.zeros((1, 2, 9)))
  with pytest.raises(ValueError, match="height=10.*patch_size=4"):
    apply(jnp.zeros((1, 10, 8, 3)))
  with pytest.raises(ValueError, match="with 5 tokens do not fit.*1, 7, 8"):
    apply(jnp.zeros((1, 8, 8, 3)))
  with pytest.raises(ValueError, match=r"\(12, 8\) and image_size.*\(8, 12\)"):
    apply(jnp.zeros((1, 12, 8, 3)), model=_model(image_size=(8, 12)))
  for layer in (2, -1, 0.5, "0"):
    with pytest.raises(ValueError, match="layer of extra_tokens.*\\[0, 1\\]"):
      apply(images, extra_tokens={layer: jnp.zeros((1, 1, 8))})
    with pytest.raises(ValueError, match="layer of extra_key_values"):
      apply(images, extra_key_values={layer: (jnp.zeros((1, 1, 2, 4)),) * 2})
  for shape, words in (
    ((1, 2, 9), "size 9: it must be 8"),
    ((3, 2, 8), r"\(8 or 1, N, 8\)"),
    ((2, 8), r"\(8 or 1, N, 8\)"),
  ):
    with pytest.raises(ValueError, match=words):
      apply(images, extra_tokens={0: jnp.zeros(shape)})
  for shape in ((1, 2, 4, 2), (3, 2, 2, 4), (1, 2, 8)):
    with pytest.raises(ValueError, match=r"\(8 or 1, N, 2, 4\)"):
      apply(images, extra_key_values={0: (jnp.zeros(shape),) * 2})
  pair = (jnp.zeros((1, 2, 2, 4)), jnp.zeros((1, 3, 2, 4)))
  with pytest.raises(ValueError, match="keys of the prefix .* must be equal"):
    apply(images, extra_key_values={0: pair})
  with pytest.raises(ValueError, match="prefix is a .*must be a pair"):
    apply(images, extra_key_values={0: pair[0]})
  with pytest.raises(ValueError, match="width=8.*num_heads=3"):
    apply(images, model=_model(num_heads=3))
  with pytest.raises(ValueError, match="image_size"):
    vit.sides((8, 8, 8))
  stack = transformer.Stack(1, 2, 16, causal=True)
  x = jnp.zeros((1, 2, 8))
  with pytest.raises(ValueError, match="not allowed with mask, positions"):
    stack.init(
      jax.random.key(0),
      x,
      positions=jnp.zeros((1, 2), int),
      extra_tokens={0: x},
    )
