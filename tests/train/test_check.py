"""Checks without data or devices: counts, collectives, refusals."""

from __future__ import annotations

import builtins
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from locojax.core import mesh as mesh_lib
from locojax.train import (
  check,
  collectives,
  experiment,
  flops,
  sharding,
  steps,
  topology,
)

F32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
TPU = pytest.mark.tpu_check
A, B = F32((4, 8)), F32((8, 8))
ONE = 2 * 4 * 8 * 8


def _scan(a, b):
  return jax.lax.scan(lambda c, _: (c @ b, None), a, length=5)[0]


def _while(a, b, start=2, stop=7):
  def body(carry):
    return carry[0] + 1, carry[1] @ b

  return jax.lax.while_loop(lambda c: c[0] < stop, body, (start, a))


def _branches(a, b):
  heavy = lambda a: a @ b @ b @ b
  return jax.lax.cond(a[0, 0] > 0, heavy, lambda a: a @ b, a)


def _shard_map(a, b):
  mesh = sharding.abstract_mesh({"data": 2, "model": 4})
  product = lambda a, b: jax.lax.psum(a @ b, "model")
  return jax.shard_map(
    product,
    mesh=mesh,
    in_specs=(P("data", "model"), P("model")),
    out_specs=P("data"),
  )(a, b)


@jax.custom_vjp
def _custom(a, b):
  return a @ b


_custom.defvjp(
  lambda a, b: (a @ b, (a, b)), lambda r, g: (g @ r[1].T, r[0].T @ g)
)


@pytest.mark.parametrize(
  ("fn", "products"),
  [
    (lambda a, b: a @ b, 1),
    (jax.jit(lambda a, b: jnp.tanh(a @ b) @ b), 2),
    (_scan, 5),
    (lambda a, b: jax.lax.fori_loop(0, 6, lambda i, c: c @ b, a), 6),
    (_while, 5),
    (lambda a, b: _while(a, b, 7, 2), 0),
    (lambda a, b: jax.lax.map(lambda _: _scan(a, b), jnp.arange(3)), 15),
    (_branches, 3),
    (_custom, 1),
    (jax.grad(lambda a, b: _custom(a, b).sum(), (0, 1)), 3),
    (jax.grad(lambda a, b: jnp.sum((a @ b) ** 2), (0, 1)), 3),
    (jax.grad(lambda a, b: jnp.sum((a @ b) ** 2), 1), 2),
    (jax.grad(lambda a, b: jnp.sum(_scan(a, b) ** 2), (0, 1)), 15),
    (_shard_map, 1),
    (lambda a, b: jax.vmap(lambda r: r @ b)(a), 1),
  ],
)
def test_worked_counts(fn, products):
  found = flops.count(fn, A, B)
  assert found.total == products * ONE
  assert found.notes == ()
  assert check.count_flops(fn, A, B) == found.total


def test_remat_counts_the_second_forward_pass():
  def loss(a, b):
    inner = jax.checkpoint(lambda a: jnp.sin(jnp.sin(a @ b) @ b))
    return jnp.sum(inner(a))

  plain = flops.count_flops(
    jax.grad(lambda a, b: jnp.sum(jnp.sin(jnp.sin(a @ b) @ b))), A, B
  )
  again = flops.count_flops(jax.grad(loss), A, B)
  assert plain == 4 * ONE
  assert again == 6 * ONE


def test_only_copies_made_for_asynchrony_are_dropped():
  line = "%a = f32[8]{0} all-reduce(%z), channel_id=1, to_apply=%add"
  both = f"ENTRY %main (a: f32[8]) -> f32[8] {{\n  {line}\n  {line}\n}}\n"
  (found,) = collectives.parse(both, {"data": 2})
  assert found.count == 2  # as inside shard_map, where all channels are one
  fused = "".join(
    f"%{name} (a: f32[8]) -> f32[8] {{\n  {line}\n}}\n\n"
    for name in ("fused_computation", "async_collective_fusion.3")
  )
  main = (
    "ENTRY %main (a: f32[8]) -> f32[8] {\n"
    "  %b = f32[8]{0} fusion(%a), kind=kLoop, calls=%fused_computation\n"
    "  %c = f32[8]{0} fusion(%a), calls=%async_collective_fusion.3\n}\n"
  )
  (found,) = collectives.parse(fused + main, {"data": 2})
  assert found.count == 1


def test_a_loop_of_unknown_length_is_said():
  fn = lambda a, b: jax.lax.while_loop(
    lambda c: jnp.sum(c) < 9, lambda c: c @ b, a
  )
  found = flops.count(fn, A, B)
  assert found.total == ONE
  assert found.notes == ("a while loop of unknown length was counted once",)


def test_trip_count_through_arguments_of_jit():
  run = jax.jit(lambda n, a, b: _while(a, b, 0, n))
  assert flops.count_flops(lambda a, b: run(3, a, b), A, B) == 3 * ONE


def test_convolutions_worked():
  x, k = F32((2, 8, 8, 3)), F32((3, 3, 3, 5))
  numbers = ("NHWC", "HWIO", "NHWC")
  conv = functools.partial(
    jax.lax.conv_general_dilated, dimension_numbers=numbers, padding="SAME"
  )
  strided = functools.partial(conv, window_strides=(2, 2))
  count = flops.count_flops
  assert count(functools.partial(conv, window_strides=(1, 1)), x, k) == (
    2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)
  )
  forward = 2 * (2 * 4 * 4 * 5) * 27
  assert count(strided, x, k) == forward
  depthwise = functools.partial(strided, feature_group_count=3)
  assert count(depthwise, x, F32((3, 3, 1, 6))) == 2 * (2 * 4 * 4 * 6) * 9
  both = jax.grad(lambda x, k: jnp.sum(strided(x, k) ** 2), (0, 1))
  assert count(both, x, k) == 3 * forward


def test_factorisations():
  spd = F32((2, 6, 6))
  assert flops.count_flops(jnp.linalg.cholesky, spd) == 2 * 72
  solve = lambda m, b: jax.scipy.linalg.cho_solve((m, True), b)
  assert flops.count_flops(solve, F32((6, 6)), F32((6, 4))) == 2 * 6 * 6 * 4
  assert "9 n^3" in flops.count(jnp.linalg.eigvalsh, spd).notes[0]


def test_count_equals_xla_where_there_is_no_loop():
  fn = lambda a, b: a @ b
  costs = jax.jit(fn).lower(A, B).compile().cost_analysis()
  assert costs["flops"] == flops.count_flops(fn, A, B)


DIM, DEPTH, BATCH = 128, 3, 64


def _loss(params, model_state, batch, key):
  def layer(x, kernel):
    return mesh_lib.constrain(jnp.tanh(x @ kernel), "data"), None

  out, _ = jax.lax.scan(layer, batch["x"], params["blocks"]["kernel"])
  return jnp.mean((out - batch["x"]) ** 2), ({}, model_state)


def _experiment(dim=DIM, rules=None, step=None, batch=BATCH):
  tx = optax.adam(1e-3)

  def init(key):
    params = {"blocks": {"kernel": jnp.zeros((DEPTH, dim, dim))}}
    return steps.init_state(params, tx, key=key)

  def batches(start):
    raise AssertionError("a check must not read data")

  if rules is None:
    rules = (("kernel", P(None, "data")),)
  return experiment.Experiment(
    init=init,
    step=steps.from_loss(_loss, tx) if step is None else step,
    batches=batches,
    num_steps=1,
    batch_shapes={"x": F32((batch, dim))},
    rules=rules,
  )


def test_check_without_devices():
  report = check.run(_experiment(), axes={"data": 4})
  size = DEPTH * DIM * DIM
  assert report.num_params == size
  assert report.state_bytes["params"] == size * 4 // 4
  assert report.state_bytes["opt_state"] == 2 * size + 4
  assert report.batch_bytes == BATCH * DIM * 4 // 4
  assert report.flops.total == DEPTH * 3 * 2 * BATCH * DIM * DIM
  assert report.compiled is None
  for words in ("params/blocks/kernel", "P(None, data)", "batch", "x  "):
    assert words in report.text


def test_check_takes_more_devices_than_there_are():
  axes = {"data": -1, "model": 64}
  rules = (("kernel", P(None, "data", "model")),)
  report = check.run(_experiment(rules=rules), axes=axes, num_devices=64 * 64)
  assert report.axes == {"data": 64, "expert": 1, "model": 64}
  assert report.state_bytes["params"] == DEPTH * 2 * 2 * 4


def _grows(state, batch):
  params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), state.params)
  return state.replace(params=params), {"loss": jnp.float32(0)}


def _restructures(state, batch):
  return state.replace(model_state={"new": 1}), {"loss": jnp.float32(0)}


@pytest.mark.parametrize(
  ("settings", "kwargs", "words"),
  [
    ({"rules": (("kernle", P()),)}, {}, "'kernle'.*hits nothing"),
    ({"dim": 126}, {}, r"kernel with shape \(3, 126, 126\).*multiple of 4"),
    ({"batch": 6}, {}, r"batch/x with shape \(6, 128\)"),
    ({}, {"hbm_bytes": 1000}, "does not fit.*params 49,152.*has 1,000"),
    ({}, {"hbm_bytes": -1}, "hbm_bytes=-1"),
    ({}, {"axes": {"dta": 4}}, "did you mean 'data'"),
    ({}, {"allowed_collectives": ("all-reduce",)}, "needs a topology"),
    ({"step": _grows}, {}, "turns params/blocks/kernel from .* bfloat16"),
    ({"step": _restructures}, {}, "state of another structure"),
    ({"step": lambda s, b: (s, {})}, {}, "must have 'loss'"),
    ({}, {"topology": "v9:4x4"}, "one of 'v4', 'v5e'"),
    ({}, {"topology": "v5e"}, "topology='v5e' is not allowed"),
    ({}, {"topology": "v5e:4x4x4"}, "v5e slices have 2 axes"),
    ({}, {"topology": "v5e:64x64"}, "nobody can have such a slice"),
    ({}, {"topology": "v5p:2x2x3"}, "whole cubes: multiples of 4 in rising"),
    ({}, {"topology": "v4:8x4x4"}, "nobody can have such a slice"),
    ({}, {"topology": "v7x:2x2x1"}, "one of 'v4', 'v5e', 'v5p', 'v6e', 'tpu7"),
    ({}, {"max_operations": -1.0}, "max_operations=-1.0"),
    pytest.param(
      {},
      {"topology": "v4:4x4x4", "axes": {"data": 8, "model": 8}},
      r"do not map onto the torus .* mesh \[4, 4, 4\]\.$",
      marks=TPU,
    ),
    ({}, {"topology": "v5e:3x5"}, "topology='v5e:3x5' is not allowed"),
    pytest.param(
      {},
      {"topology": "v5e:2x2", "axes": {"model": 8}, "num_slices": 2},
      "data goes over 2 slices",
      marks=TPU,
    ),
  ],
)
def test_refusals(settings, kwargs, words):
  with pytest.raises(ValueError, match=words):
    check.run(_experiment(**settings), **{"axes": {"data": 4}, **kwargs})


def test_missing_libtpu_names_the_extra(monkeypatch):
  real = builtins.__import__

  def fake(name, *args, **kwargs):
    if name == "libtpu":
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", fake)
  with pytest.raises(ImportError, match=r"locojax\[tpu-check\]"):
    topology.describe("v5e:2x2")


@TPU
def test_compilation_for_a_tpu_slice():
  report = check.run(
    _experiment(rules=(("kernel", P(None, "data", "model")),)),
    axes={"data": -1, "model": 2},
    topology="v5e:2x4",
  )
  assert report.axes == {"data": 4, "expert": 1, "model": 2}
  found = report.compiled
  size = DEPTH * DIM * DIM * 4 // 8
  assert found.memory["arguments"] >= 3 * size + report.batch_bytes
  assert found.memory["aliased"] >= 3 * size
  assert found.peak_bytes == (
    sum(found.memory.values()) - 2 * found.memory["aliased"]
  )
  # All layers of the scan are counted, forwards and backwards.
  assert found.operations.total == report.flops.total // 8
  assert found.operations_ratio == 1 and found.operations.known
  assert found.hbm_bytes < 16 * 2**30 and found.compiler.startswith("libtpu 0")
  inside = [c for c in found.collectives if c.in_loop]
  assert inside and all(c.trips == DEPTH for c in inside)
  assert {c.axes for c in found.collectives} <= {"data", "model", "data,model"}
  assert found.roofline.seconds == getattr(found.roofline, found.roofline.limit)
  for words in ("v5e:2x4", "memory on a device", "roofline", "3 times in a"):
    assert words in report.text


@TPU
def test_tpu_refusals_memory_and_collectives():
  run = functools.partial(
    check.run, _experiment(), axes={"data": 4}, topology="v5e:2x2"
  )
  state = check.run(_experiment(), axes={"data": 4}).state_bytes["all"]
  with pytest.raises(ValueError, match="the step on v5e:2x2 does not fit"):
    run(hbm_bytes=state + BATCH * DIM)
  with pytest.raises(ValueError, match=r"(?s)has also\n.*all-gather over data"):
    run(allowed_collectives=("all-reduce",))
  with pytest.raises(ValueError, match="allowed_collectives='all-redu'"):
    run(allowed_collectives=("all-redu",))
  once = ("all-reduce", "all-gather over data outside loops")
  with pytest.raises(ValueError, match=r"(?s)has also\n.*times in a loop"):
    run(allowed_collectives=once)
  with pytest.raises(ValueError, match=r"(?s)has also\n.*all-gather over data"):
    run(allowed_collectives=("all-reduce", "all-gather over expert"))
  with pytest.raises(ValueError, match="do not fill 4 devices"):
    check.run(_experiment(), axes={"data": 2}, topology="v5e:2x2")


@TPU
def test_a_step_too_large_for_the_chip_is_refused_by_the_compiler():
  def step(state, batch):
    big = jnp.full((5, 2**15, 2**15), batch["x"][0, 0])  # 20 GiB
    return state, {"loss": jnp.sum(jax.lax.optimization_barrier(big))}

  replicated = _experiment(rules=(), step=step)
  with pytest.raises(ValueError, match="says the compiler"):
    check.run(replicated, axes={"data": 4}, topology="v5e:2x2")


@TPU
@pytest.mark.parametrize(
  ("name", "devices"),
  [
    *(("v5e:1x1", 1), ("v5e:2x4", 8), ("v4:2x2x2", 8), ("v5p:2x2x1", 4)),
    ("tpu7x:2x2x1", 8),
  ],
)
def test_slices_have_one_device_a_chip_or_two(name, devices):
  found = topology.describe(name)
  assert len(found.devices) == devices
  hosts = {d.process_index for d in found.devices}
  assert len(hosts) == (2 if name == "v4:2x2x2" else 1)
  sharding.make_mesh({"data": -1}, found.devices)


@TPU
def test_several_slices_are_joined_along_data():
  report = check.run(
    _experiment(rules=()),
    axes={"data": -1},
    topology="v5e:2x2",
    num_slices=2,
  )
  assert report.axes["data"] == 8 and "2 x v5e:2x2" in report.text
  between = [
    c for c in report.compiled.collectives if c.kind == collectives.SLICES
  ]
  size = DEPTH * DIM * DIM * 4
  # Of the sum of the gradients each chip of a slice sends its share.
  assert {c.group_size for c in between} == {2}
  assert size / 8 <= sum(c.traffic for c in between) <= size
  assert report.compiled.operations_ratio == 1


@TPU
def test_a_step_that_every_device_computes_whole_is_refused():
  def step(state, batch):
    x = jax.lax.with_sharding_constraint(batch["x"], P())
    w = state.params["blocks"]["kernel"][0]
    loss = jnp.sum(jnp.square(x @ w))
    params = jax.tree.map(lambda p: p - 0 * loss, state.params)
    return state.replace(step=state.step + 1, params=params), {"loss": loss}

  run = functools.partial(
    check.run,
    _experiment(rules=(), step=step),
    axes={"data": 4},
    topology="v5e:2x2",
  )
  with pytest.raises(ValueError, match="does 4 times what was written"):
    run()
  assert run(max_operations=4).compiled.operations_ratio == 4


HLO = """
%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %r = f32[] add(%x, %y)
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %ag = bf16[8,16]{1,0} all-gather(%a), channel_id=1, replica_groups=[2,4]<=[8], dimensions={1}
  ROOT %t = (s32[], f32[8,4]) tuple(%i, %x)
}

%cond (p: (s32[], f32[8,4])) -> pred[] {
  %c = s32[] constant(12)
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %w = (s32[], f32[8,4]) while(%t0), condition=%cond, body=%body
  %ar = (f32[10]{0}, f32[6]{0}) all-reduce(%g, %h), channel_id=2, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %as = (f32[8]{0}, f32[64]{0}) all-gather-start(%q), channel_id=3, replica_groups=mesh['x'=2,'y'=4] {'x','y'}, dimensions={0}
  %ad = f32[64]{0} all-gather-done(%as)
  %rs = f32[3]{0} reduce-scatter(%z), channel_id=4, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}, to_apply=%add
  %cp = f32[5]{0} collective-permute(%z), channel_id=5, source_target_pairs={{0,1},{1,0}}
  %one = f32[5]{0} all-reduce(%z), channel_id=6, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
}
"""  # noqa: E501


def test_collectives_worked():
  found = collectives.parse(HLO, {"data": 2, "expert": 1, "model": 4})
  by_kind = {(c.kind, c.axes): c for c in found}
  assert set(by_kind) == {
    ("all-gather", "model"),
    ("all-reduce", "data"),
    ("all-gather", "data,model"),
    ("reduce-scatter", "data"),
    ("collective-permute", "pairs"),
  }
  looped = by_kind["all-gather", "model"]
  assert (looped.bytes, looped.trips, looped.in_loop) == (256, 12, True)
  assert looped.traffic == 256 * 3 / 4 * 12
  reduced = by_kind["all-reduce", "data"]
  assert (reduced.bytes, reduced.traffic) == (64, 64)
  assert by_kind["all-gather", "data,model"].bytes == 256
  assert by_kind["reduce-scatter", "data"].bytes == 24
  assert by_kind["collective-permute", "pairs"].traffic == 20
  assert collectives.totals(found)["all-gather", "model"] == (12, 12 * 256)
  text = collectives.table(found)
  assert "all-gather over model (4 devices): 256 bytes, 12 times in" in text
  assert collectives.table([]) == "  none"


@pytest.mark.parametrize(
  ("groups", "axes"),
  [
    ("mesh['a'=2,'b'=4] {'b'}", "model"),
    ("mesh['a'=4,'b'=2,'c'=1], device_ids=([2,4]T(1,0)) {'b','c'}", "data"),
    ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", "model"),
    ("mesh['a'=2,'b'=4], device_ids=(1,0) {'b'}", "unknown"),
  ],
)
def test_groups_by_a_mesh_of_the_compiler(groups, axes):
  text = HLO.replace("mesh['x'=2,'y'=4] {'x','y'}", groups)
  found = collectives.parse(text, {"data": 2, "expert": 1, "model": 4})
  assert axes in {
    c.axes
    for c in found
    if c.kind == "all-gather" and c.bytes == 256 and not c.in_loop
  }


def test_a_loop_of_unknown_length_is_said_of_collectives():
  text = HLO.replace("constant(12)", "parameter(1)")
  found = collectives.parse(text, {"data": 2, "expert": 1, "model": 4})
  looped = next(c for c in found if c.in_loop)
  assert looped.trips == 1 and not looped.trips_known
  assert "of unknown length" in collectives.table(found)


def test_roofline_worked():
  chip = topology.Chip(1, 100.0, 10.0, 5.0, 2)
  bound = check.roofline(
    flops=200.0, hbm_bytes=30.0, network_bytes=10.0, chip=chip
  )
  assert (bound.compute, bound.memory, bound.network) == (2.0, 3.0, 2.0)
  assert bound.seconds == 3.0 and bound.limit == "memory"


def test_collectives_of_a_real_program():
  mesh = sharding.make_mesh({"data": 4, "model": 2})
  compiled = check.compile_step(_experiment(), mesh)
  found = collectives.parse(compiled.as_text(), dict(mesh.shape))
  assert found and all(c.axes in ("data", "data,model") for c in found)
  gathers = [c for c in found if c.kind == "all-gather"]
  looped = [c for c in gathers if c.in_loop]
  assert looped and all(c.trips == DEPTH for c in looped)
  assert np.all([c.trips_known for c in found])
