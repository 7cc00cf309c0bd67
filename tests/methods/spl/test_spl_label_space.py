"""Label spaces: the worked numbers, invariants, and what is refused."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from locojax.methods import spl
from locojax.methods.spl import building

WEAK = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3])
TEACHER = np.array([0, 0, 1, 3, 1, 1, 2, 2, 2, 0, 2, 1])
CONFUSION = np.array([[2, 1, 0, 1], [0, 2, 1, 0], [1, 0, 3, 0], [0, 1, 0, 0]])
EYE = np.eye(4)
# Settings of each method on these clips.
SETTINGS = {
  "raw": {},
  "occupied": {},
  "spl_b": {},
  "top_k": {"k": 4},
  "min_count": {"min_count": 2},
  "cluster": {"k": 3, "embeddings": EYE},
  "weak": {},
  "teacher": {},
  "agreement": {},
}
REDUCED = ("occupied", "top_k", "min_count", "cluster")


def build(method, **changes):
  return spl.build_label_space(
    CONFUSION, method, **{**SETTINGS[method], **changes}
  )


def relabelled(space):
  return spl.relabel(WEAK, TEACHER, space)[0].tolist()


def test_confusion_matrix_and_agreement():
  found = spl.confusion_matrix(WEAK, TEACHER, 4, 4)
  np.testing.assert_array_equal(found, CONFUSION)
  agreed = spl.agreement_mask(WEAK, TEACHER)
  assert np.flatnonzero(agreed).tolist() == [0, 1, 4, 5, 7, 8, 10]
  assert agreed.mean() == pytest.approx(0.58333333, abs=1e-8)
  np.testing.assert_array_equal(found.sum(1), np.bincount(WEAK))
  np.testing.assert_array_equal(found.sum(0), np.bincount(TEACHER))


def test_weights_count_and_remove():
  weights = np.arange(12) / 2
  found = spl.confusion_matrix(WEAK, TEACHER, 4, 4, weights=weights)
  assert found.dtype == np.float64 and found.sum() == weights.sum()
  unsure = np.where(np.arange(12) == 0, -1, TEACHER)
  found = spl.confusion_matrix(WEAK, unsure, 4, 4, weights=unsure >= 0)
  assert found.dtype == np.int64 and found[0, 0] == 1 and found.sum() == 11
  space = spl.build_label_space(found, "spl_b")
  labels, kept = spl.relabel(WEAK, unsure, space)
  assert labels[0] == -1 and kept.tolist() == [False] + [True] * 11
  assert not spl.agreement_mask(WEAK, unsure)[0]


@pytest.mark.parametrize(
  ("method", "changes", "num", "labels"),
  [
    ("raw", {}, 16, [0, 0, 1, 3, 5, 5, 6, 10, 10, 8, 10, 13]),
    ("occupied", {}, 8, [0, 0, 1, 2, 3, 3, 4, 6, 6, 5, 6, 7]),
    ("spl_b", {}, 8, [0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 4, 7]),
    ("top_k", {}, 4, [0, 0, 1, -1, 2, 2, -1, 3, 3, -1, 3, -1]),
    (
      "top_k",
      {"fallback": "row_other"},
      8,
      [0, 0, 1, 4, 2, 2, 5, 3, 3, 6, 3, 7],
    ),
    (
      "top_k",
      {"fallback": "agreed"},
      4,
      [0, 0, 1, 0, 2, 2, 2, 3, 3, 3, 3, -1],
    ),
    (
      "top_k",
      {"fallback": "global_other"},
      5,
      [0, 0, 1, 4, 2, 2, 4, 3, 3, 4, 3, 4],
    ),
    ("weak", {}, 4, WEAK.tolist()),
    ("teacher", {}, 4, TEACHER.tolist()),
    ("agreement", {}, 4, [0, 0, -1, -1, 1, 1, -1, 2, 2, -1, 2, -1]),
  ],
)
def test_worked_labels(method, changes, num, labels):
  space = build(method, **changes)
  assert space.num_classes == num and space.method == method
  found, kept = spl.relabel(WEAK, TEACHER, space)
  assert found.tolist() == labels and found.dtype == np.int32
  assert kept.tolist() == [k >= 0 for k in labels]
  live = np.array([k for k in labels if k >= 0])
  np.testing.assert_array_equal(space.counts, np.bincount(live, minlength=num))


def test_worked_counts_and_entropies():
  assert build("spl_b").counts.tolist() == [2, 2, 2, 1, 3, 1, 0, 1]
  raw, binary = build("raw").stats(), build("spl_b").stats()
  assert raw["entropy_weak"] == pytest.approx(1.2860573369, abs=1e-10)
  assert raw["entropy_teacher"] == pytest.approx(1.2860573369, abs=1e-10)
  assert raw["entropy"] == pytest.approx(1.9792045174, abs=1e-10)
  assert binary["entropy"] == pytest.approx(1.8636799873, abs=1e-10)
  assert raw["mutual_information"] == pytest.approx(0.5929101564, abs=1e-10)
  assert raw["entropy"] >= raw["entropy_weak"]


def test_statistics():
  found = build("top_k").stats(num_pairs=2)
  assert found["num_clips"] == 12 and found["share_kept"] == 8 / 12
  assert found["largest"] == 3 and found["median"] == 2.0
  assert found["share_rare"] == 1.0 and found["num_occupied"] == 4
  assert found["agreement"] == 7 / 12
  # The first in raw order of those with one clip; 1 * 12 / (4 * 4), (4 * 1).
  assert found["top_pairs"] == [
    {"weak": 0, "teacher": 1, "count": 1, "lift": 0.75},
    {"weak": 0, "teacher": 3, "count": 1, "lift": 3.0},
  ]
  lift = spl.lift(CONFUSION)
  expected = CONFUSION * 12 / np.outer(CONFUSION.sum(1), CONFUSION.sum(0))
  np.testing.assert_allclose(lift, expected)
  assert spl.lift([[1, 0], [0, 0]]).tolist() == [[1, 0], [0, 0]]


def test_marginals():
  probs = [0.1, 0.05, 0.2, 0.05, 0.15, 0.05, 0.1, 0.3]
  weak = spl.marginal_probs(probs, build("spl_b"), axis="weak")
  np.testing.assert_allclose(weak, [0.15, 0.25, 0.2, 0.4], rtol=1e-6)
  rng = np.random.default_rng(0)
  pairs = rng.dirichlet(np.ones(16), 3)
  grid = pairs.reshape(3, 4, 4)
  for axis, wanted in (("weak", grid.sum(2)), ("teacher", grid.sum(1))):
    found = spl.marginal_probs(pairs, build("raw"), axis=axis)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("method", SETTINGS)
def test_marginals_of_the_training_clips_are_their_counts(method):
  """A class of several rows is divided as its training clips are."""
  space = build(method)
  share = space.counts / space.counts.sum()
  kept = np.where(space.lookup >= 0, CONFUSION, 0)
  for axis, wanted in (("weak", kept.sum(1)), ("teacher", kept.sum(0))):
    matrix = spl.marginal_matrix(space, axis)
    np.testing.assert_allclose(matrix.sum(1), 1)
    np.testing.assert_allclose(share @ matrix, wanted / kept.sum())


@pytest.mark.parametrize("fallback", building.FALLBACKS)
@pytest.mark.parametrize("method", SETTINGS)
def test_json_encode_decode(method, fallback):
  space = build(method, fallback=fallback)
  again = spl.LabelSpace.from_json(space.to_json(), num_weak=4, num_teacher=4)
  assert again == space and hash(again) == hash(space)
  w, t = (x.ravel() for x in np.indices((4, 4)))
  found = np.asarray(space.encode(w, t))
  np.testing.assert_array_equal(found, space.lookup.ravel())
  np.testing.assert_array_equal(found.reshape(4, 4), again.lookup)
  # Of a class of one pair both labels come back, of others what they share.
  ids = np.arange(space.num_classes)
  weak, teacher = (np.asarray(x) for x in space.decode(ids))
  for k, pairs in enumerate(space.pairs):
    for own, labels in zip((weak[k], teacher[k]), zip(*pairs)):
      assert own == (labels[0] if len(set(labels)) == 1 else -1)
  assert sum(map(len, space.pairs)) == (space.lookup >= 0).sum()
  assert len(space.names("abcd")) == space.num_classes
  if method in REDUCED:
    assert (space.counts > 0).all()


def test_encode_inside_jit():
  space = build("top_k", fallback="row_other")
  run = jax.jit(lambda w, t: (space.encode(w, t), space.decode([0, 4])))
  found, (weak, teacher) = run(WEAK, TEACHER)
  np.testing.assert_array_equal(found, relabelled(space))
  assert weak.tolist() == [0, 0] and teacher.tolist() == [0, -1]
  # An id out of range is no class, not another one.
  bad = WEAK.copy()
  bad[:2] = -1, 4
  found, _ = run(bad, TEACHER)
  assert found[:3].tolist() == [8, 8, 1]
  decode = jax.jit(space.decode)
  assert [x.tolist() for x in decode(np.array([-1, 8]))] == [[-1, -1]] * 2


def test_names():
  names = ["eggs", "bread"]
  space = lambda method, **s: spl.build_label_space(
    [[3, 1], [2, 4]], method, **s
  )
  assert space("raw").names(names) == [
    "eggs",
    "eggs & bread",
    "bread & eggs",
    "bread",
  ]
  assert space("weak").names(names) == names == space("teacher").names(names)
  found = build("spl_b").names("abcd", "efgh")
  assert found[:2] == ["a & e", "a & other"]
  found = build("cluster").names("abcd")
  assert len(set(found)) == 3 and any("more" in n for n in found)
  found = build("top_k", fallback="global_other").names("abcd")
  assert found[-1] == "a & d + 11 more"


@pytest.mark.parametrize("method", SETTINGS)
def test_the_order_of_clips_does_not_matter(method):
  order = np.random.default_rng(3).permutation(12)
  confusion = spl.confusion_matrix(WEAK[order], TEACHER[order], 4, 4)
  found = spl.build_label_space(confusion, method, **SETTINGS[method])
  assert found == build(method)


@pytest.mark.parametrize("method", ["raw", "occupied", "spl_b", "min_count"])
def test_other_numbers_of_the_classes_permute_rows_and_columns(method):
  p = np.array([2, 0, 3, 1])
  confusion = spl.confusion_matrix(p[WEAK], p[TEACHER], 4, 4)
  np.testing.assert_array_equal(confusion[np.ix_(p, p)], CONFUSION)
  found = spl.build_label_space(confusion, method, **SETTINGS[method])
  one = spl.relabel(WEAK, TEACHER, build(method))[0]
  two = spl.relabel(p[WEAK], p[TEACHER], found)[0]
  assert found.num_classes == build(method).num_classes
  # The same clips are together, under other numbers.
  np.testing.assert_array_equal(one[:, None] == one, two[:, None] == two)


def test_reductions_that_keep_all_are_one():
  occupied = build("occupied")
  for other in (
    build("min_count", min_count=1),
    build("top_k", k=8),
    build("top_k", k=100),
    build("cluster", k=8),
    build("min_count", min_count=1, fallback="row_other"),
    build("top_k", k=8, fallback="global_other"),
  ):
    np.testing.assert_array_equal(other.lookup, occupied.lookup)


def test_clusters_merge_what_is_alike():
  """Classes 0 and 1 look alike, as do 2 and 3: the four corners remain."""
  e = np.array([[1, 0.1], [1, 0], [0, 1], [0.1, 1]])
  full = np.arange(1, 17).reshape(4, 4)
  space = spl.build_label_space(full, "cluster", k=4, embeddings=e)
  half = np.repeat([0, 1], 2)
  np.testing.assert_array_equal(space.lookup, 2 * half[:, None] + half[None, :])
  three = spl.build_label_space(
    full, "cluster", k=2, min_count=15, embeddings=(e, e), fallback="agreed"
  )
  assert three.lookup[3].tolist() == [1, 1, 0, 1]
  assert (three.lookup[:3] == -1).all()


def test_more_teacher_classes_than_weak_ones():
  confusion, to = np.array([[4, 0, 2], [1, 3, 0]]), [2, 1]
  raw = spl.build_label_space(confusion, "raw")
  assert raw.num_classes == 6 and raw.stats()["agreement"] is None
  binary = spl.build_label_space(confusion, "spl_b", weak_to_teacher=to)
  assert binary.lookup.tolist() == [[1, 1, 0], [3, 2, 3]]
  assert binary.stats()["agreement"] == 0.5
  assert binary.weak_to_teacher.tolist() == to
  mask = spl.agreement_mask([0, 0, 1], [2, 0, 1], weak_to_teacher=to)
  assert mask.tolist() == [True, False, True]


def test_where_all_agree_spl_b_has_even_classes_alone():
  space = spl.build_label_space(np.diag([3, 2, 5]), "spl_b")
  labels, _ = spl.relabel([0, 1, 2, 2], [0, 1, 2, 2], space)
  assert labels.tolist() == [0, 2, 4, 4]


def test_shuffled_teacher_keeps_the_confusion_matrix():
  rng = np.random.default_rng(0)
  weak, teacher = rng.integers(0, 3, (2, 300))
  found = spl.shuffled_teacher(weak, teacher, rng=rng)
  assert (found != teacher).any()
  np.testing.assert_array_equal(
    spl.confusion_matrix(weak, found, 3, 3),
    spl.confusion_matrix(weak, teacher, 3, 3),
  )


REFUSED = [
  (lambda: spl.confusion_matrix([0], [0, 1], 2, 2), "weak has shape (1,)"),
  (lambda: spl.confusion_matrix([0.0], [0], 2, 2), "weak has shape"),
  (lambda: spl.confusion_matrix([-1], [0], 2, 2), "weak holds -1"),
  (lambda: spl.confusion_matrix([0], [2], 2, 2), "teacher holds 2"),
  (lambda: spl.confusion_matrix([], [], 2, 2), "hold no clip"),
  (lambda: spl.confusion_matrix([0], [0], 0, 2), "num_weak=0"),
  (
    lambda: spl.confusion_matrix([0], [0], 2, 2, weights=[-1.0]),
    "weights have values",
  ),
  (lambda: spl.build_label_space([[0, 0]], "raw"), "confusion with the sum 0"),
  (lambda: spl.build_label_space([1, 2], "raw"), "confusion has shape (2,)"),
  (lambda: build("top_k", k=None), "k=None"),
  (lambda: build("top_k", k=0), "k=0"),
  (lambda: build("top_k", k=2.0), "k=2.0"),
  (lambda: build("cluster", k=None), "k=None"),
  (lambda: build("cluster", k=9), "k=9"),
  (lambda: build("min_count", min_count=None), "min_count=None"),
  (lambda: build("min_count", min_count=0), "min_count=0"),
  (lambda: build("raw", k=3), "k=3"),
  (lambda: spl.build_label_space(CONFUSION, "binary"), "'raw', 'occupied'"),
  (lambda: build("raw", fallback="other"), "'drop', 'row_other'"),
  (lambda: build("cluster", embeddings=None), "embeddings=None"),
  (lambda: build("cluster", embeddings=EYE[:3]), "embeddings of shape (3, 4)"),
  (lambda: build("cluster", embeddings=0 * EYE), "zero or not finite"),
  (lambda: build("cluster", embeddings=(EYE,)), "len(embeddings)=1"),
  (lambda: spl.build_label_space([[1, 2, 3]] * 2, "spl_b"), "weak_to_teacher"),
  (
    lambda: spl.build_label_space([[1, 2, 3]] * 2, "raw", fallback="agreed"),
    "weak_to_teacher",
  ),
  (lambda: build("spl_b", weak_to_teacher=[0, 1, 2, 9]), "holds 9"),
  (lambda: build("spl_b", weak_to_teacher=[0, 1]), "shape (2,)"),
  (lambda: build("top_k", k=1), "num_classes=1"),
  (lambda: build("min_count", min_count=9), "num_classes=0"),
  (lambda: spl.build_label_space([[0, 1], [1, 0]], "agreement"), "all 2 clips"),
  (lambda: build("raw").encode([4], [0]), "weak holds 4"),
  (lambda: build("raw").encode([0], [-1]), "teacher holds -1"),
  (lambda: build("raw").encode([0, 1], [1]), "shape"),
  (lambda: build("raw").decode([16]), "ids holds 16"),
  (lambda: build("raw").names("abc"), "len(weak_names)=3"),
  (lambda: spl.relabel([0], [-2], build("raw")), "teacher holds -2"),
  (lambda: spl.relabel([4], [0], build("raw")), "weak holds 4"),
  (lambda: spl.agreement_mask([0, 1], [0]), "shape"),
  (lambda: spl.marginal_probs([0.5, 0.5], build("raw")), "16 classes"),
  (
    lambda: spl.marginal_probs(np.ones(16), build("raw"), axis="rows"),
    "axis='rows'",
  ),
  (lambda: spl.LabelSpace.from_json("{"), "no label space"),
  (lambda: spl.LabelSpace.from_json("{}"), "keys of the label space"),
  (
    lambda: spl.LabelSpace.from_json(build("raw").to_json(), num_weak=5),
    "num_weak of the label space=4",
  ),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_what_is_refused(call, words):
  with pytest.raises(ValueError) as error:
    call()
  assert words in str(error.value), str(error.value)


@pytest.mark.parametrize(
  ("key", "value", "words"),
  [
    ("num_classes", 1, "num_classes=1"),
    ("lookup", [[0, 99, 0, 0]] * 4, "lookup of dtype"),
    ("lookup", [[0]], "lookup has shape"),
    ("lookup", [[0.5]], "damaged"),
    ("confusion", [[1, 2], [3]], "damaged"),
    ("format", "other", "format of the label space='other'"),
    ("weak_to_teacher", [0, 1, 2, 7], "holds 7"),
  ],
)
def test_a_damaged_file_is_refused(key, value, words):
  found = {**json.loads(build("raw").to_json()), key: value}
  with pytest.raises(ValueError) as error:
    spl.LabelSpace.from_json(json.dumps(found))
  assert words in str(error.value), str(error.value)


def test_arrays_of_a_space_cannot_be_changed():
  with pytest.raises(ValueError, match="read-only"):
    build("raw").lookup[0, 0] = 3
