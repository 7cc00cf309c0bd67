"""What a fresh run starts with: parts of another run, or what `begin` makes."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import toy

from locojax.train import loop


def _fit(e, folder, **settings):
  settings = {
    "key": jax.random.key(0),
    "log_every": 5,
    "save_every": 4,
    "writers": (),
    **settings,
  }
  return loop.fit(e, folder, **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An uninterrupted run of 20 steps: `(bits, rows, folder)`."""
  folder = tmp_path_factory.mktemp("whole")
  state = _fit(toy.make(), folder)
  return toy.bits(state), toy.rows(folder), folder


def test_init_from_takes_a_part(tmp_path, whole, caplog):
  _, _, source = whole

  def init(key):
    state = toy.init(key)
    return state.replace(params={**state.params, "head": jnp.ones((2,))})

  def step(state, batch):
    return state.replace(step=state.step + 1), {"loss": jnp.float32(0)}

  e = dataclasses.replace(toy.make(0), init=init, step=step)
  with caplog.at_level(logging.INFO, "locojax"):
    state = _fit(e, tmp_path, init_from=source, init_patterns="params/")
  bits, fresh = toy.bits(state), toy.bits(init(jax.random.key(0)))
  name = "params/dense/kernel"
  assert bits[name] == whole[0][name] != fresh[name]
  rest = set(fresh) - {name}
  assert {p: bits[p] for p in rest} == {p: fresh[p] for p in rest}
  assert "params/head: not in the checkpoint" in caplog.text


def test_init_from_nowhere(tmp_path):
  with pytest.raises(ValueError, match="init_from=.*nowhere"):
    _fit(toy.make(), tmp_path, init_from=tmp_path / "nowhere")


def test_begin_makes_the_first_state_and_no_later_one(tmp_path, whole):
  def begin(state):
    seen.append(int(state.step))
    return state.replace(params=jax.tree.map(np.ones_like, state.params))

  seen = []
  made = toy.make()
  zero = dataclasses.replace(made, num_steps=0)
  first = _fit(zero, tmp_path / "a", begin=begin)
  assert all((np.asarray(x) == 1).all() for x in jax.tree.leaves(first.params))
  one = toy.bits(_fit(made, tmp_path / "b", begin=begin))
  assert toy.bits(_fit(made, tmp_path / "b", begin=begin)) == one
  assert one != whole[0] and seen == [0, 0]


def test_begin_may_give_the_same_array_twice_and_keeps_its_own(tmp_path):
  def init(key):
    own = {"a": jnp.zeros(3), "b": jnp.zeros(3)}
    return toy.init(key).replace(model_state=own)

  def step(state, batch):
    return state.replace(step=state.step + 1), {"loss": jnp.float32(0)}

  mine = jnp.arange(3.0)
  begin = lambda s: s.replace(model_state={"a": mine, "b": mine})
  e = dataclasses.replace(toy.make(3), init=init, step=step)
  state = _fit(e, tmp_path, begin=begin)
  assert state.model_state["b"].tolist() == mine.tolist() == [0, 1, 2]


def test_begin_keeps_the_form(tmp_path):
  cut = lambda state: state.replace(params={})
  with pytest.raises(ValueError, match="begin has 'params/.*input"):
    _fit(toy.make(), tmp_path / "a", begin=cut)
  wide = lambda s: s.replace(params=jax.tree.map(lambda x: x[None], s.params))
  with pytest.raises(ValueError, match="begin turns 'params/"):
    _fit(toy.make(), tmp_path / "b", begin=wide)


def test_init_from_is_ignored_once_there_is_a_checkpoint(tmp_path, whole):
  bits, _, source = whole
  short = _fit(toy.make(8), tmp_path)
  assert int(short.step) == 8
  assert toy.bits(_fit(toy.make(), tmp_path, init_from=source)) == bits


def test_stages_of_one_experiment_are_traced_once(tmp_path, whole):
  traced = []

  def init(key):
    traced.append("init")
    return toy.init(key)

  def step(state, batch):
    traced.append("step")
    return made.step(state, batch)

  made = toy.make()
  first = dataclasses.replace(made, init=init, step=step, num_steps=20)
  assert toy.bits(_fit(first, tmp_path / "a")) == whole[0]
  counts = len(traced)
  other = dataclasses.replace(first, num_steps=20)
  assert toy.bits(_fit(other, tmp_path / "b")) == whole[0]
  assert len(traced) == counts and "step" in traced
  # Another step is another program.
  changed = dataclasses.replace(
    first, step=lambda s, b: step(s, {**b, "x": 0 * b["x"]})
  )
  assert toy.bits(_fit(changed, tmp_path / "c")) != whole[0]
  assert len(traced) > counts
