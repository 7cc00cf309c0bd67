"""The loop: order, resume, failures, signals."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import pathlib
import re
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import toy

from locojax.core import files
from locojax.train import (
  checkpoints,
  experiment,
  lock,
  loop,
  profiling,
  sharding,
  writers,
)


def _fit(e, folder, **settings):
  settings = {
    "key": jax.random.key(0),
    "log_every": 5,
    "save_every": 4,
    "writers": (),
    **settings,
  }
  return loop.fit(e, folder, **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An uninterrupted run of 20 steps: `(bits, rows, folder)`."""
  folder = tmp_path_factory.mktemp("whole")
  state = _fit(toy.make(), folder)
  return toy.bits(state), toy.rows(folder), folder


class _Stop(Exception):
  """Ends a run from the outside."""


def _stops(e, at):
  """The experiment, whose data end with an exception at batch `at`."""

  def batches(start):
    for k, batch in enumerate(e.batches(start), start=start):
      if k == at:
        raise _Stop
      yield batch

  return dataclasses.replace(e, batches=batches)


# ----------------------------------------------------------------- journal


class _Journal:
  """Writes down the steps in a list, whose length is its head."""

  def __init__(self, before_step):
    self.before_step = before_step
    self.checked, self.pages = [], 0

  def head(self):
    self.pages += 1
    return {"page": self.pages}

  def check(self, step, head):
    self.checked.append((step, head))


def test_before_step_is_called_with_the_state_of_each_step(whole, tmp_path):
  seen = []

  def before_step(k, state):
    seen.append((k, int(state.step), toy.norm(state)["norm"]))

  made = dataclasses.replace(toy.make(), journal=_Journal(before_step))
  assert toy.bits(_fit(made, tmp_path)) == whole[0]
  assert [s[:2] for s in seen] == [(k, k) for k in range(20)]
  logged = {
    r["step"]: r["weights/norm"] for r in whole[1] if "weights/norm" in r
  }
  assert {k: n for k, _, n in seen if k in logged} == {
    k: n for k, n in logged.items() if k < 20
  }
  _fit(made, tmp_path)  # finished: the journal is only checked
  assert len(seen) == 20
  last = {"page": made.journal.pages}
  assert made.journal.checked == [(0, None), (20, last)]
  result = json.loads((tmp_path / "result.json").read_text())
  assert result["journal"] == last


def test_what_fails_before_a_step_leaves_it_unmade(whole, tmp_path):
  calls = []

  def before_step(k, state):
    calls.append(k)
    if k == 9 and calls.count(9) == 1:
      raise _Stop

  made = dataclasses.replace(toy.make(), journal=_Journal(before_step))
  with pytest.raises(_Stop):
    _fit(made, tmp_path)
  with checkpoints.Checkpoints(tmp_path / "ckpt") as store:
    assert store.steps() == [4, 8]
  assert toy.bits(_fit(made, tmp_path)) == whole[0]
  assert calls == [*range(10), *range(8, 20)]
  assert made.journal.checked == [(0, None), (8, {"page": 2})]


# ------------------------------------------------------------------- folder


def test_run_folder(whole):
  _, rows, folder = whole
  steps = [(r["step"], next(k for k in r if "/" in k)) for r in rows]
  loss, norm = "train/loss", "weights/norm"
  assert steps == [(0, norm)] + [
    (step, name) for step in (5, 10, 15, 20) for name in (loss, norm)
  ]
  result = json.loads((folder / "result.json").read_text())
  assert result["step"] == 20
  assert result["values"][loss] == rows[-2][loss]
  assert result["values"][norm] == rows[-1][norm]
  assert result["compile_seconds"] > 0 and result["examples_per_second"] > 0
  assert result["device_kind"] == jax.devices()[0].device_kind
  assert result["jax_version"] == jax.__version__
  with checkpoints.Checkpoints(folder / "ckpt") as store:
    assert store.steps() == [16, 20]


def test_params_txt(tmp_path):
  rules = (("kernel", jax.P(None, "data")),)
  _fit(toy.make(1, rules=rules), tmp_path)
  text = (tmp_path / "params.txt").read_text()
  row = next(r for r in text.splitlines() if "kernel" in r)
  kernel = toy.init(jax.random.key(0)).params["dense"]["kernel"]
  path, *_, total = row.split()
  assert path == "params/dense/kernel"
  assert "[4, 8]  float32  P(None, 'data')" in row
  assert float(total) == pytest.approx(float(jnp.sum(kernel)), rel=1e-5)


def test_seconds_count_training_only(tmp_path, monkeypatch):
  """By a clock on which an evaluation takes a day."""
  day, ahead, now = 86_400.0, [0.0], time.perf_counter
  monkeypatch.setattr(time, "perf_counter", lambda: now() + ahead[0])

  def slow(state):
    ahead[0] += day
    return toy.norm(state)

  e = toy.make(4, eval_every=1)
  e = dataclasses.replace(e, evals={"weights": experiment.Eval(1, slow)})
  _fit(e, tmp_path, log_every=1, save_every=1)
  result = json.loads((tmp_path / "result.json").read_text())
  assert 0 < result["seconds"] < day < ahead[0]


def test_a_folder_means_one_config(tmp_path, monkeypatch):
  config = {"a": 1, "b": {"c": (1, 2), "d": 0.5}, "log_every": 5}
  _fit(toy.make(2), tmp_path, config=config)
  path = tmp_path / "config.json"
  assert json.loads(path.read_text()) == {
    **config,
    "b": {"c": [1, 2], "d": 0.5},
  }
  before = path.read_bytes()
  other = {**config, "b": {"c": (1, 3), "d": 0.5}, "e": 0}
  refused = re.escape(
    "b.c ([1, 2] there, [1, 3] here), e ('(not there)' there, 0 here)"
  )
  for num_steps in (2, 3):  # finished, and not
    with pytest.raises(ValueError, match=refused):
      _fit(toy.make(num_steps), tmp_path, config=other)
  assert path.read_bytes() == before
  # How it is watched and spread does not count, nor what the caller names.
  watched = {**config, "log_every": 1, "mesh": {"data": 8}, "profile": {"x": 1}}
  _fit(toy.make(2), tmp_path, config=watched)
  _fit(toy.make(3), tmp_path, config={**config, "a": 2}, may_differ=("a",))
  assert json.loads((tmp_path / "result.json").read_text())["step"] == 3
  path.write_text("{")
  with pytest.raises(files.Damaged, match="config.json is damaged"):
    _fit(toy.make(3), tmp_path, config=config)


def test_rows_that_are_gone_are_said(tmp_path, caplog):
  _fit(toy.make(10), tmp_path, log_every=2, save_every=4)
  path = tmp_path / writers.METRICS
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join(lines[:3]))
  with caplog.at_level(logging.WARNING, "locojax"):
    _fit(toy.make(12), tmp_path, log_every=2, save_every=4)
  assert "metrics.jsonl has 3 rows up to step 10, where 8 were written" in (
    caplog.text
  )
  assert [r["step"] for r in toy.rows(tmp_path)][-2:] == [12, 12]


# -------------------------------------------------------------------- order


class _Recorder(writers.Writer):
  def __init__(self, seen):
    self.seen = seen

  def write(self, step, seconds, values):
    self.seen.append(("log" if "train/loss" in values else "eval", step))


def test_order_of_operations(tmp_path, monkeypatch):
  seen = []
  e = toy.make(5, eval_every=2)

  def batches(start):
    for k, batch in enumerate(toy.batches(start), start=start):
      seen.append(("fetch", k))
      yield batch

  compiled = loop._compile

  def compile_recorded(*args):
    run, num_bytes = compiled(*args)

    def step(state, first_bad, batch):
      seen.append(("step", int(state.step)))
      return run(state, first_bad, batch)

    return step, num_bytes

  save = checkpoints.Checkpoints.save

  def save_recorded(self, step, state, meta):
    assert int(state.step) == step == meta["step"]
    seen.append(("save", step))
    save(self, step, state, meta)

  monkeypatch.setattr(loop, "_compile", compile_recorded)
  monkeypatch.setattr(checkpoints.Checkpoints, "save", save_recorded)
  monkeypatch.setattr(jax, "transfer_guard", lambda _: jax.set_mesh(_mesh()))
  e = dataclasses.replace(e, batches=batches)
  _fit(e, tmp_path, log_every=2, save_every=2, writers=[_Recorder(seen)])
  order = [s for s in seen if s[0] != "fetch"]
  assert order == [
    *[("eval", 0), ("step", 0)],
    *[("step", 1), ("log", 2), ("eval", 2), ("save", 2)],
    *[("step", 2), ("step", 3), ("log", 4), ("eval", 4), ("save", 4)],
    *[("step", 4), ("log", 5), ("eval", 5), ("save", 5)],
  ]
  fetched = [s[1] for s in seen if s[0] == "fetch"]
  assert fetched == [0, 1, 2, 3, 4]
  for k in range(5):
    assert seen.index(("fetch", k)) < seen.index(("step", k))


def _mesh():
  return sharding.make_mesh({"data": -1})


# ------------------------------------------------------------------- resume


@pytest.mark.parametrize("at", [1, 4, 6, 13, 19])
def test_resume_is_bitwise(tmp_path, whole, at):
  bits, rows, _ = whole
  with pytest.raises(_Stop):
    _fit(_stops(toy.make(), at), tmp_path, save_every=3)
  with checkpoints.Checkpoints(tmp_path / "ckpt") as store:
    assert (store.steps() or [0])[-1] == (at - 1) // 3 * 3
  state = _fit(toy.make(), tmp_path, save_every=3)
  assert toy.bits(state) == bits
  assert toy.rows(tmp_path) == rows


def test_resume_at_every_step(tmp_path, whole):
  bits, rows, _ = whole
  for at in range(2, 20):
    with pytest.raises(_Stop):
      _fit(_stops(toy.make(), at), tmp_path, save_every=1)
  assert toy.bits(_fit(toy.make(), tmp_path, save_every=1)) == bits
  assert toy.rows(tmp_path) == rows
  seconds = [r["seconds"] for r in toy.rows(tmp_path, timing=True)]
  assert seconds == sorted(seconds)


def test_a_finished_run_returns_at_once(tmp_path, whole):
  bits, rows, folder = whole
  times = lambda: {
    p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != lock.FILE
  }
  before = times()
  e = dataclasses.replace(toy.make(), batches=None, step=None, evals={})
  assert toy.bits(_fit(e, folder)) == bits
  assert times() == before
  assert toy.rows(folder) == rows


def test_a_lost_result_is_written_again(tmp_path):
  _fit(toy.make(4), tmp_path)
  first = json.loads((tmp_path / "result.json").read_text())
  (tmp_path / "result.json").unlink()
  _fit(toy.make(4), tmp_path)
  assert json.loads((tmp_path / "result.json").read_text()) == first


def test_a_run_can_be_made_longer_but_not_shorter(tmp_path, whole):
  bits, _, _ = whole
  _fit(toy.make(10), tmp_path)
  assert toy.bits(_fit(toy.make(20), tmp_path)) == bits
  with pytest.raises(ValueError, match="num_steps=10.*step 20"):
    _fit(toy.make(10), tmp_path)


def test_a_finished_run_without_checkpoints_is_not_overwritten(tmp_path):
  (tmp_path / "result.json").write_text("{}")
  with pytest.raises(ValueError, match="no checkpoint"):
    _fit(toy.make(), tmp_path)


def test_a_corrupt_newest_checkpoint_costs_its_steps_only(
  tmp_path, whole, caplog
):
  bits, rows, _ = whole
  with pytest.raises(_Stop):
    _fit(_stops(toy.make(), 13), tmp_path)
  for path in (tmp_path / "ckpt" / "12").rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:10])
  with caplog.at_level(logging.INFO, "locojax"):
    assert toy.bits(_fit(toy.make(), tmp_path)) == bits
  assert "checkpoint 12 is unreadable" in caplog.text
  assert "resumed at step 8" in caplog.text
  assert toy.rows(tmp_path) == rows


def test_zero_steps(tmp_path):
  for _ in range(2):
    state = _fit(toy.make(0), tmp_path)
    assert int(state.step) == 0
    assert [r["step"] for r in toy.rows(tmp_path)] == [0]


# ----------------------------------------------------------------- the mesh


@pytest.mark.parametrize(
  "axes, rules",
  [
    ({"data": 2, "model": 4}, (("kernel", jax.P(None, "model")),)),
    ({"data": 4, "expert": 2}, ()),
  ],
)
def test_resume_on_another_mesh(tmp_path, whole, axes, rules):
  with pytest.raises(_Stop):
    _fit(_stops(toy.make(), 10), tmp_path)
  mesh = sharding.make_mesh(axes)
  state = _fit(toy.make(rules=rules), tmp_path, mesh=mesh)
  kernel = state.params["dense"]["kernel"]
  assert kernel.sharding.mesh == mesh
  if rules:
    assert kernel.sharding.spec == rules[0][1]
  reference = np.frombuffer(whole[0]["params/dense/kernel"], np.float32)
  np.testing.assert_allclose(
    np.asarray(kernel).ravel(), reference, rtol=1e-4, atol=1e-5
  )


def test_evaluate(whole):
  _, rows, folder = whole
  mesh = sharding.make_mesh({"data": 2}, jax.devices()[:2])
  out = loop.evaluate(toy.make(), folder, mesh=mesh, key=jax.random.key(5))
  assert out["step"] == 20
  assert out["weights/norm"] == pytest.approx(rows[-1]["weights/norm"])
  with pytest.raises(ValueError, match="checkpoints in `ckpt`"):
    loop.evaluate(toy.make(), folder / "no", key=jax.random.key(5))


# ----------------------------------------------------------------- failures


@pytest.mark.parametrize("bad", [0, 7, 11])
def test_non_finite_loss_names_the_steps(tmp_path, bad):
  said = rf"batch {bad} \(update {bad + 1}\).*steps (\d+) to (\d+)"
  with pytest.raises(loop.NonFinite, match=said) as error:
    _fit(toy.make(bad=bad), tmp_path)
  first, last = map(int, re.search(said, str(error.value)).groups())
  assert first <= bad + 1 <= last
  with checkpoints.Checkpoints(tmp_path / "ckpt") as store:
    assert (store.steps() or [0])[-1] == bad // 4 * 4


def test_non_finite_params_are_not_saved(tmp_path):
  def step(state, batch):
    new, values = toy.step(state, batch)
    blown = jax.tree.map(
      lambda p: jnp.where(state.step == 5, jnp.inf, p), new.params
    )
    return new.replace(params=blown), values

  e = dataclasses.replace(toy.make(6), step=step)
  with pytest.raises(loop.NonFinite, match="parameter is not finite.*step 6"):
    _fit(e, tmp_path)
  with checkpoints.Checkpoints(tmp_path / "ckpt") as store:
    assert store.steps() == [4]


def _with_step(change):
  def step(state, batch):
    return change(*toy.step(state, batch))

  return dataclasses.replace(toy.make(3), step=step)


@pytest.mark.parametrize(
  "change, said",
  [
    (lambda s, m: (s, {"accuracy": m["loss"]}), "must have 'loss'"),
    (lambda s, m: (s.replace(model_state={}), m), "model_state/mean.*input"),
    (
      lambda s, m: (
        s.replace(model_state={"mean": s.model_state["mean"][:4]}),
        m,
      ),
      "'model_state/mean' from float32",
    ),
    (lambda s, m: (s.replace(step=s.step + 1), m), "must add 1"),
  ],
)
def test_a_wrong_step_is_refused(tmp_path, change, said):
  with pytest.raises(ValueError, match=said):
    _fit(_with_step(change), tmp_path)


def _with_batches(change):
  def batches(start):
    for k, batch in enumerate(toy.batches(start), start=start):
      yield change(batch) if k == 2 else batch

  return dataclasses.replace(toy.make(5), batches=batches)


@pytest.mark.parametrize(
  "change, said",
  [
    (lambda b: {**b, "x": b["x"][:8]}, r"batch 2: 'x' has shape \(8, 4\)"),
    (lambda b: {**b, "x": b["x"].astype(int)}, "batch 2: 'x' has dtype int64"),
    (lambda b: {"x": b["x"]}, "batch 2 has the form"),
  ],
)
def test_a_wrong_batch_is_refused(tmp_path, change, said):
  with pytest.raises(ValueError, match=said):
    _fit(_with_batches(change), tmp_path)


def test_data_that_end_too_soon(tmp_path):
  def batches(start):
    return itertools.islice(toy.batches(start), 3)

  e = dataclasses.replace(toy.make(5), batches=batches)
  with pytest.raises(ValueError, match="ended before batch 3"):
    _fit(e, tmp_path)


@pytest.mark.parametrize(
  "settings, said",
  [
    ({"log_every": 0}, "log_every=0"),
    ({"save_every": -1}, "save_every=-1"),
    ({"keep": 0}, "keep=0"),
    ({"profile": (1, 2)}, "profile="),
    ({"key": jnp.zeros(2, jnp.uint32)}, "typed key"),
  ],
)
def test_settings_are_checked(tmp_path, settings, said):
  with pytest.raises(ValueError, match=said):
    _fit(toy.make(), tmp_path, **settings)


# -------------------------------------------------------------------- speed


def test_one_trace_of_the_step(tmp_path):
  traced = []

  def step(state, batch):
    traced.append(1)
    return toy.step(state, batch)

  _fit(dataclasses.replace(toy.make(), step=step), tmp_path)
  assert len(traced) == 1


def test_the_step_is_under_a_transfer_guard(tmp_path, monkeypatch):
  compiled = loop._compile

  def careless(*args):
    run, num_bytes = compiled(*args)

    def step(state, bad, batch):
      return run(state, bad, jax.device_get(batch))

    return step, num_bytes

  monkeypatch.setattr(loop, "_compile", careless)
  with pytest.raises(Exception, match="[Dd]isallowed host-to-device"):
    _fit(toy.make(), tmp_path)


def test_progress_and_mfu(tmp_path):
  seen = []

  class Progress(writers.Writer):
    def progress(self, progress):
      seen.append(progress)

  _fit(toy.make(), tmp_path, writers=[Progress()], peak_flops=1e9)
  assert [p.step for p in seen] == [5, 10, 15, 20]
  e = toy.make()
  for p in seen:
    assert p.examples_per_second * p.step_seconds == pytest.approx(toy.BATCH)
    assert p.mfu == pytest.approx(e.flops_per_step / p.step_seconds / 8e9)


def test_profile_window(tmp_path):
  _fit(toy.make(), tmp_path, profile=profiling.Window(3, 2))
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))
