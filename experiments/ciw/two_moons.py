"""Two Moons with flipped labels: plain training against CIW and baselines.

`build` makes one method, with all replicas (own data, noise, initialisation
and order) side by side; a step of the loop is an epoch, a scan over its
batches. `run` trains all methods and lengths of burn-in, then writes a table
and figures (`moons_report.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from experiments.ciw import moons_report
from experiments.ciw import two_moons_settings as settings
from experiments.ciw.baselines import losses as baselines
from experiments.common import stages, study
from locojax.core import checks, metrics, types
from locojax.data import label_noise, pipeline
from locojax.data import two_moons as points
from locojax.methods.ciw import classes, diagnostics
from locojax.methods.ciw import loss as ciw_loss
from locojax.nn import mlp
from locojax.train import (
  distributed,
  experiment,
  loop,
  replicas,
  sharding,
  steps,
  variation,
)

Experiment = experiment.Experiment
NUM_CLASSES = 2
METHOD_OPTIONS = settings.METHOD_OPTIONS
check, check_run = settings.check, settings.check_run
# What does not change a run: which others there are, and, the learning rate
# being constant and burn-in counted in epochs, how long it goes on.
_NOT_IN_A_RUN = (
  *("methods", "pictured", "burnin_sweep", "burnin_method"),
  *("num_epochs", "num_frames"),
)


@functools.lru_cache(maxsize=64)
def _dataset(seed: int, items: tuple) -> dict[str, np.ndarray]:
  """Training points, given and true labels; clean test points and labels."""
  settings = dict(items)
  rng = np.random.default_rng(seed)
  make = functools.partial(points.two_moons, rng=rng, noise=settings["noise"])
  x, true = make(settings["num_train"])
  test_x, test_label = make(settings["num_test"])
  matrix = label_noise.transition_matrix(
    "symmetric", settings["flips"], num_classes=NUM_CLASSES
  )
  given = label_noise.corrupt(true, matrix, rng=rng, exact=True)
  return dict(x=x, label=given, true=true, test_x=test_x, test_label=test_label)


def dataset(config, replica: int) -> dict[str, np.ndarray]:
  """The data of one replica.

  Returns:
    `x` `[num_train, 2]`, `label` (given) and `true` `[num_train]`, `test_x`
    `[num_test, 2]`, `test_label` `[num_test]` (never flipped).
  """
  seed = variation.replica_seed(config.seed, replica)
  return _dataset(seed, tuple(sorted(config.data.items())))


def _stacked(config) -> dict[str, np.ndarray]:
  """The data of all replicas, `[replicas, ...]`."""
  sets = [dataset(config, r) for r in range(config.num_replicas)]
  return {name: np.stack([s[name] for s in sets]) for name in sets[0]}


def epochs(config, seed: int):
  """`start -> iterator` of epochs, `[batches, batch, ...]` for a seed."""
  data = _dataset(seed, tuple(sorted(config.data.items())))
  size = config.batch_size
  count = pipeline.steps_per_epoch(len(data["x"]), size)

  def iterate(start):
    rows = pipeline.index_batches(
      len(data["x"]), batch_size=count * size, seed=seed
    )(start)
    for order in rows:
      order = order.reshape(count, size)
      yield {"x": data["x"][order], "label": data["label"][order]}

  return iterate


def per_example(options: dict[str, Any]):
  """`(logits, labels, active) -> [n]` losses of a method.

  Once `active`, they are the class-reweighted losses, if the method has any.
  """
  plain = baselines.make(
    options.get("loss", "cross_entropy"), **options.get("loss_options", {})
  )
  settings = options.get("classes")

  def each(logits, labels, active):
    own = plain(logits, labels)
    if not settings:
      return own
    inner = classes.inner_losses(logits, labels, **settings)
    return jnp.where(active, inner, own)

  return each


def weights(options: dict[str, Any], *, burnin: int, anneal_steps: int):
  """`(losses [n], step) -> [n]` weights of a method, summing to one.

  Uniform while `step <= burnin`, and always without `instance`.
  """
  settings = dict(options.get("instance") or {})
  if not settings:
    return lambda each, step: jnp.full_like(each, 1 / each.shape[0])
  lam = ciw_loss.lambda_schedule(settings.pop("lam"), burnin, anneal_steps)
  made = ciw_loss.InstanceConfig(lam=lam, **settings)
  return lambda each, step: ciw_loss.weights_at(
    each, made, step=step, burnin=burnin
  )


def _method(config) -> dict[str, Any]:
  options = checks.lookup("method", config.method, config.table.to_dict())
  for name in options:
    checks.one_of(f"table.{config.method}", name, METHOD_OPTIONS)
  return options


@dataclasses.dataclass(frozen=True)
class Method:
  """What a config makes of its method.

  Attributes:
    model: the network.
    each: see `per_example`.
    weigh: see `weights`.
    burnin: number of updates of the burn-in.
    per_epoch: number of updates of an epoch.
  """

  model: mlp.MLP
  each: Any
  weigh: Any
  burnin: int
  per_epoch: int

  def logits(self, params, x) -> jax.Array:
    """`[n, 2]` to `[n, classes]`."""
    return self.model.apply({"params": params}, x)

  def scored(self, params, x, labels, step):
    """Losses and weights of a whole set after `step` updates."""
    active = (step > self.burnin) | (self.burnin == 0)
    each = self.each(self.logits(params, x), labels, active)
    return each, self.weigh(each, step)


def method(config) -> Method:
  """The method of a config."""
  per_epoch = pipeline.steps_per_epoch(config.data.num_train, config.batch_size)
  burnin = config.burnin_epochs * per_epoch
  options = _method(config)
  return Method(
    model=mlp.MLP(features=(*config.hidden, NUM_CLASSES)),
    each=per_example(options),
    weigh=weights(
      options, burnin=burnin, anneal_steps=config.anneal_epochs * per_epoch
    ),
    burnin=burnin,
    per_epoch=per_epoch,
  )


def loss_fn(made: Method) -> types.LossFn:
  """The weighted sum over a batch; its `update` is the number of updates."""

  @steps.couples_examples
  def weighted(params, model_state, batch, key):
    del key
    each, w = made.scored(params, batch["x"], batch["label"], batch["update"])
    loss = ciw_loss.weighted_sum(w, each)
    ess = diagnostics.effective_sample_size(w)
    found = {"loss": metrics.mean(loss), "ess": metrics.mean(ess)}
    return loss, (found, model_state)

  return weighted


def _evaluator(config, made: Method):
  """Accuracies and detection for each replica, and their means."""
  data = _stacked(config)
  flipped = data["label"] != data["true"]

  def one(params, step, sets):
    right = jnp.argmax(made.logits(params, sets["test_x"]), -1)
    each, w = made.scored(params, sets["x"], sets["label"], step)
    return jnp.mean(right == sets["test_label"]), each, w

  several = jax.jit(jax.vmap(one, in_axes=(0, None, 0)))

  def run(state):
    found = several(state.params, state.step * made.per_epoch, data)
    accuracy, each, w = map(np.asarray, found)
    auc = [
      diagnostics.noise_detection_auc(-l, f) for l, f in zip(each, flipped)
    ]
    values = {
      "accuracy": accuracy,
      "detection_auc": auc,
      "flipped_weight": (w * flipped).sum(axis=1),
    }
    out = {name: float(np.mean(v)) for name, v in values.items()}
    for name, v in values.items():
      out |= {f"replica_{r}/{name}": float(x) for r, x in enumerate(v)}
    return out

  return run


def build(config) -> Experiment:
  """One run: `config.method`, all replicas, a step an epoch."""
  check(config)
  made = method(config)
  tx = optax.sgd(config.learning_rate, momentum=config.momentum)

  def init(key):
    init_key, run_key = jax.random.split(key)
    params = made.model.init(init_key, jnp.zeros((1, 2)))["params"]
    return steps.init_state(params, tx, key=run_key)

  rows = (made.per_epoch, config.batch_size)
  step = steps.from_loss(loss_fn(made), tx)
  single = Experiment(
    init=init,
    step=steps.scanned(steps.with_update(step), made.per_epoch),
    batches=epochs(config, variation.replica_seed(config.seed, 0)),
    num_steps=config.num_epochs,
    batch_shapes={
      "x": jax.ShapeDtypeStruct((*rows, 2), jnp.float32),
      "label": jax.ShapeDtypeStruct(rows, jnp.int32),
    },
    batch_spec=PartitionSpec(),
    examples_per_step=rows[0] * rows[1],
  )
  several = replicas.from_experiment(
    single,
    num_replicas=config.num_replicas,
    vary={"init", "order"},
    batches=functools.partial(epochs, config),
    order_seed=config.seed,
  )
  evals = {"eval": experiment.Eval(config.eval_every, _evaluator(config, made))}
  return dataclasses.replace(several, evals=evals)


def _frames(config, folder: pathlib.Path) -> experiment.Eval:
  """Keeps what the animation shows, a file for each of its frames."""
  picture = moons_report.picture(config, method(config), dataset)

  def run(state):
    found = picture(state)
    if distributed.is_main():
      moons_report.keep_frame(folder, int(state.step), found)
    return {"flipped_weight": float(found["flipped_weight"])}

  return experiment.Eval(max(1, config.num_epochs // config.num_frames), run)


def fit(config, folder: pathlib.Path) -> types.TrainState:
  """Trains one run; its final state."""
  made = build(config)
  if config.num_frames and config.method in config.pictured:
    made = dataclasses.replace(
      made, evals={**made.evals, "frames": _frames(config, folder / "frames")}
    )
  return stages.fit(
    made,
    config,
    folder,
    log_every=max(1, config.num_epochs // 10),
    save_every=config.save_every,
    may_differ=_NOT_IN_A_RUN,
  )


def plan(config) -> dict[str, Any]:
  """The config of every run by name: methods, then the burn-in sweep."""
  runs = {name: stages.changed(config, method=name) for name in config.methods}
  for epochs in config.burnin_sweep:
    if epochs == config.burnin_epochs:
      continue  # that is the method itself
    name = f"burnin_{epochs}"
    runs[name] = stages.changed(
      config, method=config.burnin_method, burnin_epochs=epochs, num_frames=0
    )
  return runs


def run(config, workdir: str) -> dict[str, Any]:
  """All methods and lengths of burn-in, then table and figures.

  Resumes: finished runs are not run again.

  Returns:
    The rows of the table and the paths of what was written.
  """
  for name in config.methods:
    checks.one_of("methods", name, config.table.to_dict())
  for name in (*config.pictured, config.burnin_method):
    checks.one_of("pictured and burnin_method", name, config.methods)
  every, pictures = plan(config), {}
  with study.opened(
    config, workdir, num_cells=len(every), may_differ=_NOT_IN_A_RUN
  ) as made:
    for name, one in every.items():
      where = made.workdir / name
      state = made.cell(name, where, functools.partial(fit, one, where))
      if name in config.pictured:
        picture = moons_report.picture(one, method(one), dataset)
        pictures[name] = picture(state)
    return moons_report.write(made, every, pictures)


def evaluate(config, workdir: str) -> dict[str, float]:
  """Evaluates the newest checkpoint of one run."""
  return loop.evaluate(
    build(config),
    workdir,
    key=jax.random.key(config.seed),
    mesh=sharding.make_mesh(dict(config.mesh)),
  )
