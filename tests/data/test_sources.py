import gzip
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from locojax.data import sources


def test_arrays_are_rows():
  source = sources.from_arrays(
    {"x": np.arange(6).reshape(3, 2), "y": [5, 6, 7]}
  )
  assert len(source) == 3
  assert source[1]["x"].tolist() == [2, 3] and source[1]["y"] == 6
  assert isinstance(source, sources.Source)


@pytest.mark.parametrize(
  "arrays",
  [{}, {"x": 3}, {"x": [1, 2], "y": [1]}, {"x": []}, [1, 2]],
)
def test_bad_arrays_are_refused(arrays):
  with pytest.raises(ValueError, match="arrays"):
    sources.from_arrays(arrays)


class Own:
  def __init__(self, examples):
    self.examples = examples

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, i):
    return self.examples[i]


def test_own_source_is_checked():
  own = Own([{"x": 1}])
  assert sources.check(own) is own
  with pytest.raises(ValueError, match="no examples"):
    sources.check(Own([]))
  with pytest.raises(ValueError, match=r"mine\[0\] is a int"):
    sources.check(Own([1]), "mine")
  with pytest.raises(ValueError, match="from_arrays"):
    sources.check({"x": np.zeros(3)})
  with pytest.raises(ValueError, match="__getitem__"):
    sources.check(iter([1]))


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_as_arrays_keeps_order(num_threads, chunk):
  own = Own([{"x": np.full(2, i, np.int16), "s": f"t{i}"} for i in range(10)])
  out = sources.as_arrays(own, num_threads=num_threads, chunk=chunk)
  np.testing.assert_array_equal(out["x"], np.arange(10)[:, None] * [1, 1])
  assert out["x"].dtype == np.int16
  assert out["s"].tolist() == [f"t{i}" for i in range(10)]
  assert {type(s) for s in out["s"]} == {str}


def test_as_arrays_names_what_differs():
  with pytest.raises(ValueError, match=r"example 1 has 'x' of shape \(3,\)"):
    sources.as_arrays(Own([{"x": np.zeros(2)}, {"x": np.zeros(3)}]))
  with pytest.raises(ValueError, match="example 1 has the names"):
    sources.as_arrays(Own([{"x": 1}, {"y": 1}]))
  with pytest.raises(ValueError, match="'x' is a dict"):
    sources.as_arrays(Own([{"x": {"y": 1}}]))


@pytest.mark.parametrize("wrap", [sources.from_arrays, None])
def test_take_subset_concatenate_map(wrap):
  data = {"x": np.arange(5)}
  a = wrap(data) if wrap else Own([{"x": i} for i in range(5)])
  first = sources.take(a, 2)
  chosen = sources.subset(a, [4, 0, 4])
  both = sources.concatenate(first, chosen)
  double = sources.mapped(both, lambda e: {"x": 2 * e["x"]})
  assert sources.as_arrays(double)["x"].tolist() == [0, 2, 8, 0, 8]
  with pytest.raises(IndexError):
    both[5]


@pytest.mark.parametrize(
  "indices, message",
  [
    ([5], "from 5 to 5"),
    ([-1], "from -1"),
    ([], "empty|integers"),
    ([0.5], "integers"),
  ],
)
def test_bad_subset(indices, message):
  with pytest.raises(ValueError, match=message):
    sources.subset(sources.from_arrays({"x": np.arange(5)}), indices)


def test_concatenate_refuses_other_names():
  a = sources.from_arrays({"x": [1]})
  with pytest.raises(ValueError, match="source 1 has the names"):
    sources.concatenate(a, sources.from_arrays({"y": [1]}))
  with pytest.raises(ValueError, match="at least one"):
    sources.concatenate()


def test_text_lines_files_and_gzip(tmp_path):
  plain, packed = tmp_path / "a.txt", tmp_path / "b.txt.gz"
  plain.write_bytes("één\r\n\ntwo\n".encode())
  packed.write_bytes(gzip.compress(b"three"))
  lines = sources.from_text([plain, packed])
  assert [e["text"] for e in lines] == ["één", "two", "three"]
  files = sources.from_text(plain, unit="file")
  assert len(files) == 1 and files[0]["path"] == str(plain)
  with pytest.raises(ValueError, match="unit='word'"):
    sources.from_text(plain, unit="word")
  with pytest.raises(FileNotFoundError, match="nowhere"):
    sources.from_text(tmp_path / "nowhere")
  packed.write_bytes(packed.read_bytes()[:-6])
  with pytest.raises(ValueError, match="b.txt.gz cannot be read"):
    sources.from_text(packed)


def test_jsonl_names_the_bad_line(tmp_path):
  path = tmp_path / "a.jsonl.gz"
  path.write_bytes(gzip.compress(b'{"a": 1}\n\n{"a": 2}\n'))
  assert [e["a"] for e in sources.from_jsonl(path)] == [1, 2]
  bad = tmp_path / "b.jsonl"
  bad.write_text('{"a": 1}\n{"a": \n')
  with pytest.raises(ValueError, match="b.jsonl, line 2: not JSON"):
    sources.from_jsonl(bad)
  bad.write_text(json.dumps([1]))
  with pytest.raises(ValueError, match="a list, not a JSON object"):
    sources.from_jsonl(bad)


def _folder(root):
  for name, level in (("cat", 10), ("ant", 200)):
    (root / name).mkdir(parents=True)
    for i in range(2):
      Image.fromarray(np.full((4, 6, 3), level + i, np.uint8)).save(
        root / name / f"{i}.png"
      )
  return root


def test_image_folder(tmp_path):
  source = sources.from_image_folder(_folder(tmp_path))
  assert source.classes == ["ant", "cat"]
  out = sources.as_arrays(source)
  assert out["image"].shape == (4, 4, 6, 3) and out["image"].dtype == np.uint8
  assert out["image"][:, 0, 0, 0].tolist() == [200, 201, 10, 11]
  assert out["label"].tolist() == [0, 0, 1, 1]
  small = sources.from_image_folder(tmp_path, mode="L", size=(2, 3))
  assert small[0]["image"].shape == (2, 3, 1)


def test_image_folder_errors(tmp_path):
  with pytest.raises(FileNotFoundError, match="no-such"):
    sources.from_image_folder(tmp_path / "no-such")
  with pytest.raises(ValueError, match="no sub-folders"):
    sources.from_image_folder(tmp_path)
  _folder(tmp_path)
  (tmp_path / "cat" / "1.png").write_bytes(b"\x89PNG broken")
  source = sources.from_image_folder(tmp_path)
  with pytest.raises(ValueError, match="1.png cannot be read"):
    source[3]
  (tmp_path / "dog").mkdir()
  with pytest.raises(ValueError, match="dog has no image"):
    sources.from_image_folder(tmp_path)


def test_missing_pillow_names_the_extra(tmp_path, monkeypatch):
  source = sources.from_image_folder(_folder(tmp_path))
  monkeypatch.setitem(sys.modules, "PIL", None)
  with pytest.raises(ImportError, match=r"locojax\[experiments\]"):
    source[0]


def test_import_is_light():
  code = (
    "import sys, locojax.data.sources, locojax.data.pipeline\n"
    "import locojax.report.runs, locojax.report.curves\n"
    "bad = {'grain', 'tensorflow_datasets', 'PIL', 'matplotlib'}\n"
    "assert not bad & set(sys.modules), bad & set(sys.modules)\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.real_data
def test_mnist_without_tensorflow(data_dir):
  code = (
    "import sys\n"
    "from locojax.data import pipeline, sources\n"
    f"d = {str(data_dir / 'tfds')!r}\n"
    "s = sources.from_tfds('mnist', split='test', data_dir=d)\n"
    "b = next(pipeline.batches(s, batch_size=8, seed=0)(3))\n"
    "assert b['image'].shape == (8, 28, 28, 1), b['image'].shape\n"
    "assert 'tensorflow' not in sys.modules\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.real_data
def test_tfds_split_slices_and_pickles(data_dir):
  source = sources.from_tfds(
    "mnist:3.0.1", split="train[:1%]", data_dir=data_dir / "tfds"
  )
  assert len(source) == 600
  out = sources.as_arrays(source, chunk=64)
  assert out["image"].dtype == np.uint8
  assert out["label"][:10].tolist() == [4, 1, 0, 7, 8, 1, 2, 7, 1, 6]
  again = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(again[7]["image"], source[7]["image"])
