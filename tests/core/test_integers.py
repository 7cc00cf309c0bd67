"""Integers of the host keep their values on the way to JAX, or are refused."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import checks, metrics
from locojax.data import clients, image, pipeline
from locojax.methods import ciw, smelu
from locojax.methods.dp_ftrl import audit, next_word
from locojax.methods.smelu import recommender
from locojax.train import feed, sharding

WIDE = 2**32 + 1  # Its low 32 bits are 1.


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.uint32, np.int8])
def test_what_fits_is_kept_in_the_dtype_of_jax(dtype):
  found = checks.array("x", np.array([0, 100], dtype))
  assert found.tolist() == [0, 100]
  assert found.dtype == jax.dtypes.canonicalize_dtype(dtype)
  assert checks.integers("x", np.array([0, 100], dtype)).dtype == np.int32


@pytest.mark.parametrize("value", [WIDE, -WIDE, 2**31, 2**63])
def test_what_would_wrap_is_refused(value):
  with pytest.raises(ValueError, match=f"labels has.* {value}.*int32|labels.*"):
    checks.integers("labels", [value])
  if value != 2**63:  # Which NumPy makes an unsigned one.
    with pytest.raises(ValueError, match=r"labels has integers .* int32 holds"):
      checks.array("labels", [value])


def test_floats_are_no_integers_and_seeds_have_32_bits():
  with pytest.raises(ValueError, match="x has dtype float64"):
    checks.integers("x", [1.0])
  assert checks.array("x", [1.5]).dtype == jnp.float32
  assert checks.seed("seed", 2**32 - 1) == 2**32 - 1
  for bad in (-1, 2**32, 1.0, True):
    with pytest.raises(ValueError, match="seed="):
      checks.seed("seed", bad)


def test_traced_indices_stay_out_of_range():
  index = jax.jit(lambda x: checks.index_array("x", x))
  found = index(jnp.array([5, 3_000_000_000, 2**32 - 1], jnp.uint32))
  assert found.tolist() == [5, 2**31 - 1, 2**31 - 1]
  with jax.enable_x64(True):
    wide = index(jnp.array([WIDE, -WIDE, 7]))
    assert wide.tolist() == [2**31 - 1, -(2**31), 7]


LOGITS = np.zeros((1, 3), np.float32)
CALLS = {
  "accuracy": lambda: metrics.accuracy(LOGITS, [WIDE]),
  "top_k": lambda: metrics.top_k_accuracy(LOGITS, [WIDE], 2),
  "ciw": lambda: ciw.ciw_loss(
    LOGITS, [WIDE], instance=ciw.InstanceConfig(lam=1.0)
  ),
  "ciw_binary": lambda: ciw.ciw_binary_loss(LOGITS[0, :1], [WIDE]),
  "pd": lambda: smelu.pd_report(np.full((2, 1), 0.5), [WIDE]),
  "next_word": lambda: next_word.split_sentence([[WIDE, 1]]),
  "padded": lambda: next(
    pipeline.padded_batches({"label": np.array([WIDE])}, 1)
  ),
  "rows": lambda: clients.ClientData({"x": np.zeros(2)}, [[0.7]]),
  "fill": lambda: image.cutout(
    np.zeros((2, 2, 1), np.uint8), np.random.default_rng(0), size=1, fill=300
  ),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_way_in_refuses_what_would_change(name):
  with pytest.raises(ValueError, match="which is not allowed|not allowed: it"):
    CALLS[name]()


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.uint64])
def test_ids_of_32_bits_are_hashed(dtype):
  tower = recommender.EmbeddingTower((1000,), dim=4, hashing=True)
  ids = np.array([[5], [3_000_000_000], [2**32 - 1]], dtype)
  wanted = recommender.hash_ids(ids, salt=0, num_buckets=1000)
  assert tower.rows(ids).tolist() == wanted.tolist()
  assert tower.rows(ids)[:2].tolist() == [[808], [850]]
  plain = recommender.EmbeddingTower((1000,), dim=4)
  assert plain.rows(ids).tolist() == [[5], [-1], [-1]]
  if dtype == np.uint32:
    assert jax.jit(tower.rows)(ids).tolist() == wanted.tolist()


def test_ids_of_small_dtypes_empty_slots_and_longer_ids():
  tower = recommender.EmbeddingTower((1000,), dim=4, hashing=True)
  assert tower.rows(np.array([[5]], np.uint8)).tolist() == [[808]]
  mixed = np.array([[5], [-1], [3_000_000_000], [-(2**40)]])
  assert tower.rows(mixed).tolist() == [[808], [-1], [850], [-1]]
  with pytest.raises(ValueError, match=rf"the id {2**32}, .*below 2\^32"):
    tower.rows(np.array([[2**32]]))


def test_an_unsigned_zero_is_no_canary():
  """0 - 1 of unsigned integers would be the last canary of all."""
  loss = audit.canary_loss(
    lambda params, state, batch, key: (params["w"].sum(), ({}, state)),
    key=jax.random.key(0),
  )
  params = {"w": jnp.ones(2)}
  batch = {audit.CANARY: np.zeros(1, np.uint32)}
  value, _ = loss(params, {}, batch, jax.random.key(0))
  assert float(value) == 2.0


def test_a_batch_that_would_wrap_is_refused():
  mesh = sharding.make_mesh({"data": -1})
  spec = jax.sharding.NamedSharding(mesh, jax.P())
  shape = jax.ShapeDtypeStruct((2,), jnp.int32, sharding=spec)
  batches = [{"label": np.array([1, 2])}, {"label": np.array([1, WIDE])}]
  made = types.SimpleNamespace(batches=lambda start: iter(batches))
  found = feed.Feed(made, feed.Layout(mesh, None, {"label": shape}), 0)
  assert found.next()["label"].tolist() == [1, 2]
  with pytest.raises(ValueError, match=f"batch 1: 'label' has .* {WIDE}"):
    found.next()


def test_users_are_told_apart_by_their_own_value():
  keys = [2**53, 2**53 + 1, 0.5, b"a"]
  found = clients.from_keys({"x": np.arange(4)}, keys)
  assert sorted(found.names) == [
    "0.5",
    "9007199254740992",
    "9007199254740993",
    "a",
  ]
