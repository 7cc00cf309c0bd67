"""The training loop; there is no other.

The order of operations is fixed: fetch batch k (k = updates done), what the
experiment has to do before the step, step, log, evaluate, then save if it is
due, the last step, or time to stop. While the devices work on a step the host
already fetches the next batch.

A run folder holds `config.json`, `params.txt`, `metrics.jsonl`, `ckpt/` and,
when the run is finished, `result.json`. A run that was interrupted anywhere
goes on from its newest checkpoint and ends in the same bits, in state and in
logged values, as one that was not.

The step is compiled once, before the clock starts. `seconds` count neither
compilation nor evaluations nor saving, and go on after a resume. Nothing moves
between host and devices in a step but the batch. Evaluations must not keep the
state: the next step takes its memory.
"""

from __future__ import annotations

import collections
import logging
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from locojax.core import checks, metrics, trees, types
from locojax.train import (
  checkpoints,
  distributed,
  feed,
  folder,
  lock,
  profiling,
  sharding,
  stopping,
  writers,
)
from locojax.train import experiment as experiment_lib

_log = logging.getLogger(__name__)

# Steps that the host may run ahead of the devices: enough to hide its own
# work, few enough that waiting batches do not fill the memory.
_AHEAD = 4


# Raised by `fit`; callers know it as the loop's.
Preempted = stopping.Preempted


class NonFinite(FloatingPointError):
  """A loss or a parameter is not finite; nothing was saved since."""


def _shared(
  experiment: experiment_lib.Experiment,
  name: str,
  layout: feed.Layout,
  make: Callable[[], Callable],
  *of: Any,
) -> Callable:
  """The jitted function of that name, made once for a layout and `of`."""
  shardings, tree = jax.tree.flatten(layout.state_shardings)
  key = (name, *of, tuple(shardings), tree)
  if key not in experiment.programs:
    experiment.programs[key] = make()
  return experiment.programs[key]


def _fresh(
  experiment: experiment_lib.Experiment, layout: feed.Layout, key: jax.Array
) -> types.TrainState:
  """The state at step 0, made in place on all devices."""
  impl = jax.random.key_impl(key)

  def init(data):
    return experiment.init(jax.random.wrap_key_data(data, impl=impl))

  make = lambda: jax.jit(init, out_shardings=layout.state_shardings)
  jitted = _shared(experiment, "init", layout, make, experiment.init, impl)
  return jitted(np.asarray(jax.random.key_data(key)))


def _load_from(
  state: types.TrainState, source_dir: str | os.PathLike, patterns
) -> types.TrainState:
  """Takes `params` and `model_state` of another run where the path matches."""
  source = pathlib.Path(source_dir) / "ckpt"
  if not source.is_dir():
    raise ValueError(
      f"init_from={str(source_dir)!r} is not allowed: it must be the folder "
      "of a run, with checkpoints in `ckpt`."
    )
  part = {"params": state.params, "model_state": state.model_state}
  with checkpoints.Checkpoints(source, read_only=True) as store:
    part, report = store.read(part, patterns)
  _log.info("init_from %s: %d arrays taken", source_dir, len(report["taken"]))
  for name, what in (
    ("missing", "not in the checkpoint, left as initialised"),
    ("unused", "only in the checkpoint, not used"),
  ):
    for path in report[name]:
      _log.warning("init_from %s: %s: %s", source_dir, path, what)
  return state.replace(**part)


def _check_form(state: Any, new: Any, who: str) -> None:
  """What makes a new state keeps paths, shapes and dtypes of the old."""
  before, after = trees.flatten(state), trees.flatten(new)
  for path in sorted(set(before) ^ set(after)):
    where = "input" if path in before else "output"
    raise ValueError(f"{who} has {path!r} only in its {where} state.")
  for path, x in before.items():
    y = jnp.asarray(after[path])
    if (x.shape, x.dtype) != (y.shape, y.dtype):
      raise ValueError(
        f"{who} turns {path!r} from {x.dtype}{list(x.shape)} to "
        f"{y.dtype}{list(y.shape)}: it must keep shape and dtype."
      )


def _begun(
  experiment: experiment_lib.Experiment,
  layout: feed.Layout,
  state: types.TrainState,
  begin: Callable[[types.TrainState], types.TrainState],
) -> types.TrainState:
  """What `begin` makes of a fresh state, placed as that was."""
  new = begin(state)
  _check_form(state, new, "begin")
  # Steps give their state away: nothing here may be somebody else's, or twice.
  # `device_put` with `may_alias=False` shares the memory of one device's part.
  shardings = layout.state_shardings
  copied = lambda tree: jax.tree.map(jnp.copy, tree)
  make = lambda: jax.jit(copied, out_shardings=shardings)
  copy = _shared(experiment, "copy", layout, make)
  return copy(jax.tree.map(jax.device_put, new, shardings))


def _check_output(state: Any, new: Any, values: Any) -> None:
  """While tracing: a step keeps the form of the state and tells the loss."""
  _check_form(state, new, "the step")
  if "loss" not in values:
    raise ValueError(
      f"the metrics of the step are {sorted(values)}: they must have 'loss'."
    )


def _compile(experiment: experiment_lib.Experiment, layout: feed.Layout):
  """`(state, first_bad, batch) -> (state, first_bad, metrics)`, and its bytes.

  `first_bad` is the first batch whose loss was not finite, or -1: watching
  every step costs no transfer.
  """

  def step(state, first_bad, batch):
    new, values = experiment.step(state, batch)
    _check_output(state, new, values)
    loss = values["loss"]
    loss = loss.total if isinstance(loss, metrics.Mean) else loss
    bad = (first_bad < 0) & ~jnp.all(jnp.isfinite(loss))
    return new, jnp.where(bad, state.step, first_bad), dict(values)

  rep = layout.replicated
  first_bad = jax.ShapeDtypeStruct((), jnp.int32, sharding=rep)
  make = lambda: jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(layout.state_shardings, rep, rep),
  )
  jitted = _shared(experiment, "step", layout, make, experiment.step)
  compiled = jitted.lower(layout.state, first_bad, layout.batch).compile()
  return compiled, profiling.step_bytes(compiled)


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
  floats = [
    x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)
  ]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))


class _Run:
  """What goes on at a step, and around one; see `fit` for the order."""

  def __init__(
    self,
    experiment: experiment_lib.Experiment,
    workdir: pathlib.Path,
    layout: feed.Layout,
    store: checkpoints.Checkpoints,
    writer: writers.Writer,
    *,
    meta: dict[str, Any],
    config: Mapping[str, Any] | None,
    log_every: int,
    save_every: int,
    trace: profiling.Trace | None,
    peak: float | None,
  ):
    self._experiment = experiment
    self._workdir = workdir
    self._layout = layout
    self._store = store
    self._writer = writer
    self._meta = meta
    self._config = config
    self._log_every = log_every
    self._save_every = save_every
    self._trace = trace
    self._peak = peak
    self._clock = profiling.Clock(meta["seconds"])
    self._checked = self._saved = meta["step"]
    self._reported = (meta["step"], meta["seconds"])
    self._fresh = not store.steps()

  def train(self, state: types.TrainState) -> types.TrainState:
    """All steps that are left."""
    step, num_steps = self._meta["step"], self._experiment.num_steps
    journal = self._experiment.journal
    compiled = self._compiled()
    self._meta["config_hash"] = folder.write_config(self._workdir, self._config)
    first_bad = jax.device_put(np.int32(-1), self._layout.replicated)
    if self._fresh:
      self._evaluate(0, state)
    data = feed.Feed(self._experiment, self._layout, step)
    batch = data.next() if step < num_steps else None
    stopping.stop_if_due(f"at step {step} of {self._workdir}")
    ahead: collections.deque = collections.deque()
    self._clock.start()
    while step < num_steps:
      if self._trace:
        self._trace.before_step(step)
      if journal is not None:
        journal.before_step(step, state)
      with jax.transfer_guard("disallow"):
        state, first_bad, values = compiled(state, first_bad, batch)
      step += 1
      batch = data.next() if step < num_steps else None
      ahead.append(values["loss"])
      if len(ahead) > _AHEAD:
        jax.block_until_ready(ahead.popleft())
      stop = stopping.due()
      if stop or self._due(step):
        jax.block_until_ready((state, first_bad))
        with self._clock.paused() as seconds:
          self._after(step, seconds, state, first_bad, values, stop)
      if stop and step < num_steps:
        stopping.stop(f"at step {step} of {self._workdir}")
    if num_steps == 0:
      self._save(0, 0.0, state)
    return state

  def train_guarded(self, state: types.TrainState) -> types.TrainState:
    """`train`, which closes writers and trace whatever happens."""
    try:
      return self.train(state)
    finally:
      self._writer.close()
      if self._trace:
        self._trace.close()

  def _compiled(self):
    started = time.perf_counter()
    compiled, self._meta["step_bytes"] = _compile(
      self._experiment, self._layout
    )
    self._meta["compile_seconds"] = time.perf_counter() - started
    return compiled

  def _log_due(self, step: int) -> bool:
    return step % self._log_every == 0 or step == self._experiment.num_steps

  def _save_due(self, step: int) -> bool:
    return step % self._save_every == 0 or step == self._experiment.num_steps

  def _eval_due(self, step: int, e: experiment_lib.Eval) -> bool:
    return step % e.every == 0 or step == self._experiment.num_steps

  def _due(self, step: int) -> bool:
    return (
      self._log_due(step)
      or self._save_due(step)
      or any(self._eval_due(step, e) for e in self._experiment.evals.values())
    )

  def _after(self, step, seconds, state, first_bad, values, stop) -> None:
    """Log, evaluate, save: in this order, with the clock standing."""
    self._check_loss(step, first_bad, state)
    if self._log_due(step):
      self._report(step, seconds, metrics.values(values))
    self._evaluate(step, state, seconds)
    if stop or self._save_due(step):
      self._save(step, seconds, state)

  def _check_loss(self, step: int, first_bad: jax.Array, state) -> None:
    bad = int(first_bad)
    if bad >= 0:
      self._diagnose(state)
      raise NonFinite(
        f"the loss of batch {bad} (update {bad + 1}) is not finite; found by "
        f"the check of steps {self._checked + 1} to {step}. {self._newest()}"
      )
    self._checked = step

  def _diagnose(self, state: types.TrainState) -> None:
    if self._experiment.diagnose is not None:
      self._experiment.diagnose(state)

  def _newest(self) -> str:
    steps = self._store.steps()
    if not steps:
      return "There is no checkpoint yet."
    return f"The newest checkpoint is of step {steps[-1]}."

  def _report(self, step: int, seconds: float, values) -> None:
    values = {f"train/{name}": v for name, v in values.items()}
    self._writer.write(step, seconds, values)
    before, then = self._reported
    step_seconds = (seconds - then) / max(step - before, 1)
    self._reported = (step, seconds)
    e = self._experiment
    self._writer.progress(
      writers.Progress(
        step=step,
        num_steps=e.num_steps,
        loss=values["train/loss"],
        examples_per_second=e.examples_per_step / max(step_seconds, 1e-9),
        step_seconds=step_seconds,
        mfu=profiling.mfu(
          e.flops_per_step,
          step_seconds,
          num_devices=self._layout.mesh.size,
          peak=self._peak,
        ),
      )
    )

  def _evaluate(self, step, state, seconds: float = 0.0) -> None:
    for name, e in self._experiment.evals.items():
      if self._eval_due(step, e):
        self._writer.write(step, seconds, _run_eval(name, e, state))

  def _save(self, step: int, seconds: float, state) -> None:
    if int(state.step) != step:
      raise ValueError(
        f"state.step={int(state.step)} after {step} updates: the step of an "
        "experiment must add 1 to it."
      )
    if jax.tree.leaves(state.params) and not _all_finite(state.params):
      self._diagnose(state)
      raise NonFinite(
        f"a parameter is not finite after step {step}, though the losses of "
        f"steps {self._saved + 1} to {step} are. {self._newest()}"
      )
    self._saved = step
    self._meta.update(step=step, seconds=seconds, rows=self._writer.num_rows)
    if self._experiment.journal is not None:
      self._meta["journal"] = self._experiment.journal.head()
    self._store.save(step, state, self._meta)


def _run_eval(
  name: str, e: experiment_lib.Eval, state: types.TrainState
) -> dict[str, float]:
  return {f"{name}/{k}": float(v) for k, v in e.run(state).items()}


def _start(
  experiment: experiment_lib.Experiment,
  workdir: pathlib.Path,
  layout: feed.Layout,
  store: checkpoints.Checkpoints,
  key: jax.Array,
  init_from,
  init_patterns,
  begin,
) -> tuple[types.TrainState, dict[str, Any]]:
  """Own newest checkpoint; else fresh, with parts of another run."""
  found = store.restore(layout.state)
  if found is not None:
    _log.info("%s: resumed at step %d", workdir, found[1]["step"])
    return found
  if (workdir / folder.RESULT).exists():
    raise ValueError(
      f"workdir={str(workdir)!r} is not allowed: it has the result.json of a "
      "finished run but no checkpoint. Remove it, or choose another folder."
    )
  state = _fresh(experiment, layout, key)
  if init_from is not None:
    state = _load_from(state, init_from, init_patterns)
  if begin is not None:
    state = _begun(experiment, layout, state, begin)
  folder.write_params(workdir, state, layout.replicated)
  return state, {"step": 0, "seconds": 0.0}


def _make_writer(
  workdir: pathlib.Path,
  meta: Mapping[str, Any],
  fresh: bool,
  extra: Sequence[writers.Writer] | None,
) -> writers.Several:
  if not distributed.is_main():
    return writers.Several([])
  own = writers.JsonLines(
    workdir / writers.METRICS,
    -1 if fresh else meta["step"],
    expected=meta.get("rows", 0),
  )
  others = writers.default(workdir) if extra is None else extra
  return writers.Several([own, *others])


def _check_settings(experiment, log_every, save_every, profile) -> None:
  checks.positive_int("log_every", log_every)
  checks.positive_int("save_every", save_every)
  # The step of a state is an int32.
  checks.int_in_range(
    "experiment.num_steps", experiment.num_steps, 0, 2**31 - 1
  )
  for name, e in experiment.evals.items():
    checks.positive_int(f"experiment.evals[{name!r}].every", e.every)
  if "train" in experiment.evals:
    raise ValueError("experiment.evals has 'train': that name is the loop's.")
  if profile is not None and not isinstance(profile, profiling.Window):
    raise ValueError(
      f"profile={profile!r} is not allowed: it must be a profiling.Window."
    )


def fit(
  experiment: experiment_lib.Experiment,
  workdir: str | os.PathLike,
  *,
  key: jax.Array,
  mesh: jax.sharding.Mesh | None = None,
  log_every: int = 100,
  save_every: int = 1000,
  keep: int = 2,
  init_from: str | os.PathLike | None = None,
  init_patterns: str | Sequence[str] = ".*",
  begin: Callable[[types.TrainState], types.TrainState] | None = None,
  config: Mapping[str, Any] | None = None,
  may_differ: Sequence[str] = (),
  writers: Sequence[writers.Writer] | None = None,
  profile: profiling.Window | None = None,
  peak_flops: float | None = None,
) -> types.TrainState:
  """Trains an experiment in a folder, from wherever the folder stands.

  A folder with a checkpoint goes on from the newest that can be read; one
  whose run is finished gives its final state at once. So a pipeline of many
  stages, one `fit` and one folder each, resumes with no further code.

  Args:
    experiment: what to train; see `experiment.Experiment`.
    workdir: the run folder, made if need be; shared by all processes.
    key: typed PRNG key of the run, for `experiment.init`.
    mesh: devices; None puts all of them on the `data` axis.
    log_every: steps between two lines of training metrics.
    save_every: steps between two checkpoints.
    keep: how many of the newest checkpoints stay.
    init_from: folder of another run, whose `params` and `model_state` a fresh
      run starts with. What only one side has is listed in the log.
    init_patterns: regular expressions; only paths (`params/...`,
      `model_state/...`) in which one is found are taken.
    begin: makes the state that a fresh run starts with from what is there
      (`experiment.init`, with parts of `init_from`); a run that resumes does
      without. Outside of `jit`, so that a stage may go on from the state of the
      stage before and from what it has seen; forms and placement stay.
    config: what `config.json` will hold; a folder whose run had another is
      refused, but for `folder.MAY_DIFFER`.
    may_differ: further keys of the config in which a run may go on otherwise.
    writers: besides `metrics.jsonl`; None gives progress on the console and
      TensorBoard files when that is installed.
    profile: steps that `jax.profiler` records into `workdir/profile`.
    peak_flops: peak of one device, for MFU; None looks the device up.

  Returns:
    The state after `experiment.num_steps` updates.

  Raises:
    ValueError: a setting, a batch, a checkpoint, a config or a journal that
      does not fit.
    lock.Busy: another program works in the folder.
    NonFinite: a loss or a parameter is not finite; names the steps.
    Preempted: SIGTERM; the step was finished and saved.
    stopping.Interrupted: Ctrl-C, likewise.
  """
  _check_settings(experiment, log_every, save_every, profile)
  workdir = pathlib.Path(workdir).absolute()
  folder.check_config(workdir, config, may_differ)
  mesh = sharding.make_mesh({"data": -1}) if mesh is None else mesh
  layout = feed.layout_of(experiment, mesh, key)
  with (
    stopping.deferred(),
    lock.hold(workdir),
    jax.set_mesh(mesh),
    checkpoints.Checkpoints(workdir / "ckpt", keep=keep) as store,
  ):
    init = (init_from, init_patterns, begin)
    state, meta = _start(experiment, workdir, layout, store, key, *init)
    if experiment.journal is not None:
      experiment.journal.check(meta["step"], meta.get("journal"))
    if not _finished(experiment, workdir, store, meta):
      folder.remove_result(workdir)
      run = _Run(
        experiment,
        workdir,
        layout,
        store,
        _make_writer(workdir, meta, not store.steps(), writers),
        meta=meta,
        config=config,
        log_every=log_every,
        save_every=save_every,
        trace=_trace(profile, workdir),
        peak=_peak(mesh) if peak_flops is None else peak_flops,
      )
      state = run.train_guarded(state)
      folder.write_result(experiment, workdir, meta)
      distributed.sync("result.json")  # callers read it on every process
    stopping.stop_if_due(f"after the last step of {workdir}")
  return state


def _trace(profile, workdir: pathlib.Path) -> profiling.Trace | None:
  return profiling.Trace(profile, workdir / "profile") if profile else None


def _peak(mesh: jax.sharding.Mesh) -> float | None:
  return profiling.peak_flops(mesh.devices.flat[0].device_kind)


def _finished(experiment, workdir, store, meta) -> bool:
  """Whether nothing is left to do; completes `result.json`."""
  step, num_steps = meta["step"], experiment.num_steps
  if step > num_steps:
    raise ValueError(
      f"experiment.num_steps={num_steps} is not allowed: {workdir} has a "
      f"checkpoint of step {step}; choose another folder."
    )
  if step < num_steps or not store.steps():
    return False
  _log.info("%s: already finished, %d steps", workdir, step)
  if not (workdir / folder.RESULT).exists():
    folder.write_result(experiment, workdir, meta)
  distributed.sync("result.json")
  return True


def evaluate(
  experiment: experiment_lib.Experiment,
  workdir: str | os.PathLike,
  *,
  key: jax.Array,
  mesh: jax.sharding.Mesh | None = None,
) -> dict[str, float]:
  """Runs all evaluations on the newest checkpoint of a run.

  Args:
    experiment: as given to `fit`.
    workdir: the run folder.
    key: any typed key of the run's kind; only its form is used.
    mesh: devices, not necessarily those of the run; None takes all.

  Returns:
    `step`, and `<eval>/<metric>` for each value. Nothing is written.

  Raises:
    ValueError: the folder has no checkpoint, or one that does not fit.
  """
  saved = pathlib.Path(workdir).absolute() / "ckpt"
  if not saved.is_dir():
    raise ValueError(
      f"workdir={str(workdir)!r} is not allowed: it must be a run folder with "
      "checkpoints in `ckpt`."
    )
  mesh = sharding.make_mesh({"data": -1}) if mesh is None else mesh
  with (
    jax.set_mesh(mesh),
    checkpoints.Checkpoints(saved, read_only=True) as store,
  ):
    found = store.restore(feed.layout_of(experiment, mesh, key).state)
    if found is None:
      raise ValueError(f"workdir={str(workdir)!r} has no checkpoint yet.")
    state, meta = found
    out: dict[str, float] = {"step": meta["step"]}
    for name, e in experiment.evals.items():
      out.update(_run_eval(name, e, state))
  return out
