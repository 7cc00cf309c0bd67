"""A transformer language model, trained with LocoProp or AdamW.

Stock flax layers, all dense ones covered by LocoProp: attention projections and
`down` are linear, `up` has its activation, `output` is softmax. LayerNorm and
the embeddings take the fallback, Adam.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import stages, study
from experiments.locoprop import corpus
from experiments.locoprop import language_model_settings as settings
from locojax.core import checks, labels, metrics, trees, types
from locojax.data import pipeline
from locojax.methods import locoprop
from locojax.methods.locoprop import matching
from locojax.nn import lm
from locojax.report import curves, runs
from locojax.train import experiment, loop, optimizers, sharding, steps

METHODS = settings.METHODS
ACTIVATIONS = settings.ACTIVATIONS
OUTPUTS = settings.OUTPUTS
check, check_run = settings.check, settings.check_run
# What does not change a run: which others there are.
_NOT_IN_A_RUN = ("methods", "seeds")
LOSS = "eval/test_loss"


def make_model(
  *, activation: str, dtype: str = "float32", **sizes: Any
) -> lm.DecoderLM:
  """The model of `config.model`; the activation is monotone."""
  checks.one_of("model.activation", activation, ACTIVATIONS)
  checks.one_of("model.dtype", dtype, settings.DTYPES)
  return lm.DecoderLM(
    activation=matching.get(activation).transfer,
    dtype=jnp.dtype(dtype),
    **sizes,
  )


def transfers(activation: str, output: str) -> dict[str, str]:
  """Transfer functions of the dense layers, by regex of the path."""
  checks.one_of("locoprop.output", output, OUTPUTS)
  return {
    "attention/(query|key|value|out)$": "linear",
    "feed_forward/up$": activation,
    "feed_forward/down$": "linear",
    "^output$": output,
  }


def make_loss(model: lm.DecoderLM) -> types.LossFn:
  """Cross-entropy of the next token, mean over all tokens of the batch."""

  def loss_fn(params, model_state, batch, key):
    del key
    tokens = batch["tokens"]
    logits = model.apply({"params": params}, tokens[:, :-1])
    each = labels.cross_entropy(logits, tokens[:, 1:])
    value = metrics.mean(each)
    return value.value(), ({"loss": value}, model_state)

  return loss_fn


def _adamw(loss_fn, schedule, *, weight_decay, clip_norm, b2):
  tx = optimizers.make(
    "adamw",
    learning_rate=schedule,
    weight_decay=weight_decay,
    decay_paths="kernel$",
    clip_norm=clip_norm,
    b2=b2,
  )
  return tx, steps.from_loss(loss_fn, tx)


def _locoprop(
  loss_fn,
  schedule,
  *,
  num_tokens,
  activation,
  inner,
  gamma,
  output,
  output_gamma,
  fallback_ratio,
  weight_decay,
  clip_norm,
  **options,
):
  """Clipping, LocoProp, decoupled decay.

  `gamma` and `output_gamma` are times the tokens of a batch, so that they
  speak of the loss of one token: at 1 the target of a softmax is its label.
  `fallback_ratio` is the fallback's share of the learning rate.
  """
  rules = transfers(activation, output)
  gammas = {"^output$": output_gamma * num_tokens, ".*": gamma * num_tokens}
  tx = optax.chain(
    optax.clip_by_global_norm(clip_norm),
    locoprop.locoprop(
      schedule,
      inner,
      transfers=rules,
      gamma=gammas,
      local_reduction="sum",
      fallback=optax.adam(lambda count: fallback_ratio * schedule(count)),
      **options,
    ),
    optax.add_decayed_weights(
      lambda count: -weight_decay * schedule(count),
      functools.partial(trees.mask, patterns="kernel$"),
    ),
  )
  keep = functools.partial(trees.matches, patterns=tuple(rules))
  return tx, locoprop.make_step(loss_fn, tx, filter=keep)


def make_step(
  config, loss_fn: types.LossFn
) -> tuple[optax.GradientTransformation, types.StepFn]:
  """The transformation and the step of `config.method`."""
  checks.one_of("method", config.method, METHODS)
  options = config[config.method].to_dict()
  schedule = optimizers.schedule(
    config.schedule,
    learning_rate=options.pop("learning_rate"),
    num_steps=config.num_steps,
    warmup_steps=config.warmup_steps,
    final=0.1,
  )
  if config.method == "adamw":
    return _adamw(loss_fn, schedule, **options)
  return _locoprop(
    loss_fn,
    schedule,
    num_tokens=config.batch_size * config.model.max_len,
    activation=config.model.activation,
    **options,
  )


def _corpus(config) -> dict[str, np.ndarray]:
  return corpus.load(
    config.data.name,
    length=config.model.max_len,
    vocab_size=config.model.vocab_size,
    num_bytes=config.data.num_bytes or None,
    path=config.data.path,
  )


def _batches(config):
  """Batches of windows; the corpus is read when the loop asks."""

  def start_at(start):
    return pipeline.array_batches(
      {"tokens": _corpus(config)["train"]},
      batch_size=config.batch_size,
      seed=config.seed,
      map=lambda b: {"tokens": b["tokens"].astype(np.int32)},
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )(start)

  return start_at


def _evaluator(config, loss_fn):
  """Loss over the first windows of the test split."""
  value = jax.jit(lambda params, b: loss_fn(params, {}, b, None)[0])

  def run(state):
    size = config.eval_batch_size
    windows = _corpus(config)["test"][: size * config.eval_batches]
    size = min(size, len(windows))
    starts = range(0, len(windows) - size + 1, size)
    losses = [
      float(value(state.params, {"tokens": windows[i : i + size].astype("i4")}))
      for i in starts
    ]
    return {"test_loss": float(np.mean(losses))}

  return run


def rules(layout: str):
  """Sharding rules: which axes the parameters of the model lie on.

  Args:
    layout: 'replicated'; 'model': kernels on their outputs, so that a local
      problem is spread without communication, embeddings on the vocabulary;
      'fsdp': the same, and over `data` on the other dimension.
  """
  checks.one_of("layout", layout, settings.LAYOUTS)
  if layout == "replicated":
    return ()
  kernel, embedding = jax.P(None, "model"), jax.P("model", None)
  if layout == "fsdp":
    kernel, embedding = (
      sharding.fsdp("data", base=base) for base in (kernel, embedding)
    )
  return (("kernel$", kernel), ("^params/embed/embedding$", embedding))


def build(config) -> experiment.Experiment:
  """One run: `config.method` from `config.seed`."""
  check(config)
  model = make_model(**config.model.to_dict())
  loss_fn = make_loss(model)
  tx, step = make_step(config, loss_fn)
  shape = (config.batch_size, config.model.max_len + 1)

  def init(key):
    init_key, run_key = jax.random.split(key)
    params = model.init(init_key, jnp.zeros((1, 2), jnp.int32))["params"]
    return steps.init_state(params, tx, key=run_key)

  return experiment.Experiment(
    init=init,
    step=step,
    batches=_batches(config),
    num_steps=config.num_steps,
    batch_shapes={"tokens": jax.ShapeDtypeStruct(shape, jnp.int32)},
    rules=rules(config.layout),
    evals={
      "eval": experiment.Eval(config.eval_every, _evaluator(config, loss_fn))
    },
    examples_per_step=config.batch_size,
  )


def fit(config, folder: pathlib.Path) -> Mapping[str, Any]:
  """Trains one run; its result, or the reason why it diverged."""
  return stages.fit_once(build, config, folder, may_differ=_NOT_IN_A_RUN)


def _folder(workdir: pathlib.Path, method: str, seed: int) -> pathlib.Path:
  return workdir / method / f"seed_{seed}"


def _row(made: study.Study, method: str) -> dict[str, Any]:
  """Losses and milliseconds a step of a method, a number for each seed."""
  found = [
    stages.result(_folder(made.workdir, method, s)) for s in made.config.seeds
  ]
  value = lambda r, name: r.get("values", {}).get(name)
  return {
    "method": method,
    "test_loss": [value(r, LOSS) for r in found],
    "train_loss": [value(r, "train/loss") for r in found],
    "step_ms": [
      None if "diverged" in r else 1e3 * r["seconds"] / r["step"] for r in found
    ],
  }


def _draw(made: study.Study, path: pathlib.Path) -> pathlib.Path:
  """Test loss against steps and seconds."""
  groups = {}
  for method in made.config.methods:
    folders = [_folder(made.workdir, method, s) for s in made.config.seeds]
    several = [runs.load(f) for f in folders]
    several = [r for r in several if r.finished]
    if several:
      groups[method] = several
  panels = [
    curves.Panel(LOSS, x=x, title=f"equal {x}", y_label="test loss")
    for x in ("step", "seconds")
  ]
  data = curves.averages(groups, panels)
  return curves.draw(data, list(groups), panels, path)


def run(config, workdir: str) -> dict[str, Any]:
  """All methods over all seeds, then table and figure; resumes.

  Returns:
    The rows of the table and the paths of what was written.
  """
  for method in config.methods:
    checks.one_of("methods", method, METHODS)
  cells = len(config.methods) * len(config.seeds)
  with study.opened(
    config, workdir, num_cells=cells, may_differ=_NOT_IN_A_RUN
  ) as made:
    for method in config.methods:
      for seed in config.seeds:
        one = stages.changed(config, method=method, seed=seed)
        where = _folder(made.workdir, method, seed)
        name = f"{method}, seed {seed}"
        made.cell(name, where, functools.partial(fit, one, where))
    return made.write(
      [_row(made, method) for method in config.methods],
      ["method", "test_loss", "train_loss", "step_ms"],
      draw=functools.partial(_draw, made),
      seeds=config.seeds,
    )


def evaluate(config, workdir: str) -> dict[str, float]:
  """Evaluates the newest checkpoint of a method's folder."""
  return loop.evaluate(
    build(config),
    workdir,
    key=jax.random.key(config.seed),
    mesh=sharding.make_mesh(dict(config.mesh)),
  )
