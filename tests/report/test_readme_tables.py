import pathlib

import pytest

from locojax.report import results
from scripts import readme_tables


@pytest.fixture
def root(tmp_path):
  """A checkout with one result file and two READMEs."""
  results.save(
    tmp_path / "results" / "a.json",
    command="python -m x",
    seeds=[0, 1],
    time_seconds=300,
    device="NVIDIA H200",
    notes="A note.",
    rows=[
      {"method": "adam", "data": "mnist", "loss": [2.0, 4.0]},
      {"method": "sgd", "data": "mnist", "loss": [1.0, 3.0]},
      {"method": "sgd", "data": "curves", "loss": [9.0, 9.0]},
    ],
  )
  block = (
    "# Head\n\n<!-- table: results/a.json columns=method,loss:Train_loss,"
    "loss_ratio where=data:mnist sort=loss best=loss:min ratio=loss:adam "
    "digits=3 -->\nold\n<!-- /table -->\n\nTail\n"
  )
  (tmp_path / "README.md").write_text(block)
  (tmp_path / "experiments" / "x").mkdir(parents=True)
  (tmp_path / "experiments" / "x" / "README.md").write_text("no table\n")
  return tmp_path


def _main(root, *args):
  return readme_tables.main(["--root", str(root), *args])


def test_write_then_check(root):
  assert _main(root, "--check") == 1
  assert "old" in (root / "README.md").read_text()
  assert _main(root) == 0
  text = (root / "README.md").read_text()
  assert text.startswith("# Head\n") and text.endswith("-->\n\nTail\n")
  assert "old" not in text and "curves" not in text
  lines = text.splitlines()
  assert lines[3] == "| method |      Train loss | loss ratio |"
  assert lines[5] == "| sgd    | **2.00 ± 1.41** |      0.667 |"
  assert lines[6] == "| adam   |     3.00 ± 1.41 |          1 |"
  assert "2 seeds, mean ± standard deviation; NVIDIA H200; 5 min;" in text
  assert "Command: `python -m x`.\nA note." in text
  readme = root / "README.md"
  readme.write_text(text.replace("digits=3", "decimals=1"))
  assert _main(root) == 0 and "     3.0 ± 1.4 |" in readme.read_text()
  readme.write_text(text)
  assert _main(root, "--check") == 0
  assert _main(root) == 0 and (root / "README.md").read_text() == text


@pytest.mark.parametrize(
  "old, new, message",
  [
    ("sort=", "srt=", "did you mean 'sort'"),
    ("results/a.json", "results/b.json", "b.json"),
    ("results/a.json ", "", "names no result file"),
    ("<!-- /table -->", "", "needs a '<!-- /table -->'"),
    ("method,loss:", "method,los:", "did you mean 'loss'"),
    ("data:mnist", "data:x", "leaves no rows"),
    ("loss:adam", "loss:adm", "did you mean 'adam'"),
    ("digits=3", "digits=three", "three"),
    ("digits=3", "decimals=three", "three"),
  ],
)
def test_errors_name_the_readme(root, capsys, old, new, message):
  path = root / "README.md"
  before = path.read_text().replace(old, new)
  path.write_text(before)
  assert _main(root) == 1
  error = capsys.readouterr().err
  assert str(path) in error and message in error
  assert path.read_text() == before


def test_readmes_of_this_checkout_are_up_to_date():
  assert _main(pathlib.Path(__file__).parents[2], "--check") == 0
