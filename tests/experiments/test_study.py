"""The study runner: one folder, its cells, and what stands at the end."""

from __future__ import annotations

import functools
import json
import logging
import pathlib
import re

import ml_collections
import pytest

from experiments.common import stages, study
from locojax.core import files
from locojax.report import results
from locojax.train import lock, stopping

FACTORS = (1, 2, 3)


def _config(**changes):
  config = {"factors": FACTORS, "size": 4, "log_every": 1, "results": ""}
  return ml_collections.ConfigDict({**config, **changes})


def _train(where: pathlib.Path, factor: int, trained: list[int]) -> dict:
  """What a run of the loop leaves, with a factor as its result."""
  if not (where / "result.json").exists():
    trained.append(factor)
    files.write_text(where / "metrics.jsonl", "")
    found = {"seconds": 10.0 * factor, "values": {"x": factor}}
    files.write_json(where / "result.json", found)
  return stages.result(where)


def _run(config, workdir, *, fail_at=None):
  """A study over factors; returns what it wrote and what it trained."""
  trained: list[int] = []
  cells = len(config.factors)
  with study.opened(
    config, workdir, num_cells=cells, may_differ=("factors",)
  ) as made:
    rows = []
    for factor in config.factors:
      if factor == fail_at:
        raise KeyboardInterrupt
      where = made.workdir / str(factor)
      found = made.cell(
        f"factor {factor}",
        where,
        functools.partial(_train, where, factor, trained),
      )
      rows.append({"factor": factor, "x": found["values"]["x"]})
    out = made.write(
      rows,
      ["factor", "x"],
      draw=lambda path: files.write_text(path, "a picture"),
      seeds=(0,),
      notes="a note",
    )
  return out, trained


def test_a_study_ends_in_a_table_a_figure_and_a_result(tmp_path, capsys):
  config = _config(results=str(tmp_path / "r.json"))
  out, trained = _run(config, tmp_path / "s")
  assert trained == [1, 2, 3]
  said = capsys.readouterr().out
  assert said.startswith("3 runs; the time for all is told on the way.\n")
  assert re.search(r"\[1/3\] factor 1: 10.0s; ETA \d", said)
  assert "[3/3] factor 3: 30.0s\n" in said and "ETA" not in said.split("[3/")[1]
  told = (tmp_path / "s/table.md").read_text()
  assert told == out["markdown"] + "\n\na note\n"
  assert "table:" in said and (tmp_path / "s/figure.png").exists()
  found = results.load(tmp_path / "r.json")
  assert found["rows"] == out["rows"] and found["time_seconds"] == 60.0
  assert found["notes"] == "a note"
  assert (tmp_path / "r.png").read_text() == "a picture"


def test_it_goes_on_where_it_was_and_says_when_all_was_done(tmp_path, capsys):
  with pytest.raises(KeyboardInterrupt):
    _run(_config(), tmp_path, fail_at=2)
  assert _run(_config(log_every=5), tmp_path)[1] == [2, 3]
  assert "done already" not in capsys.readouterr().out
  out, trained = _run(_config(), tmp_path)
  assert not trained and "done already" in capsys.readouterr().out
  more, trained = _run(_config(factors=(1, 2, 3, 4)), tmp_path)
  assert trained == [4] and more["rows"][:3] == out["rows"]


def test_a_folder_belongs_to_one_study_and_one_program(tmp_path):
  _run(_config(), tmp_path)
  before = (tmp_path / "table.md").read_text()
  refused = re.escape("size (4 there, 5 here)")
  with pytest.raises(ValueError, match=refused):
    _run(_config(size=5), tmp_path)
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(ValueError, match="has a single run"):
    _run(_config(), tmp_path)
  (tmp_path / "config.json").unlink()
  (tmp_path / study.CONFIG).write_text('{"size"')
  with pytest.raises(files.Damaged, match=study.CONFIG):
    _run(_config(), tmp_path)
  assert (tmp_path / "table.md").read_text() == before
  assert json.loads((tmp_path / lock.FILE).read_text())["pid"]


def test_what_diverged_is_told_and_a_stop_is_not_swallowed(tmp_path, capsys):
  with study.opened(_config(), tmp_path, num_cells=3) as made:
    where = tmp_path / "one"
    failed = {"diverged": "the loss is not finite"}
    train = lambda: files.write_json(where / stages.DIVERGED, failed)
    made.cell("one", where, train)
    assert "[1/3] one: diverged: the loss is" in capsys.readouterr().out
    made.skip(1)
    with pytest.raises(stopping.Preempted), stopping.deferred():
      stopping._LISTENER.hear(15)
      made.cell("two", where, train)


def test_the_time_left_is_told_from_typical_cells(
  tmp_path, capsys, monkeypatch
):
  now = [0.0]
  monkeypatch.setattr(study.time, "monotonic", lambda: now[0])

  def left(made, name, seconds, typical):
    def train():
      now[0] += seconds
      files.write_json(tmp_path / name / "result.json", {"seconds": seconds})

    made.cell(name, tmp_path / name, train, typical=typical)
    return capsys.readouterr().out.partition("ETA ")[2].strip()

  with study.opened(_config(), tmp_path, num_cells=7) as made:
    assert not left(made, "before", 3600.0, False)
    assert left(made, "one", 60.0, True) == "5m00s"
    now[0] += 30.0  # it is asked
    assert left(made, "between", 600.0, False) == "6m00s"
    assert left(made, "two", 10.0, True) == "2m30s"
    assert left(made, "one", 0.0, True) == "1m40s"  # again: nothing is new


def test_a_finished_run_of_another_config_is_refused(tmp_path, caplog):
  config = _config()
  assert stages.finished(config, tmp_path) is None
  files.write_json(tmp_path / "config.json", {**config.to_dict(), "size": 3})
  for name, content in (("result.json", {"step": 1}), (stages.DIVERGED, {})):
    files.write_json(tmp_path / name, content)
    with pytest.raises(ValueError, match=r"size \(3 there, 4 here\)"):
      stages.finished(config, tmp_path)
    assert stages.finished(config, tmp_path, may_differ=("size",)) == content
  with caplog.at_level(logging.WARNING), pytest.raises(files.Damaged):
    (tmp_path / stages.DIVERGED).write_text("")
    stages.finished(config, tmp_path, may_differ=("size",))
