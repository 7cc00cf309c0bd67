"""A campaign of damage to checkpoints: each is found, and the last good one
taken; or it did no harm at all."""

from __future__ import annotations

import json
import logging
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import trees
from locojax.train import checkpoints, sharding

# The store leaves coroutines behind when an array cannot be read.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning",
  "ignore:coroutine .* was never awaited:RuntimeWarning",
)

_STEPS = (3, 7)
_WHOLE = jax.P()


def _state(step):
  """Arrays that the store keeps in files of their own, and small ones."""
  mesh = sharding.make_mesh({"data": -1})
  rng = np.random.default_rng(step)

  def put(x, spec=_WHOLE):
    return jax.device_put(x, jax.NamedSharding(mesh, spec))

  kernel = rng.normal(size=(64, 64)).astype(np.float32)
  return {
    "params": {
      "kernel": put(kernel, jax.P("data")),
      "half": put(rng.normal(size=(40, 30)).astype(jnp.bfloat16)),
      "bias": put(rng.normal(size=(7,)).astype(np.float32)),
      "none": put(np.zeros((0, 4), np.float32)),
    },
    "nu": put(np.square(kernel), jax.P(None, "data")),
    "key": put(jax.random.key(step)),
    "step": put(np.int32(step)),
  }


def _meta(step):
  return {"step": step, "seconds": step / 3, "name": "a run"}


def _bits(state):
  out = {}
  for path, x in trees.flatten(state).items():
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x = jax.random.key_data(x)
    out[path] = (x.shape, np.asarray(x).tobytes())
  return out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A folder of two checkpoints, a struct of the state, and all bits."""
  folder = tmp_path_factory.mktemp("made") / "ckpt"
  states = {step: _state(step) for step in _STEPS}
  with checkpoints.Checkpoints(folder) as store:
    for step, state in states.items():
      store.save(step, state, _meta(step))
  struct = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    states[7],
  )
  return folder, struct, {step: _bits(s) for step, s in states.items()}


# What to do to a file.


def _cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path):
  path.write_bytes(b"")


def _zero(path):
  path.write_bytes(bytes(path.stat().st_size))


def _noise(path):
  path.write_bytes(random.Random(5).randbytes(path.stat().st_size))


def _delete(path):
  path.unlink()


def _folder(path):
  path.unlink()
  path.mkdir()


def _flip(path, bit):
  data = bytearray(path.read_bytes())
  data[bit // 8] ^= 1 << bit % 8
  path.write_bytes(data)


_WAYS = {
  "cut": _cut,
  "emptied": _empty,
  "zeroed": _zero,
  "noise": _noise,
  "deleted": _delete,
  "a folder": _folder,
}
_NEEDED = {
  "index": "state/manifest.ocdbt",
  "nodes": "state/d/*",
  "data": "state/ocdbt.process_0/d/*",
  "description": "state/_METADATA",
  "json": "meta/metadata",
}


def _files(folder, pattern):
  found = sorted(p for p in folder.glob(pattern) if p.is_file())
  assert found, pattern
  return found


def _all(pattern, way):
  def harm(folder):
    for path in _files(folder, pattern):
      way(path)

  return harm


def _largest(way):
  """Only the largest file of the data: the chunks of arrays."""
  return lambda folder: way(
    max(_files(folder, _NEEDED["data"]), key=lambda p: p.stat().st_size)
  )


def _without(name):
  return lambda folder: shutil.rmtree(folder / name)


def _of_the_other(name):
  """A part of the other checkpoint, each of them sound."""

  def harm(folder):
    other = {"3": "7", "7": "3"}[folder.name]
    shutil.rmtree(folder / name)
    shutil.copytree(folder.parent / other / name, folder / name)

  return harm


def _rewritten(old, new):
  """JSON that can be read and says something else."""

  def harm(folder):
    path = folder / "meta" / "metadata"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))

  return harm


def _nothing_left(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def _links(folder):
  """Files that lead nowhere, as after a disk that went away."""
  for path in _files(folder, "state/ocdbt.process_0/d/*"):
    path.unlink()
    path.symlink_to(folder / "gone" / path.name)


_HARM = {
  **{
    f"{what} {how}": _all(pattern, way)
    for what, pattern in _NEEDED.items()
    for how, way in _WAYS.items()
  },
  **{f"chunks {how}": _largest(way) for how, way in _WAYS.items()},
  "shapes cut": _all("state/array_metadatas/*", _cut),
  "shapes noise": _all("state/array_metadatas/*", _noise),
  "data links": _links,
  "no state": _without("state"),
  "no nodes": _without("state/d"),
  "no data": _without("state/ocdbt.process_0"),
  "no meta": _without("meta"),
  "no files": _nothing_left,
  "the other state": _of_the_other("state"),
  "the other data": _of_the_other("state/ocdbt.process_0"),
  "the other meta": _of_the_other("meta"),
  "another step": _rewritten('"seconds": ', '"seconds": 1'),
  "another name": _rewritten("a run", "b run"),
  "no checksum": _rewritten('"crc32"', '"crc31"'),
  "no arrays": _rewritten('"arrays"', '"Arrays"'),
  "another path": _rewritten("params/bias", "params/bIas"),
  "another shape": _rewritten('"shape": [7]', '"shape": [6]'),
  "another dtype": _rewritten("bfloat16", "float16"),
  "not a dict": lambda f: (f / "meta" / "metadata").write_text("[3, 7]"),
}


def _copy(made, tmp_path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(made[0], tmp_path / "ckpt"))


@pytest.mark.parametrize("harm", _HARM)
def test_damage_falls_back_and_is_named(made, tmp_path, caplog, harm):
  folder, (_, struct, bits) = _copy(made, tmp_path), made
  caplog.set_level(logging.WARNING, "locojax")
  _HARM[harm](folder / "7")
  with checkpoints.Checkpoints(folder) as store:
    state, meta = store.restore(struct)
    assert store.steps() == [3]
  assert meta == _meta(3)
  assert _bits(state) == bits[3]
  warned = [r.getMessage() for r in caplog.records if r.name.startswith("loco")]
  assert len(warned) == 1
  assert "checkpoint 7 is unreadable: " in warned[0]
  assert (tmp_path / "unreadable" / "7").is_dir()


@pytest.mark.parametrize(
  "older, newer",
  [
    ("chunks noise", "json cut"),
    ("index deleted", "chunks zeroed"),
    ("no meta", "no state"),
    ("another step", "description emptied"),
  ],
)
def test_both_damaged_is_an_error(made, tmp_path, older, newer):
  folder, struct = _copy(made, tmp_path), made[1]
  _HARM[older](folder / "3")
  _HARM[newer](folder / "7")
  with checkpoints.Checkpoints(folder) as store:
    with pytest.raises(checkpoints.Unreadable, match="step 7: .*step 3: "):
      store.restore(struct)
    with pytest.raises(checkpoints.Unreadable, match="step 7: .*step 3: "):
      store.read(_state(1), "kernel")
  assert sorted(p.name for p in folder.iterdir()) == ["3", "7"]


def _found_or_harmless(store, made, caplog):
  """Whether the damage of step 7 was found; else it must have done nothing."""
  _, struct, bits = made
  caplog.clear()
  state, meta = store.restore(struct)
  step = meta["step"]
  assert meta == _meta(step)
  assert _bits(state) == bits[step]
  assert ("checkpoint 7 is unreadable" in caplog.text) == (step == 3)
  return step == 3


def test_one_flipped_bit_anywhere(made, tmp_path, caplog):
  folder, rng = _copy(made, tmp_path), random.Random(11)
  files = _files(folder / "7", "**/*")
  files.sort(key=lambda p: (str(p.parent), p.stat().st_size))
  largest = max(files, key=lambda p: p.stat().st_size)
  with checkpoints.Checkpoints(folder, read_only=True) as store:
    for path in files:
      data = path.read_bytes()
      # The end of the largest holds what the store has written anew elsewhere.
      size = len(data) // 2 if path == largest else len(data)
      for _ in range(4):
        _flip(path, rng.randrange(8 * size))
        found = _found_or_harmless(store, made, caplog)
        assert found or path not in (largest, folder / "7" / _NEEDED["index"])
        path.write_bytes(data)


@pytest.mark.parametrize(
  "pattern",
  ["_CHECKPOINT_METADATA", "state/_sharding", "**/commit_success.txt"],
)
@pytest.mark.parametrize("text", ["[]", '{"item_handlers": 1}', "", "\x00"])
def test_files_that_nothing_needs(made, tmp_path, caplog, pattern, text):
  folder = _copy(made, tmp_path)
  _all(pattern, lambda path: path.write_text(text))(folder / "7")
  with checkpoints.Checkpoints(folder) as store:
    assert not _found_or_harmless(store, made, caplog)


def test_silent_damage_to_an_array_is_named(made, tmp_path, caplog):
  folder, struct = _copy(made, tmp_path), made[1]
  state = folder / "7" / "state"
  chunks = max(state.glob("*/d/*"), key=lambda p: p.stat().st_size)
  _flip(chunks, 4 * chunks.stat().st_size)
  with checkpoints.Checkpoints(folder, read_only=True) as store:
    store.restore(struct)
  assert "checkpoint 7 is unreadable: ['" in caplog.text
  assert "not as they were written (checksum)" in caplog.text


def test_a_part_is_verified_alone(made, tmp_path, caplog):
  folder, bits = _copy(made, tmp_path), made[2]
  mine = _state(1)
  _HARM["chunks zeroed"](folder / "7")
  with checkpoints.Checkpoints(folder, read_only=True) as store:
    store.read(mine, "none")
    small, _ = store.read(mine, "bias|none")
    assert "unreadable" not in caplog.text
    large, _ = store.read(mine, "kernel|bias")
    assert "checkpoint 7 is unreadable" in caplog.text
  assert _bits(small)["params/bias"] == bits[7]["params/bias"]
  for path in ("params/kernel", "params/bias"):
    assert _bits(large)[path] == bits[3][path]


def test_a_difference_of_structure_is_no_damage(made, tmp_path):
  folder, struct = _copy(made, tmp_path), made[1]
  more = {**struct, "new": struct["step"]}
  other = {**struct, "step": struct["nu"]}
  with checkpoints.Checkpoints(folder) as store:
    with pytest.raises(ValueError, match="only in this run: .'new'"):
      store.restore(more)
    with pytest.raises(ValueError, match=r"'step' has shape \(\) in"):
      store.restore(other)
    assert store.steps() == [3, 7]
  assert not (tmp_path / "unreadable").exists()


def _wrapped(cause):
  """As the store raises whatever stopped it at an array."""
  error = Exception("while reading")
  error.__cause__ = cause
  return error


@pytest.mark.parametrize(
  "error",
  [
    MemoryError("no memory"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"),
    _wrapped(MemoryError()),
    _wrapped(KeyboardInterrupt()),
  ],
)
def test_lack_of_memory_is_no_damage(made, tmp_path, monkeypatch, error):
  folder, struct = _copy(made, tmp_path), made[1]

  def fails(*_, **__):
    raise error

  with checkpoints.Checkpoints(folder) as store:
    monkeypatch.setattr(store._handlers["state"], "restore", fails)
    with pytest.raises(type(error)) as caught:
      store.restore(struct)
  assert caught.value is error
  assert not (tmp_path / "unreadable").exists()


def _as_before_checksums(folder):
  for path in folder.glob("*/meta/metadata"):
    record = json.loads(path.read_text())
    impls = {
      p: x["key_impl"] for p, x in record["arrays"].items() if "key_impl" in x
    }
    path.write_text(json.dumps({**record["meta"], "key_impls": impls}))


def test_checkpoints_without_checksums(tmp_path, caplog):
  states = {step: _state(step) for step in _STEPS}
  for state in states.values():
    del state["params"]["none"]
  states[7]["params"]["half"] *= np.inf
  states[7]["nu"] *= np.inf
  with checkpoints.Checkpoints(tmp_path / "ckpt") as store:
    for step, state in states.items():
      store.save(step, state, _meta(step))
    state, _ = store.restore(states[7])
    assert _bits(state) == _bits(states[7])
    _as_before_checksums(tmp_path / "ckpt")
    with caplog.at_level(logging.INFO, "locojax"):
      state, meta = store.restore(states[7])
  assert meta == _meta(3)
  assert _bits(state) == _bits(states[3])
  assert "7 is unreadable: ['params/half'] are not finite" in caplog.text
  assert caplog.text.count("without checksums") == 2
