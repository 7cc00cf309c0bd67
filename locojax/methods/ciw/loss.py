"""Reweighted losses, and wrappers for training steps.

  loss = sum_i w_i sum_k v_ik l_ik,   d loss / d logits_i = w_i (p_i - v_i),

instance weights w (from the class-reweighted losses) and class weights v being
constants. While step <= burnin, w is uniform and v the label: a plain mean.

Inside `shard_map`, with `axis_name`, every loss here is the own shard's share
of the sum: `psum` it, and its gradient, for the whole. Letters in shapes: n
examples, K classes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from locojax.core import arrays, checks, metrics, types
from locojax.core import labels as labels_lib
from locojax.methods.ciw import classes, diagnostics, inputs, instance

# The counter's collection in the model state.
STATE = "ciw"


@dataclasses.dataclass(frozen=True)
class InstanceConfig:
  """How examples are weighted; see `instance.instance_weights`.

  Attributes:
    divergence: one of `instance.DIVERGENCES`.
    alpha: order of `alpha` and `renyi`.
    lam: above 0, or a schedule of the step such as `lambda_schedule`.
    radius: or the radius; exactly one of the two.
    normalize: whether the weights sum to 1.
    groups: parts of the batch that are weighted apart.

  >>> InstanceConfig(lam=0.5).divergence
  'kl'
  """

  divergence: str = "kl"
  alpha: float | None = None
  lam: float | Callable[[ArrayLike], ArrayLike] | None = None
  radius: float | None = None
  normalize: bool = True
  groups: int = 1

  def __post_init__(self):
    instance.check_settings(
      self.divergence,
      self.alpha,
      self.lam,
      self.radius,
      self.normalize,
      self.groups,
    )


@dataclasses.dataclass(frozen=True)
class ClassConfig:
  """How classes are weighted; see `classes.class_weights`.

  Attributes:
    divergence: one of `classes.DIVERGENCES`.
    gamma: radius in that divergence.
  """

  divergence: str = "tv"
  gamma: float = 0.1

  def __post_init__(self):
    classes.check_settings(self.divergence, self.gamma)


def lambda_schedule(
  lam: float,
  burnin: int,
  anneal_steps: int = 3000,
  start_factor: float = 10.0,
) -> optax.Schedule:
  """From `start_factor * lam` at `burnin` linearly to `lam`, then constant.

  Args:
    lam: final value, above 0.
    burnin: step at which annealing starts, 0 or more.
    anneal_steps: length of the annealing; 0 leaves `lam` throughout.
    start_factor: above 0.

  Returns:
    `step -> lam`.

  Raises:
    ValueError: a bad number.

  >>> round(float(lambda_schedule(0.1, 4000)(4500)), 4)
  0.85
  """
  checks.positive("lam", lam)
  checks.positive("start_factor", start_factor)
  checks.nonnegative("burnin", burnin)
  checks.nonnegative("anneal_steps", anneal_steps)
  if not anneal_steps:
    return optax.constant_schedule(lam)
  return optax.linear_schedule(lam * start_factor, lam, anneal_steps, burnin)


def _needs_step(config: InstanceConfig, burnin: int) -> bool:
  return burnin > 0 or callable(config.lam)


def _check_step(config, step, burnin) -> None:
  checks.nonnegative("burnin", burnin)
  if step is None and _needs_step(config, burnin):
    raise ValueError(
      f"step=None is not allowed with burnin={burnin} and lam={config.lam!r}: "
      "a burn-in or a schedule needs it."
    )


def weights_at(
  losses: ArrayLike,
  config: InstanceConfig,
  *,
  step: ArrayLike | None = None,
  burnin: int = 0,
  mask: ArrayLike | None = None,
  axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
  """Instance weights at a step: uniform up to `burnin`, then as configured.

  Args:
    losses: `[n]`.
    config: how the weights are found.
    step: updates done; needed by a burn-in or a schedule of `lam`.
    burnin: last step with uniform weights; 0 for none at all.
    mask: `[n]`, zero at examples that count as removed.
    axis_name: as in `instance.instance_weights`.

  Returns:
    `[n]`, gradient stopped.

  Raises:
    ValueError: no step where one is needed; see `instance_weights`.

  >>> config = InstanceConfig(lam=0.5)
  >>> weights_at([0.0, 1.0], config, step=10, burnin=10).tolist()
  [0.5, 0.5]
  """
  _check_step(config, step, burnin)
  lam = config.lam(step) if callable(config.lam) else config.lam
  weights = instance.instance_weights(
    losses,
    divergence=config.divergence,
    alpha=config.alpha,
    lam=lam,
    radius=config.radius,
    normalize=config.normalize,
    mask=mask,
    axis_name=axis_name,
    groups=config.groups,
  )
  if not burnin:
    return weights
  uniform = instance.uniform_weights(losses, mask=mask, axis_name=axis_name)
  return jnp.where(jnp.asarray(step) <= burnin, uniform, weights)


def weighted_sum(weights: jax.Array, losses: jax.Array) -> jax.Array:
  """sum_i w_i l_i; losses of weight 0 do not matter, not even infinity.

  Their gradient is zero too, if finite. A NaN weight stays visible.
  """
  losses = arrays.as_float(losses)
  return jnp.sum(weights * jnp.where(weights == 0, 0.0, losses))


def _logits_and_labels(logits, labels, mask):
  """Both in safe values: masked rows are zeros with label 0.

  Rows with a bad label are NaN.
  """
  logits = arrays.as_float(logits)
  if logits.ndim != 2 or 0 in logits.shape:
    raise ValueError(
      f"logits has shape {logits.shape}: it must be [examples, classes]."
    )
  live = inputs.live_examples(mask, logits.shape[0])
  labels, bad = classes.check_labels(labels, logits.shape, live)
  logits = arrays.kept(logits, live)
  return labels_lib.spoil(logits, bad), labels


def _inner(logits, labels, config, gamma):
  """Class-reweighted losses `[n]` and the class weights `[n, K]`."""
  weights = classes.class_weights(
    -logits, labels, divergence=config.divergence, gamma=gamma
  )
  if labels.ndim == 1 and config.divergence != "l2":
    losses = classes.inner_losses(
      logits, labels, divergence=config.divergence, gamma=gamma
    )
    return losses, weights
  log_p = jax.nn.log_softmax(logits, axis=1)
  terms = weights * jnp.where(weights == 0, 0.0, -log_p)
  return jnp.sum(terms, axis=1), weights


def ciw_loss(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  instance: InstanceConfig,
  class_: ClassConfig | None = None,
  step: ArrayLike | None = None,
  burnin: int = 0,
  mask: ArrayLike | None = None,
  axis_name: str | tuple[str, ...] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Cross-entropy with constrained instance (CIW) and class (CICW) weights.

  Args:
    logits: `[n, K]`, any real dtype; computed in float32 or float64.
    labels: `[n]` integers in [0, K), or `[n, K]` probabilities (after mixup).
      Others are refused; where they are traced, the loss of the example is NaN
      (`core.labels`), and with it the weighted loss.
    instance: how examples are weighted.
    class_: how classes are weighted; None keeps the labels.
    step: updates done; needed by a burn-in or a schedule of `lam`.
    burnin: last step of plain mean cross-entropy; 0 for none at all.
    mask: `[n]`, zero at examples that count as removed.
    axis_name: mapped axis over which the batch is split; the loss is then the
      own share of the sum.

  Returns:
    The loss `[]`, and a dict, gradient stopped: `weights` `[n]`,
    `inner_losses` `[n]`, `class_weights` `[n, K]` (free under `jit` unless
    used), `ess` `[]` the effective sample size.

  Raises:
    ValueError: wrong shapes, labels or masks; no step where one is needed.

  >>> import jax.numpy as jnp
  >>> logits, labels = jnp.array([[2.0, 1, 0], [0, 1.5, -1]]), jnp.array([2, 1])
  >>> config, class_ = InstanceConfig(lam=0.5), ClassConfig("tv", 0.1)
  >>> loss, _ = ciw_loss(logits, labels, instance=config, class_=class_)
  >>> round(float(loss), 6)
  0.30555
  """
  _check_step(instance, step, burnin)
  logits, labels = _logits_and_labels(logits, labels, mask)
  class_ = ClassConfig("tv", 0.0) if class_ is None else class_
  gamma = class_.gamma
  if burnin:
    gamma = jnp.where(jnp.asarray(step) <= burnin, 0.0, gamma)
  losses, class_weights = _inner(logits, labels, class_, gamma)
  weights = weights_at(
    losses, instance, step=step, burnin=burnin, mask=mask, axis_name=axis_name
  )
  aux = {
    "weights": weights,
    "inner_losses": jax.lax.stop_gradient(losses),
    "class_weights": class_weights,
    "ess": diagnostics.effective_sample_size(weights, axis_name=axis_name),
  }
  return weighted_sum(weights, losses), aux


def ciw_binary_loss(
  logits: ArrayLike, labels: ArrayLike, **settings: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`ciw_loss` for one sigmoid output: classes with logits 0 and z.

  Args:
    logits: `[n]` z, the log-odds of label 1.
    labels: `[n]` integers 0 or 1, or float probabilities of 1; others as in
      `ciw_loss`.
    **settings: as in `ciw_loss`.

  Returns:
    As `ciw_loss`, with K = 2.

  Raises:
    ValueError: as `ciw_loss`.

  >>> config = InstanceConfig(lam=1.0)
  >>> loss, _ = ciw_binary_loss([0.0, 0.0], [0, 1], instance=config)
  >>> round(float(loss), 4)
  0.6931
  """
  logits, labels = arrays.as_float(logits), checks.array("labels", labels)
  if logits.ndim != 1:
    raise ValueError(f"logits has shape {logits.shape}: it must be [examples].")
  checks.same_shape("labels", labels.shape, "logits", logits.shape)
  if jnp.issubdtype(labels.dtype, jnp.floating):
    labels = jnp.stack([1 - labels, labels], axis=1)
  both = jnp.stack([jnp.zeros_like(logits), logits], axis=1)
  return ciw_loss(both, labels, **settings)


def with_counter(model_state: types.PyTree = None) -> types.PyTree:
  """A model state with the count of losses taken, for `reweight`.

  The count is a collection of its own, `{"ciw": {"step": 0}}`: linen modules
  pass it by, checkpoints hold it, and evals need not know of it.

  Args:
    model_state: a dict of collections; None stands for `{}`.

  >>> with_counter()["ciw"]["step"].tolist()
  0
  """
  counter = {"step": jnp.zeros((), jnp.int32)}
  return {**(model_state or {}), STATE: counter}


def _take_step(model_state, needed: bool):
  """The state without the counter, and the step (None if not needed)."""
  if not needed:
    return model_state, None
  if STATE not in model_state:
    raise ValueError(
      f"model_state has the names {sorted(model_state)}: a burn-in or a "
      "schedule of lam needs a state made by `with_counter`."
    )
  rest = {k: v for k, v in model_state.items() if k != STATE}
  return rest, model_state[STATE]["step"]


def _put_step(model_state, step):
  if step is None:
    return model_state
  last = jnp.iinfo(step.dtype).max
  return {**model_state, STATE: {"step": jnp.minimum(step, last - 1) + 1}}


def _finite_where_masked(batch, mask_name: str):
  """The batch with 0 for what is not finite in masked examples.

  The gradient of a loss that counts nothing is 0 times its derivative, which
  must be finite.
  """
  mask = batch.get(mask_name)
  if mask is None:
    return batch

  def one(x):
    x = jnp.asarray(x)
    if x.shape[:1] != mask.shape or not jnp.issubdtype(x.dtype, jnp.floating):
      return x
    live = arrays.spread(mask != 0, x.ndim)
    return jnp.where(live | jnp.isfinite(x), x, 0)

  return {name: jax.tree.map(one, x) for name, x in batch.items()}


def _coupled(inner, weigh, needs_step: bool, mask_name: str) -> types.LossFn:
  """A `LossFn` of `inner` and `weigh(output, batch, step)`."""

  @functools.wraps(inner)
  def loss_fn(params, model_state, batch, key):
    model_state, step = _take_step(model_state, needs_step)
    batch = _finite_where_masked(batch, mask_name)
    output, (extra, model_state) = inner(params, model_state, batch, key)
    loss, ess = weigh(output, batch, step)
    own = {"loss": metrics.mean(loss), "ess": metrics.mean(ess)}
    return loss, ({**extra, **own}, _put_step(model_state, step))

  loss_fn.couples_examples = True
  return loss_fn


def reweight(
  per_example_loss_fn: Callable[..., Any],
  instance: InstanceConfig,
  *,
  burnin: int = 0,
  mask_name: str = "mask",
  axis_name: str | tuple[str, ...] | None = None,
) -> types.LossFn:
  """Any per-example loss as a weighted `LossFn`.

    step = steps.from_loss(ciw.reweight(losses_fn, config, burnin=4000), tx)
    state = steps.init_state(params, tx, key=key,
                             model_state=ciw.with_counter())

  A loss is not told its step. With a burn-in or a schedule of `lam` it counts
  its own calls in the model state (`with_counter`), which the loop carries and
  saves with the rest.

  Args:
    per_example_loss_fn: `(params, model_state, batch, key) -> (losses,
      (metrics, model_state))`, losses `[n]`.
    instance: how examples are weighted.
    burnin: last step of a plain mean; 0 for none at all.
    mask_name: entry of the batch, zero at padding; used if it is there. What
      is not finite in a masked example is 0 to the model.
    axis_name: mapped axis over which the batch is split.

  Returns:
    A `LossFn` that says that it couples the examples of the batch, so that
    microbatches are refused. Its metrics are those of the inner loss, `loss`
    (weighted) and `ess`.

  Raises:
    ValueError: a bad burn-in; when called, a model state without counter.
  """
  needs_step = _needs_step(instance, checks.nonnegative("burnin", burnin))

  def weigh(losses, batch, step):
    mask = batch.get(mask_name)
    weights = weights_at(
      losses, instance, step=step, burnin=burnin, mask=mask, axis_name=axis_name
    )
    ess = diagnostics.effective_sample_size(weights, axis_name=axis_name)
    return weighted_sum(weights, losses), ess

  return _coupled(per_example_loss_fn, weigh, needs_step, mask_name)


def reweight_logits(
  logits_fn: Callable[..., Any],
  instance: InstanceConfig,
  *,
  class_: ClassConfig | None = None,
  burnin: int = 0,
  label_name: str = "label",
  mask_name: str = "mask",
  axis_name: str | tuple[str, ...] | None = None,
) -> types.LossFn:
  """`ciw_loss` of any classifier as a `LossFn`; class weights included.

  Args:
    logits_fn: `(params, model_state, batch, key) -> (logits, (metrics,
      model_state))`, logits `[n, K]`.
    instance: how examples are weighted.
    class_: how classes are weighted; None keeps the labels.
    burnin: last step of plain mean cross-entropy; 0 for none at all.
    label_name: entry of the batch with the labels.
    mask_name: entry of the batch, zero at padding; used if it is there. What
      is not finite in a masked example is 0 to the model.
    axis_name: mapped axis over which the batch is split.

  Returns:
    A `LossFn`, as that of `reweight`.

  Raises:
    ValueError: as `reweight`.
  """
  needs_step = _needs_step(instance, checks.nonnegative("burnin", burnin))

  def weigh(logits, batch, step):
    loss, aux = ciw_loss(
      logits,
      batch[label_name],
      instance=instance,
      class_=class_,
      step=step,
      burnin=burnin,
      mask=batch.get(mask_name),
      axis_name=axis_name,
    )
    return loss, aux["ess"]

  return _coupled(logits_fn, weigh, needs_step, mask_name)


class ReweightState(NamedTuple):
  """State of `reweight_per_example_grads`.

  Attributes:
    step: updates done, `[]` int32.
  """

  step: jax.Array


def _weighted_grads(weights, grads):
  """sum_i w_i g_i, in at least float32; the dtype of the gradients is kept."""

  def one(g):
    w = weights.reshape((-1,) + (1,) * (g.ndim - 1))
    kept = jnp.where(w == 0, 0.0, arrays.as_float(g))
    return jnp.sum(w * kept, axis=0).astype(g.dtype)

  return jax.tree.map(one, grads)


def reweight_per_example_grads(
  instance: InstanceConfig,
  *,
  burnin: int = 0,
  axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Per-example gradients to their weighted sum: the first of a chain.

  As `optax.contrib.dpsgd`, it takes updates with a leading axis of examples
  (from `jax.vmap(jax.grad(...))`), and it needs their losses:

    tx = optax.chain(reweight_per_example_grads(config), optax.adam(1e-3))
    updates, state = tx.update(grads, state, params, losses=losses, mask=mask)

  The result is the gradient of the weighted loss.

  Args:
    instance: how examples are weighted.
    burnin: last step of a plain mean; 0 for none at all.
    axis_name: mapped axis over which the batch is split; the result is then
      the own share of the sum.

  Returns:
    A transformation with the extra arguments `losses` `[n]` and `mask` `[n]`
    (optional). Leaves `[n, ...]` become `[...]` of the same dtype.

  Raises:
    ValueError: a bad burn-in; when updating, no losses, or leaves of another
      leading size.
  """
  checks.nonnegative("burnin", burnin)

  def init(params):
    del params
    return ReweightState(jnp.zeros((), jnp.int32))

  def update(updates, state, params=None, *, losses=None, mask=None, **extra):
    del params, extra
    if losses is None:
      raise ValueError("losses=None is not allowed: give `losses=` to update.")
    sizes = {jnp.shape(g)[:1] for g in jax.tree.leaves(updates)}
    if sizes - {jnp.shape(losses)}:
      raise ValueError(
        f"updates has leading sizes {sorted(sizes)} and losses has shape "
        f"{jnp.shape(losses)}: updates must be [examples, ...]."
      )
    weights = weights_at(
      losses,
      instance,
      step=state.step,
      burnin=burnin,
      mask=mask,
      axis_name=axis_name,
    )
    step = optax.safe_increment(state.step)
    return _weighted_grads(weights, updates), ReweightState(step)

  return optax.GradientTransformationExtraArgs(init, update)
