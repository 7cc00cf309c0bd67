"""Save, restore, reshard, fall back, and take a part of another run."""

from __future__ import annotations

import logging
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import trees, types
from locojax.train import checkpoints, sharding


def _mesh(**axes):
  return sharding.make_mesh(axes)


_WHOLE = jax.P()


def _state(seed: int, mesh, spec=_WHOLE):
  def put(x, spec=_WHOLE):
    return jax.device_put(x, jax.NamedSharding(mesh, spec))

  kernel = jax.random.normal(jax.random.key(seed), (16, 8))
  return types.TrainState(
    step=put(jnp.int32(seed)),
    params={
      "a.b": {"kernel": put(kernel, spec)},
      "a": {"b": {"kernel": put(kernel.astype(jnp.bfloat16), spec)}},
    },
    model_state={},
    opt_state=(put(jnp.arange(3)), (), {"nu": put(kernel**2, spec)}),
    key=put(jax.random.key(seed + 1)),
  )


def _abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def _same_bits(a, b):
  a, b = trees.flatten(a), trees.flatten(b)
  assert list(a) == list(b)
  for path, x in a.items():
    y = b[path]
    assert x.dtype == y.dtype, path
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


def _saved(folder, steps=(1, 2), keep=2, mesh=None):
  mesh = mesh or _mesh(data=-1)
  with checkpoints.Checkpoints(folder, keep=keep) as store:
    for step in steps:
      store.save(step, _state(step, mesh), {"step": step, "seconds": step / 3})
  return _state(steps[-1], mesh)


def _restore(folder, state):
  with checkpoints.Checkpoints(folder) as store:
    return store.restore(_abstract(state))


def test_round_trip_keeps_bits_keys_and_meta(tmp_path):
  state = _saved(tmp_path / "ckpt")
  restored, meta = _restore(tmp_path / "ckpt", state)
  _same_bits(state, restored)
  assert meta == {"step": 2, "seconds": 2 / 3}
  assert jax.tree.structure(state) == jax.tree.structure(restored)


def test_a_relative_folder_serves(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  state = _saved(pathlib.Path("ckpt"), steps=(3,))
  _same_bits(state, _restore("ckpt", state)[0])


def test_other_generators_of_keys(tmp_path):
  state = {"key": jax.random.key(3, impl="rbg")}
  with checkpoints.Checkpoints(tmp_path) as store:
    store.save(1, state, {})
    mesh = jax.NamedSharding(_mesh(data=-1), jax.P())
    restored, _ = store.restore(
      {"key": jax.ShapeDtypeStruct((), state["key"].dtype, sharding=mesh)}
    )
    _same_bits(state, restored)
    other = jax.random.key(3, impl="unsafe_rbg").dtype
    with pytest.raises(ValueError, match="'key' is a key of 'rbg'"):
      store.restore({"key": jax.ShapeDtypeStruct((), other, sharding=mesh)})


def test_keep(tmp_path):
  _saved(tmp_path, steps=(1, 2, 5, 9), keep=2)
  with checkpoints.Checkpoints(tmp_path) as store:
    assert store.steps() == [5, 9]
    store.save(12, _state(12, _mesh(data=-1)), {"step": 12})
    assert store.steps() == [9, 12]
  with pytest.raises(ValueError, match="keep=0"):
    checkpoints.Checkpoints(tmp_path, keep=0)


def test_nothing_there(tmp_path):
  assert _restore(tmp_path / "ckpt", _state(1, _mesh(data=-1))) is None


@pytest.mark.parametrize(
  "axes, spec",
  [
    ({"data": 2, "model": 4}, jax.P("data", "model")),
    ({"data": 1, "expert": 8}, jax.P(None, "expert")),
    ({"model": 8}, jax.P("model")),
  ],
)
def test_restore_on_another_mesh(tmp_path, axes, spec):
  state = _saved(tmp_path)
  wanted = _state(2, _mesh(**axes), spec)
  restored, _ = _restore(tmp_path, wanted)
  _same_bits(state, restored)
  for path, x in trees.flatten(restored).items():
    assert x.sharding == trees.flatten(wanted)[path].sharding, path


def test_restore_on_fewer_devices(tmp_path):
  state = _saved(tmp_path)
  mesh = sharding.make_mesh({"data": 2}, jax.devices()[:2])
  _same_bits(state, _restore(tmp_path, _state(2, mesh, jax.P("data")))[0])


def _changed(state, kernel):
  params = {**state.params, "a.b": {"kernel": kernel}}
  return state.replace(params=params)


def test_shape_and_dtype_are_compared(tmp_path):
  state = _saved(tmp_path)
  kernel = state.params["a.b"]["kernel"]
  sharded = kernel.sharding
  with pytest.raises(ValueError, match=r"a\.b/kernel.*\(16, 8\).*\(8, 8\)"):
    small = jax.device_put(kernel[:8], sharded)
    _restore(tmp_path, _changed(state, small))
  with pytest.raises(ValueError, match=r"a\.b/kernel.*float32.*bfloat16"):
    half = jax.device_put(kernel.astype(jnp.bfloat16), sharded)
    _restore(tmp_path, _changed(state, half))
  with pytest.raises(ValueError, match="only in this run.*params/new"):
    more = state.replace(params={**state.params, "new": kernel})
    _restore(tmp_path, more)
  with checkpoints.Checkpoints(tmp_path) as store:
    assert store.steps() == [1, 2]


def _cut(folder):
  for path in (folder / "state").rglob("*"):
    if path.is_file() and path.parent.name == "d":
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zero(folder):
  for path in (folder / "state").rglob("*"):
    if path.is_file() and path.parent.name == "d":
      path.write_bytes(bytes(path.stat().st_size))


_HARM = {
  "data cut": _cut,
  "data zeroed": _zero,
  "no data": lambda folder: shutil.rmtree(folder / "state"),
  "no manifest": lambda f: (f / "state" / "manifest.ocdbt").unlink(),
  "no description": lambda f: (f / "state" / "_METADATA").unlink(),
  "description cut": lambda f: (f / "state" / "_METADATA").write_text('{"tr'),
  "no meta": lambda folder: shutil.rmtree(folder / "meta"),
  "meta cut": lambda f: (f / "meta" / "metadata").write_text('{"step": '),
}


@pytest.mark.parametrize("harm", _HARM)
def test_falls_back_and_says_so(tmp_path, caplog, harm):
  folder = tmp_path / "ckpt"
  _saved(folder)
  _HARM[harm](folder / "2")
  before = _state(1, _mesh(data=-1))
  with caplog.at_level(logging.WARNING, "locojax"):
    restored, meta = _restore(folder, before)
  assert meta["step"] == 1
  _same_bits(before, restored)
  assert "checkpoint 2 is unreadable" in caplog.text
  assert (tmp_path / "unreadable" / "2").is_dir()
  with checkpoints.Checkpoints(folder) as store:
    assert store.steps() == [1]
    store.save(2, _state(2, _mesh(data=-1)), {"step": 2})
    _same_bits(store.restore(_abstract(before))[0], _state(2, _mesh(data=-1)))


def test_all_unreadable_is_an_error_again_and_again(tmp_path):
  folder = tmp_path / "ckpt"
  state = _saved(folder)
  for step in ("1", "2"):
    _cut(folder / step)
  for _ in range(2):
    with pytest.raises(checkpoints.Unreadable, match="step 2.*step 1"):
      _restore(folder, state)


def test_an_unfinished_checkpoint_is_no_checkpoint(tmp_path):
  folder = tmp_path / "ckpt"
  state = _saved(folder)
  shutil.copytree(folder / "2", folder / "7.orbax-checkpoint-tmp")
  _cut(folder / "7.orbax-checkpoint-tmp")
  assert _restore(folder, state)[1]["step"] == 2


def _params(seed):
  return {"params": _state(seed, _mesh(data=2, model=-1)).params}


def test_read_takes_a_part_and_lists_the_misses(tmp_path):
  state = _saved(tmp_path)
  mine = _params(5)
  mine["params"]["new"] = jnp.ones(3)
  del mine["params"]["a"]
  with checkpoints.Checkpoints(tmp_path, read_only=True) as store:
    got, report = store.read(mine, "kernel|new")
    assert report == {
      "taken": ["params/a.b/kernel"],
      "missing": ["params/new"],
      "unused": ["params/a/b/kernel"],
    }
    _same_bits(got["params"]["a.b"], state.params["a.b"])
    _same_bits(got["params"]["new"], mine["params"]["new"])
    kernel = got["params"]["a.b"]["kernel"]
    assert kernel.sharding == mine["params"]["a.b"]["kernel"].sharding
    with pytest.raises(ValueError, match="patterns='nothing'"):
      store.read(mine, "nothing")
    mine["params"]["a.b"]["kernel"] = jnp.ones((4, 4))
    with pytest.raises(ValueError, match=r"a\.b/kernel.*\(16, 8\).*\(4, 4\)"):
      store.read(mine, ".*")


def test_read_from_a_broken_run(tmp_path):
  _saved(tmp_path)
  _cut(tmp_path / "2")
  with checkpoints.Checkpoints(tmp_path, read_only=True) as store:
    got, _ = store.read(_params(5), ".*")
    _same_bits(got["params"], _state(1, _mesh(data=-1)).params)
    _cut(tmp_path / "1")
    with pytest.raises(checkpoints.Unreadable):
      store.read(_params(5), ".*")
  assert (tmp_path / "2").is_dir()
