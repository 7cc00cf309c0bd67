"""The choice of prompts, against NumPy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods.l2p import selection
from locojax.train import sharding

KEYS = np.array([[1.0, 0], [0, 1], [1, 1]])
QUERY = np.array([[2.0, 1]])
RNG = np.random.default_rng(0)
MANY = RNG.normal(size=(6, 4)), RNG.normal(size=(7, 4))


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def _cosines(query, keys):
  unit = lambda v: v / np.sqrt(np.maximum((v**2).sum(-1, keepdims=True), 1e-12))
  return unit(query) @ unit(keys).T


def _reduced(keys, query=QUERY, **settings):
  chosen = selection.select_prompts(query, keys, 2, **settings)
  return -selection.key_surrogate_loss(chosen)


def test_the_worked_numbers(x64):
  chosen = selection.select_prompts(QUERY, KEYS, 2)
  np.testing.assert_allclose(
    chosen.similarity[0],
    [0.894427191000, 0.447213595500, 0.948683298051],
    atol=1e-12,
  )
  assert chosen.ids.tolist() == [[2, 0]]
  assert chosen.ids.dtype == jnp.int32
  value, grad = jax.value_and_grad(_reduced)(jnp.asarray(KEYS))
  assert float(value) == pytest.approx(1.843110489051, abs=1e-12)
  half, most = 0.158113883008, 0.447213595500
  expected = [[0, most], [0, 0], [half, -half]]
  np.testing.assert_allclose(grad, expected, atol=1e-12)
  assert (grad[1] == 0).all()  # not chosen
  mean = selection.key_surrogate_loss(chosen, "mean")
  assert float(mean) == pytest.approx(-1.843110489051 / 2, abs=1e-12)


@pytest.mark.parametrize(
  ("h", "scores", "ids"),
  [
    ((0.1, 0.2, 0.7), (0.0105572809, 0.1105572809, 0.0359216914), [0, 2]),
    ((0.2, 0.5, 0.3), (0.0211145618, 0.2763932023, 0.0153950106), [2, 0]),
    ((0.0, 0.0, 0.0), (0, 0, 0), [0, 1]),
  ],
)
def test_the_worked_penalties(x64, h, scores, ids):
  chosen = selection.select_prompts(QUERY, KEYS, 2, frequency=np.array(h))
  found = (1 - chosen.similarity[0]) * np.array(h)
  np.testing.assert_allclose(found, scores, atol=1e-10)
  assert chosen.ids.tolist() == [ids]
  expected = np.take_along_axis(_cosines(QUERY, KEYS), np.array([ids]), -1)
  np.testing.assert_allclose(chosen.key_similarity, expected, atol=1e-12)


def test_against_numpy(x64):
  query, keys = MANY
  h = RNG.random(7)
  for frequency in (None, h):
    cosines = _cosines(query, keys)
    scores = -cosines if frequency is None else (1 - cosines) * h
    chosen = selection.select_prompts(query, keys, 3, frequency=frequency)
    expected = np.argsort(scores, axis=-1, kind="stable")[:, :3]
    assert chosen.ids.tolist() == expected.tolist()
    loss = selection.key_surrogate_loss(chosen)
    picked = np.take_along_axis(cosines, expected, -1)
    assert float(loss) == pytest.approx(-picked.sum(-1).mean(), abs=1e-12)


def test_the_gradient_is_that_of_the_card_and_orthogonal_to_keys(x64):
  query, keys = MANY
  grad = jax.grad(lambda k: _reduced(k, query))(jnp.asarray(keys))
  ids = np.asarray(selection.select_prompts(query, keys, 2).ids)
  norm = np.linalg.norm(keys, axis=-1, keepdims=True)
  cosines, unit = _cosines(query, keys), keys / norm
  for j in range(7):
    rows = [b for b in range(6) if j in ids[b]]
    parts = [
      query[b] / np.linalg.norm(query[b]) - cosines[b, j] * unit[j]
      for b in rows
    ]
    expected = np.sum(parts, axis=0) / norm[j] / 6 if rows else np.zeros(4)
    np.testing.assert_allclose(grad[j], expected, atol=1e-12)
    assert rows or (grad[j] == 0).all()
  np.testing.assert_allclose((grad * keys).sum(-1), 0, atol=1e-12)
  step = jnp.asarray(keys) + 0.1 * grad
  assert (np.linalg.norm(step, axis=-1) >= norm[:, 0] - 1e-12).all()


def test_no_gradient_into_the_query_and_only_key_similarity_has_one():
  query, keys = (jnp.asarray(x, jnp.float32) for x in MANY)

  def loss(query, keys, name):
    return getattr(selection.select_prompts(query, keys, 2), name).sum()

  for name in ("similarity", "key_similarity"):
    into_query, into_keys = jax.grad(loss, (0, 1))(query, keys, name)
    assert (into_query == 0).all()
    assert bool((into_keys != 0).any()) == (name == "key_similarity")


def test_a_key_of_zeros_and_ties():
  keys = np.array([[0.0, 0], [3, 0], [1, 0], [0, 0]])
  chosen = selection.select_prompts(np.array([[-1.0, -2]]), keys, 4)
  assert chosen.similarity[0, 0] == chosen.similarity[0, 3] == 0
  assert chosen.ids.tolist() == [[0, 3, 1, 2]]  # zeros first, then the tie
  query = np.zeros((1, 2))
  assert selection.select_prompts(query, keys, 2).ids.tolist() == [[0, 1]]


def test_scales_and_permutations():
  query, keys = MANY
  base = selection.select_prompts(query, keys, 3)
  scale = RNG.uniform(0.5, 20, (7, 1)), RNG.uniform(0.5, 20, (6, 1))
  other = selection.select_prompts(query * scale[1], keys * scale[0], 3)
  assert (base.ids == other.ids).all()
  order = RNG.permutation(7)
  permuted = selection.select_prompts(query, keys[order], 3)
  assert (order[np.asarray(permuted.ids)] == base.ids).all()
  rows = RNG.permutation(6)[:4]
  some = selection.select_prompts(query[rows], keys, 3)
  assert (some.ids == base.ids[rows]).all()


def test_the_vote_of_a_batch():
  query, keys = MANY
  own = np.asarray(selection.select_prompts(query, keys, 3).ids)

  def voted(ids):
    counts = np.bincount(ids.ravel(), minlength=7)
    return np.lexsort((np.arange(7), -counts))[:3].tolist()

  whole = selection.select_prompts(query, keys, 3, mode="batch")
  assert whole.ids.tolist() == [voted(own)] * 6
  halves = selection.select_prompts(query, keys, 3, mode="batch", vote_groups=2)
  expected = [voted(own[:3])] * 3 + [voted(own[3:])] * 3
  assert halves.ids.tolist() == expected
  mask = np.array([1, 0, 1, 0, 0, 0])
  kept = selection.select_prompts(query, keys, 3, mode="batch", mask=mask)
  assert kept.ids.tolist() == [voted(own[[0, 2]])] * 6
  picked = np.take_along_axis(_cosines(query, keys), np.asarray(whole.ids), -1)
  np.testing.assert_allclose(whole.key_similarity, picked, atol=1e-6)


def test_equal_queries_vote_for_what_each_would_choose():
  query = np.repeat(MANY[0][:1], 5, axis=0)
  own = selection.select_prompts(query, MANY[1], 3).ids
  voted = selection.select_prompts(query, MANY[1], 3, mode="batch").ids
  assert set(own[0].tolist()) == set(voted[0].tolist())
  assert voted[0].tolist() == sorted(voted[0].tolist())  # all have five votes


def test_forced_ids():
  query, keys = MANY
  own = selection.select_prompts(query, keys, 2).ids
  for forced in ([4, 1], np.tile([4, 1], (6, 1))):
    chosen = selection.select_prompts(
      query, keys, 2, mode="forced", forced_ids=forced
    )
    assert chosen.ids.tolist() == [[4, 1]] * 6
  rows = np.array([[4, 1], [-1, -1]] * 3)
  mixed = selection.select_prompts(
    query, keys, 2, mode="forced", forced_ids=rows
  ).ids
  assert (mixed[0::2] == jnp.array([4, 1])).all()
  assert (mixed[1::2] == own[1::2]).all()


def test_the_slots_of_tasks():
  slot = lambda t: selection.task_prompt_ids(t, top_k=4, pool_size=10)
  assert slot(0).tolist() == [0, 1, 2, 3] and slot(1).tolist() == [4, 5, 6, 7]
  assert slot(2).tolist() == [-1] * 4  # [8, 12) is beyond the pool
  assert slot(np.array([2**31 - 1, -3, 1])).tolist() == (
    [[-1] * 4, [-1] * 4, [4, 5, 6, 7]]
  )
  assert jax.jit(slot)(1).tolist() == [4, 5, 6, 7]


def test_frequencies():
  counts = selection.update_frequency(
    np.zeros(4, np.int32),
    np.array([[0, 2], [2, 3], [1, 1]]),
    np.array([1, 1, 0]),
  )
  assert counts.tolist() == [1, 0, 2, 1] and counts.dtype == jnp.int32
  h = selection.normalize_frequency(counts)
  np.testing.assert_allclose(h, np.array([2, 1, 3, 2]) / 8, rtol=1e-6)
  first = selection.normalize_frequency(np.zeros(4, np.int32))
  np.testing.assert_allclose(first, 0.25)
  plain = selection.normalize_frequency(counts, smoothing=0)
  np.testing.assert_allclose(plain, [0.25, 0, 0.5, 0.25])
  np.testing.assert_allclose(
    selection.normalize_frequency(np.zeros(4, np.int32), smoothing=0), 0.25
  )
  # In the first task, eq. (4) is eq. (3).
  query, keys = MANY[0], MANY[1][:4]
  penalised = selection.select_prompts(query, keys, 2, frequency=first)
  plain = selection.select_prompts(query, keys, 2)
  assert (penalised.ids == plain.ids).all()


def test_masked_examples_do_not_count_in_the_loss():
  query, keys = MANY
  mask = np.array([1, 1, 0, 1, 0, 0])
  some = selection.select_prompts(query[mask == 1], keys, 2)
  chosen = selection.select_prompts(query, keys, 2)
  loss = selection.key_surrogate_loss(chosen, mask=mask)
  expected = selection.key_surrogate_loss(some)
  assert float(loss) == pytest.approx(float(expected), abs=1e-6)
  assert selection.key_surrogate_loss(chosen, mask=np.zeros(6)) == 0


def test_votes_and_counts_inside_shard_map():
  query, keys = MANY
  query = np.concatenate([query, query[:2]])
  mesh = sharding.make_mesh({"data": 4}, jax.devices()[:4])
  ids = lambda q, **kw: (
    selection.select_prompts(q, keys, 3, mode="batch", **kw).ids
  )

  def local(q):
    apart = ids(q)
    together = ids(q, axis_name="data")
    zeros = jnp.zeros(7, jnp.int32)
    counts = selection.update_frequency(zeros, apart, axis_name="data")
    return apart, together, counts

  with jax.set_mesh(mesh):
    apart, together, counts = jax.jit(
      jax.shard_map(
        local,
        in_specs=jax.P("data"),
        out_specs=(jax.P("data"),) * 2 + (jax.P(),),
      )
    )(jnp.asarray(query, jnp.float32))
  assert (together == ids(query)).all()
  assert (apart == ids(query, vote_groups=4)).all()
  assert counts.tolist() == np.bincount(apart.ravel(), minlength=7).tolist()


def test_orthogonality():
  assert selection.orthogonality_penalty(np.eye(3)) == 0
  rows = np.array([[2.0, 0], [0, 0.5]])
  assert float(selection.orthogonality_penalty(rows, normalize=True)) < 1e-12
  gram = rows @ rows.T - np.eye(2)
  found = selection.orthogonality_penalty(rows)
  assert float(found) == pytest.approx((gram**2).mean())


BAD = [
  (dict(top_k=8), "top_k=8.*pool_size=7"),
  (dict(top_k=0), "top_k=0"),
  (dict(mode="majority"), "mode='majority'"),
  (dict(mode="forced"), "forced_ids=None"),
  (dict(forced_ids=[0, 1]), "mode='instance'"),
  (dict(mode="forced", forced_ids=[0, 7]), r"forced_ids has \[7\]"),
  (dict(mode="forced", forced_ids=[0, -1]), r"forced_ids has \[-1\]"),
  (dict(mode="forced", forced_ids=[0]), "forced_ids has shape"),
  (dict(mode="forced", forced_ids=[0.0, 1.0]), "must be integers"),
  (dict(frequency=np.full(7, -0.1)), "frequency has"),
  (dict(frequency=np.full(7, np.nan)), "frequency has"),
  (dict(frequency=np.ones(6)), "frequency has shape"),
  (dict(query=np.ones((2, 3))), "query has size 3"),
  (dict(query=np.ones(4)), "query has shape"),
  (dict(mode="batch", vote_groups=4), "vote_groups=4"),
  (dict(vote_groups=0), "vote_groups=0"),
  (dict(mask=np.ones(5)), "mask has shape"),
]


@pytest.mark.parametrize(("changes", "words"), BAD)
def test_bad_arguments(changes, words):
  arguments = {"query": MANY[0], "keys": MANY[1], "top_k": 2, **changes}
  with pytest.raises(ValueError, match=words):
    selection.select_prompts(**arguments)


def test_bad_settings_of_helpers():
  chosen = selection.select_prompts(*MANY, 2)
  with pytest.raises(ValueError, match="reduction='max'"):
    selection.key_surrogate_loss(chosen, "max")
  with pytest.raises(ValueError, match="mask has shape"):
    selection.key_surrogate_loss(chosen, mask=np.ones(5))
  with pytest.raises(ValueError, match="smoothing=-1"):
    selection.normalize_frequency(np.ones(3), smoothing=-1)
  with pytest.raises(ValueError, match="frequency has"):
    selection.normalize_frequency(np.array([1, -1]))
  with pytest.raises(ValueError, match="rows has shape"):
    selection.orthogonality_penalty(np.ones(3))
