"""Routing: worked numbers, invariants, and dispatchers that agree."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods.limoe import auxiliary, dispatch, moe, routing
from tests import programs

KEY = jax.random.key(0)
GATES = jnp.array(
  [(0.6, 0.4), (0.55, 0.45), (0.9, 0.1), (0.2, 0.8), (0.7, 0.3)]
)


@pytest.mark.parametrize(
  ("tokens", "experts", "factor", "multiple", "expected"),
  [
    (512, 8, 1.05, 4, 68),
    (512, 32, 1.05, 4, 20),
    (65, 8, 1.05, 1, 9),
    (65, 8, 1.05, 4, 12),
    (160, 8, 1.05, 1, 21),
  ],
)
def test_capacities(tokens, experts, factor, multiple, expected):
  assert expected == routing.compute_capacity(
    tokens, experts, factor, multiple_of=multiple
  )


def test_priority_says_who_is_kept_not_how_many():
  kept = {}
  for priority in ("none", "max"):
    found = routing.route_top_k(GATES, top_k=1, capacity=2, priority=priority)
    kept[priority] = np.flatnonzero(found.kept[:, 0]).tolist()
  assert kept == {"none": [0, 1, 3], "max": [2, 3, 4]}


def _gates(tokens=24, experts=4, seed=0):
  key = jax.random.fold_in(KEY, seed)
  return jax.nn.softmax(jax.random.normal(key, (tokens, experts)))


@pytest.mark.parametrize("priority", routing.PRIORITIES)
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("capacity", [1, 5, 24])
def test_an_expert_keeps_its_demand_up_to_its_places(priority, top_k, capacity):
  gates = _gates()
  found = routing.route_top_k(
    gates, top_k=top_k, capacity=capacity, priority=priority
  )
  for e in range(4):
    here = np.asarray(found.expert == e)
    places = np.sort(np.asarray(found.position)[here & np.asarray(found.kept)])
    assert len(places) == min(here.sum(), capacity)
    np.testing.assert_array_equal(places, np.arange(len(places)))


def test_first_choices_are_served_before_second_ones():
  gates = jnp.array([(0.5, 0.4, 0.1), (0.1, 0.5, 0.4), (0.4, 0.5, 0.1)])
  found = routing.route_top_k(gates, top_k=2, capacity=2)
  assert found.kept.tolist() == [[True, False], [True, True], [True, True]]


def test_masked_tokens_take_no_place():
  gates, valid = _gates(), np.arange(24) % 3 != 0
  found = routing.route_top_k(
    gates, top_k=2, capacity=5, priority="max", valid=jnp.asarray(valid)
  )
  alone = routing.route_top_k(gates[valid], top_k=2, capacity=5, priority="max")
  for a, b in zip(found, alone):
    np.testing.assert_array_equal(np.asarray(a)[valid], b)
  assert not np.asarray(found.kept)[~valid].any()


def test_permuted_tokens_are_served_alike_by_confidence_alone():
  gates, order = _gates(), np.random.default_rng(0).permutation(24)
  for priority, same in (("max", True), ("none", False)):
    run = lambda g, p=priority: routing.route_top_k(
      g, top_k=1, capacity=4, priority=p
    )
    equal = np.array_equal(run(gates).kept[order], run(gates[order]).kept)
    assert equal == same


def test_a_bias_chooses_but_does_not_weigh():
  gates = _gates()
  bias = jnp.array([0.0, 0.0, 9.0, 0.0])
  found = routing.route_top_k(
    gates, top_k=1, capacity=None, selection=gates + bias
  )
  assert (found.expert == 2).all() and found.kept.all()
  np.testing.assert_array_equal(found.weight[:, 0], gates[:, 2])
  load = jnp.array([[9.0, 1.0, 1.0, 1.0]])
  moved = routing.update_balance_bias(jnp.zeros((1, 4)), load, rate=0.1)
  assert moved[0, 0] < 0 < moved[0, 1]
  assert float(moved.sum()) == pytest.approx(0, abs=1e-6)


def test_expert_choice_is_balanced_and_soft_weights_sum_to_one():
  gates = _gates()
  choice = routing.route_expert_choice(gates, capacity=6)
  best = np.sort(np.argsort(-np.asarray(gates), axis=0)[:6].T, axis=1)
  np.testing.assert_array_equal(np.sort(choice.token, axis=1), best)
  x = jax.random.normal(KEY, (24, 5))
  slots = jax.random.normal(jax.random.key(1), (5, 4, 3))
  valid = jnp.arange(24) < 20
  there, back = jax.jit(routing.soft_moe_weights)(x, slots, 2.0, valid=valid)
  np.testing.assert_allclose(there.sum(axis=0), 1, rtol=1e-5)
  np.testing.assert_allclose(back[:20].sum(axis=(1, 2)), 1, rtol=1e-5)
  assert not there[20:].any() and not back[20:].any()


def _layer(**changes):
  settings = dict(num_experts=4, hidden_size=6, share_init=False, noise_std=0.0)
  return moe.MoeMlp(**{**settings, **changes})


def _run(x, variables=None, **changes):
  layer = _layer(**changes)
  rngs = {"gating": jax.random.key(5)}
  if variables is None:
    variables = programs.init(layer, {"params": KEY, **rngs}, x, train=True)

  def loss(variables, x):
    y, info = layer.apply(variables, x, train=True, rngs=rngs)
    return jnp.sum(jnp.sin(y)), (y, info)

  # As one program: op by op it takes many times as long.
  gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
  grads, (y, info) = gradient(variables, x)
  return y, info, grads


X = jax.random.normal(jax.random.key(2), (3, 16, 5))


@pytest.mark.parametrize("factor", [0.5, 1.05, None])
@pytest.mark.parametrize("top_k", [1, 2])
def test_dispatchers_agree_in_value_and_gradient(factor, top_k):
  layer = _layer(top_k=top_k)
  variables = programs.init(layer, {"params": KEY}, X, train=True)
  found = {
    name: _run(
      X, variables, dispatcher=name, capacity_factor=factor, top_k=top_k
    )
    for name in dispatch.DISPATCHERS
  }
  y, _, grads = found.pop("dense")
  for other in found.values():
    np.testing.assert_allclose(other[0], y, atol=1e-5)
    for a, b in zip(jax.tree.leaves(other[2]), jax.tree.leaves(grads)):
      np.testing.assert_allclose(a, b, atol=2e-5)


def test_all_experts_is_the_mixture_of_all():
  y, _, _ = _run(X, top_k=4, capacity_factor=None)
  variables = programs.init(_layer(), {"params": KEY}, X, train=True)["params"]
  gates = jax.nn.softmax(X @ variables["router"]["kernel"])
  experts = moe.ExpertMlp(4, 6, share_init=False)
  rows = jnp.broadcast_to(X.reshape(1, 48, 5), (4, 48, 5))
  out = programs.apply(experts, {"params": variables["experts"]}, rows)
  expected = jnp.einsum("gse,egsd->gsd", gates, out.reshape(4, 3, 16, 5))
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_dropped_tokens_get_nothing_and_move_no_gate():
  y, info, grads = _run(X, capacity_factor=0.3)
  dropped = ~np.asarray(info.kept[..., 0])
  assert dropped.any() and not np.asarray(y)[dropped].any()
  assert not np.asarray(grads[1])[dropped].any()


def test_a_token_of_a_dropless_evaluation_depends_on_no_other():
  layer = _layer()
  variables = programs.init(layer, {"params": KEY}, X, train=True)
  run = jax.jit(lambda x: layer.apply(variables, x, train=False)[0])
  whole = run(X)
  np.testing.assert_allclose(run(X[:, :3]), whole[:, :3], atol=1e-6)
  mixed = jnp.concatenate([X[:, 3:], X[:, :3]], axis=1)
  np.testing.assert_allclose(run(mixed)[:, -3:], whole[:, :3], atol=1e-6)


@pytest.mark.parametrize("router", ["expert_choice", "soft"])
def test_other_routers_run_and_have_gradients(router):
  y, info, grads = _run(X, router=router, capacity_factor=1.0)
  assert np.isfinite(y).all() and info.logits.shape == (3, 16, 4)
  for g in jax.tree.leaves(grads):
    assert np.abs(np.asarray(g)).max() > 0


def test_the_bias_moves_against_the_load():
  layer = _layer(balance_rate=0.1, capacity_factor=None)
  variables = programs.init(layer, {"params": KEY}, X, train=True)
  (_, info), new = programs.apply(
    layer, variables, X, train=True, mutable=["balance"]
  )
  load = np.bincount(np.asarray(info.expert).ravel(), minlength=4)
  bias = np.asarray(new["balance"]["bias"])[0]
  assert np.argmax(load) == np.argmin(bias)
  np.testing.assert_allclose(np.sign(bias), -np.sign(load - load.mean()))


def test_upcycled_experts_are_the_dense_block():
  from locojax.nn import transformer

  dense = transformer.FeedForward(6)
  params = programs.init(dense, KEY, X)["params"]
  made = moe.upcycle(params, num_experts=4, key=KEY)
  y, _ = programs.apply(_layer(top_k=4), {"params": made}, X, train=False)
  wanted = programs.apply(dense, {"params": params}, X)
  np.testing.assert_allclose(y, wanted, atol=1e-5)


def test_low_precision_experts_are_near():
  variables = programs.init(_layer(), {"params": KEY}, X, train=True)
  y, _, _ = _run(X, variables)
  low, info, _ = _run(X, variables, dtype=jnp.bfloat16)
  assert info.logits.dtype == jnp.float32
  np.testing.assert_allclose(low, y, atol=2e-2)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(top_k=5), "top_k=5"),
    (dict(top_k=0), "top_k=0"),
    (dict(group_size=7), "nearest that does is 6|nearest that does is 8"),
    (dict(capacity_factor=-1.0), "capacity_factor=-1.0"),
    (dict(dispatcher="magic"), "magic"),
    (dict(priority="min"), "min"),
    (dict(router="soft", capacity_factor=None), "capacity_factor=None"),
  ],
)
def test_bad_settings_are_named(changes, words):
  with pytest.raises(ValueError, match=words):
    _run(X, **changes)


LOGITS = jnp.array([(2.0, 0, 0, 0), (0, 2.0, 0, 0), (2.0, 0, 0, 0)])


def test_losses_have_their_worked_values():
  near = lambda x: pytest.approx(x, rel=2e-6, abs=2e-7)
  gates = jax.nn.softmax(LOGITS)
  a = auxiliary
  assert float(a.local_entropy_loss(LOGITS)) == near(0.918283765458)
  assert float(a.mean_gate_entropy(LOGITS)) == near(1.156682441013)
  soft = lambda n: float(a.global_entropy_loss(LOGITS, soft_min_experts=n))
  assert [soft(2), soft(3)] == [0, 0] and soft(4) == near(0.229611920107)
  assert float(a.global_entropy_loss(LOGITS)) == near(-1.156682441013)
  assert float(a.router_z_loss(LOGITS)) == near(5.479124391253)
  assert float(a.importance_loss(gates)) == near(0.462244120501)
  assert float(a.gshard_loss(gates)) == near(1.751641560963)
  two = jnp.array([(0.7, 0.2, 0.1), (0.6, 0.3, 0.1)])
  assert float(a.importance_loss(two)) == near(0.485)
  z = a.router_z_loss(jnp.array([(0.0, 0), (1, -1)]))
  assert float(z) == near(0.875209877996)


def test_gradients_have_their_worked_values():
  local = jax.jit(jax.grad(auxiliary.local_entropy_loss))(LOGITS)[0]
  np.testing.assert_allclose(
    local, [-0.136919964134, *3 * [0.045639988045]], atol=1e-7
  )
  whole = lambda x: auxiliary.global_entropy_loss(x, soft_min_experts=4)
  np.testing.assert_allclose(
    jax.jit(jax.grad(whole))(LOGITS)[0],
    [0.087608277468, -0.004798179168, -0.041405049150, -0.041405049150],
    atol=1e-7,
  )
  met = lambda x: auxiliary.global_entropy_loss(x, soft_min_experts=3)
  assert not jax.jit(jax.grad(met))(LOGITS).any()


def test_load_has_its_worked_values():
  logits = jnp.array([(1.0, 0, -1), (0, 0.5, 0)])
  noise = jnp.array([(0.1, -0.2, 0.3), (-0.4, 0.2, 0.5)]) / 3
  load = lambda n: float(
    auxiliary.load_loss(logits, logits + n, noise_std=1 / 3, top_k=1)
  )
  assert load(0) == pytest.approx(0.343992615558, rel=1e-5)
  assert load(noise) == pytest.approx(0.382758709596, rel=1e-5)
  with pytest.raises(ValueError, match="noise_std=0"):
    auxiliary.load_loss(logits, logits, noise_std=0, top_k=1)


def test_uniform_and_one_hot_routing_are_the_ends():
  a, zero = auxiliary, jnp.zeros((7, 8))
  sure = 1e4 * jax.nn.one_hot(jnp.arange(8), 8)
  log = float(np.log(8))
  assert float(a.importance_loss(jax.nn.softmax(zero))) == 0
  assert float(a.local_entropy_loss(zero)) == pytest.approx(log)
  assert float(a.router_z_loss(zero)) == pytest.approx(log**2)
  assert float(a.local_entropy_loss(sure)) == 0
  assert float(a.mutual_information(sure)) == pytest.approx(log, rel=1e-6)
  assert float(a.mutual_information(zero)) == pytest.approx(0, abs=1e-6)
  grads = jax.jit(jax.grad(lambda x: a.global_entropy_loss(x)))(sure)
  assert np.isfinite(grads).all()


def test_masked_tokens_are_removed_ones_and_of_none_losses_are_zero():
  logits = jax.random.normal(KEY, (2, 9, 4))
  mask = (jnp.arange(18).reshape(2, 9) % 4 != 0).astype(jnp.float32)
  here = logits.reshape(18, 4)[np.asarray(mask).reshape(-1) != 0]
  broken = jnp.where(mask[..., None] != 0, logits, jnp.nan)
  gates = jax.nn.softmax
  pairs = [
    (auxiliary.local_entropy_loss, logits, here),
    (auxiliary.global_entropy_loss, logits, here),
    (auxiliary.router_z_loss, logits, here),
    (auxiliary.importance_loss, gates(logits), gates(here)),
    (auxiliary.gshard_loss, gates(logits), gates(here)),
  ]
  for loss, all_, kept in pairs:
    run = jax.jit(loss)
    assert float(run(all_, mask=mask)) == pytest.approx(
      float(run(kept)), rel=1e-5
    )
    assert float(run(all_, mask=jnp.zeros_like(mask))) == 0
  found = jax.jit(auxiliary.local_entropy_loss)(broken, mask=mask)
  assert np.isfinite(found)


def test_overall_success_hides_a_collapse_of_text():
  expert = np.concatenate([np.arange(480) % 8, np.zeros(32, int)])
  gates = jax.nn.one_hot(expert, 8)
  found = routing.route_top_k(gates, top_k=1, capacity=68)
  kept = np.asarray(found.kept[:, 0])
  loss = float(auxiliary.importance_loss(gates))
  assert loss == pytest.approx(112 / 64**2, rel=1e-6)
  assert kept.mean() == pytest.approx(0.953, abs=1e-3)
  assert kept[480:].mean() == 0.25


def test_pooled_over_a_mesh_is_the_global_batch():
  logits = jax.random.normal(KEY, (8, 5, 4))
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  run = lambda x: auxiliary.global_entropy_loss(
    x, soft_min_experts=4, axis_name="data"
  )
  sharded = jax.jit(
    jax.shard_map(run, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P())
  )(logits)
  alone = lambda x: auxiliary.global_entropy_loss(x, soft_min_experts=4)
  whole = alone(logits)
  assert float(sharded) == pytest.approx(float(whole), rel=1e-6)
  parts = jax.jit(jax.vmap(alone))(logits)
  assert float(parts.mean()) > float(whole)


@pytest.mark.parametrize("axes", [(8, 1), (2, 4), (1, 4), (4, 2)])
@pytest.mark.parametrize("dispatcher", ["einsum", "gather", "ragged"])
def test_sharded_is_unsharded_and_no_weights_move(axes, dispatcher):
  import re

  layer = _layer(dispatcher=dispatcher)
  x = jax.random.normal(jax.random.key(2), (8, 16, 5))
  variables = programs.init(layer, {"params": KEY}, x, train=True)

  def loss(variables, x):
    y, _ = layer.apply(variables, x, train=True)
    return jnp.sum(jnp.sin(y))

  expected, grads = jax.jit(jax.value_and_grad(loss))(variables, x)
  num = axes[0] * axes[1]
  mesh = jax.make_mesh(
    axes,
    ("data", "expert"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:num],
  )
  of = lambda *spec: jax.NamedSharding(mesh, jax.P(*spec))
  put = {
    "params": {
      "router": jax.device_put(variables["params"]["router"], of()),
      "experts": jax.device_put(variables["params"]["experts"], of("expert")),
    }
  }
  xs = jax.device_put(x, of(("data", "expert")))
  with jax.set_mesh(mesh):
    run = jax.jit(jax.value_and_grad(loss)).lower(put, xs).compile()
    found, there = run(put, xs)
  assert float(found) == pytest.approx(float(expected), rel=1e-5)
  for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(grads)):
    np.testing.assert_allclose(a, b, atol=2e-5)
  text = run.as_text()
  if axes[1] > 1:
    there = "reduce-scatter" if dispatcher == "ragged" else "all-to-all"
    assert there in text
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", text)
    assert not any(
      g.startswith("4,5,6") or g.startswith("4,6,5") for g in gathered
    )


def test_soft_slots_belong_to_the_model_not_to_the_group():
  """Made for groups of 16; any other size has the same slots."""
  layer = _layer(router="soft", capacity_factor=1.0)
  variables = programs.init(layer, {"params": KEY}, X, train=True)
  assert variables["params"]["slots"].shape[1:] == (4, 4)
  for train in (True, False):
    for size in (1, 5, 16):
      y, info = programs.apply(layer, variables, X[:, :size], train=train)
      assert y.shape == X[:, :size].shape and np.isfinite(y).all()
      assert info.kept.all()
  given = _layer(router="soft", slots_per_expert=3, capacity_factor=None)
  shapes = jax.eval_shape(lambda: given.init({"params": KEY}, X, train=True))
  assert shapes["params"]["slots"].shape[1:] == (4, 3)
  with pytest.raises(ValueError, match="slots_per_expert=3"):
    _layer(slots_per_expert=3).init({"params": KEY}, X, train=True)


def test_a_soft_group_without_tokens_gives_zeros_and_finite_gradients():
  layer = _layer(router="soft", slots_per_expert=2)
  variables = programs.init(layer, {"params": KEY}, X, train=False)
  mask = jnp.ones(X.shape[:2]).at[0].set(0)

  def loss(variables, x):
    y, _ = layer.apply(variables, x, train=False, mask=mask)
    return jnp.square(y).sum(), y

  run = jax.jit(jax.grad(loss, has_aux=True))
  grads, y = run(variables, X.at[0].set(jnp.nan))
  assert not y[0].any()
  wanted, _ = run(variables, X)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert np.isfinite(a).all()
