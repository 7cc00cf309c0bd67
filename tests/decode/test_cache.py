"""Rows of caches of any shape."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.decode import cache as caches

same = np.testing.assert_array_equal


def _cache(batch=3):
  """Rows numbered from 0, first or after two layers."""
  rows = jnp.arange(batch)
  return {
    "length": rows,
    "decoder": {"blocks": {"keys": jnp.tile(rows[None, :, None], (2, 1, 4))}},
  }


def _rows(cache):
  keys = cache["decoder"]["blocks"]["keys"]
  same(keys, np.broadcast_to(cache["length"][None, :, None], keys.shape))
  return np.asarray(cache["length"]).tolist()


def test_axes_by_the_convention_or_as_told():
  axes = caches.batch_axes(_cache())
  assert axes == {"length": 0, "decoder": {"blocks": {"keys": 1}}}
  assert caches.batch_axes({"a": jnp.zeros((2, 3))}, 1) == {"a": 1}
  assert caches.batch_axes(_cache(), axes) == axes


def test_rows_are_repeated_picked_and_put_in():
  cache = _cache()
  assert _rows(caches.repeat(cache, 2)) == [0, 0, 1, 1, 2, 2]
  assert caches.repeat(cache, 1) is cache
  assert _rows(caches.gather(cache, jnp.array([2, 2, 0, 1]))) == [2, 2, 0, 1]
  within = caches.gather_within(_cache(4), jnp.array([[1, 1, 0], [0, 1, 1]]))
  assert _rows(within) == [1, 1, 0, 2, 3, 3]
  new = jax.tree.map(lambda x: x + 10, _cache(2))
  put = jax.jit(caches.insert)
  assert _rows(put(cache, jnp.array([2, 0]), new)) == [11, 1, 10]
  assert _rows(put(cache, jnp.array([-1, 3]), new)) == [0, 1, 2]
  keys = {"k": jnp.zeros((2, 3), jnp.bfloat16)}
  got = caches.insert(keys, jnp.array([1]), {"k": jnp.ones((2, 1))}, axes=1)
  same(got["k"].astype(float), [[0, 1, 0]] * 2)
  assert got["k"].dtype == jnp.bfloat16


def test_rows_are_laid_out_over_the_mesh():
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  cache = _cache(16)
  assert caches.shard(cache, "data") is cache  # no mesh
  with jax.set_mesh(mesh):
    out = jax.jit(lambda c: caches.shard(c, "data"))(cache)
    spec = lambda x: x.sharding.spec
    assert spec(out["length"]) == jax.P("data")
    assert spec(out["decoder"]["blocks"]["keys"])[:2] == (None, "data")
    with pytest.raises(ValueError, match="data_axis='dat'"):
      caches.shard(cache, "dat")
    with pytest.raises(ValueError, match="rows of the cache=3.*data=8"):
      caches.shard(_cache(3), "data")
  assert _rows(out) == list(range(16))


def test_mistakes_are_named():
  with pytest.raises(ValueError, match="decoder/blocks/keys.*4 rows"):
    caches.check_rows({**_cache(4), "decoder": _cache(2)["decoder"]}, 4)
  with pytest.raises(ValueError, match="axis of rows of length=2"):
    caches.batch_axes(_cache(), 2)
  with pytest.raises(ValueError, match="num=0"):
    caches.repeat(_cache(), 0)
  with pytest.raises(ValueError, match="rows has dtype"):
    caches.gather(_cache(), jnp.array([0.5]))
  with pytest.raises(ValueError, match="2 rows of the batch"):
    caches.insert(_cache(), jnp.array([0, 1]), _cache(1))
