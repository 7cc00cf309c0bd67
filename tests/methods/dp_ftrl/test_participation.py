"""Samplers never break what they declare; logs tell what was realised."""

from __future__ import annotations

import numpy as np
import pytest

from locojax.methods.dp_ftrl import participation, releases, sensitivity


def _samplers():
  return {
    "shuffled": participation.ShuffledEpochs(53, 7, seed=1),
    "reshuffled": participation.ShuffledEpochs(53, 7, seed=1, reshuffle=True),
    "fixed": participation.FixedOrder(53, 7),
    "poisson": participation.PoissonClients(53, 0.1, seed=1, max_cohort=25),
    "min_sep": participation.MinSepSampler(
      200, 10, 15, seed=1, max_participations=3, rounds_per_day=20
    ),
  }


@pytest.mark.parametrize("name", list(_samplers()))
def test_what_is_declared_is_kept(name):
  sampler = _samplers()[name]
  log = participation.logged(sampler, 60)
  log.check(max_participations=60, min_sep=sampler.min_sep)
  if name in ("fixed", "shuffled"):
    assert (log.max_participations, log.min_sep) == (8, 7)
  if name == "min_sep":
    assert log.max_participations == 3 and log.min_sep >= 15
  with pytest.raises(ValueError, match="declared were"):
    log.check(max_participations=60, min_sep=log.min_sep + 1)
  with pytest.raises(ValueError, match="declared were"):
    log.check(max_participations=log.max_participations - 1, min_sep=1)
  # Nobody came back yet: nothing is too close.
  participation.logged(sampler, 1).check(max_participations=1, min_sep=50)


@pytest.mark.parametrize("name", list(_samplers()))
def test_cohorts_depend_on_seed_and_round_alone(name):
  forward, direct = _samplers()[name], _samplers()[name]
  cohorts = [forward(t) for t in range(30)]
  again = direct(29)
  np.testing.assert_array_equal(again.clients, cohorts[29].clients)
  np.testing.assert_array_equal(direct(11).mask, cohorts[11].mask)
  for cohort in cohorts:
    found = cohort.clients[cohort.mask]
    assert len(set(found)) == len(found)
    assert cohort.clients.dtype == np.int64


def test_an_epoch_visits_everyone_at_most_once():
  sampler = participation.ShuffledEpochs(50, 7, seed=0, reshuffle=True)
  for epoch in range(3):
    rounds = range(epoch * 7, epoch * 7 + 7)
    seen = np.concatenate([sampler(t).clients for t in rounds])
    assert len(set(seen)) == 49
  assert not np.array_equal(sampler(0).clients, np.sort(sampler(0).clients))


@pytest.mark.parametrize("n, c", [(10, 4), (53, 7), (9, 9), (12, 3), (7, 4)])
def test_without_reshuffling_all_are_asked_and_the_bounds_hold(n, c):
  rounds = 6 * n
  for sampler in (
    participation.ShuffledEpochs(n, c, seed=0),
    participation.FixedOrder(n, c),
  ):
    counts, last, gaps = np.zeros(n, int), {}, set()
    for t in range(rounds):
      clients, mask = sampler(t)
      assert mask.all() and len(set(clients)) == c
      gaps |= {t - last[i] for i in clients if i in last}
      last |= dict.fromkeys(clients, t)
      counts[clients] += 1
      most = -(-(t + 1) * c // n)
      assert counts.max() <= most <= -(-(t + 1) // sampler.min_sep)
    assert counts.min() == counts.max() == 6 * c  # n divides the places
    assert gaps == {n // c, -(-n // c)} and sampler.min_sep == n // c


def test_where_all_divide_evenly_an_epoch_is_the_order():
  """The cohorts behind committed results."""
  sampler = participation.ShuffledEpochs(12, 3, seed=5)
  order = np.random.default_rng([5, 0]).permutation(12).reshape(4, 3)
  for t in range(9):
    np.testing.assert_array_equal(sampler(t).clients, order[t % 4])


def test_a_room_for_more_than_all_clients_is_padded():
  sampler = participation.PoissonClients(3, 1.0, seed=0, max_cohort=8)
  cohort = sampler(0)
  assert cohort.clients[cohort.mask].tolist() == [0, 1, 2]
  assert cohort.mask.shape == (8,)


def test_poisson_has_its_rate():
  sampler = participation.PoissonClients(2000, 0.05, seed=3, max_cohort=200)
  sizes = [sampler(t).mask.sum() for t in range(200)]
  assert np.mean(sizes) == pytest.approx(100, rel=0.03)
  assert np.var(sizes) == pytest.approx(95, rel=0.3)
  with pytest.raises(ValueError, match="max_cohort=5"):
    participation.PoissonClients(2000, 0.05, seed=3, max_cohort=5)(0)


def test_fewer_devices_come_at_night():
  sampler = participation.MinSepSampler(
    40_000, 400, 40, seed=0, rounds_per_day=40, swing=0.9
  )
  sizes = np.array([sampler(t).mask.sum() for t in range(160)])
  assert sizes[[0, 40, 80, 120]].mean() > sizes[[20, 60, 100, 140]].mean()
  assert sizes.max() <= 400 and sizes.mean() > 100


def test_a_log_by_hand():
  log = participation.Log()
  for t, clients in ((0, [1, 2]), (1, [3]), (3, [1]), (8, [1, 2])):
    log.add(t, clients)
  assert (log.max_participations, log.min_sep) == (3, 3)
  worst = max(sensitivity.pattern(r, 9) for r in ([0, 3, 8], [0, 8], [1]))
  assert log.tree_sensitivity() == worst
  assert log.tree_sensitivity() <= sensitivity.tree(9, 3, 3)
  with pytest.raises(ValueError, match="already"):
    log.add(8, [5])
  with pytest.raises(ValueError, match="twice"):
    log.add(9, [5, 5])


@pytest.mark.parametrize(
  "make, words",
  [
    (lambda: participation.FixedOrder(3, 4), "cohort_size=4"),
    (lambda: participation.PoissonClients(9, 0.0, 0, 9), "rate=0.0"),
    (lambda: participation.MinSepSampler(30, 10, 4, seed=0), "min_sep=4"),
  ],
)
def test_mistakes_are_named(make, words):
  with pytest.raises(ValueError, match=words):
    make()


@pytest.mark.parametrize("bad", [[2.7], [1, 2.0], ["a"], [2**64 - 1]])
def test_ids_that_are_no_integers_are_refused(bad):
  """2.7 is not client 2, whose rounds it would count as."""
  for take in (
    lambda: participation.Log().add(0, bad),
    lambda: participation.Counts().add(0, np.array(bad)),
    lambda: releases.cohort_hash(bad),
  ):
    with pytest.raises(ValueError, match="clients has .* not allowed"):
      take()
  counts = participation.Counts()
  counts.add(0, np.array([2**40, 3], np.uint64))
  counts.add(5, iter([2**40]))
  counts.add(6, [])
  assert (counts.max_participations, counts.min_sep) == (2, 5)
  assert releases.cohort_hash([]) != releases.cohort_hash([0])
