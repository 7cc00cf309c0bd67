"""`python -m scripts.check_paper`: a row for each config, kept as it comes."""

from __future__ import annotations

import pytest

from locojax.report import results
from scripts import check_paper, readme_tables

_CONFIG = "tests/train/toy_config.py"


def _toy_for(tmp_path, name, topology):
  """A config file of the toy that names a slice."""
  path = tmp_path / f"{name}.py"
  path.write_text(
    "import sys\nsys.path.insert(0, 'tests/train')\nimport toy_config\n\n\n"
    "def get_config(variant='tiny'):\n"
    "  config = toy_config.get_config(variant)\n"
    f"  config.check.topology = {topology!r}\n"
    "  return config.lock()\n"
  )
  return str(path)


@pytest.mark.tpu_check
def test_a_row_for_each_config(tmp_path, capsys):
  out = tmp_path / "found.json"
  first = f"{_toy_for(tmp_path, 'toy', 'v5e:2x2')}:tiny"
  main = lambda *names: check_paper.main(
    [*(a for n in names for a in ("--config", n)), "--results", str(out)]
  )
  assert main(first) == 0
  assert "roofline" in capsys.readouterr().out
  (row,) = results.load(out)["rows"]
  assert (row["name"], row["topology"], row["devices"]) == (
    "toy:tiny",
    "v5e:2x2",
    4,
  )
  assert row["mesh"] == "data 4"
  assert 0 < row["params_gib"] < row["peak_gib"]
  assert 0 < row["hbm_percent"] < 100
  assert "all-reduce over data" in row["collectives"]
  assert row["roofline_seconds"] > 0 and row["compile_seconds"] > 0
  # A config that fails leaves what is known already.
  broken = _toy_for(tmp_path, "broken", "v5e:3x5")
  assert main(broken) == 1
  assert "broken.py: topology='v5e:3x5'" in capsys.readouterr().err
  again = results.load(out)
  assert again["rows"] == [row] and again["command"].endswith(first)
  assert "toy:tiny" in readme_tables.render(again, {"columns": "name,mesh"})


@pytest.mark.parametrize(
  ("config", "words"),
  [
    (_CONFIG, "has no config.check.topology"),
    ("tests/train/none.py:tiny", "no file 'tests/train/none.py'"),
    (f"{_CONFIG}:tny", "did you mean 'tiny'"),
  ],
)
def test_mistakes_are_named(config, words, tmp_path, capsys):
  out = tmp_path / "found.json"
  assert check_paper.main(["--config", config, "--results", str(out)]) == 1
  assert words in capsys.readouterr().err
  assert not out.exists()
