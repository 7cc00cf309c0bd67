"""Language models that solve problems, conditions against each other.

`build` makes one run: a condition (`texts.CONDITIONS`) with a seed. `run`
trains all conditions over all seeds, has each model solve the problems of the
test many times, grades what it wrote, and writes table and figure
(`report.py`).
A run folder has `samples.jsonl` (`records.py`) and `grades.jsonl`
(`grading.py`) beside what the loop writes.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import stages, study
from experiments.minerva import answering, grading, report, settings, texts
from locojax.core import checks, types
from locojax.data import pieces, pipeline
from locojax.methods import minerva
from locojax.nn import lm
from locojax.train import (
  distributed,
  experiment,
  loop,
  optimizers,
  sharding,
  steps,
)

CONDITIONS = texts.CONDITIONS
check, check_run = settings.check, settings.check_run
# What does not change a run: which others there are.
_NOT_IN_A_RUN = ("conditions", "seeds", "ks")
TOKENIZER = "tokenizer.model"


def _condition(config) -> texts.Condition:
  return checks.lookup("condition", config.condition, CONDITIONS)


def model(config) -> lm.DecoderLM:
  """The model of a config."""
  return minerva.palm_model(settings.model_config(config))


def loss_fn(net: lm.DecoderLM, *, z_loss: float) -> types.LossFn:
  """Cross-entropy of the next token and z-loss, mean over tokens."""

  def loss(params, model_state, batch, key):
    del key
    tokens = batch["tokens"]
    logits = net.apply({"params": params}, tokens[:, :-1])
    found = minerva.lm_loss(logits, tokens[:, 1:], z_loss=z_loss)
    told = {"nll": found.nll, "z": found.z, "accuracy": found.accuracy}
    return found.value, (told, model_state)

  return loss


def optimizer(config) -> optax.GradientTransformation:
  """Adafactor of PaLM; stacked layers are updated as if they were apart."""
  given = config.optimizer.to_dict()
  clip = given.pop("clip_norm")
  rate = {
    name: given.pop(name)
    for name in (
      *("peak", "warm_constant", "start_step", "final_drop"),
      "final_fraction",
    )
  }
  schedule = minerva.rsqrt_schedule(num_steps=config.num_steps, **rate)
  direction = minerva.palm_direction(schedule, **given)
  if settings.model_config(config).scan_layers:
    direction = optimizers.stacked(direction, "(^|/)blocks/")
  return optax.chain(optax.clip_by_global_norm(clip), direction)


def rules(layout: str) -> tuple:
  """Where the parameters lie on a mesh of `data` and `model`.

  Args:
    layout: 'replicated', or 'fsdp': vocabulary, heads and hidden units over
      `model`, each array besides over `data`; keys and values, of one head,
      over `data` alone.
  """
  checks.one_of("layout", layout, settings.LAYOUTS)
  if layout == "replicated":
    return ()
  spread = lambda *axes: functools.partial(_spread, axes=axes)
  columns = r"(query|gate|up|fused_in)/kernel$"
  rows = r"(out|down|fused_out)/kernel$"
  return (
    (r"embed/embedding$", spread("model", None)),
    (r"output/kernel$", spread(None, "model")),
    (rf"blocks/.*{columns}", spread(None, None, "model")),
    (rf"blocks/.*{rows}", spread(None, "model", None)),
    (columns, spread(None, "model")),
    (rows, spread("model", None)),
    (r"(key|value|key_value)/kernel$", spread()),
  )


def _spread(shape, mesh, *, axes: tuple) -> jax.P:
  """Over these axes and `data`; what Adafactor keeps empty, nowhere."""
  if len(shape) < len(axes):
    return jax.P()
  return sharding.fsdp("data", base=jax.P(*axes))(shape, mesh)


def _rules(config) -> tuple:
  """Those of the layout that hit something in this model."""
  found = settings.model_config(config)
  unwanted = {
    "output": found.tie_embeddings,
    "blocks/.*": not found.scan_layers,
    "(query": found.scan_layers,
    "(out": found.scan_layers,
  }
  return tuple(
    (pattern, place)
    for pattern, place in rules(config.layout)
    if not any(pattern.startswith(s) and u for s, u in unwanted.items())
  )


def _windows(config, part: str, length: int) -> np.ndarray:
  data = config.data.to_dict()
  return texts.windows_of(_condition(config), part, length, **data)


def _batches(config, start: int) -> Iterator[types.Batch]:
  """Batches of windows: drawn problems first, if the condition says so."""
  length = settings.max_len(config)
  cut = round(_condition(config).first * config.num_steps)
  made = functools.partial(
    pipeline.array_batches,
    batch_size=config.batch_size,
    seed=config.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  if start < cut:
    first = made({"tokens": _windows(config, "drawn", length)})(start)
    for _ in range(start, cut):
      yield next(first)
  later = made({"tokens": _windows(config, "train", length)})
  yield from later(max(start - cut, 0))


def _evaluator(config, loss):
  """Loss over the first windows of the test."""
  value = jax.jit(lambda params, b: loss(params, {}, b, None)[1][0]["nll"])

  def run(state):
    windows = _windows(config, "test", settings.max_len(config))
    size = min(config.eval_batch_size, len(windows))
    windows = windows[: size * config.eval_batches]
    starts = range(0, len(windows) - size + 1, size)
    found = [
      value(state.params, {"tokens": windows[i : i + size]}) for i in starts
    ]
    return {"test_nll": float(np.mean([float(m.value()) for m in found]))}

  return run


def build(config) -> experiment.Experiment:
  """One run: `config.condition` with `config.seed`."""
  check(config)
  net, tx = model(config), optimizer(config)
  loss = loss_fn(net, z_loss=config.z_loss)
  length = settings.max_len(config)

  def init(key):
    init_key, run_key = jax.random.split(key)
    params = net.init(init_key, jnp.zeros((1, 2), jnp.int32))["params"]
    return steps.init_state(params, tx, key=run_key)

  evals = {}
  if config.needs_data:
    run_eval = _evaluator(config, loss)
    evals["eval"] = experiment.Eval(config.eval_every, run_eval)
  shape = (config.batch_size, length + 1)
  return experiment.Experiment(
    init=init,
    step=steps.from_loss(loss, tx),
    batches=functools.partial(_batches, config),
    num_steps=config.num_steps,
    batch_shapes={"tokens": jax.ShapeDtypeStruct(shape, jnp.int32)},
    rules=_rules(config),
    evals=evals,
    examples_per_step=config.batch_size,
  )


def _texts(config) -> texts.Texts:
  return texts.load(**config.data.to_dict())


def answerer(
  config, state: types.TrainState, tokenizer: Any, **changes: Any
) -> answering.Answerer:
  """What answers questions with the parameters of a run."""
  given = {**config.sampling.to_dict(), **changes}
  return answering.Answerer(
    model(config), state.params, tokenizer, seed=config.seed, **given
  )


def _questions(config, found: texts.Texts) -> list:
  condition = _condition(config)
  return [
    texts.question_of(one, condition, f"{config.data.name}/test/{i}")
    for i, one in enumerate(found.test)
  ]


def fit(config, folder: pathlib.Path) -> Mapping[str, Any]:
  """Trains a run, has it answer, and grades; resumes wherever it was.

  Returns:
    The result of the training, or why it diverged.
  """
  result = stages.fit_once(build, config, folder, may_differ=_NOT_IN_A_RUN)
  if "diverged" in result or not distributed.is_main():
    return result
  grades = folder / grading.GRADES
  found = _texts(config)
  questions = _questions(config, found)
  if _num_lines(grades) < len(questions):
    _answer_and_grade(config, folder, found, questions)
  return result


def _num_lines(path: pathlib.Path) -> int:
  return path.read_bytes().count(b"\n") if path.exists() else 0


def _answer_and_grade(config, folder, found: texts.Texts, questions) -> None:
  state = stages.fit(build(config), config, folder, may_differ=_NOT_IN_A_RUN)
  if isinstance(found.tokenizer, pieces.Pieces):
    found.tokenizer.save(folder / TOKENIZER)
  samples = answering.answer_all(
    answerer(config, state, found.tokenizer),
    questions,
    folder / answering.SAMPLES,
    batch=config.sampling.batch,
  )
  how = config.grading
  with grading.grader(
    how.engine, num_workers=how.workers, cpu_seconds=how.cpu_seconds
  ) as made:
    grading.grade_all(
      samples,
      folder / grading.GRADES,
      made,
      task=texts.TASK,
      num_threads=how.workers,
    )


def run(config, workdir: str) -> dict[str, Any]:
  """All conditions over all seeds, then table and figure; resumes.

  Returns:
    The rows of the table and the paths of what was written.
  """
  for name in config.conditions:
    checks.lookup("conditions", name, CONDITIONS)
  cells = len(config.conditions) * len(config.seeds)
  with study.opened(
    config, workdir, num_cells=cells, may_differ=_NOT_IN_A_RUN
  ) as made:
    for name in config.conditions:
      for seed in config.seeds:
        one = stages.changed(config, condition=name, seed=seed)
        where = report.folder(made.workdir, name, seed)
        train = functools.partial(fit, one, where)
        made.cell(f"{name}, seed {seed}", where, train)
    return report.write(made)


def evaluate(config, workdir: str) -> dict[str, float]:
  """Evaluates the newest checkpoint of a run's folder."""
  return loop.evaluate(
    build(config),
    workdir,
    key=jax.random.key(config.seed),
    mesh=sharding.make_mesh(dict(config.mesh)),
  )
