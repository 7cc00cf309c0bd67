"""The list of suspect labels: ranking, files, models, trust, mistakes."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from experiments.ciw import (
  suspects,
  suspects_cheap,
  suspects_choice,
  suspects_data,
  suspects_folds,
  suspects_train,
  suspects_views,
)

WRONG = (3, 11, 17)


def _said(num=24, epochs=4):
  """Probabilities of a model that contradicts three of the labels."""
  labels = np.arange(num) % 3
  said = labels.copy()
  said[list(WRONG)] = (labels[list(WRONG)] + 1) % 3
  p = np.full((epochs, num, 3), 0.05)
  p[:, np.arange(num), said] = 0.9
  return p, labels, said


def _csv(path):
  with path.open() as f:
    return list(csv.DictReader(f))


def test_contradicted_labels_come_first(tmp_path):
  p, labels, said = _said()
  data = suspects_data.collected({"probabilities": p, "labels": labels})
  suspects.write(data, tmp_path, lam=0.5, top=5)
  rows = _csv(tmp_path / "suspects.csv")
  assert [int(r["rank"]) for r in rows] == list(range(1, len(labels) + 1))
  assert {int(r["index"]) for r in rows[:3]} == set(WRONG)
  for row in rows:
    index = int(row["index"])
    assert (int(row["label"]), int(row["suggested"])) == (
      labels[index],
      said[index],
    )
  assert float(rows[0]["loss"]) == pytest.approx(-math.log(0.05))
  assert (tmp_path / "weights.png").read_bytes()[:4] == b"\x89PNG"
  assert not (tmp_path / "suspects.png").exists()


def test_weights_have_mean_one_and_are_those_of_kl():
  losses = np.array([[0.1, 0.5, 1.0, 3.0]])
  found = suspects.weights(losses, 0.5)
  expected = np.exp(-losses / 0.5)
  np.testing.assert_allclose(found, 4 * expected / expected.sum(), rtol=1e-5)


def test_only_the_later_half_of_the_epochs_counts():
  p, labels, _ = _said()
  p[:2] = p[:2, ::-1]
  late = suspects_data.collected({"probabilities": p[2:], "labels": labels})
  both = suspects_data.collected({"probabilities": p, "labels": labels})
  assert suspects.rank(both, 0.5) == suspects.rank(late, 0.5)


def test_known_wrong_labels_give_precision_and_recall(tmp_path):
  p, labels, _ = _said()
  wrong = np.isin(np.arange(len(labels)), WRONG)
  data = suspects_data.collected(
    {"probabilities": p, "labels": labels, "is_noisy": wrong}
  )
  suspects.write(data, tmp_path, lam=0.5, top=5)
  found = json.loads((tmp_path / "detection.json").read_text())
  assert found["wrong_labels"] == 3 / 24
  assert found["auc"] == 1.0
  assert found["precision_of_as_many"] == found["recall_of_as_many"] == 1.0
  assert found["precision_below_half"] == found["recall_below_half"] == 1.0


def test_losses_alone_are_enough(tmp_path):
  path = tmp_path / "mine.npz"
  np.savez(path, losses=[0.1, 2.0, 0.3], labels=["a", "b", "c"])
  suspects.main([str(path), "--workdir", str(tmp_path / "out")])
  rows = _csv(tmp_path / "out" / "suspects.csv")
  assert [r["index"] for r in rows] == ["1", "2", "0"]
  assert rows[0]["label"] == "b" and rows[0]["suggested"] == ""


def _folder(root, num=40):
  """Dark and bright squares, two of each in the wrong folder."""
  rng = np.random.default_rng(0)
  for name, base in (("bright", 190), ("dark", 50)):
    (root / name).mkdir(parents=True)
    for i in range(num):
      level = base if i > 1 else 240 - base
      image = np.clip(level + rng.normal(0, 12, (8, 8, 3)), 0, 255)
      Image.fromarray(image.astype(np.uint8)).save(root / name / f"{i:02d}.png")


def test_a_folder_of_images(tmp_path, capsys):
  _folder(tmp_path / "images")
  argv = [str(tmp_path / "images"), "--workdir", str(tmp_path / "out")]
  argv += ["--epochs", "6", "--batch-size", "20", "--top", "8"]
  suspects.main(argv)
  rows = _csv(tmp_path / "out" / "suspects.csv")
  first = {(r["name"], r["label"], r["suggested"]) for r in rows[:4]}
  assert first == {
    ("00.png", "bright", "dark"),
    ("01.png", "bright", "dark"),
    ("00.png", "dark", "bright"),
    ("01.png", "dark", "bright"),
  }
  for name in ("suspects.png", "weights.png"):
    assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"
  suspects.main(argv)
  assert _csv(tmp_path / "out" / "suspects.csv") == rows
  verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
  assert verdict["trusted"] == "yes" and verdict["folds"] == 5
  assert {m["model"] for m in verdict["models"]} == {"linear", "kernel"}
  assert verdict["accuracy"] == pytest.approx(76 / 80)


def test_networks_are_trained_once_and_belong_to_their_data(tmp_path, capsys):
  root = tmp_path / "images"
  _folder(root)
  argv = [str(root), "--workdir", str(tmp_path / "out"), "--model", "mlp"]
  argv += ["--epochs", "6", "--batch-size", "20", "--top", "8"]
  assert suspects.main(argv) == 0
  rows = _csv(tmp_path / "out" / "suspects.csv")
  assert {r["name"] for r in rows[:4]} == {"00.png", "01.png"}
  capsys.readouterr()
  suspects.main(argv)  # trained already
  assert "loss" not in capsys.readouterr().out.split("| rank")[0]
  assert _csv(tmp_path / "out" / "suspects.csv") == rows
  for more, words in (
    (["--batch-size", "8"], r"batch_size \(16 there, 8 here"),
    (["--seed", "1"], "has a run on other data|seed"),
    (["--seed", str(2**32)], "seed=4294967296"),
  ):
    with pytest.raises(ValueError, match=words):
      suspects.main([*argv, *more])
  pair = [root / side / "00.png" for side in ("bright", "dark")]
  contents = [path.read_bytes() for path in pair]
  for path, content in zip(pair, contents[::-1]):  # where they belong
    path.write_bytes(content)
  with pytest.raises(ValueError, match="has a run on other data"):
    suspects.main(argv)


def _planted(num=240, dims=6, seed=0):
  """Two clouds a class, and labels of which a sixth is wrong."""
  rng = np.random.default_rng(seed)
  true = np.arange(num) % 3
  centres = rng.normal(0, 3, (3, dims))
  features = centres[true] + rng.normal(0, 1, (num, dims))
  wrong = np.zeros(num, bool)
  wrong[rng.permutation(num)[: num // 6]] = True
  return features, np.where(wrong, (true + 1) % 3, true), wrong


def test_folds_have_equal_shares_of_each_class():
  labels = np.repeat([0, 1, 2], [23, 11, 5])
  folds = suspects_folds.stratified(labels, 5, seed=0)
  for part in (labels == 0, labels == 1, labels == 2, labels >= 0):
    counts = np.bincount(folds[part], minlength=5)
    assert counts.max() - counts.min() <= 1
  again = suspects_folds.stratified(labels, 5, seed=0)
  np.testing.assert_array_equal(folds, again)
  assert (folds != suspects_folds.stratified(labels, 5, seed=1)).any()
  for bad in ([0, 0, 0], [0, 1, 2]):
    with pytest.raises(ValueError, match="two examples or more"):
      suspects_folds.stratified(np.array(bad), 2, seed=0)
  with pytest.raises(ValueError, match=r"num_folds=9 .* in \[2, 4\]"):
    suspects_folds.stratified(np.array([0, 0, 1, 1]), 9, seed=0)


def test_a_memoriser_knows_nothing_out_of_fold():
  labels = np.arange(30) % 3
  keys = np.arange(30)[:, None]
  folds = suspects_folds.stratified(labels, 5, seed=0)

  def memorise(x, y):
    known = dict(zip(x[:, 0].tolist(), y.tolist()))
    of = lambda k: np.eye(3)[known[k]] if k in known else np.full(3, 1 / 3)
    return lambda x: np.array([of(k) for k in x[:, 0].tolist()])

  found = suspects_folds.out_of_fold(memorise, keys, labels, folds, 3)
  np.testing.assert_array_equal(found, np.full((30, 3), 1 / 3))


def test_the_own_label_has_no_say():
  features, labels, _ = _planted(60)
  folds = suspects_folds.stratified(labels, 3, seed=0)
  changed = labels.copy()
  changed[7] = (labels[7] + 1) % 3
  made = [
    suspects_cheap.probabilities(
      ("linear", "kernel"), features, y, folds, num_classes=3, seed=0
    )
    for y in (labels, changed)
  ]
  same = folds == folds[7]
  for (kind, _, one), (_, _, two) in zip(*made, strict=True):
    np.testing.assert_array_equal(one[same], two[same], err_msg=kind)
    assert (one[~same] != two[~same]).any()


def test_a_network_is_never_trained_on_its_own_fold():
  labels = np.arange(40) % 2
  images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
  folds = suspects_folds.stratified(labels, 4, seed=0)
  config = suspects_train._config({"seed": 3, "batch_size": 16}, folds)
  batches = suspects_train._batches(config, images, labels, folds)
  for fold in range(4):
    seed = suspects_train.variation.replica_seed(3, fold)
    rows = [b for b, _ in zip(batches(seed)(0), range(8))]
    seen = np.unique([b["index"] for b in rows])
    assert len(seen) > 20 and (folds[seen] != fold).all()
    for b in rows:
      np.testing.assert_array_equal(b["image"].reshape(-1), b["index"])


@pytest.mark.parametrize("per_epoch", [1, 7, 100])
def test_few_batches_have_more_epochs_and_a_burnin(per_epoch):
  updates = per_epoch * suspects_train.epochs(per_epoch)
  assert updates >= 500 and updates / per_epoch >= 20
  assert suspects_train.burnin(updates) * updates >= 100
  assert suspects_train.burnin(50) == 0.5
  assert suspects_train.burnin(10**4) == 0.1


@pytest.mark.parametrize(
  ("noise", "least"), [("symmetric", 0.9), ("next", 0.8)]
)
def test_planted_errors_in_digits_are_found(noise, least, tmp_path):
  argv = [f"digits@{noise}:0.2", "--num-train", "300", "--folds", "3"]
  assert suspects.main([*argv, "--workdir", str(tmp_path)]) == 0
  found = json.loads((tmp_path / "detection.json").read_text())
  assert found["precision_of_as_many"] > least
  assert found["auc"] > 0.9


def test_weights_help_where_one_class_is_taken_for_another():
  features, labels, wrong = _planted(240)
  folds = suspects_folds.stratified(labels, 4, seed=0)
  hits = []
  for lam in (0.5, None):
    setting = {"linear": ({"inverse_l2": 1.0, "lam": lam},)}
    [(_, _, p)] = suspects_cheap.probabilities(
      *(("linear",), features, labels, folds),
      **dict(num_classes=3, seed=0, settings=setting),
    )
    own = p[np.arange(len(labels)), labels]
    hits.append(wrong[np.argsort(own)[: wrong.sum()]].mean())
  assert hits[0] >= hits[1] and hits[0] > 0.9


def _collapsed(labels, to=1):
  p = np.full((1, len(labels), 3), 0.1)
  p[..., to] = 0.8
  return suspects_choice.Candidate("collapsed", {}, p)


def test_a_collapsed_model_is_not_chosen_beside_a_better_one():
  p, labels, _ = _said()
  good = suspects_choice.Candidate("good", {}, p)
  chosen, rows = suspects_choice.choose([_collapsed(labels), good], labels)
  np.testing.assert_array_equal(chosen, p)
  assert [row["chosen"] for row in rows] == ["no", "yes"]
  both, rows = suspects_choice.choose([good, good], labels)
  np.testing.assert_allclose(both, p[:1])
  assert [row["chosen"] for row in rows] == ["yes", "yes"]


def test_a_collapsed_model_is_warned_about(tmp_path, capsys):
  labels = np.arange(60) % 3
  path = tmp_path / "mine.npz"
  images = np.zeros((60, 8, 8, 1), np.uint8)
  p = _collapsed(labels).probabilities
  np.savez(path, labels=labels, probabilities=p, images=images)
  argv = [str(path), "--workdir", str(tmp_path / "out"), "--top", "4"]
  assert suspects.main(argv) == 3
  told = capsys.readouterr().err
  assert "WARNING" in told and "hardly ever says 2 of 3 classes (0, 2)" in told
  verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
  assert verdict["trusted"] == "no" and "next to nothing" in told
  assert all(reason in told for reason in verdict["warnings"])
  rows = _csv(tmp_path / "out" / "suspects.csv")
  assert {row["trusted"] for row in rows} == {"no"}


def test_what_is_doubtful_is_named():
  p, labels, said = _said(90)
  assert suspects_choice.warnings(p[0], labels, num_folds=5) == []
  few = np.append(labels, [3, 3])
  more = np.pad(p[0], ((0, 2), (0, 1)))
  more[-2:, 3] = 1.0
  [found] = suspects_choice.warnings(more, few, num_folds=5)
  assert "1 classes (3) have fewer examples than the 5 folds" in found
  rng = np.random.default_rng(0)
  many = np.arange(900) % 3
  half = np.where(rng.random(900) < 0.45, many, (many + 1) % 3)
  [found] = suspects_choice.warnings(np.eye(3)[half], many)
  assert "its own mistake" in found
  [found] = suspects_choice.warnings(p[0], np.zeros(90, int))
  assert "all labels are the same" in found


def test_a_table_with_words_and_numbers(tmp_path):
  features, labels, wrong = _planted(120)
  lines = ["id,colour,a,b,c,d,e,f,kind"]
  for i, (row, label) in enumerate(zip(features, labels)):
    colour = ("red", "green")[i % 2]
    numbers = ",".join(map(str, row))
    lines.append(f"row {i},{colour},{numbers},class {label}")
  path = tmp_path / "mine.csv"
  path.write_text("\n".join(lines))
  argv = [str(path), "--workdir", str(tmp_path / "out"), "--label", "kind"]
  for more, words in (
    (["--names", "nobody"], "names='nobody'"),
    (["--names", "id", "--model", "mlp"], "without images"),
    ([], "'id' has 120 distinct texts"),
  ):
    with pytest.raises(ValueError, match=words):
      suspects.main([*argv, *more])
  assert suspects.main([*argv, "--names", "id"]) == 0
  rows = _csv(tmp_path / "out" / "suspects.csv")
  assert rows[0]["label"].startswith("class ")
  first = [int(r["name"].split()[1]) for r in rows[: wrong.sum()]]
  assert wrong[first].mean() > 0.7


def test_gradients_do_not_see_brightness_and_know_directions():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 100, (3, 28, 28, 1), dtype=np.uint8)
  found = suspects_views.gradients(images)
  assert found.shape == (3, 7 * 7 * 8) and found.dtype == np.float32
  np.testing.assert_allclose(
    found, suspects_views.gradients(images + 90), atol=1e-5
  )
  ramp = np.broadcast_to(np.arange(28, dtype=np.uint8), (28, 28))
  for image, bins in ((ramp, {0}), (ramp.T, {2}), (ramp[:, ::-1], {4})):
    one = suspects_views.gradients(image[None, ..., None]).reshape(-1, 8)
    assert set(np.flatnonzero(one.sum(axis=0) > 1e-3)) == bins
  large = np.zeros((2, 200, 100, 3), np.uint8)
  views = suspects_views.of(large)
  assert views["pixels"].shape == (2, 66 * 33 * 3)
  with pytest.raises(ValueError, match="must be finite"):
    suspects_views.of(np.array([[1.0, np.nan]]))


@pytest.mark.parametrize(
  "arrays, words",
  [
    ({"labels": [0, 1]}, "has no .'images'."),
    ({"labels": [0] * 6, "features": np.eye(6)}, "two classes or more"),
    ({"labels": [0], "images": np.zeros((1, 8, 8))}, "must be uint8"),
    (
      {"labels": [0, 1], "images": np.zeros((1, 8, 8, 1), np.uint8)},
      "they must be equal",
    ),
    ({"labels": [0, 2], "probabilities": np.eye(2)}, "classes 0 to 1"),
    ({"labels": [0, 1], "losses": [np.nan, 1.0]}, "hold NaN"),
    (
      {"labels": [0, -1], "images": np.zeros((2, 8, 8, 1), np.uint8)},
      "labels from -1",
    ),
    (
      {"labels": [0.5, 1], "images": np.zeros((2, 8, 8, 1), np.uint8)},
      "labels has dtype float64",
    ),
    (
      {"labels": [0, 1], "losses": [1, 2], "is_noisy": ["False", "True"]},
      "is_noisy of dtype",
    ),
    ({"labels": [0, 1], "probabilities": np.ones((2, 2))}, "sum to 1"),
  ],
)
def test_mistakes_are_named(tmp_path, arrays, words):
  path = tmp_path / "mine.npz"
  np.savez(path, **arrays)
  with pytest.raises(ValueError, match=words):
    suspects.main([str(path), "--workdir", str(tmp_path / "out")])


def test_an_unknown_source_is_named(tmp_path):
  with pytest.raises(ValueError, match="source='nowhere'"):
    suspects.main(["nowhere", "--workdir", str(tmp_path)])
