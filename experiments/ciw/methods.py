"""Methods against label noise by name: what each makes of a batch.

A batch has `image`, `label`, `index` (the place in the training set) and
`update` (the number of updates done, see `steps.with_update`). The model state
is `{"net": ...}`, and `memory` for methods that remember every example.

    cross_entropy, label_smoothing, bi_tempered, nce_rce, generalized_ce,
    bootstrap_hard        a per-example loss (`baselines/losses.py`), its mean
    dynamic_bootstrapping, dynamic_mixup   (`baselines/dynamic.py`)
    mixup                 random partners, cross-entropy
    ciw, cicw             instance weights; with class weights too
    cicw_mixup            weights decide partner and ratio of mixup
    ciw_label_smoothing   weights decide how far labels move to the prediction

With mixup of weights there are two passes: one over the clean batch, whose
losses give the weights, and one over the mixed batch, through which alone the
gradient flows. Until the end of the burn-in they are plain mixup.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.ciw.baselines import dynamic
from experiments.ciw.baselines import losses as baselines
from locojax.core import checks, metrics, types
from locojax.methods.ciw import loss as ciw_loss
from locojax.methods.ciw import mixup as mixup_lib
from locojax.train import steps

_cross_entropy = baselines.make("cross_entropy")


@dataclasses.dataclass(frozen=True)
class Setup:
  """What a method is made for.

  Attributes:
    forward: `(params, net_state, images) -> (logits, net_state)`, in training.
    num_classes: K.
    num_examples: of the training set.
    num_updates: of the whole run; what shares of it refer to.
    groups: parts of the batch within which partners of mixup are sought.
  """

  forward: Callable[..., tuple[jax.Array, types.PyTree]]
  num_classes: int
  num_examples: int
  num_updates: int
  groups: int = 1

  def updates(self, name: str, share: float) -> int:
    """A share of the run in updates."""
    return round(checks.in_range(name, share, 0.0, 1.0) * self.num_updates)


@dataclasses.dataclass(frozen=True)
class Method:
  """A method.

  Attributes:
    loss: the loss of a batch; see the head of this file.
    remembers: whether the model state has a `memory`, refitted every epoch.
    weights: `(logits, labels, update, model_state) -> [n]`, how much each
      example of the whole training set counts; None if all count alike.
  """

  loss: types.LossFn
  remembers: bool = False
  weights: Callable[..., jax.Array] | None = None

  def model_state(self, net: types.PyTree, num_examples: int) -> types.PyTree:
    """The model state at the start."""
    if not self.remembers:
      return {"net": net}
    return {"net": net, "memory": dynamic.init_memory(num_examples)}


def end_of_epoch(model_state: types.PyTree, due=True) -> types.PyTree:
  """Fits the mixture of Beta distributions, for methods that remember."""
  memory = dynamic.refit(model_state["memory"], due)
  return {**model_state, "memory": memory}


def _result(loss, logits, labels, model_state, **more):
  """What a `LossFn` returns; the accuracy is that of the given labels."""
  found = {
    "loss": metrics.mean(loss),
    "accuracy": metrics.accuracy(logits, labels),
  }
  found |= {name: metrics.mean(value) for name, value in more.items()}
  return loss, (found, model_state)


def _baseline(name: str, setup: Setup, **options) -> Method:
  each = baselines.make(name, **options)

  def loss_fn(params, model_state, batch, key):
    del key
    logits, net = setup.forward(params, model_state["net"], batch["image"])
    loss = jnp.mean(each(logits, batch["label"]))
    return _result(loss, logits, batch["label"], {**model_state, "net": net})

  return Method(loss_fn)


def _mixup(setup: Setup, *, mixup_alpha: float) -> Method:
  """Mixup (Zhang et al. 2018): Beta(alpha, alpha) for each pair."""
  checks.positive("mixup_alpha", mixup_alpha)

  @steps.couples_examples
  def loss_fn(params, model_state, batch, key):
    mixed = _mix(setup, key, batch, None, mode="simple", alpha=mixup_alpha)
    logits, net = setup.forward(params, model_state["net"], mixed.inputs)
    loss = jnp.mean(_cross_entropy(logits, mixed.labels))
    return _result(loss, logits, batch["label"], {**model_state, "net": net})

  return Method(loss_fn)


def _mix(setup, key, batch, weights, **settings) -> mixup_lib.Mixed:
  labels = batch["label"]
  if weights is None:
    weights = jnp.ones(labels.shape, jnp.float32)
  return mixup_lib.ciw_mixup(
    key,
    batch["image"],
    labels,
    weights,
    num_classes=setup.num_classes,
    groups=setup.groups,
    **settings,
  )


def _remembered(batch, model_state, logits, start: int):
  """The memory with this batch, and the posterior, 0 before `start`."""
  each = _cross_entropy(logits, batch["label"])
  memory = dynamic.remember(model_state["memory"], batch["index"], each)
  noisy = memory.noisy[batch["index"]]
  return memory, jnp.where(batch["update"] >= start, noisy, 0.0)


def _clean_probability(logits, labels, update, model_state):
  del logits, labels, update
  return 1 - model_state["memory"].noisy


def _dynamic_bootstrapping(
  setup: Setup, *, burnin: float, prediction: str
) -> Method:
  """Labels move to the prediction by the posterior, after the burn-in."""
  checks.one_of("prediction", prediction, dynamic.PREDICTIONS)
  start = setup.updates("burnin", burnin)

  def loss_fn(params, model_state, batch, key):
    del key
    labels = batch["label"]
    logits, net = setup.forward(params, model_state["net"], batch["image"])
    memory, noisy = _remembered(batch, model_state, logits, start)
    each = dynamic.dynamic_bootstrapping(
      logits, labels, noisy, prediction=prediction
    )
    new = {**model_state, "net": net, "memory": memory}
    return _result(jnp.mean(each), logits, labels, new)

  return Method(loss_fn, remembers=True, weights=_clean_probability)


def _dynamic_mixup(setup: Setup, *, burnin: float, mixup_alpha: float):
  """Mixup in the ratio of the posteriors; plain mixup in the burn-in."""
  start = setup.updates("burnin", burnin)
  checks.positive("mixup_alpha", mixup_alpha)

  @steps.couples_examples
  def loss_fn(params, model_state, batch, key):
    labels = batch["label"]
    clean, net = setup.forward(params, model_state["net"], batch["image"])
    clean = jax.lax.stop_gradient(clean)
    memory, noisy = _remembered(batch, model_state, clean, start)
    early = _mix(setup, key, batch, None, mode="simple", alpha=mixup_alpha)
    late = _mix(setup, key, batch, 1 - noisy, mode="weight")
    mixed = _select(batch["update"] >= start, late, early)
    logits, net = setup.forward(params, net, mixed.inputs)
    loss = jnp.mean(_cross_entropy(logits, mixed.labels))
    new = {**model_state, "net": net, "memory": memory}
    return _result(loss, clean, labels, new)

  return Method(loss_fn, remembers=True, weights=_clean_probability)


def _select(late, new: Any, old: Any) -> Any:
  return jax.tree.map(lambda a, b: jnp.where(late, a, b), new, old)


@dataclasses.dataclass(frozen=True)
class _Weighting:
  """Instance and class weights with their schedule, in updates."""

  instance: ciw_loss.InstanceConfig
  class_: ciw_loss.ClassConfig | None
  burnin: int

  def __call__(self, logits, labels, update):
    return ciw_loss.ciw_loss(
      logits,
      labels,
      instance=self.instance,
      class_=self.class_,
      step=update,
      burnin=self.burnin,
    )

  def of_set(self, logits, labels, update, model_state) -> jax.Array:
    """Weights of a whole set, `[n]`."""
    del model_state
    return self(logits, labels, update)[1]["weights"]


def _weighting(
  setup: Setup,
  *,
  divergence: str,
  lam: float,
  burnin: float,
  anneal: float = 0.06,
  order: float | None = None,
  class_divergence: str | None = None,
  gamma: float = 0.0,
) -> _Weighting:
  """See `ciw_loss.InstanceConfig`; `burnin`, `anneal` are shares of the run."""
  start = setup.updates("burnin", burnin)
  schedule = ciw_loss.lambda_schedule(
    lam, start, setup.updates("anneal", anneal)
  )
  class_ = None
  if class_divergence is not None:
    class_ = ciw_loss.ClassConfig(class_divergence, gamma)
  instance = ciw_loss.InstanceConfig(divergence, alpha=order, lam=schedule)
  return _Weighting(instance, class_, start)


def _ciw(setup: Setup, **options) -> Method:
  weigh = _weighting(setup, **options)

  @steps.couples_examples
  def loss_fn(params, model_state, batch, key):
    del key
    labels = batch["label"]
    logits, net = setup.forward(params, model_state["net"], batch["image"])
    loss, aux = weigh(logits, labels, batch["update"])
    new = {**model_state, "net": net}
    return _result(loss, logits, labels, new, ess=aux["ess"])

  return Method(loss_fn, weights=weigh.of_set)


def _ciw_mixup(
  mode: str,
  setup: Setup,
  *,
  mixup_alpha: float,
  power: float = 1.0,
  reweight_mixed: bool = False,
  **options,
) -> Method:
  """Mixup biased by the weights.

  Args:
    mode: of `mixup.ciw_mixup`.
    setup: what the method is made for.
    mixup_alpha: of the Beta distribution, for `label_smoothing` and in the
      burn-in.
    power: exponent of the weights.
    reweight_mixed: whether the mixed batch is weighted too, or its
      cross-entropy averaged.
    **options: of `_weighting`.
  """
  checks.positive("mixup_alpha", mixup_alpha)
  checks.nonnegative("power", power)
  checks.boolean("reweight_mixed", reweight_mixed)
  weigh = _weighting(setup, **options)

  @steps.couples_examples
  def loss_fn(params, model_state, batch, key):
    labels, update = batch["label"], batch["update"]
    clean, net = setup.forward(params, model_state["net"], batch["image"])
    clean = jax.lax.stop_gradient(clean)
    _, aux = weigh(clean, labels, update)
    shared = {"alpha": mixup_alpha}
    early = _mix(setup, key, batch, None, mode="simple", **shared)
    shared |= {"power": power, "logits": clean}
    late = _mix(setup, key, batch, aux["weights"], mode=mode, **shared)
    mixed = _select(update > weigh.burnin, late, early)
    logits, net = setup.forward(params, net, mixed.inputs)
    loss = jnp.mean(_cross_entropy(logits, mixed.labels))
    if reweight_mixed:
      loss, _ = weigh(logits, mixed.labels, update)
    new = {**model_state, "net": net}
    return _result(loss, clean, labels, new, ess=aux["ess"])

  return Method(loss_fn, weights=weigh.of_set)


_BASELINES = (
  "cross_entropy",
  "label_smoothing",
  "bi_tempered",
  "nce_rce",
  "generalized_ce",
  "bootstrap_hard",
)
METHODS: dict[str, Callable[..., Method]] = {
  **{name: functools.partial(_baseline, name) for name in _BASELINES},
  "dynamic_bootstrapping": _dynamic_bootstrapping,
  "mixup": _mixup,
  "dynamic_mixup": _dynamic_mixup,
  "ciw": _ciw,
  "cicw": _ciw,
  "cicw_mixup": functools.partial(_ciw_mixup, "sample_weight"),
  "ciw_label_smoothing": functools.partial(_ciw_mixup, "label_smoothing"),
}


def make(name: str, setup: Setup, **options: Any) -> Method:
  """A method by name.

  Args:
    name: a key of `METHODS`.
    setup: what it is made for.
    **options: its hyperparameters; `search.py` has those that are tried.

  Raises:
    ValueError: an unknown name (the known ones are listed), or an option out
      of range.
    TypeError: an option that the method does not have, or lacks.
  """
  return checks.lookup("method", name, METHODS)(setup, **options)
