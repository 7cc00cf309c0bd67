"""K-FAC for the dense layers of any flax model.

Martens & Grosse, "Optimizing Neural Networks with Kronecker-factored
Approximate Curvature", 2015. Rows: inputs X~ `[rows, din + 1]` (ones appended
when the layer has a bias), kernels W~ `[din + 1, dout]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.locoprop.baselines import linalg, settings
from locojax.core import checks, trees, types
from locojax.methods.locoprop import taps


class Factors(NamedTuple):
  """The pair of matrices of a layer, or their damped inverses.

  Attributes:
    inputs: A, `[din + 1, din + 1]`, mean of x~ x~^T.
    outputs: S, `[dout, dout]`, mean of g g^T.
  """

  inputs: jax.Array
  outputs: jax.Array


class KfacState(NamedTuple):
  """State of `scale_by_kfac`.

  Attributes:
    count: updates done, `[]` int32.
    num_stats: updates of the factors done, `[]` int32.
    factors: mean factors by layer path.
    inverses: damped inverses in use, by layer path.
  """

  count: jax.Array
  num_stats: jax.Array
  factors: dict[str, Factors]
  inverses: dict[str, Factors]


def dense_paths(params: types.PyTree, layers: str = "") -> tuple[str, ...]:
  """Paths of what looks like a dense layer: a 2-D 'kernel', maybe a 'bias'.

  Args:
    params: nested dicts of parameters.
    layers: regular expression that the path must match; '' matches all.
  """
  leaves = trees.flatten(params)
  parent = lambda name: name.rpartition("/")[0]
  siblings: dict[str, set[str]] = {}
  for name in leaves:
    siblings.setdefault(parent(name), set()).add(name.rpartition("/")[2])
  return tuple(
    parent(name)
    for name, leaf in leaves.items()
    if name.rpartition("/")[2] == "kernel"
    and leaf.ndim == 2
    and siblings[parent(name)] <= {"kernel", "bias"}
    and trees.matches(parent(name), layers)
  )


def _join(path: str, name: str) -> str:
  return f"{path}/{name}" if path else name


def _fold(leaves: Mapping[str, jax.Array], path: str) -> jax.Array:
  """W~ of a layer: the kernel, and the bias as its last row."""
  kernel = leaves[_join(path, "kernel")]
  bias = leaves.get(_join(path, "bias"))
  kernel = kernel.astype(linalg.accumulator(kernel.dtype))
  if bias is None:
    return kernel
  return jnp.concatenate([kernel, bias[None].astype(kernel.dtype)])


def _unfold(folded, leaves, path) -> dict[str, jax.Array]:
  """The inverse of `_fold`, in the dtypes of `leaves`."""
  kernel, bias = _join(path, "kernel"), _join(path, "bias")
  rows = leaves[kernel].shape[0]
  out = {kernel: folded[:rows].astype(leaves[kernel].dtype)}
  if bias in leaves:
    out[bias] = folded[rows].astype(leaves[bias].dtype)
  return out


def _rows(x: jax.Array) -> jax.Array:
  return x.reshape(-1, x.shape[-1]).astype(linalg.accumulator(x.dtype))


def _records(tape: taps.Tape) -> dict[str, list[taps.LayerRecord]]:
  """Records of dense layers."""
  layers = tape.by_layer()
  return {p: r for p, r in layers.items() if r[0].kind == "dense"}


def input_factors(tape: taps.Tape, params: types.PyTree) -> dict:
  """`A = X~^T X~ / rows` of every captured dense layer, by path.

  All leading axes of the inputs count as rows, and so do the calls of a layer
  that is called more than once.
  """
  out, leaves = {}, trees.flatten(params)
  for path, calls in _records(tape).items():
    x = jnp.concatenate([_rows(c.inputs[0]) for c in calls])
    if _join(path, "bias") in leaves:
      x = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    out[path] = linalg.matmul(x.T, x) / x.shape[0]
  return out


def output_factors(tape: taps.Tape) -> dict:
  """`S = (1/B) sum_b g_b g_b^T` of every captured dense layer, by path.

  The loss is taken to be a mean over the leading axis, so that the tape holds
  G = g/B and S = B G^T G. With labels sampled from the model's distribution
  its expectation is the Fisher matrix at the pre-activations.
  """
  out = {}
  for path, calls in _records(tape).items():
    g = jnp.concatenate([_rows(c.preact_grad) for c in calls])
    batch = calls[0].preact_grad.shape[0]
    out[path] = linalg.matmul(g.T, g) * batch
  return out


def _damped_inverse(stat: jax.Array, ridge: jax.Array) -> jax.Array:
  """`(S + ridge I)^-1` of a symmetric positive semidefinite `[n, n]`."""
  eye = jnp.eye(stat.shape[-1], dtype=stat.dtype)
  low = jnp.linalg.cholesky(stat + ridge * eye)
  half = jax.lax.linalg.triangular_solve(low, eye, left_side=True, lower=True)
  return linalg.matmul(half.T, half)


def damped_inverses(
  factors: Mapping[str, Factors], damping: jax.Array
) -> dict[str, Factors]:
  """`(A + pi sqrt(d) I)^-1` and `(S + sqrt(d)/pi I)^-1` of every layer.

  With `pi = sqrt((tr A / din) / (tr S / dout))`, section 6.3 of the paper.
  """
  stats, ridges = [], []
  root = jnp.sqrt(damping)
  for pair in factors.values():
    sizes = [jnp.trace(m) / m.shape[0] for m in pair]
    tiny = jnp.finfo(sizes[0].dtype).tiny
    ratio = jnp.maximum(sizes[0], tiny) / jnp.maximum(sizes[1], tiny)
    pi = jnp.sqrt(jnp.clip(ratio, min=1e-12, max=1e12))
    stats.extend(pair)
    ridges.extend([(root * pi).astype(pi.dtype), (root / pi).astype(pi.dtype)])
  inverses = linalg.by_shape(_damped_inverse, stats, ridges)
  pairs = [Factors(*p) for p in zip(inverses[::2], inverses[1::2])]
  return dict(zip(factors, pairs))


def _value(setting, count):
  return setting(count) if callable(setting) else setting


def scale_by_kfac(
  *,
  damping: optax.ScalarOrSchedule = 1e-3,
  decay: float = 0.95,
  update_every: int = 10,
  kl_clip: float | None = None,
  learning_rate: optax.ScalarOrSchedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
  """The direction `A^-1 G S^-1`; see `kfac` for the arguments.

  All its parameters must be of dense layers. `learning_rate` serves `kl_clip`
  alone.
  """
  if not callable(damping):
    settings.check(checks.positive, "damping", damping)
  settings.decay("decay", decay)
  settings.check(checks.positive_int, "update_every", update_every)
  if kl_clip is not None:
    settings.check(checks.positive, "kl_clip", kl_clip)

  def init(params):
    leaves = trees.flatten(params)

    def pair(path, make):
      kernel = leaves[_join(path, "kernel")]
      dtype = linalg.accumulator(kernel.dtype)
      rows = kernel.shape[0] + (_join(path, "bias") in leaves)
      return Factors(
        make(rows, dtype=dtype), make(kernel.shape[1], dtype=dtype)
      )

    paths = dense_paths(params)
    square = lambda n, dtype: jnp.zeros((n, n), dtype)
    return KfacState(
      count=jnp.zeros([], jnp.int32),
      num_stats=jnp.zeros([], jnp.int32),
      factors={p: pair(p, square) for p in paths},
      inverses={p: pair(p, jnp.eye) for p in paths},
    )

  def mean_factors(old, new, num_stats, fresh):
    """EMA with a warm start: the first k terms are averaged."""
    keep = jnp.minimum(1.0 - 1.0 / num_stats, decay)
    keep = jnp.where(fresh, keep, 1.0)
    # A factor that is not fresh may hold anything, so it is dropped first.
    return jax.tree.map(
      lambda a, b: (keep * a + (1 - keep) * jnp.where(fresh, b, 0)).astype(
        a.dtype
      ),
      old,
      new,
    )

  def clip(grads, directions, count):
    if kl_clip is None:
      return directions
    rate = _value(learning_rate, count)
    size = sum(jnp.vdot(grads[p], directions[p]) for p in grads)
    # size = D^T F D for the curvature in use, up to damping.
    tiny = jnp.finfo(size.dtype).tiny
    scale = jnp.sqrt(kl_clip / jnp.maximum(rate**2 * size, tiny))
    scale = jnp.minimum(1.0, scale)
    return {p: (d * scale).astype(d.dtype) for p, d in directions.items()}

  def update(updates, state, params=None, *, factors, fresh=True, **extra):
    del params, extra
    missing = sorted(set(state.factors) - set(factors))
    if missing:
      raise ValueError(
        f"factors={sorted(factors)} is not allowed: it must hold the dense "
        f"layers {missing} too. Leave them to the fallback with `layers`, or "
        "capture them."
      )
    fresh = jnp.asarray(fresh)
    num_stats = state.num_stats + fresh
    new = {p: Factors(*factors[p]) for p in state.factors}
    means = mean_factors(state.factors, new, jnp.maximum(num_stats, 1), fresh)
    inverses = jax.lax.cond(
      state.count % update_every == 0,
      lambda: damped_inverses(means, _value(damping, state.count)),
      lambda: state.inverses,
    )
    leaves = trees.flatten(updates)
    grads = {p: _fold(leaves, p) for p in state.factors}
    directions = {
      p: linalg.matmul(inverses[p].inputs, g, inverses[p].outputs)
      for p, g in grads.items()
    }
    directions = clip(grads, directions, state.count)
    out: dict[str, jax.Array] = {}
    for path, direction in directions.items():
      out.update(_unfold(direction, leaves, path))
    out = trees.map_with_path(lambda name, _: out[name], updates)
    count = optax.safe_increment(state.count)
    return out, KfacState(count, num_stats, means, inverses)

  return optax.GradientTransformationExtraArgs(init, update)


def kfac(
  learning_rate: optax.ScalarOrSchedule,
  *,
  damping: optax.ScalarOrSchedule = 1e-3,
  decay: float = 0.95,
  update_every: int = 10,
  momentum: float = 0.9,
  kl_clip: float | None = None,
  layers: str = "",
  fallback: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
  """K-FAC: `W~ -= lr (A + pi sqrt(d) I)^-1 G (S + sqrt(d)/pi I)^-1`.

  A and S are means over steps of X~^T X~ / B and g^T g / B, the latter with
  labels sampled from the model; the weight of the past is
  `min(1 - 1/k, decay)` at their k-th update. `make_step` brings the factors;
  by hand they are the extra argument `factors` of `update`.

  Args:
    learning_rate: a number or a schedule.
    damping: d, a number above 0 or a schedule.
    decay: bound of the weight of the past, in [0, 1).
    update_every: steps between two inversions.
    momentum: decay of the heavy ball on the directions, in [0, 1).
    kl_clip: bound of `lr^2 D^T G` over all layers, to which the directions D
      are scaled down; None for no bound.
    layers: regular expression of the paths of dense layers to precondition
      (see `dense_paths`); '' for all.
    fallback: a whole optimiser for all other parameters; None for
      `optax.sgd(learning_rate, momentum)`.

  Returns:
    A transformation with the extra arguments `factors`: path -> (A, S), and
    `fresh`: whether they are to be used. Updates have the dtype of the
    gradients, factors are float32 (float64 for float64 parameters).

  Raises:
    ValueError: a setting is outside its range, or no dense layer matches.
  """
  settings.learning_rate(learning_rate)
  settings.decay("momentum", momentum)
  if fallback is None:
    fallback = optax.sgd(learning_rate, momentum)
  main = optax.chain(
    scale_by_kfac(
      damping=damping,
      decay=decay,
      update_every=update_every,
      kl_clip=kl_clip,
      learning_rate=learning_rate,
    ),
    optax.trace(momentum),
    optax.scale_by_learning_rate(learning_rate),
  )

  def labels(params):
    chosen = set(dense_paths(params, layers))
    if not chosen:
      raise ValueError(
        f"layers={layers!r} is not allowed: it must match a dense layer, of "
        f"which there are {list(dense_paths(params))}."
      )
    label = lambda name: "kfac" if name.rpartition("/")[0] in chosen else "rest"
    return trees.map_with_path(lambda name, _: label(name), params)

  return optax.partition({"kfac": main, "rest": fallback}, labels)


def make_step(
  loss_fn: types.LossFn,
  sampled_loss_fn: types.LossFn,
  tx: optax.GradientTransformation,
  *,
  stats_every: int = 1,
  filter: Callable[[str], bool] | None = None,
) -> types.StepFn:
  """A step that feeds `kfac` (alone or in a chain) with its factors.

  Args:
    loss_fn: a loss that is a mean over the leading axis of the batch.
    sampled_loss_fn: the same, save that its targets are drawn by the key from
      the model's own (gradient-stopped) distribution. It should be the mean
      negative log-likelihood whose Fisher matrix is wanted.
    tx: an optax transformation with a `kfac` in it.
    stats_every: steps between two updates of the factors.
    filter: which layer paths to capture; all dense ones by default.

  Returns:
    `(state, batch) -> (state, metrics)`, pure; `metrics` has the loss as
    'loss' besides the loss function's own. The loss gets the step's key, the
    sampled loss one folded from it.

  Raises:
    ValueError: `stats_every` is no positive integer.
  """
  checks.positive_int("stats_every", stats_every)
  options: dict[str, Any] = {"layers": (nn.Dense,), "filter": filter}
  captured = taps.capture(loss_fn, **options)
  sampled = taps.capture(sampled_loss_fn, **options)

  def step(state, batch):
    key = state.step_key()
    out, grads, tape = captured(state.params, state.model_state, batch, key)
    loss, (metrics, model_state) = out

    def factors():
      fold = jax.random.fold_in(key, 1)
      _, _, drawn = sampled(state.params, state.model_state, batch, fold)
      first = input_factors(tape, state.params)
      second = output_factors(drawn)
      return {p: Factors(first[p], second[p]) for p in first}

    due = state.step % stats_every == 0
    nothing = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(factors)
    )
    fresh = (
      factors()
      if stats_every == 1
      else jax.lax.cond(due, factors, lambda: nothing)
    )
    updates, opt_state = optax.with_extra_args_support(tx).update(
      grads, state.opt_state, state.params, factors=fresh, fresh=due
    )
    new = state.advance(updates, opt_state, model_state)
    return new, {"loss": loss, **metrics}

  return step
