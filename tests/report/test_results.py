import json
import subprocess

import numpy as np
import pytest

from locojax.report import results

GOOD = {
  "command": "python -m experiments.run",
  "seeds": [0, 1],
  "rows": [{"method": "adam", "loss": [1.0, None], "steps": 3, "x": None}],
  "time_seconds": 12.34,
}


def test_save_and_load(tmp_path):
  path = tmp_path / "a" / "b.json"
  rows = [{"method": "adam", "loss": np.float32([1, 2]), "n": np.int64(3)}]
  saved = results.save(path, **{**GOOD, "rows": rows}, device="NVIDIA H200")
  assert results.load(path) == saved
  assert saved["rows"] == [{"method": "adam", "loss": [1.0, 2.0], "n": 3}]
  assert saved["hardware"] == "NVIDIA H200"
  assert {"python", "jax", "numpy"} <= set(saved["versions"])
  assert saved["time_seconds"] == 12.3
  assert [p.name for p in path.parent.iterdir()] == ["b.json"]


def test_host_hardware_is_recorded(tmp_path):
  assert "core" in results.save(tmp_path / "a.json", **GOOD)["hardware"]


@pytest.mark.parametrize(
  "change, message",
  [
    ({"rows": []}, "rows="),
    ({"rows": [{"loss": [1.0]}]}, r"rows\[0\]\['loss'\].*2 numbers"),
    ({"rows": [{"loss": {"a": 1}}]}, r"rows\[0\]\['loss'\]"),
    ({"rows": [{"loss": ["a", "b"]}]}, "list of 2"),
    ({"command": 3}, "command=3"),
  ],
)
def test_bad_results_are_refused_and_not_written(change, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    results.save(tmp_path / "a.json", **{**GOOD, **change})
  assert not (tmp_path / "a.json").exists()


def test_damaged_files_are_named(tmp_path):
  path = tmp_path / "a.json"
  path.write_text("{")
  with pytest.raises(ValueError, match="a.json is damaged"):
    results.load(path)
  saved = results.save(path, **GOOD)
  path.write_text(json.dumps({**saved, "comand": ""}))
  with pytest.raises(ValueError, match="did you mean 'command'"):
    results.load(path)
  del saved["seeds"]
  path.write_text(json.dumps(saved))
  with pytest.raises(ValueError, match="'seeds' is missing"):
    results.load(path)


def test_git_commit(tmp_path):
  assert results.git_commit(tmp_path / "nowhere") is None
  who = ["-c", "user.name=a", "-c", "user.email=a@b"]

  def git(*args):
    subprocess.run(
      ["git", *who, *args], cwd=tmp_path, check=True, capture_output=True
    )

  git("init")
  (tmp_path / "code.py").write_text("1")
  git("add", ".")
  git("commit", "-m", "first")
  commit = results.git_commit(tmp_path)
  assert len(commit) == 40
  (tmp_path / "results").mkdir()
  (tmp_path / "results" / "a.json").write_text("{}")
  assert results.git_commit(tmp_path) == commit
  (tmp_path / "code.py").write_text("2")
  assert results.git_commit(tmp_path) == f"{commit}-dirty"
