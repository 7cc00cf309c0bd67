"""Human labels: alignment with CIFAR-10, sources, errors; noise by name."""

from __future__ import annotations

import inspect
import io
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered

from experiments.common import datasets, noisy_labels
from locojax.data import label_noise

N = 12
CLEAN = np.arange(N) % 10
RATES = {
  "aggre": 0.090,
  "worst": 0.402,
  "random1": 0.172,
  "random2": 0.181,
  "random3": 0.176,
}


def _noisy(kind):
  """Made-up labels that tell the kinds and the places apart."""
  return (3 * np.arange(N) + list(RATES).index(kind)) % 10


def _examples(num, prefix, more):
  # The brightness of an image is its place in the published order.
  for i in range(num):
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 7 * i, np.uint8)).save(file, "PNG")
    file.seek(0)
    extra = {tfds_name: int(v[i]) for tfds_name, v in more.items()}
    yield (
      i,
      {
        "image": file,
        "label": int(CLEAN[i]),
        "id": f"{prefix}_{i:05d}",
        **extra,
      },
    )


def _prepare(name, folder, num=N, prefix="train", **more):
  """A small set under the official name, as ArrayRecord."""
  official = tfds.builder_cls(name)
  with registered.skip_registration():

    class Prepared(official):
      def _split_generators(self, dl_manager):
        return {s: self._generate_examples() for s in ("train", "test")}

      def _generate_examples(self):
        return _examples(num, prefix, more)

  Prepared.name = name
  Prepared.code_path = pathlib.Path(inspect.getfile(official))
  Prepared(data_dir=folder, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A data folder with both sets in `tfds/`."""
  root = tmp_path_factory.mktemp("data")
  _prepare("cifar10", root / "tfds")
  workers = {
    f"worker{i}_{what}": np.zeros(N)
    for i in (1, 2, 3)
    for what in ("id", "time")
  }
  labels = {
    tfds_name: _noisy(kind)
    for kind, tfds_name in noisy_labels.CIFAR10N_KINDS.items()
  }
  _prepare("cifar10_n", root / "tfds", **workers, **labels)
  return root


def _write_file(folder, **changes):
  folder.mkdir(parents=True, exist_ok=True)
  arrays = {"clean": CLEAN, **{k: _noisy(k) for k in RATES}, **changes}
  arrays = {k: np.uint8(v) for k, v in arrays.items() if v is not None}
  np.savez(folder / noisy_labels.LABEL_FILE, **arrays)


def _cifar10(root, cache_dir):
  return datasets.load(
    "cifar10", data_dir=root / "tfds", splits=["train"], cache_dir=cache_dir
  )["train"]


def test_names_of_tfds():
  expected = {
    "aggre": "aggre_label",
    "worst": "worse_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
  }
  assert expected == noisy_labels.CIFAR10N_KINDS
  features = tfds.builder_cls("cifar10_n").__dict__["_info"]
  for name in expected.values():
    assert name in inspect.getsource(features)


def test_index_is_the_place_in_the_published_order(root, tmp_path):
  split = _cifar10(root, tmp_path)
  assert sorted(split["index"]) == list(range(N))
  assert split["index"].tolist() != list(range(N))  # tfds has shuffled.
  assert split["index"].dtype == np.int32
  np.testing.assert_array_equal(split["label"], CLEAN[split["index"]])
  brightness = split["image"].mean(axis=(1, 2, 3))
  np.testing.assert_array_equal(brightness, 7 * split["index"])


def test_an_old_cache_without_index_is_made_anew(root, tmp_path, caplog):
  first = _cifar10(root, tmp_path)
  (path,) = tmp_path.iterdir()
  old = {k: first[k] for k in ("image", "label")}
  with open(path, "wb") as f:
    np.savez(f, **old)
  again = _cifar10(root, tmp_path)
  assert "made anew" in caplog.text
  assert sorted(again) == ["image", "index", "label"]
  for name, value in _cifar10(root, tmp_path).items():
    np.testing.assert_array_equal(value, first[name])


def test_ids_that_are_no_places(tmp_path):
  _prepare("cifar10", tmp_path / "tfds", num=2, prefix="?")
  with pytest.raises(ValueError, match=r"the id b'\?_0000"):
    _cifar10(tmp_path, tmp_path)


@pytest.mark.parametrize("kind", RATES)
def test_tfds_and_file_agree_and_are_aligned(kind, root, tmp_path):
  _write_file(tmp_path / "vision")
  split = _cifar10(root, tmp_path)
  expected = _noisy(kind)[split["index"]]
  for folder in (
    tmp_path,
    tmp_path / "vision",
    tmp_path / "tfds",
    root,
    root / "tfds",
  ):
    human = noisy_labels.load_cifar10n(
      kind, data_dir=folder, cache_dir=tmp_path / "cache"
    )
    np.testing.assert_array_equal(human.clean, CLEAN)
    noisy = noisy_labels.for_split(split, human)
    np.testing.assert_array_equal(noisy, expected)
    assert noisy.dtype == np.int32
  rows = np.array([5, 1, 7])
  part = {name: value[rows] for name, value in split.items()}
  np.testing.assert_array_equal(
    noisy_labels.for_split(part, human), expected[rows]
  )


def test_labels_that_do_not_belong_together(root, tmp_path):
  split = _cifar10(root, tmp_path)
  human = noisy_labels.HumanLabels(CLEAN, _noisy("worst"))
  wrong = {**split, "label": (split["label"] + 1) % 10}
  with pytest.raises(ValueError, match="12 of 12 labels"):
    noisy_labels.for_split(wrong, human)
  with pytest.raises(ValueError, match="index from 0 to 11.*0..10"):
    short = noisy_labels.HumanLabels(CLEAN[:-1], CLEAN[:-1])
    noisy_labels.for_split(split, short)
  with pytest.raises(ValueError, match="index='index'"):
    noisy_labels.for_split({"label": CLEAN}, human)


def test_bad_files(tmp_path):
  load = lambda kind: noisy_labels.load_cifar10n(kind, data_dir=tmp_path)
  with pytest.raises(FileNotFoundError, match="cifar10_n"):
    load("worst")
  with pytest.raises(ValueError, match="kind='worse'.*did you mean 'worst'"):
    load("worse")
  _write_file(tmp_path, worst=None)
  with pytest.raises(ValueError, match=r"no array \['worst'\]"):
    load("worst")
  _write_file(tmp_path, worst=CLEAN[:3])
  with pytest.raises(ValueError, match="worst has shape"):
    load("worst")


def test_a_part_of_cifar10_n_is_refused(root, tmp_path, monkeypatch):
  whole = datasets.load(
    "cifar10_n", data_dir=root / "tfds", splits=["train"], cache_dir=tmp_path
  )
  part = {k: v[1:] for k, v in whole["train"].items()}
  monkeypatch.setattr(datasets, "load", lambda *a, **k: {"train": part})
  with pytest.raises(ValueError, match="not whole"):
    noisy_labels.load_cifar10n("worst", data_dir=root)


def _corrupt(split, kind, rate, **kwargs):
  kwargs = {"num_classes": 10, "rng": np.random.default_rng(0), **kwargs}
  return noisy_labels.corrupt(split, kind=kind, rate=rate, **kwargs)


def test_noise_by_name(root, tmp_path):
  split = datasets.load("digits", splits=["train"])["train"]
  labels = split["label"]
  noisy = _corrupt(split, "symmetric", 0.5, exact=True)
  matrix = label_noise.transition_matrix("symmetric", 0.5, 10)
  expected = label_noise.corrupt(
    labels, matrix, rng=np.random.default_rng(0), exact=True
  )
  np.testing.assert_array_equal(noisy, expected)
  noisy = _corrupt(split, "instance", 0.4)
  assert abs(label_noise.noise_rate(labels, noisy) - 0.4) < 0.07
  np.testing.assert_array_equal(noisy, _corrupt(split, "instance", 0.4))
  assert noisy.dtype == labels.dtype
  _write_file(tmp_path / "vision")
  cifar = _cifar10(root, tmp_path)
  noisy = _corrupt(cifar, "human_aggre", None, data_dir=tmp_path)
  np.testing.assert_array_equal(noisy, _noisy("aggre")[cifar["index"]])


@pytest.mark.parametrize(
  ("kind", "rate", "kwargs", "words"),
  [
    ("human_worse", None, {}, "did you mean 'human_worst'"),
    ("human_worst", 0.4, {}, "rate for kind='human_worst'=0.4"),
    ("instance", 0.4, {"exact": True}, "exact for kind='instance'=True"),
    ("symmetric", None, {}, "rate=None"),
  ],
)
def test_bad_noise(kind, rate, kwargs, words):
  split = {"label": CLEAN, "image": np.zeros((N, 2, 2, 1))}
  with pytest.raises(ValueError, match=words):
    _corrupt(split, kind, rate, **kwargs)


@pytest.mark.real_data
@pytest.mark.parametrize("kind", RATES)
def test_real_rates(kind, data_dir):
  human = noisy_labels.load_cifar10n(kind, data_dir=data_dir / "tfds")
  assert human.clean.shape == human.noisy.shape == (50_000,)
  assert np.bincount(human.clean).tolist() == [5000] * 10
  rate = label_noise.noise_rate(human.clean, human.noisy)
  assert round(rate, 3) == RATES[kind]


@pytest.mark.real_data
@pytest.mark.slow
def test_real_labels_are_aligned_with_the_images(data_dir, tmp_path):
  split = datasets.load(
    "cifar10", data_dir=data_dir / "tfds", splits=["train"], cache_dir=tmp_path
  )["train"]
  assert len(np.unique(split["index"])) == len(split["label"])
  for kind, expected in RATES.items():
    human = noisy_labels.load_cifar10n(kind, data_dir=data_dir)
    noisy = noisy_labels.for_split(split, human)
    rate = label_noise.noise_rate(split["label"], noisy)
    assert abs(rate - expected) < 0.01
