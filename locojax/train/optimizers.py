"""Schedules and optax chains from keywords.

    tx = optimizers.make(
      "adam",
      learning_rate=optimizers.schedule(
        "cosine", learning_rate=1e-3, num_steps=10_000, warmup_steps=500
      ),
      weight_decay=1e-2, decay_paths="kernel$", clip_norm=1.0,
      freeze="^embed/", multipliers=(("^head/", 10.0),),
    )

Paths are those of the parameters, 'a/b/kernel'; a pattern that hits no
parameter is an error at `init`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from locojax.core import checks, narrow, trees

Patterns = str | Iterable[str]


def _constant(progress, count, final, timescale):
  return jnp.ones_like(progress)


def _linear(progress, count, final, timescale):
  return 1.0 - (1.0 - final) * progress


def _cosine(progress, count, final, timescale):
  return final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def _rsqrt(progress, count, final, timescale):
  return jnp.sqrt(timescale / (timescale + count))


SCHEDULES = {
  "constant": _constant,
  "linear": _linear,
  "cosine": _cosine,
  "rsqrt": _rsqrt,
}


def schedule(
  name: str,
  *,
  learning_rate: float,
  num_steps: int,
  warmup_steps: int = 0,
  cooldown_steps: int = 0,
  final: float = 0.0,
  timescale: float = 10_000,
) -> optax.Schedule:
  """Warm-up from zero, then a decay, then optionally a ramp down to zero.

  With k updates done, w warm-up steps and p = (k - w) / (num_steps - w):
  `constant` 1; `linear` 1 - (1 - final) p; `cosine` final + (1 - final)
  (1 + cos(pi p)) / 2; `rsqrt` sqrt(timescale / (timescale + k - w)); each
  times `learning_rate` and min(1, k / w). The first warm-up step has rate 0.

  Args:
    name: a key of `SCHEDULES`.
    learning_rate: the peak.
    num_steps: length of the run; the rate stays at its end value after it.
    warmup_steps: length of the linear warm-up.
    cooldown_steps: length of the linear ramp to zero before `num_steps`.
    final: last value as a share of the peak, for `linear` and `cosine`.
    timescale: of `rsqrt`, in steps.

  Returns:
    A function from the number of updates to the learning rate, float32.

  Raises:
    ValueError: an unknown name or a number out of range.
  """
  shape = checks.lookup("schedule", name, SCHEDULES)
  checks.nonnegative("learning_rate", learning_rate)
  checks.positive_int("num_steps", num_steps)
  checks.in_range("warmup_steps", warmup_steps, 0, num_steps)
  checks.in_range("cooldown_steps", cooldown_steps, 0, num_steps - warmup_steps)
  checks.in_range("final", final, 0.0, 1.0)
  checks.positive("timescale", timescale)
  decay_steps = max(num_steps - warmup_steps, 1)

  def rate(count):
    count = jnp.minimum(jnp.asarray(count, jnp.float32), num_steps)
    since = jnp.maximum(count - warmup_steps, 0.0)
    value = shape(since / decay_steps, since, final, timescale)
    if warmup_steps:
      value *= jnp.minimum(1.0, count / warmup_steps)
    if cooldown_steps:
      value *= jnp.minimum(1.0, (num_steps - count) / cooldown_steps)
    return learning_rate * value

  return rate


def _muon(**options) -> optax.GradientTransformation:
  """Orthogonalised momentum for matrices, Adam for all else."""
  return optax.chain(optax.contrib.muon(1.0, **options), optax.scale(-1.0))


def _sgd() -> optax.GradientTransformation:
  return optax.identity()


def _momentum(*, momentum: float = 0.9, accumulator_dtype: Any = None):
  return optax.trace(momentum, accumulator_dtype=accumulator_dtype)


def _nesterov(*, momentum: float = 0.9, accumulator_dtype: Any = None):
  return optax.trace(momentum, True, accumulator_dtype)


def _adafactor(
  *,
  decay_rate: float = 0.8,
  decay_cap: float = 0.999,
  min_dim_size_to_factor: int = 32,
  momentum: float | None = 0.9,
  momentum_dtype: Any = "bfloat16",
  clipping_threshold: float | None = None,
  epsilon: float = 1e-30,
):
  """Factored second moments with a cap of their decay, and a small momentum.

  As Zhai et al., "Scaling Vision Transformers", arXiv 2106.04560, section 3.4:
  the decay 1 - k^-decay_rate of update k is at most `decay_cap`, momentum is an
  average in `momentum_dtype`, and updates are not clipped unless
  `clipping_threshold` says so.
  """
  decay = lambda count, rate: jnp.minimum(
    1.0 - (count.astype(jnp.float32) + 1.0) ** -rate, decay_cap
  )
  parts = [
    optax.scale_by_factored_rms(
      decay_rate=decay_rate,
      min_dim_size_to_factor=min_dim_size_to_factor,
      epsilon=epsilon,
      decay_rate_fn=decay,
    )
  ]
  if clipping_threshold is not None:
    parts.append(optax.clip_by_block_rms(clipping_threshold))
  if momentum is not None:
    parts.append(
      optax.ema(momentum, debias=False, accumulator_dtype=momentum_dtype)
    )
  return optax.chain(*parts)


# Each makes the direction of the step, before decay and learning rate.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  "sgd": _sgd,
  "momentum": _momentum,
  "nesterov": _nesterov,
  "adafactor": _adafactor,
  "adagrad": optax.scale_by_rss,
  "rmsprop": optax.scale_by_rms,
  "adam": optax.scale_by_adam,
  "adamw": optax.scale_by_adam,
  "nadam": functools.partial(optax.scale_by_adam, nesterov=True),
  "amsgrad": optax.scale_by_amsgrad,
  "adabelief": optax.scale_by_belief,
  "radam": optax.scale_by_radam,
  "lion": optax.scale_by_lion,
  "muon": _muon,
}

# Options that the chain itself has, so that nothing is applied twice.
_OWN = {
  "learning_rate",
  "weight_decay",
  "weight_decay_mask",
  "adam_learning_rate",
  "adam_weight_decay",
}
_UNIT = {"b1", "b2", "decay", "momentum", "beta", "adam_b1", "adam_b2"}


def allowed_options(name: str) -> tuple[str, ...]:
  """Names of the options that optimiser `name` takes in `make`."""
  base = checks.lookup("optimizer", name, OPTIMIZERS)
  source = optax.contrib.muon if base is _muon else base
  fixed = getattr(base, "keywords", {})
  names = inspect.signature(source).parameters
  extra = ("momentum",) if name == "rmsprop" else ()
  return (*(n for n in names if n not in _OWN and n not in fixed), *extra)


def _check_options(name: str, options: dict[str, Any]) -> None:
  allowed = allowed_options(name)
  for option, value in options.items():
    checks.one_of(f"option of {name}", option, allowed)
    if option in _UNIT:
      checks.in_range(option, value, 0.0, 1.0)
    elif option.startswith("eps") and not isinstance(value, bool):
      checks.nonnegative(option, value)


def _patterns(patterns: Patterns) -> tuple[str, ...]:
  return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _checked(
  tx: optax.GradientTransformation, named: dict[str, tuple[str, ...]]
) -> optax.GradientTransformationExtraArgs:
  """`tx`, whose init refuses patterns that hit no parameter."""
  tx = optax.with_extra_args_support(tx)

  def init(params):
    paths = list(trees.flatten(params))
    for name, patterns in named.items():
      for pattern in patterns:
        if not any(trees.matches(path, pattern) for path in paths):
          raise ValueError(
            f"{name}={pattern!r} hits no parameter; paths are "
            f"{', '.join(paths[:12])}{', ...' if len(paths) > 12 else '.'}"
          )
    return tx.init(params)

  return optax.GradientTransformationExtraArgs(init, tx.update)


def _scale_by_path(
  multipliers: tuple[tuple[str, float], ...],
) -> optax.GradientTransformation:
  """Multiplies updates by the factor of the first pattern that hits."""

  def factor(path):
    hits = (f for pattern, f in multipliers if trees.matches(path, pattern))
    return next(hits, 1.0)

  def scale(updates, params):
    del params
    return trees.map_with_path(lambda path, u: u * factor(path), updates)

  return optax.stateless(scale)


def freeze(
  tx: optax.GradientTransformation, patterns: Patterns
) -> optax.GradientTransformationExtraArgs:
  """`tx` on all parameters but those that a pattern hits.

  Frozen parameters get a zero update, have no state, and do not count in the
  global norm that `tx` may clip.
  """
  patterns = _patterns(patterns)

  def labels(params):
    frozen = trees.mask(params, patterns)
    return jax.tree.map(lambda f: "frozen" if f else "trained", frozen)

  parts = {"trained": tx, "frozen": optax.set_to_zero()}
  return optax.partition(parts, labels)


def in_float32(
  tx: optax.GradientTransformation, *, frozen: Patterns = ()
) -> optax.GradientTransformationExtraArgs:
  """`tx`, made right for parameters of 16 bits; what `make` makes already is.

  In bfloat16 an average of decay 0.999 never moves, a global norm over many
  arrays is far too small, and updates below 2^-9 of a parameter are lost. So
  `tx` sees float32 parameters and gradients, which its state is made for, and
  what a parameter cannot hold is carried on to its next update
  (`core/narrow.py`). Updates are in the parameters' dtype. On parameters of
  float32 or wider, state and updates are those of `tx`.

  Args:
    tx: any transformation. It gets extra arguments as they are.
    frozen: patterns of parameters that `tx` never changes, which need no rest.
  """
  tx, frozen = optax.with_extra_args_support(tx), _patterns(frozen)
  skip = functools.partial(trees.mask, patterns=frozen)
  init, update = narrow.carried(tx.init, tx.update, skip=skip)
  return optax.GradientTransformationExtraArgs(init, update)


def _accumulated(
  tx: optax.GradientTransformation, num: int
) -> optax.GradientTransformation:
  """`tx` on the mean of `num` gradients, in the widest of their dtypes."""

  def several(tree):
    dtypes = {x.dtype for x in jax.tree.leaves(tree)}
    dtype = functools.reduce(jnp.promote_types, dtypes, jnp.float32)
    return optax.MultiSteps(tx, num, accumulator_dtype=dtype)

  def update(updates, state, params=None):
    return several(state.acc_grads).update(updates, state, params)

  return optax.GradientTransformation(lambda p: several(p).init(p), update)


def stacked(
  tx: optax.GradientTransformation, patterns: Patterns
) -> optax.GradientTransformation:
  """`tx`, which sees a stack of layers as these layers one by one.

  A parameter `[L, ...]` that a pattern hits is updated as L parameters `[...]`
  would be: what looks at a whole array, such as Adafactor's choice of the two
  axes to factor, Muon's orthogonalisation or a norm, never mixes layers. Its
  state has a leading L too.

  Args:
    tx: acts on each parameter alone; it gets no extra arguments.
    patterns: of the parameters whose leading axis counts layers.
  """
  patterns = _patterns(patterns)

  def lengths(tree):
    """L by the path of a stacked parameter."""
    hit = {
      p: x for p, x in trees.flatten(tree).items() if trees.matches(p, patterns)
    }
    return {path: x.shape[0] for path, x in hit.items()}

  def axes(tree, known, length):
    """0 for what has a leading axis of this length, else None."""

    def axis(path, _):
      parts = path.split("/")
      tails = ("/".join(parts[i:]) for i in range(len(parts)))
      found = next((known[tail] for tail in tails if tail in known), None)
      return 0 if found == length else None

    return trees.map_with_path(axis, tree)

  def init(params):
    known, run = lengths(params), tx.init
    layer = trees.map_with_path(
      lambda path, x: jax.ShapeDtypeStruct(x.shape[path in known :], x.dtype),
      params,
    )
    state = jax.eval_shape(tx.init, layer)
    for n in sorted(set(known.values())):
      own = axes(params, known, n)
      run = jax.vmap(run, in_axes=(own,), out_axes=axes(state, known, n))
    return run(params)

  def update(updates, state, params=None):
    known, run = lengths(updates), tx.update
    for n in sorted(set(known.values())):
      own = axes(updates, known, n), axes(state, known, n)
      of_params = None if params is None else own[0]
      run = jax.vmap(run, in_axes=(*own, of_params), out_axes=own)
    return run(updates, state, params)

  return optax.GradientTransformation(init, update)


def make(
  name: str,
  *,
  learning_rate: float | optax.Schedule,
  weight_decay: float = 0.0,
  decay_paths: Patterns = ".*",
  clip_norm: float | None = None,
  freeze_paths: Patterns = (),
  multipliers: Iterable[tuple[str, float]] = (),
  accumulate: int = 1,
  stacked_paths: Patterns = (),
  **options: Any,
) -> optax.GradientTransformationExtraArgs:
  """An optimiser by name, with all that is usually put around it.

  In order: mean of `accumulate` gradients, clipping by the global norm,
  direction of the optimiser, decoupled weight decay, learning rate,
  multipliers. On parameters or gradients of 16 bits all of it is computed, and
  kept, in float32, see `in_float32`.

  Args:
    name: a key of `OPTIMIZERS`.
    learning_rate: a number or a schedule of the number of updates.
    weight_decay: this share of a parameter, times the learning rate, is
      taken off in each update. `adamw` wants one above 0.
    decay_paths: patterns of parameters that decay.
    clip_norm: largest global norm of the gradient; None does not clip.
    freeze_paths: patterns of parameters that stay as they are; see `freeze`.
    multipliers: `(pattern, factor)` of the learning rate; first hit wins.
    accumulate: gradients that make one update. Prefer microbatches in the
      step, which need no memory between steps.
    stacked_paths: patterns of parameters whose leading axis counts layers
      (`nn.scan`): the optimiser treats them as the layers one by one, see
      `stacked`.
    **options: of the optimiser, such as `b1`; see `allowed_options`. `rmsprop`
      also takes `momentum`, which acts after the learning rate as in optax.

  Returns:
    A transformation. Its `init` raises `ValueError` for a pattern that hits
    nothing.

  Raises:
    ValueError: an unknown name or option, with what is allowed; a number out
      of range.
  """
  _check_options(name, options)
  checks.nonnegative("weight_decay", weight_decay)
  checks.positive_int("accumulate", accumulate)
  if name == "adamw" and weight_decay == 0:
    raise ValueError(
      "weight_decay=0.0 is not allowed for adamw: it must be above 0, or the "
      "name 'adam'."
    )
  if not callable(learning_rate):
    checks.nonnegative("learning_rate", learning_rate)
  decay_paths, freeze_paths = _patterns(decay_paths), _patterns(freeze_paths)
  multipliers = tuple((str(p), float(f)) for p, f in multipliers)
  for pattern, factor in multipliers:
    checks.nonnegative(f"multipliers[{pattern!r}]", factor)
  stacked_paths = _patterns(stacked_paths)
  direction = (name, stacked_paths, options)
  tx = _chain(*direction, learning_rate, weight_decay, decay_paths, clip_norm)
  if multipliers:
    tx = optax.chain(tx, _scale_by_path(multipliers))
  if freeze_paths:
    tx = freeze(tx, freeze_paths)
  if accumulate > 1:
    tx = _accumulated(tx, accumulate)
  named = {"freeze_paths": freeze_paths}
  named["multipliers"] = tuple(p for p, _ in multipliers)
  named["stacked_paths"] = stacked_paths
  named["decay_paths"] = decay_paths if weight_decay else ()
  return _checked(in_float32(tx, frozen=freeze_paths), named)


def _chain(
  name,
  stacked_paths,
  options,
  learning_rate,
  weight_decay,
  decay_paths,
  clip_norm,
):
  """Clip, direction, decay, learning rate."""
  options, parts = dict(options), []
  after = options.pop("momentum", None) if name == "rmsprop" else None
  if clip_norm is not None:
    checks.positive("clip_norm", clip_norm)
    parts.append(optax.clip_by_global_norm(clip_norm))
  direction = OPTIMIZERS[name](**options)
  parts.append(
    stacked(direction, stacked_paths) if stacked_paths else direction
  )
  if weight_decay:
    mask = functools.partial(trees.mask, patterns=decay_paths)
    parts.append(optax.add_decayed_weights(weight_decay, mask))
  parts.append(optax.scale_by_learning_rate(learning_rate))
  if after is not None:
    parts.append(optax.trace(after))
  return optax.chain(*parts)
