"""CSV and JSON lines: what is read is what the file says, or it is refused."""

import gzip
import json

import numpy as np
import pytest
from PIL import Image

from experiments.smelu import pd_report
from locojax.data import captions, csv_rows, sources, words


@pytest.fixture
def folder(tmp_path):
  for name in ("a.png", "b.png", "c.png"):
    Image.new("RGB", (2, 2)).save(tmp_path / name)
  return tmp_path


def _captions(folder, content, name="captions.csv"):
  content = content if isinstance(content, bytes) else content.encode()
  (folder / name).write_bytes(content)
  found = captions.from_caption_folder(folder)
  return dict(zip([f.name for f in found.files], found.captions))


GOOD = 'file,caption\na.png,"hello, world"\nb.png,"a ""dot"""\n'


@pytest.mark.parametrize(
  "content",
  [
    GOOD,
    "\ufeff" + GOOD,  # as Excel writes it
    GOOD.replace("\n", "\r\n"),
    GOOD.replace("\n", "\n\n"),
    GOOD.replace("file,caption", " file , caption "),
    GOOD.replace("b.png", "./b.png"),
  ],
)
def test_good_files_are_read(folder, content):
  wanted = {"a.png": ["hello, world"], "b.png": ['a "dot"']}
  assert _captions(folder, content) == wanted


def test_a_line_end_in_quotes_belongs_to_the_cell(folder):
  content = 'file,caption\na.png,"two\nlines"\nb.png,x,y\n'
  with pytest.raises(ValueError, match=r"captions\.csv, line 4: 3 cells"):
    _captions(folder, content)
  found = _captions(folder, content.replace(",y", ""))
  assert found == {"a.png": ["two\nlines"], "b.png": ["x"]}


@pytest.mark.parametrize(
  "content, words",
  [
    ("file,caption\na.png,hello, world\n", "line 2: 3 cells"),
    ("file,caption\na.png\n", "line 2: 1 cells"),
    ('file,caption\na.png,"open\nb.png,x\nc.png,y\n', "line 2: no row"),
    ('file,caption\na.png,"open\nb.png,"x"\n', "line 2: no row"),
    ('file,caption\na.png,"x" y\n', "line 2: no row"),
    ("file,caption,file\na.png,x,b.png\n", "a name of its own"),
    ("file,caption\na.png,\n", "line 2: caption ''"),
    ("file,caption\n,x\n", "line 2: file ''"),
    ("file;caption\na.png;x\n", "file,caption"),
    ("", "is empty"),
    (
      "file,caption\na.png,caf\xe9\n".encode("latin-1"),
      r"captions\.csv cannot",
    ),
  ],
)
def test_bad_captions_name_file_and_line(folder, content, words):
  with pytest.raises(ValueError, match=words) as error:
    _captions(folder, content)
  assert "captions.csv" in str(error.value)


def test_json_lines_accept_a_mark_and_name_the_line(folder):
  rows = [{"file": "a.png", "caption": "x"}, {"file": "b.png", "caption": "y"}]
  text = "\ufeff\n" + "\r\n".join(map(json.dumps, rows))
  found = _captions(folder, text, "captions.jsonl")
  assert found == {"a.png": ["x"], "b.png": ["y"]}
  for row, said in (
    ('{"file": "a.png", "file": "b.png", "caption": "x"}', "come twice"),
    ('{"file": 5, "caption": "x"}', "file 5 must be"),
    ('{"file": "a.png", "caption": [1]}', "must be a text"),
  ):
    with pytest.raises(ValueError, match=f"captions.jsonl, line 3.*{said}"):
      _captions(folder, "\n\n" + row, "captions.jsonl")


def test_a_mark_is_no_text_anywhere(tmp_path):
  path = tmp_path / "a.txt"
  path.write_bytes("\ufeffword\n".encode())
  assert sources.from_text(path)[0]["text"] == "word"
  assert words.load_vocabulary(path).words[-1] == "word"


def test_compressed_files_and_headers(tmp_path):
  path = tmp_path / "a.csv.gz"
  path.write_bytes(gzip.compress(b"x,y\n1,2\n"))
  assert csv_rows.read(path)[1] == (2, ["1", "2"])
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(ValueError, match=r"a\.csv\.gz cannot be read"):
    csv_rows.read(path)


@pytest.mark.parametrize(
  "text, words",
  [
    ("p,label\n0.5,1\n0.5\n", "line 3: 1 cells"),
    ("p,label\n0.5,1\n\n0.5,yes\n", "line 4: column 'label' has 'yes'"),
    (",p\n0,0.5\n", "a name of its own"),  # an index without a name
    ("label,labels,p\n1,0,0.5\n", "two columns of labels"),
    ("p,label\n", "no rows"),
  ],
)
def test_predictions_name_the_line(tmp_path, text, words):
  path = tmp_path / "p.csv"
  path.write_text(text)
  with pytest.raises(ValueError, match=words):
    pd_report.load_models(path)


def test_predictions_of_a_file_with_a_mark(tmp_path):
  path = tmp_path / "p.csv"
  path.write_bytes("\ufefflabel,p\r\n1,0.25\r\n".encode())
  [model], extras = pd_report.load_models(path)
  np.testing.assert_array_equal(model, [0.25])
  np.testing.assert_array_equal(extras["labels"], [1])
  path.write_text("1,0\n0,1\n")
  with pytest.raises(ValueError, match="number of columns"):
    pd_report.load([str(path)] * 2, labels=str(path))
