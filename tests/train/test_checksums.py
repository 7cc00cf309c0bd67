"""Checksums: by value, on any mesh, and no flipped bit is missed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.train import checksums, sharding

_DTYPES = (
  *("bool", "int4", "uint4", "int8", "uint8", "int16", "uint16"),
  *("int32", "uint32", "int64", "float64", "float16", "bfloat16", "float32"),
  *("complex64", "complex128", "float8_e4m3fn", "float8_e5m2"),
  "float4_e2m1fn",
)


def _array(dtype, shape=(3, 5), seed=0):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=shape) * 3).astype(jnp.dtype(dtype))


def _host(x) -> int:
  return checksums.of({"x": jnp.asarray(x)})["x"]


def _by_hand(words) -> int:
  """The definition, in Python's integers."""
  total = 0
  for i, word in enumerate(words):
    h = word ^ ((i + 1) * 0x9E3779B9 % 2**32)
    h = (h ^ (h >> 16)) * 0x85EBCA6B % 2**32
    h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2**32
    total += h ^ (h >> 16)
  return total % 2**32


def test_worked_values():
  assert _by_hand([0, 1, 2]) == 1460092963
  words = np.random.default_rng(1).integers(2**32, size=70_000, dtype=np.uint32)
  assert _host(words.reshape(7, -1)) == _by_hand(words.tolist())
  halves = np.float16([1.5, -2.0, np.nan])
  assert _host(halves) == _by_hand(halves.view(np.uint16).tolist())
  assert _host(np.zeros((0, 3))) == 0


@pytest.mark.parametrize("dtype", _DTYPES)
def test_devices_and_host_agree(dtype):
  with jax.enable_x64(True):
    arrays = {"x": jnp.asarray(_array(dtype))}
    assert arrays["x"].dtype == dtype
    whole = checksums.of(arrays)
    assert whole == checksums.of(arrays, host_bytes=-1)


def test_scalars_and_nothing():
  arrays = {"scalar": jnp.float32(2.5), "nothing": jnp.zeros((4, 0))}
  whole = checksums.of(arrays)
  assert whole == checksums.of(arrays, host_bytes=-1)
  assert whole["nothing"] == 0


@pytest.mark.parametrize(
  "axes, spec",
  [
    ({"data": 2, "model": 4}, jax.P("data", "model")),
    ({"data": 2, "model": 4}, jax.P(None, "data")),
    ({"model": 8}, jax.P()),
  ],
)
def test_the_same_on_any_mesh(axes, spec):
  x = _array("bfloat16", (8, 12, 3))
  placed = jax.NamedSharding(sharding.make_mesh(axes), spec)
  arrays = {"x": jax.device_put(x, placed)}
  assert checksums.of(arrays)["x"] == _host(x)
  assert checksums.of(arrays, host_bytes=-1)["x"] == _host(x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "float64"])
def test_every_flipped_bit_is_found(dtype):
  with jax.enable_x64(True):
    x = _array(dtype)
    right, data = _host(x), x.tobytes()
    for bit in range(8 * len(data)):
      wrong = bytearray(data)
      wrong[bit // 8] ^= 1 << bit % 8
      y = np.frombuffer(bytes(wrong), x.dtype).reshape(x.shape)
      assert _host(y) != right, bit


def test_order_signs_and_blocks_count():
  x = _array("float32", (64, 64))
  shuffled = [x[::-1], x.T, np.roll(x, 1), np.roll(x, 1, axis=1), -x]
  zeroed = [np.where(np.arange(64) == i, 0, x) for i in range(8)]
  swapped = x.copy()
  swapped[0, 0], swapped[5, 9] = x[5, 9], x[0, 0]
  many = [x, swapped, *shuffled, *zeroed]
  assert len({_host(y) for y in many}) == len(many)
  assert _host(np.float32(0.0)) != _host(np.float32(-0.0))


def test_one_trace_for_each_shape(monkeypatch):
  words, traced = checksums._device_words, []

  def counted(x):
    traced.append(x.shape)
    return words(x)

  monkeypatch.setattr(checksums, "_device_words", counted)
  arrays = {n: jnp.ones((3, 17)) for n in "abc"} | {"d": jnp.ones((19,))}
  for scale in (1, 2):
    scaled = {n: x * scale for n, x in arrays.items()}
    checksums.of(scaled, host_bytes=-1)
  assert traced == [(3, 17), (19,)]
