"""Prediction differences: worked numbers, invariants, streams, refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods.smelu import accumulator, differences
from locojax.methods.smelu import reproducibility as pd

TWO = np.array([[0.1, 0.5, 0.9], [0.2, 0.4, 0.9]])
THREE = np.array([[0.1, 0.5, 0.9], [0.2, 0.4, 0.9], [0.3, 0.6, 0.6]])


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _random(num_models=4, num_examples=41, num_classes=None, seed=0):
  rng = np.random.default_rng(seed)
  if num_classes is None:
    return rng.uniform(0.02, 0.98, (num_models, num_examples))
  return rng.dirichlet(np.ones(num_classes), (num_models, num_examples))


def _labels(num_examples=41, num_classes=2, seed=1):
  return np.random.default_rng(seed).integers(0, num_classes, num_examples)


def _relative_deviation(preds, **kwargs):
  return pd.relative_prediction_difference(preds, "deviation", **kwargs)


def _pd_2(preds, **kwargs):
  return pd.prediction_difference(preds, 2, **kwargs)


def _pd_3(preds, **kwargs):
  return pd.prediction_difference(preds, 3, **kwargs)


METRICS = [
  pd.prediction_difference,
  _pd_2,
  _pd_3,
  pd.pairwise_prediction_difference,
  pd.relative_prediction_difference,
  _relative_deviation,
  pd.hellinger_prediction_difference,
  pd.disagreement,
  pd.logit_difference,
]
PAIRWISE = [
  pd.pairwise_prediction_difference,
  pd.relative_prediction_difference,
  pd.hellinger_prediction_difference,
  pd.disagreement,
  pd.logit_difference,
]


@pytest.mark.parametrize(
  "metric, preds, expected",
  [
    (pd.prediction_difference, TWO, 0.03333333333),
    (_relative_deviation, TWO, 0.14814814815),
    (pd.relative_prediction_difference, TWO, 0.29629629630),
    (pd.hellinger_prediction_difference, TWO, 0.05713764202),
    (pd.prediction_difference, THREE, 0.08888888889),
    (_pd_2, THREE, 0.1015735575),
    (_relative_deviation, THREE, 0.2111111111),
  ],
)
def test_worked_numbers(metric, preds, expected):
  # The numbers are given with 10 or 11 digits: half of the last is 5e-11.
  np.testing.assert_allclose(metric(preds), expected, atol=1e-9, rtol=0)


def _by_hand(name, preds, n):
  """A metric of one example, with plain loops."""
  pairs = list(zip(*differences.pair_indices(len(preds))))
  p = preds[:, n]
  mean = p.mean(axis=0)
  if name == "pd_3":
    return np.sum(np.mean(np.abs(p - mean) ** 3, axis=0) ** (1 / 3))
  if name == "pairwise":
    return np.mean([np.sum(np.abs(p[i] - p[j])) for i, j in pairs])
  if name == "relative":
    mids = [np.abs(p[i] - p[j]) / ((p[i] + p[j]) / 2) for i, j in pairs]
    shares = [
      np.ones(()) if p.ndim == 1 else (p[i] + p[j]) / 2 for i, j in pairs
    ]
    return np.mean([np.sum(m * s) for m, s in zip(mids, shares)])
  full = np.stack([p, 1 - p], -1) if p.ndim == 1 else p
  if name == "hellinger":
    inner = [np.sum(np.sqrt(full[i] * full[j])) for i, j in pairs]
    return np.mean(np.sqrt(1 - np.array(inner)))
  if name == "disagreement":
    best = p >= 0.5 if p.ndim == 1 else p.argmax(-1)
    return np.mean([best[i] != best[j] for i, j in pairs])
  logit = np.log(p) - np.log(1 - p)
  return np.mean([np.abs(logit[i] - logit[j]).mean() for i, j in pairs])


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize(
  "name, metric",
  [
    ("pd_3", _pd_3),
    ("pairwise", pd.pairwise_prediction_difference),
    ("relative", pd.relative_prediction_difference),
    ("hellinger", pd.hellinger_prediction_difference),
    ("disagreement", pd.disagreement),
    ("logit", pd.logit_difference),
  ],
)
def test_examples_by_hand_and_their_weighted_mean(name, metric, classes):
  preds = _random(num_classes=classes)
  examples = metric(preds, reduce="examples")
  expected = [_by_hand(name, preds, n) for n in range(preds.shape[1])]
  np.testing.assert_allclose(examples, expected, rtol=1e-10)
  weights = np.arange(preds.shape[1]) % 5
  np.testing.assert_allclose(
    metric(preds, weights=weights), np.average(expected, weights=weights)
  )


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("metric", METRICS)
def test_equal_models_do_not_differ(metric, classes):
  one = _random(1, num_classes=classes).astype(np.float32)
  one = one.astype(np.float64)
  assert float(metric(np.repeat(one, 4, axis=0))) == 0.0


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("metric", METRICS)
def test_order_does_not_matter(metric, classes):
  preds = _random(num_classes=classes)
  rng = np.random.default_rng(3)
  mixed = preds[rng.permutation(4)][:, rng.permutation(41)]
  np.testing.assert_allclose(metric(mixed), metric(preds), rtol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_masked_does_not_matter(metric):
  preds = _random()
  keep = np.arange(41) % 3 != 0
  holed = preds.copy()
  holed[:, ~keep] = np.nan
  found = metric(holed, weights=keep)
  np.testing.assert_allclose(found, metric(preds, weights=keep), rtol=1e-12)
  examples = np.asarray(metric(holed, weights=keep, reduce="examples"))
  assert np.isnan(examples[~keep]).all() and np.isfinite(examples[keep]).all()
  np.testing.assert_allclose(np.mean(examples[keep]), found, rtol=1e-12)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize(
  "metric", [_pd_2, pd.relative_prediction_difference, pd.disagreement]
)
def test_masked_is_removed(metric, classes):
  preds = _random(num_classes=classes)
  keep = np.arange(41) % 3 != 0
  holed = preds.copy()
  holed[:, ~keep] = np.nan
  np.testing.assert_allclose(
    metric(holed, weights=keep), metric(preds[:, keep]), rtol=1e-12
  )


@pytest.mark.parametrize("metric", PAIRWISE)
def test_pairs_are_what_two_models_give(metric):
  preds = _random()
  pairs = metric(preds, reduce="pairs")
  expected = [
    float(metric(preds[[i, j]])) for i, j in zip(*differences.pair_indices(4))
  ]
  np.testing.assert_allclose(pairs, expected, rtol=1e-12)
  np.testing.assert_allclose(metric(preds), np.mean(expected), rtol=1e-12)


@pytest.mark.parametrize(
  "metric", [pd.prediction_difference, pd.pairwise_prediction_difference]
)
def test_classes_sum_to_the_whole(metric):
  preds = _random(num_classes=3)
  classes = metric(preds, reduce="classes")
  expected = [float(metric(preds[..., k])) for k in range(3)]
  np.testing.assert_allclose(classes, expected, rtol=1e-12)
  np.testing.assert_allclose(classes.sum(), metric(preds), rtol=1e-12)


def test_relative_form_of_each_class():
  preds = _random(num_classes=3)
  classes = pd.relative_prediction_difference(preds, reduce="classes")
  alone = [pd.relative_prediction_difference(preds[..., k]) for k in range(3)]
  np.testing.assert_allclose(classes, alone, rtol=1e-12)


def test_two_outcomes_as_classes():
  preds = _random()
  both = np.stack([1 - preds, preds], axis=-1)
  for metric, times in (
    (pd.prediction_difference, 2),
    (pd.hellinger_prediction_difference, 1),
    (pd.disagreement, 1),
    (pd.logit_difference, 1),
  ):
    np.testing.assert_allclose(metric(both), times * metric(preds), rtol=1e-9)


def test_pairwise_is_twice_the_deviation_of_two_models():
  preds = _random(2)
  np.testing.assert_allclose(
    pd.relative_prediction_difference(preds),
    2 * _relative_deviation(preds),
    rtol=1e-12,
  )
  np.testing.assert_allclose(
    pd.pairwise_prediction_difference(preds),
    2 * pd.prediction_difference(preds),
    rtol=1e-12,
  )


@pytest.mark.parametrize("scale", [0.5, 1e-3])
def test_scaling(scale):
  preds = _random()
  for mode in pd.MODES:
    np.testing.assert_allclose(
      pd.relative_prediction_difference(scale * preds, mode),
      pd.relative_prediction_difference(preds, mode),
      rtol=1e-12,
    )
  for p in (1, 2, 3):
    np.testing.assert_allclose(
      pd.prediction_difference(scale * preds, p),
      scale * pd.prediction_difference(preds, p),
      rtol=1e-12,
    )


def test_hellinger_is_within_its_bounds():
  assert 0 < float(pd.hellinger_prediction_difference(_random())) < 1
  disjoint = np.array([[[1.0, 0, 0]], [[0, 0.3, 0.7]]])
  found = float(pd.hellinger_prediction_difference(disjoint))
  assert found <= 1
  np.testing.assert_allclose(found, 1, rtol=1e-12)


def test_signed_difference_shows_a_shift():
  preds = _random(1)[[0, 0, 0]] / 2 + np.array([[0.0], [0.1], [0.3]])
  signed = pd.signed_prediction_difference(preds)
  np.testing.assert_allclose(signed, [-0.1, -0.3, -0.2], rtol=1e-12)
  classes = pd.signed_prediction_difference(_random(num_classes=3))
  assert classes.shape == (6, 3)
  np.testing.assert_allclose(classes.sum(axis=1), 0, atol=1e-12)


def test_floor_of_the_denominator():
  preds = np.array([[0.0, 0.5], [0.0, 0.5], [0.2, 0.5]])
  with pytest.raises(ValueError, match="eps"):
    pd.relative_prediction_difference(preds)
  assert np.isfinite(_relative_deviation(preds))
  # Pairs: 0, 2 and 2 without a floor; 0 / 0.5, 0.2 / 0.5 twice with 0.5.
  found = pd.relative_prediction_difference(preds, eps=0.5, reduce="examples")
  np.testing.assert_allclose(found, [0.8 / 3, 0], rtol=1e-12)
  np.testing.assert_allclose(
    pd.relative_prediction_difference(preds, eps=1e-9, reduce="examples"),
    [4 / 3, 0],
  )
  traced = jax.jit(pd.relative_prediction_difference)(preds)
  assert np.isnan(traced)


def test_true_label():
  preds, labels = _random(num_classes=3), _labels(num_classes=3)
  true = preds[:, np.arange(41), labels]
  np.testing.assert_allclose(
    pd.differences.label_probability(preds, labels), true
  )
  np.testing.assert_allclose(
    pd.label_prediction_difference(preds, labels, 2), _pd_2(true)
  )
  for mode in pd.MODES:
    np.testing.assert_allclose(
      pd.relative_label_prediction_difference(preds, labels, mode),
      pd.relative_prediction_difference(true, mode),
    )


def test_binary_true_label():
  labels = np.array([0, 1, -1])
  weights = np.array([1, 1, 0])
  found = differences.label_probability(TWO, labels, weights)
  np.testing.assert_allclose(found[:, :2], [[0.9, 0.5], [0.8, 0.4]])
  kept = pd.relative_label_prediction_difference(TWO, labels, weights=weights)
  np.testing.assert_allclose(kept, (0.1 / 0.85 + 0.1 / 0.45) / 2)


def test_ensembles_are_means_of_neighbours():
  preds = _random(6, num_classes=3)
  found = pd.ensemble(preds, 3)
  np.testing.assert_allclose(found[1], preds[3:].mean(axis=0))
  assert float(pd.prediction_difference(found)) < float(
    pd.prediction_difference(preds)
  )
  with pytest.raises(ValueError, match="multiple of k=4"):
    pd.ensemble(preds, 4)


@pytest.mark.parametrize(
  "metric, dtype",
  [(m, jnp.bfloat16) for m in METRICS] + [(METRICS[0], jnp.float32)],
)
def test_jit_and_narrow_types(metric, dtype):
  preds = jnp.asarray(_random(), dtype)
  found = jax.jit(metric)(preds)
  assert found.dtype == jnp.float32
  wide = metric(np.asarray(preds, np.float64))
  np.testing.assert_allclose(found, wide, rtol=2e-5)


@pytest.mark.parametrize(
  "preds, words",
  [
    (np.ones((1, 5)) / 2, "one model"),
    (np.ones(5) / 2, "must be .models, examples"),
    (np.ones((2, 0)), "must be .models, examples"),
    (np.full((2, 3), 1.5), "from 1.5 to 1.5"),
    (np.full((2, 3), -0.5), "probabilities in .0, 1"),
    (np.full((2, 3), np.nan), "no NaN"),
    (np.full((2, 3, 2), 0.4), "must sum to 1"),
  ],
)
def test_bad_predictions_are_refused(preds, words):
  for metric in (METRICS[0], METRICS[-1]):
    with pytest.raises(ValueError, match=words):
      metric(preds)


@pytest.mark.parametrize(
  "call, words",
  [
    (lambda: pd.prediction_difference(TWO, 0.5), "p=0.5"),
    (lambda: pd.prediction_difference(TWO, reduce="sum"), "reduce='sum'"),
    (lambda: pd.disagreement(TWO, reduce="classes"), "reduce='classes'"),
    (lambda: pd.prediction_difference(TWO, reduce="classes"), "classes"),
    (lambda: pd.relative_prediction_difference(TWO, "pair"), "did you mean"),
    (lambda: pd.relative_prediction_difference(TWO, eps=-1), "eps=-1"),
    (lambda: pd.disagreement(TWO, threshold=2), "threshold=2"),
    (lambda: pd.logit_difference(TWO, eps=0), "eps=0"),
    (lambda: pd.disagreement(TWO, weights=np.ones(4)), "weights has shape"),
    (lambda: pd.disagreement(TWO, weights=np.zeros(3)), "not all 0"),
    (lambda: pd.disagreement(TWO, weights=[1, -1, 1]), "0 or more"),
    (lambda: pd.label_prediction_difference(TWO, [0, 1]), "labels has shape"),
    (lambda: pd.label_prediction_difference(TWO, [0, 1, 2]), "labels holds 2"),
    (lambda: pd.label_prediction_difference(TWO, [0, 1, 0.5]), "holds 0.5"),
  ],
)
def test_bad_arguments_are_refused(call, words):
  with pytest.raises(ValueError, match=words):
    call()


# Streams.


def _accumulator(classes=None, **kwargs):
  return accumulator.PDAccumulator.init(
    4, num_classes=classes, labelled=True, **kwargs
  )


def _assert_equal(a, b, rtol):
  assert set(a) == set(b)
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=rtol, err_msg=name)


@pytest.mark.parametrize("classes", [None, 3])
def test_chunks_are_one_shot(classes):
  preds = _random(num_classes=classes)
  labels = _labels(num_classes=classes or 2)
  weights = np.arange(41) % 4
  empty = _accumulator(classes, dtype=jnp.float64)
  whole = empty.update(preds, labels, weights=weights)
  parts = [empty, empty]
  update = jax.jit(lambda a, p, l, w: a.update(p, l, weights=w))
  for k, part in enumerate(np.split(np.arange(41), [10, 20, 37])):
    parts[k % 2] = update(
      parts[k % 2], preds[:, part], labels[part], weights[part]
    )
  merged = parts[0].merge(parts[1])
  _assert_equal(merged.compute(), whole.compute(), rtol=1e-12)
  _assert_equal(merged.rows(), whole.rows(), rtol=1e-12)


def test_a_stream_counts_beyond_2_to_the_24():
  """One example at a time, which float32 sums of 2^24 would not notice."""
  empty = accumulator.PDAccumulator.init(2)
  start = empty.update([[0.5], [0.25]], weights=[2.0**24])

  def more(found, _):
    return found.update([[0.5], [0.5]], weights=[1.0]), None

  run = jax.jit(lambda a: jax.lax.scan(more, a, length=1001)[0])
  found = run(start).merge(run(empty))
  name = "pairwise_pd"
  weight = np.float64(found.means[name].weight) + found.rests[name].weight
  assert weight == 2**24 + 2002
  wanted = 0.25 * 2**24 / (2**24 + 2002)
  assert float(found.compute()[name]) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("classes", [None, 3])
def test_the_stream_agrees_with_the_metrics(classes):
  preds, weights = _random(num_classes=classes), np.arange(41) % 4
  labels = _labels(num_classes=classes or 2)
  stream = _accumulator(classes, dtype=jnp.float64)
  found = stream.update(preds, labels, weights=weights)
  relative_label = pd.relative_label_prediction_difference
  at = {"weights": weights}
  expected = {
    "pd_1": pd.prediction_difference(preds, **at),
    "pd_2": _pd_2(preds, **at),
    "relative_pd_deviation": _relative_deviation(preds, **at),
    "pairwise_pd": pd.pairwise_prediction_difference(preds, **at),
    "relative_pd_pairwise": pd.relative_prediction_difference(preds, **at),
    "signed_pd": pd.signed_prediction_difference(preds, **at),
    "hellinger_pd": pd.hellinger_prediction_difference(preds, **at),
    "disagreement": pd.disagreement(preds, **at),
    "logit_difference": pd.logit_difference(preds, **at),
    "label_pd_1": pd.label_prediction_difference(preds, labels, **at),
    "label_relative_pd_pairwise": relative_label(preds, labels, **at),
    "label_relative_pd_deviation": relative_label(
      preds, labels, "deviation", **at
    ),
    "lowest_prediction": preds[:, weights > 0].min(),
  }
  computed = found.compute()
  _assert_equal({n: computed[n] for n in expected}, expected, rtol=1e-12)
  pairs = pd.relative_prediction_difference(preds, reduce="pairs", **at)
  np.testing.assert_allclose(found.rows()["relative_pd_pairwise"], pairs)
  values = accumulator.example_values(preds, labels, chunk=7, **at)
  for name, value in values.items():
    mean = np.average(value[weights > 0], weights=weights[weights > 0])
    np.testing.assert_allclose(mean, computed[name], err_msg=name)


def test_sharded_is_single_device():
  preds = _random(4, 64).astype(np.float32)
  labels, weights = _labels(64), np.arange(64) % 3
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  put = lambda x, *spec: jax.device_put(
    x, jax.NamedSharding(mesh, jax.P(*spec))
  )
  laid = (put(preds, None, "data"), put(labels, "data"), put(weights, "data"))
  assert len(laid[0].sharding.device_set) == 8
  update = jax.jit(lambda a, p, l, w: a.update(p, l, weights=w))
  sharded = update(_accumulator(), *laid)
  single = _accumulator().update(preds, labels, weights=weights)
  _assert_equal(sharded.compute(), single.compute(), rtol=2e-5)
  for metric in METRICS[4:6]:
    np.testing.assert_allclose(
      metric(laid[0], weights=laid[2]),
      metric(preds, weights=weights),
      rtol=2e-5,
    )


def test_a_scan_carries_it():
  preds, labels = _random(4, 40), _labels(40)
  step = lambda a, x: (a.update(x[0], x[1]), None)
  batches = preds.reshape(4, 5, 8).swapaxes(0, 1), labels.reshape(5, 8)
  empty = _accumulator(dtype=jnp.float64)
  found, _ = jax.lax.scan(step, empty, batches)
  _assert_equal(
    found.compute(), empty.update(preds, labels).compute(), rtol=1e-12
  )


def test_misused_accumulators():
  empty = _accumulator()
  assert np.isnan(empty.compute()["pd_1"])
  with pytest.raises(ValueError, match="labels are missing"):
    empty.update(_random())
  with pytest.raises(ValueError, match="do not merge"):
    empty.merge(_accumulator(eps=0.1))
  with pytest.raises(ValueError, match="the accumulator has shape"):
    empty.update(_random(3), _labels())
  with pytest.raises(ValueError, match="num_models=1"):
    accumulator.PDAccumulator.init(1)


def test_report():
  preds, labels = _random(), _labels()
  queries = np.arange(41) // 5
  found = accumulator.pd_report(
    preds, labels, query_ids=queries, top_n=2, chunk=9
  )
  assert found["num_models"] == 4 and found["num_examples"] == 41
  np.testing.assert_allclose(found["lowest_prediction"], preds.min())
  picked = np.where(labels == 1, preds, 1 - preds)
  np.testing.assert_allclose(
    found["log_loss_by_model"], -np.log(picked).mean(axis=1)
  )
  hits = ((preds >= 0.5) == labels).mean(axis=1)
  np.testing.assert_allclose(found["accuracy_by_model"], hits)
  np.testing.assert_allclose(
    found["ranking_loss"], 1 - np.mean(found["query_auc_by_model"])
  )
  assert len(found["hellinger_pd_by_pair"]) == 6
  assert 0 <= found["swap_top_item"] <= found["swap_top_set"] <= 1
  with pytest.raises(ValueError, match="query_ids"):
    accumulator.pd_report(_random(num_classes=3), query_ids=queries)


def test_report_masked_is_removed():
  preds, labels = _random(), _labels()
  keep = np.arange(41) % 3 != 0
  holed, wrong = preds.copy(), labels.copy()
  holed[:, ~keep], wrong[~keep] = np.nan, -1
  found = accumulator.pd_report(
    holed, wrong, weights=keep, query_ids=np.arange(41) // 5, chunk=64
  )
  kept = accumulator.pd_report(
    preds[:, keep], labels[keep], query_ids=(np.arange(41) // 5)[keep]
  )
  _assert_equal(found, kept, rtol=1e-10)
