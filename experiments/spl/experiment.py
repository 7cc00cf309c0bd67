"""Teacher, new labels, student, fine-tuning: SPL and what it is compared to.

`build` makes one run (`config.stage`). `run` trains a teacher for each seed,
lets it predict every weak clip, builds the label space of each method from the
two labels, pre-trains a student by it and fine-tunes that on the target, and
writes table, matrices and pictures (`report.py`, `pictures.py`).

The folder of a seed has `teacher`, and for every number of clips a video
`clips_C/predictions.npz` and a folder for each method: `label_space.json`,
`pretrain`, `finetune_RATE`, `measured.json`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.common import programs, stages, study
from experiments.spl import (
  measure,
  methods,
  networks,
  phases,
  pictures,
  report,
  sets,
  settings,
)
from locojax.core import files, types
from locojax.methods import spl
from locojax.train import distributed, experiment

Experiment = experiment.Experiment
check, check_run = settings.check, settings.check_run
# What does not change a run: which others there are.
_NOT_IN_A_RUN = ("methods", "seeds", "clips_per_video", "pictures")
_PREDICTIONS = "predictions.npz"


def build(config) -> Experiment:
  """The run that `config.stage` names, of `config.method`.

  Without data, and for a student, whose labels come from a teacher, only what
  `--mode=check` looks at: shapes, with as many classes as there may be.
  """
  check(config)
  if config.stage == "images":
    return phases.images(config)
  if config.stage == "pretrain":
    return phases.student_shape(config, config.method)
  own = _clean_settings(config)
  if not config.needs_data:
    return phases.make(config, phases.clean_task(config, own), 1)
  run = phases.clean(config, own, sets.load(config))
  return phases.experiment_of(config, run)


def checked(config) -> dict[str, Experiment]:
  """What `--mode=check` looks at besides."""
  one = stages.changed(config, stage="finetune", needs_data=False)
  return {"fine-tuning": build(one)}


def _clean_settings(config) -> dict[str, Any]:
  if config.stage == "teacher":
    return config.teacher.to_dict()
  rate = config.rate or config.finetune.learning_rates[0]
  epochs = config.finetune.num_epochs
  return {"num_epochs": epochs, "learning_rate": rate}


def fit(
  config, folder: pathlib.Path, made: Experiment, begin=None
) -> types.TrainState:
  """One run; its final state. Finished ones are found."""
  return stages.fit(
    made,
    config,
    folder,
    begin=begin,
    log_every=config.log_every,
    save_every=config.save_every,
    may_differ=_NOT_IN_A_RUN,
  )


def _key(config, *words: Any) -> jax.Array:
  """A key of the seed for what has this name."""
  text = "/".join(map(str, words))
  number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
  return jax.random.fold_in(jax.random.key(config.seed), number)


def _once(path: pathlib.Path, make: Callable[[], None]) -> None:
  """A file is made by the first process if it is not there; all wait for it."""
  if distributed.is_main() and not path.exists():
    make()
  distributed.sync(path.name)


class Line:
  """All runs of one seed.

  Args:
    made: the study.
    config: with the seed.
    start: variables of the network for images, or None.
    kept: experiments of all seeds, see `phases.experiment_of`.
  """

  def __init__(
    self,
    made: study.Study,
    config,
    start: types.PyTree | None,
    kept: dict[Any, Experiment],
  ):
    self._study, self._config, self._images = made, config, start
    self._kept = kept
    self._root = report.seed_folder(made.workdir, config.seed)
    self._shape = sets.clip_shape(config.data.to_dict())

  def _say(self, *words: Any) -> str:
    return ", ".join([f"seed {self._config.seed}", *map(str, words)])

  def _begin_from_images(self, net: networks.Net, *words: Any) -> Callable:
    """Begins with inflated weights of images."""
    variables = networks.inflated(
      self._images, net, self._shape, _key(self._config, "inflated", *words)
    )
    return phases.begin(variables)

  def _start_of(self, method: methods.Method) -> str:
    own = method.start
    return self._config.start if own == "config" else own

  def run(self) -> None:
    """Teacher, all methods, all numbers of clips."""
    self._teach()
    names = list(self._config.methods)
    for name in names:
      if not methods.parse(name)[0].space:
        self._without_weak_clips(name)
    for per_video in self._config.clips_per_video:
      found = None
      for name in names:
        if methods.parse(name)[0].space:
          found = found or self._predictions(per_video)
          self._method(name, per_video, found)

  def _teach(self) -> None:
    config = stages.changed(self._config, stage="teacher")
    data = sets.load(config)
    run = phases.clean(config, config.teacher.to_dict(), data)
    made = phases.experiment_of(config, run, self._kept)
    begin = None
    if config.start == "images":
      net = phases.clean_task(config, config.teacher.to_dict()).net
      begin = self._begin_from_images(net, "teacher")
    where = self._root / "teacher"
    self._teacher = self._study.cell(
      self._say("teacher"),
      where,
      functools.partial(fit, config, where, made, begin),
      typical=False,
    )

  def _predictions(self, per_video: int) -> methods.Predictions:
    """What the teacher says of the weak clips; told once, and kept."""
    path = report.clips_folder(self._root, per_video) / _PREDICTIONS

    def make():
      found = self._predict(per_video)
      files.write_arrays(path, **dataclasses.asdict(found))

    _once(path, make)
    return methods.Predictions(**files.read_arrays(path))

  def _predict(self, per_video: int) -> methods.Predictions:
    config = self._config
    data = sets.load(config, per_video)
    net = phases.clean_task(config, config.teacher.to_dict()).net
    variables = phases.variables_of(self._teacher)
    run = jax.jit(lambda v, batch: net.predict(v, batch["clip"])[0])
    probs = spl.teacher_probs(run, variables, phases.ordered(config, data.weak))
    top = probs.max(axis=1)
    sure = top >= config.teacher_confidence
    label = np.where(sure, probs.argmax(axis=1), -1).astype(np.int32)
    kernel = variables["params"][networks.HEAD]["kernel"]
    return methods.Predictions(np.float32(probs), label, np.float32(kernel.T))

  def _space(self, name: str, per_video: int, found: methods.Predictions):
    """The labels of a method; its space is made once, and kept."""
    config, (method, _) = self._config, methods.parse(name)
    weak = sets.load(config, per_video).weak.label
    weak, teacher = methods.given(method, weak, found, config.seed)
    path = report.folder(self._root, per_video, name) / report.SPACE

    def make():
      own = config.space.to_dict()
      made = methods.build_space(method, weak, teacher, found, own)
      files.write_text(path, made.to_json() + "\n")

    _once(path, make)
    num = found.probs.shape[1]
    text = path.read_text(encoding="utf-8")
    space = spl.LabelSpace.from_json(text, num_weak=num, num_teacher=num)
    return methods.make_labels(method, space, weak, teacher, found)

  def _method(self, name: str, per_video: int, found) -> None:
    """Pre-trains a student, measures and fine-tunes it."""
    method, by_epochs = methods.parse(name)
    data = sets.load(self._config, per_video)
    labels = self._space(name, per_video, found)
    root = report.folder(self._root, per_video, name)
    digest = hashlib.sha256(np.ascontiguousarray(labels.columns["label"]))
    config = stages.changed(
      self._config,
      stage="pretrain",
      method=name,
      clips=per_video,
      labels=digest.hexdigest()[:16],
    )
    run = phases.student(config, method, by_epochs, data, labels)
    made = phases.experiment_of(config, run, self._kept)
    begin, words = None, (name, f"{per_video} clips a video")
    if self._start_of(method) == "images":
      net = networks.make(config, labels.num_outputs)
      begin = self._begin_from_images(net, name)
    where = root / "pretrain"
    state = self._study.cell(
      self._say(*words, "pre-training"),
      where,
      functools.partial(fit, config, where, made, begin),
    )
    variables = phases.variables_of(state)
    self._measure(root, data, labels, found, variables)
    self._finetune(config, root, data, variables, words)

  def _measure(self, root, data, labels, found, variables) -> None:
    path = root / report.MEASURED

    def make():
      net = networks.make(self._config, labels.num_outputs)
      predict = measure.predictor(net)
      sides = [
        predict(variables, phases.ordered(self._config, part))[1]
        for part in (data.train, data.test)
      ]
      told = measure.of_labels(data.weak, found, labels)
      told["probe"] = measure.linear_probe(
        sides[0], data.train.label, sides[1], data.test
      )
      files.write_json(path, told)

    _once(path, make)
    files.read_json(path, remedy="remove it, to measure again")

  def _without_weak_clips(self, name: str) -> None:
    method, _ = methods.parse(name)
    config = stages.changed(self._config, method=name)
    root = report.folder(self._root, None, name)
    variables = None
    if self._start_of(method) == "images":
      net = networks.make(config, sets.num_classes(config.data.to_dict()))
      key = _key(config, "inflated", name)
      variables = networks.inflated(self._images, net, self._shape, key)
    self._finetune(config, root, sets.load(config), variables, (name,))

  def _finetune(self, config, root, data, variables, words) -> None:
    """Fine-tuning at every learning rate."""
    num = sets.num_classes(config.data.to_dict())
    begin = None
    if variables is not None:
      key = _key(config, "head", config.method)
      begin = phases.begin(phases.with_new_head(variables, num, key))
    for rate in config.finetune.learning_rates:
      one = stages.changed(config, stage="finetune", rate=float(rate))
      run = phases.clean(one, _clean_settings(one), data)
      made = phases.experiment_of(one, run, self._kept)
      where = root / report.finetuned(rate)
      self._study.cell(
        self._say(*words, f"fine-tuning at {rate:g}"),
        where,
        functools.partial(fit, one, where, made, begin),
      )


def _num_cells(config) -> int:
  """Runs of the study."""
  pairs = [bool(methods.parse(m)[0].space) for m in config.methods]
  rates, scales = len(config.finetune.learning_rates), config.clips_per_video
  weak = sum(pairs) * len(scales) * (1 + rates)
  each = 1 + weak + (len(pairs) - sum(pairs)) * rates
  return each * len(config.seeds) + int(_needs_images(config))


def _needs_images(config) -> bool:
  starts = {methods.parse(m)[0].start for m in config.methods}
  return "images" in starts or config.start == "images"


def _images(made: study.Study) -> types.PyTree | None:
  """The variables of the network for images, trained if any run needs it."""
  if not _needs_images(made.config):
    return None
  config = stages.changed(
    made.config, stage="images", seed=made.config.data.seed
  )
  where = made.workdir / "images"
  state = made.cell(
    "images",
    where,
    functools.partial(fit, config, where, build(config)),
    typical=False,
  )
  return phases.variables_of(state)


def run(config, workdir: str) -> dict[str, Any]:
  """All seeds and methods, then table and figures; resumes.

  Returns:
    The rows of the table and the paths of what was written.
  """
  with (
    study.opened(
      config,
      workdir,
      num_cells=_num_cells(config),
      may_differ=_NOT_IN_A_RUN,
    ) as made,
    programs.kept(made.workdir),
  ):
    start, kept = _images(made), {}
    for seed in config.seeds:
      Line(made, stages.changed(config, seed=seed), start, kept).run()
    distributed.sync("students")
    out = report.write(made, sets.load(config).classes)
    out["pictures"] = pictures.write(config, made.workdir)
    return out


def evaluate(config, workdir: str) -> Mapping[str, Any]:
  """The rows of the table of a finished folder."""
  return {"rows": report.rows(config, pathlib.Path(workdir))}
