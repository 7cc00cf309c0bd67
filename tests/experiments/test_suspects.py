"""The list of suspect labels: ranking, files, training, mistakes."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from experiments.ciw import suspects, suspects_data

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
  capsys.readouterr()
  suspects.main(argv)  # trained already
  assert "loss" not in capsys.readouterr().out.split("| rank")[0]
  assert _csv(tmp_path / "out" / "suspects.csv") == rows
  _old_probabilities_are_not_laid_over_others(tmp_path / "images", argv)


def _old_probabilities_are_not_laid_over_others(root, argv):
  for more, words in (
    (["--seed", "1"], r"seed \(0 there, 1 here"),
    (["--batch-size", "8"], r"batch_size \(16 there, 8 here"),
    (["--seed", str(2**32)], "seed=4294967296"),
  ):
    with pytest.raises(ValueError, match=words):
      suspects.main([*argv, *more])
  for name in ("00.png", "01.png"):  # all to the folders where they belong
    pair = [root / side / name for side in ("bright", "dark")]
    contents = [path.read_bytes() for path in pair]
    for path, content in zip(pair, contents[::-1]):
      path.write_bytes(content)
  with pytest.raises(ValueError, match="has a run on other data"):
    suspects.main(argv)
  argv = list(argv)
  argv[argv.index("--workdir") + 1] += "_again"
  suspects.main(argv)
  found = _csv(root.parent / "out_again" / "suspects.csv")
  assert not [r for r in found if r["label"] != r["suggested"]]


@pytest.mark.parametrize(
  "arrays, words",
  [
    ({"labels": [0, 1]}, "has no .'images'."),
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
