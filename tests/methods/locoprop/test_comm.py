"""Collectives of a step whose rows lie on eight devices."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.core import trees
from locojax.methods import locoprop
from locojax.methods.locoprop import changes
from locojax.nn import mlp
from locojax.train import collectives, sharding, steps
from tests import programs

KEY = jax.random.key(0)
NUM_ITERS, ROWS, SAMPLE = 4, 64, 16
TRANSFERS = {"^code$": "linear", "output": "sigmoid", ".*": "tanh"}
MODEL = mlp.Autoencoder(12, (16, 8), 4)
BATCH = np.random.default_rng(0).random((ROWS, 12), np.float32)


def loss_fn(params, model_state, batch, key):
  logits = MODEL.apply({"params": params}, batch)
  each = optax.sigmoid_binary_cross_entropy(logits, batch)
  return jnp.mean(jnp.sum(each, axis=-1)), ({}, model_state)


def _affine(w, x):
  return x @ w


def _tx(**settings):
  return locoprop.locoprop(
    1e-2, transfers=TRANSFERS, num_local_iters=NUM_ITERS, **settings
  )


def _under_jit(mesh, params, tx):
  """The step, with the compiler's collectives."""
  state = steps.init_state(params, tx, key=KEY)
  placed = sharding.state_shardings(state, mesh, ())
  rows = jax.NamedSharding(mesh, jax.P("data"))
  with jax.set_mesh(mesh):
    step = jax.jit(
      locoprop.make_step(loss_fn, tx),
      in_shardings=(placed, rows),
      out_shardings=(placed, None),
    )
    return step.lower(state, BATCH).compile()


def _under_shard_map(mesh, params, tx):
  """An update with the collectives that `axis_name` asks for."""
  capture = locoprop.capture(loss_fn)

  def local(params, state, batch):
    _, grads, tape = capture(params, {}, batch, KEY)
    records = {
      name: dataclasses.replace(r, preact_grad=r.preact_grad / 8)
      for name, r in tape.records.items()
    }
    tape = locoprop.Tape(records, tape.order)
    grads = jax.lax.pmean(grads, "data")
    return tx.update(grads, state, params, tape=tape)

  mapped = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(jax.P(), jax.P(), jax.P("data")),
    out_specs=jax.P(),
    check_vma=False,
  )
  return jax.jit(mapped).lower(params, tx.init(params), BATCH).compile()


def _collectives(build, **settings):
  mesh = sharding.make_mesh({"data": 8})
  params = programs.init(MODEL, KEY, BATCH)["params"]
  compiled = build(mesh, params, _tx(**settings))
  found = collectives.parse(compiled.as_text(), dict(mesh.shape))
  return trees.num_bytes(params), found


def _runs(found, kind, in_loop):
  """Runs in a step, and bytes of them all."""
  chosen = [c for c in found if c.kind == kind and c.in_loop == in_loop]
  return (
    sum(c.count * c.trips for c in chosen),
    sum(c.count * c.trips * c.bytes for c in chosen),
  )


ALL_REDUCE = {
  "jit": (_under_jit, {}),
  "sampled": (_under_jit, {"max_rows": SAMPLE}),
  "stacked": (_under_jit, {"stack_equal_shapes": True}),
  "shard_map": (_under_shard_map, {"axis_name": "data"}),
}


@pytest.mark.parametrize("case", ALL_REDUCE.values(), ids=ALL_REDUCE)
def test_all_reduce_is_one_an_iteration_after_the_first(case):
  size, found = _collectives(case[0], **case[1])
  times = NUM_ITERS - 1
  # All layers together: a payload of the parameters.
  assert _runs(found, "all-reduce", True) == (times, times * size)
  runs, num_bytes = _runs(found, "all-reduce", False)
  assert runs == 1 and size <= num_bytes <= size + 4  # gradient (and loss)
  assert {c.kind for c in found} == {"all-reduce"}


@pytest.mark.parametrize("rotate", [True, False])
def test_gather_moves_the_sampled_rows_once(rotate):
  size, found = _collectives(
    _under_jit, comm="gather", max_rows=SAMPLE, rotate_rows=rotate
  )
  assert not any(c.in_loop for c in found)
  samples = NUM_ITERS - 1 if rotate else 1
  columns = (12 + 16 + 8 + 4 + 8 + 16) + (16 + 8 + 4 + 8 + 16 + 12)
  runs, num_bytes = _runs(found, "all-gather", False)
  assert num_bytes == samples * SAMPLE * columns * 4
  assert runs <= 2 * 6  # inputs and pre-activations of six layers
  assert _runs(found, "all-reduce", False) == (1, size + 4)


def test_average_is_one_all_reduce_of_the_displacements():
  size, found = _collectives(_under_shard_map, comm="average", axis_name="data")
  assert not any(c.in_loop for c in found)
  # One of the gradients, as in any data-parallel step, and one at the end.
  assert _runs(found, "all-reduce", False) == (2, 2 * size)
  assert {c.kind for c in found} == {"all-reduce"}


@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("max_rows", [6, 4, 3, 1])
def test_gathered_samples_are_those_of_the_other_mode(max_rows, rotate):
  rng = np.random.default_rng(0)
  x, w, delta = (
    jnp.asarray(rng.normal(size=shape), jnp.float32)
    for shape in ((12, 2), (2, 3), (2, 3))
  )
  record = locoprop.LayerRecord((x,), x @ w, x @ w, "l", _affine, "dense")

  def change(gather):
    options = locoprop.LocalOptions(
      max_rows=max_rows,
      rotate_rows=rotate,
      gather_rows=gather,
      num_iters=NUM_ITERS,
    )
    tanh = locoprop.matching_losses.get("tanh")
    return changes.gradient_change(record, w, tanh, options)

  for t in range(1, NUM_ITERS):
    np.testing.assert_array_equal(
      change(True)(delta, t), change(False)(delta, t)
    )
  # No more rows travel than the iterations see.
  assert change(True).preact.shape[1] <= max(1, NUM_ITERS - 1)
