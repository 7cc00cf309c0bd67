"""The report command, from files to text and JSON."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from experiments.smelu import pd_report
from locojax.methods.smelu import accumulator


def _preds(num_models=3, num_examples=60, classes=None):
  rng = np.random.default_rng(0)
  if classes:
    return rng.dirichlet(np.ones(classes), (num_models, num_examples))
  base = rng.uniform(0.1, 0.8, num_examples)
  return base + rng.uniform(0, 0.1, (num_models, num_examples))


def _labels(num_examples=60, classes=2):
  return np.random.default_rng(1).integers(0, classes, num_examples)


def _report(capsys, tmp_path, *args):
  """Text and values of a run, which must not fail."""
  out = tmp_path / "report.json"
  args = [*map(str, args), "--json", str(out), "--samples", "50"]
  assert pd_report.main(args) == 0
  return capsys.readouterr().out, json.loads(out.read_text())


def _refusal(capsys, *args) -> str:
  with pytest.raises(SystemExit) as error:
    pd_report.main([str(a) for a in args])
  assert error.value.code == 2
  return " ".join(capsys.readouterr().err.split())


def _expected(preds, labels=None, **kwargs):
  with jax.enable_x64(True):
    return accumulator.pd_report(preds, labels, **kwargs)


def _agrees(found, expected):
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)


def test_npz_files_end_to_end(capsys, tmp_path):
  preds, labels = _preds(), _labels()
  extras = {
    "labels": labels,
    "weights": np.arange(60) % 3,
    "query_ids": np.arange(60) // 6,
  }
  files = [tmp_path / f"model{m}.npz" for m in range(3)]
  for m, file in enumerate(files):
    np.savez(file, predictions=preds[m], **(extras if m else {}))
  text, found = _report(capsys, tmp_path, *files, "--top", 2)
  kwargs = {k: v for k, v in extras.items() if k != "labels"}
  _agrees(found, _expected(preds, labels, top_n=2, **kwargs))
  assert "3 models, 3 pairs, 40 examples" in text
  for words in (
    "relative PD, pairwise",
    "relative PD, deviation (half of it for 2 models)",
    "95 % over examples",
    "95 % over models",
    "swap rate of the top-n set",
    "AUC within queries",
    "lowest prediction",
  ):
    assert words in text
  for name in ("relative_pd_pairwise", "disagreement", "log_loss"):
    low, high = found["over_examples"][name]
    assert low <= found[name] <= high
  low, high = found["over_models"]["relative_pd_pairwise"]
  assert 0 <= low < found["relative_pd_pairwise"] < high


def test_folders_of_runs_over_classes(capsys, tmp_path):
  preds, labels = _preds(2, classes=3), _labels(classes=3)
  for m in range(2):
    (tmp_path / f"run{m}").mkdir()
    np.savez(tmp_path / f"run{m}" / "predictions.npz", predictions=preds[m])
  np.save(tmp_path / "labels.npy", labels)
  folders = (tmp_path / "run0", tmp_path / "run1")
  text, found = _report(
    capsys, tmp_path, *folders, "--labels", tmp_path / "labels.npy"
  )
  _agrees(found, _expected(preds, labels))
  assert found["over_models"] == {} and "accuracy" in text
  assert "auc" not in found


@pytest.mark.parametrize("header", [True, False])
def test_csv_files(capsys, tmp_path, header):
  preds, labels = _preds(2), _labels()
  files = [tmp_path / f"{m}.csv" for m in range(2)]
  for m, file in enumerate(files):
    rows = [f"{p!r}" for p in preds[m].tolist()]
    if header:
      rows = [
        f"{row},{y},user{n // 4}"
        for n, (row, y) in enumerate(zip(rows, labels))
      ]
      rows.insert(0, "prediction,label,query_id")
    file.write_text("\n".join(rows) + "\n")
  args = []
  if not header:
    (tmp_path / "y.csv").write_text("\n".join(map(str, labels)))
    args = ["--labels", tmp_path / "y.csv"]
  _, found = _report(capsys, tmp_path, *files, *args)
  queries = {"query_ids": np.arange(60) // 4} if header else {}
  _agrees(found, _expected(preds, labels, **queries))


def test_ensembles_of_replicas_without_labels(capsys, tmp_path):
  preds = _preds(6).astype(np.float32)
  np.savez(tmp_path / "all.npz", replicas=preds)
  args = (tmp_path / "all.npz", "--ensemble", 2)
  text, found = _report(capsys, tmp_path, *args)
  joined = preds.astype(np.float64).reshape(3, 2, 60).mean(axis=1)
  _agrees(found, _expected(joined))
  assert "3 models" in text and "Give labels" in text


def test_many_examples_are_joined_to_units():
  assert pd_report._units(20_000, None) is None
  units = pd_report._units(70_001, None)
  sizes = np.bincount(units)
  assert len(sizes) == 20_000 and sizes.min() >= 3 and sizes.max() <= 4


@pytest.fixture
def files(tmp_path):
  """Two good files of one example count."""
  preds = _preds(2)
  for m in range(2):
    np.savez(tmp_path / f"{m}.npz", predictions=preds[m], labels=_labels())
  return [tmp_path / "0.npz", tmp_path / "1.npz"]


def test_one_model_is_refused(capsys, files):
  assert "two models or more" in _refusal(capsys, files[0])


BAD = [
  ({"predictions": _preds(1, 59)[0]}, "has shape (59,)"),
  ({"predictions": 3 * _preds(1)[0]}, "probabilities in [0, 1]"),
  ({"predictions": np.full(60, np.nan)}, "no NaN"),
  ({"predictions": np.full((60, 2), 0.4)}, "has shape (60, 2)"),
  ({"predictions": np.full(60, "a")}, "must be numbers"),
  ({"logits": _preds(1)[0]}, "has no 'predictions'"),
  ({"predictions": _preds(1)[0], "labels": 1 - _labels()}, "different labels"),
  ({"predictions": _preds(1)[0], "weights": np.ones(3)}, "weights of"),
]


@pytest.mark.parametrize("arrays, words", BAD)
def test_bad_files_are_refused(capsys, tmp_path, files, arrays, words):
  np.savez(tmp_path / "bad.npz", **arrays)
  assert words in _refusal(capsys, files[0], tmp_path / "bad.npz")


@pytest.mark.parametrize(
  "name, content, words",
  [
    ("a.txt", b"0.5", "suffix of"),
    ("a.npz", b"nothing of the sort", "cannot be read"),
    ("a.npy", b"nothing of the sort", "cannot be read"),
    ("a.csv", b"", "is empty"),
    ("a.csv", b"prediction\n0.5\nhalf\n", "column 'prediction'"),
    ("a.csv", b"0.5,0.5\n0.5\n", "different lengths"),
  ],
)
def test_unreadable_files_are_refused(
  capsys, tmp_path, files, name, content, words
):
  (tmp_path / name).write_bytes(content)
  assert words in _refusal(capsys, files[0], tmp_path / name)


@pytest.mark.parametrize(
  "args, words",
  [
    (["--ensemble", "3"], "multiple of k=3"),
    (["--ensemble", "0"], "k=0"),
    (["--level", "2"], "level=2.0"),
    (["--eps", "-1"], "eps=-1.0"),
    (["--labels", "nowhere.npy"], "does not exist"),
  ],
)
def test_bad_arguments_are_refused(capsys, files, args, words):
  assert words in _refusal(capsys, *files, *args)


def test_missing_files_are_refused(capsys, tmp_path, files):
  (tmp_path / "empty").mkdir()
  message = _refusal(capsys, files[0], tmp_path / "empty")
  assert "predictions.npz does not exist" in message
