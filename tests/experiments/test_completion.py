"""Code completion end to end: a tiny study, resume, meshes, a restored run."""

from __future__ import annotations

import functools
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny_runs

from experiments.common import stages
from experiments.completion import (
  asking,
  corpora,
  experiment,
  feeding,
  joined,
  places,
  report,
  restored,
  workspace,
)
from experiments.completion.configs import models as config_file
from locojax import engines
from locojax.core import trees
from locojax.data import code
from locojax.methods import completion
from locojax.report import results

LINE = (
  "    total = list_of_things.append(item)\n    return helper.total_of(x)\n"
)
_config = functools.partial(tiny_runs.config, config_file.get_config)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A folder of small packages."""
  folder = tmp_path_factory.mktemp("code")
  rng = np.random.default_rng(0)
  for i in range(8):
    words = "".join(f"word{int(w)} = {i}\n" for w in rng.integers(0, 999, 40))
    text = f"def function_{i}(item, x):\n{LINE}\n{words}"
    (folder / f"p{i}").mkdir()
    (folder / f"p{i}" / "a.py").write_text(text)
  return folder


def _own(root, **changes):
  return _config(data__name="folder", data__path=str(root), **changes)


@pytest.fixture(scope="module", autouse=True)
def _one_device():
  make = stages.sharding.make_mesh

  def one(axes, devices=None):
    if devices is None:
      return make({"data": 1}, jax.devices()[:1])
    return make(axes, devices)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(stages.sharding, "make_mesh", one)
    yield


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
  folder = tmp_path_factory.mktemp("completion")
  config = _own(root, results=str(folder / "result.json"))
  return config, folder / "run", experiment.run(config, str(folder / "run"))


def test_the_study_ends_in_tables(finished):
  config, folder, out = finished
  rows = {(r["table"], r["method"]): r for r in out["rows"]}
  assert {m for _, m in rows} == {"line", "ngram"}
  assert 0 <= rows["lines", "line"]["edit_similarity"][0] <= 1
  assert rows["lines", "line"]["validation_loss"][0] > 0
  # All packages have the same lines, which counting cannot miss.
  assert rows["lines", "ngram"]["edit_similarity"][0] > 0.3
  assert results.load(config.results)["rows"] == out["rows"]
  for path in (out["figure"], folder.parent / "result.png"):
    assert pathlib.Path(path).read_bytes()[:4] == b"\x89PNG"
  assert "exact match" in out["markdown"]


def test_a_finished_study_trains_and_asks_nothing(finished, monkeypatch):
  config, folder, out = finished
  monkeypatch.setattr(asking, "_of_language", None)
  again = experiment.run(config, str(folder))
  assert again["rows"] == out["rows"]
  with pytest.raises(ValueError, match="optimizer.learning_rate"):
    changed = _own(config.data.path, optimizer__learning_rate=1.0)
    experiment.fit(changed, report.folder(folder, "line", "", 0))


def test_a_run_is_asked_without_its_data(finished):
  config, folder, _ = finished
  found = restored.load(report.folder(folder, "line", "", 0))
  assert found.languages == ("python",)
  lines = found.completer.lines("def f():\n  x", "\n", "python")
  assert all(isinstance(s, completion.Suggestion) for s in lines)
  tokenizer = corpora.tokenizer(config)
  assert found.completer.tokenizer.pieces == tokenizer.pieces
  with pytest.raises(ValueError, match="tokenizer.model"):
    restored.load(folder / "ngram" / "seed_0")


def test_parts_share_no_package_and_places_are_of_the_test(root):
  config = _own(root)
  corpus = corpora.load(config)
  names = [{f.package for f in part} for part in corpus[:3]]
  assert not names[0] & names[2] and not names[1] & names[2]
  for place in (
    *places.lines(corpus.test, 5, 1),
    *places.members(corpus.test, 5, 1),
    *places.line_starts(corpus.test, 5, 1, follow_lines=2),
  ):
    e = place.example
    assert e.prefix + e.target + e.suffix == place.file.text
    assert place.file in corpus.test
  assert {p.name for p in places.members(corpus.test, 50, 1)} <= {
    *("append", "total_of")
  }


def test_batches_depend_on_seed_and_step_alone(root):
  config = _own(root)
  run = feeding.batches(config, 0)
  first = [next(run) for _ in range(3)]
  again = next(feeding.batches(config, 2))
  for name, value in again.items():
    np.testing.assert_array_equal(value, first[2][name])
    assert value.dtype == np.int32
  other = next(feeding.batches(stages.changed(config, seed=1), 0))
  assert np.any(other["inputs"] != first[0]["inputs"])


def test_resumed_and_sharded_runs_are_the_run(root, tmp_path):
  config = _own(root)
  fit = functools.partial(tiny_runs.fit, experiment, config)
  whole = fit(tmp_path / "whole", data=1)
  with pytest.raises(tiny_runs.Stop):
    fit(tmp_path / "cut", until=2, data=1)
  resumed = fit(tmp_path / "cut", data=1)
  for path, value in trees.flatten(whole.params).items():
    np.testing.assert_array_equal(value, trees.flatten(resumed.params)[path])
  spread = fit(tmp_path / "spread", data=2)
  for path, value in trees.flatten(whole.params).items():
    np.testing.assert_allclose(
      value, trees.flatten(spread.params)[path], rtol=1e-3, atol=1e-4
    )


def test_serving_is_a_step_of_the_check(root):
  config = _own(root, needs_data=False)
  made = experiment.checked(config)["serving"]
  state = jax.eval_shape(made.init, jax.random.key(0))
  _, found = jax.eval_shape(made.step, state, made.batch_shapes)
  assert found["tokens"].shape == (8, 2, 4)


class _Known:
  """A model that knows how the text goes on, and a name that there is not."""

  def __init__(self, text, wrong=False):
    self.text, self.wrong = text, wrong

  def lines(self, prefix, suffix, language, forced=""):
    rest = self.text[len(prefix) :].split("\n")[0]
    rest = "nothing_there()" if self.wrong else rest
    return [completion.Suggestion(rest, -0.1, 1)] if rest else []

  def names(self, prefix, suffix, language):
    typed = completion.typed(prefix, language)
    rest = self.text[len(prefix) :]
    name = completion.first_token(typed, rest, language)
    return [completion.completer.Name(name, 0.9)] if name else []

  def continue_focused(self, prefix, suffix, language, item):
    return self.lines(prefix, suffix, language)


class _Space(workspace.Workspace):
  """Static engines, which know some names."""

  def _started(self, language, root):
    def judge(text):
      at = text.find("nothing_there")
      if at < 0:
        return ()
      place = engines.Lines(text).position(at)
      where = engines.Range(place, place)
      return (engines.Diagnostic(where, "unknown", kind="reference"),)

    names = ("aaa", "append", "bbb", "total_of", "zzz")
    return self._stack.enter_context(
      engines.StaticEngine(root, names=names, judge=judge)
    )


def test_the_joinings_help_a_model_that_knows(root):
  file = code.from_folder(root)[0]
  known, wrong = _Known(file.text), _Known(file.text, wrong=True)
  members = places.members([file], 4, 0)
  starts = places.line_starts([file], 2, 0)
  with _Space({"python": "static"}) as space:
    found = joined.ranks(known, members, space, k=3, visible=2)
    assert found["usable"] == len(members) and found["better"] == 1.0
    assert found["mrr_after"] == 1.0 > found["mrr_before"]
    assert found["typed_after"] == 0.0 < found["typed_before"]
    check = functools.partial(
      joined.checks, space=space, judge=space, timeout=1.0
    )
    good, bad = check(known, starts), check(wrong, starts)
    assert good["bad_before"] == good["truth_dropped"] == 0.0
    assert bad["bad_before"] == bad["filtered"] == 1.0
    assert bad["bad_after"] is None
    user = completion.SimulatedUser(reading_cost=0.5)
    settings = dict(user=user, k=3, timeout=1.0, seed=0)
    arms = {r["arm"]: r for r in joined.users(known, starts, space, **settings)}
    assert arms["line"]["cost_per_char"] < arms["engine"]["cost_per_char"]
    assert arms["line"]["acceptance"] == 1.0
    arms = {r["arm"]: r for r in joined.users(wrong, starts, space, **settings)}
    # What does not exist is shown, and costs, unless it is checked.
    assert arms["line"]["difference"] > 0 == arms["checked"]["difference"]
    assert arms["line"]["acceptance"] == 0.0
    assert arms["checked"]["acceptance"] is None


def test_thresholds_of_lines_are_those_of_the_validation_part(root):
  file = code.from_folder(root)[0]
  starts = places.line_starts([file], 6, 0, follow_lines=1)
  settings = dict(precision=0.9, max_lines=2)
  good = joined.several(_Known(file.text), starts, starts, **settings)
  assert good["coverage"] == good["precision"] == 1.0
  wrong = _Known(file.text, wrong=True)
  bad = joined.several(wrong, starts, starts, **settings)
  assert bad["coverage"] == 0.0 and bad["precision"] is None


@pytest.mark.engine("ty")
def test_true_continuations_are_never_dropped_by_ty():
  """Of files that ty finds no error in."""
  files = code.installed(max_bytes=300_000, seed=3, only_library=True)
  found = places.lines(files, 25, 0)
  with workspace.Workspace({"python": "ty"}) as space:
    out = joined.checks(_Known(""), found, space, space, timeout=30.0)
  assert out["truth_dropped"] == 0.0 and out["positions"] >= 5


def test_what_was_asked_is_kept(finished):
  _, folder, _ = finished
  said = json.loads(
    (report.folder(folder, "line", "", 0) / asking.ASKED).read_text()
  )
  assert set(said["python"]) == {"lines", "several", "asked"}


def test_a_missing_engine_is_told(capsys, monkeypatch):
  config = _config(eval__engine="auto")
  monkeypatch.setattr(engines, "is_installed", lambda name: False)
  experiment.tell_missing(config, ("python", "go"))
  said = capsys.readouterr().out
  assert said.startswith("no engine is installed for python, go: re-ranked")
  experiment.tell_missing(_config(eval__engine="none"), ("python",))
  experiment.tell_missing(
    _config(eval__engine="auto", eval__num_members=0), ("python",)
  )
  monkeypatch.setattr(engines, "is_installed", lambda name: True)
  experiment.tell_missing(config, ("python",))
  assert not capsys.readouterr().out
