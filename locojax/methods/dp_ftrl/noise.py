"""Noise mechanisms as optax transformations of sums.

`update` takes the sum over clients of (minus) their clipped updates and adds
the round's correlated noise; what comes after (division by the public number of
clients, momentum, schedules, any optax chain) is post-processing:

    tx = optax.chain(
      add_tree_noise(1.0, 0.5, key=key, max_rounds=2000),
      optax.scale(1 / num_clients),
      optax.sgd(0.1, momentum=0.9),
    )

That equals DP-FTRL with momentum, which is stated on noisy prefix sums (Kairouz
et al. 2021, arXiv 2103.00039): the residuals added here sum to the noise of the
prefix, and SGD on them is FTRL, also with momentum while the rate is constant.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from locojax.core import checks, trees, types
from locojax.methods.dp_ftrl import keys, matrix, sampling, sums, tree

MECHANISMS = ("tree", "independent", "none")
# Rounds are counted in int32.
MAX_ROUNDS = 2**31 - 1


class Closed(ValueError):
  """A mechanism gives no more noise: its rounds are over, or its norm grew."""


class TreeNoiseState(NamedTuple):
  """State of tree noise; a checkpoint of it resumes the same noise.

  Attributes:
    key: typed key of the run's noise, secret.
    step: rounds done, `[]` int32; below 0 once the mechanism is closed.
    tree_id: trees started before this one, `[]` int32.
    leaves: rounds of the current tree, `[]` int32.
    std: standard deviation of its nodes, `[]` float32.
    buffers: by array, `[levels, ...]` in units of `std` (secure: of the grid).
  """

  key: jax.Array
  step: jax.Array
  tree_id: jax.Array
  leaves: jax.Array
  std: jax.Array
  buffers: types.PyTree


class MatrixNoiseState(NamedTuple):
  """State of a matrix mechanism.

  Attributes:
    key: typed key of the run's noise, secret.
    step: rounds done, `[]` int32; below 0 once the mechanism is closed.
    inner: state of the strategy.
  """

  key: jax.Array
  step: jax.Array
  inner: Any


def _check(noise_multiplier, clip_norm, key, allow_no_privacy) -> float:
  """The standard deviation of a node.

  Raises:
    ValueError: a bad setting; no noise without leave.
  """
  checks.nonnegative("noise_multiplier", noise_multiplier)
  checks.positive("clip_norm", clip_norm)
  if not math.isfinite(noise_multiplier) or not math.isfinite(clip_norm):
    raise ValueError(
      f"noise_multiplier={noise_multiplier} and clip_norm={clip_norm} must be "
      "finite."
    )
  if noise_multiplier == 0 and not allow_no_privacy:
    raise ValueError(
      "noise_multiplier=0 is not allowed: it gives no privacy (rho is "
      "infinite). For a run without noise say allow_no_privacy=True."
    )
  keys.check(key)
  std = noise_multiplier * clip_norm
  limits = np.finfo(np.float32)
  if std and not float(limits.tiny) <= std <= float(limits.max):
    raise ValueError(
      f"noise_multiplier={noise_multiplier} and clip_norm={clip_norm} are not "
      "allowed together: their product is the deviation of noise in float32, "
      f"which must be in [{limits.tiny}, {limits.max}]."
    )
  return std


def _check_max_rounds(max_rounds: int) -> None:
  checks.int_in_range("max_rounds", max_rounds, 1, MAX_ROUNDS)


def _check_arrays(params: types.PyTree) -> None:
  hashes: dict[int, str] = {}
  for path, leaf in trees.flatten(params).items():
    other = hashes.setdefault(keys.path_hash(path), path)
    if other != path:
      raise ValueError(
        f"the arrays {other!r} and {path!r} are not allowed together: their "
        "paths have the same hash, and so the same noise. Rename one."
      )
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise ValueError(
        f"the array {path!r} of dtype {leaf.dtype} is not allowed: noise is "
        "for real floating point arrays."
      )


def _closed(open_: jax.Array, x: jax.Array) -> jax.Array:
  """`x`, or NaN where the mechanism is closed."""
  return jnp.where(open_, x, jnp.nan)


def _next_step(open_: jax.Array, step: jax.Array) -> jax.Array:
  """One more round; `~step` of the round that closed the mechanism for good."""
  return jnp.where(open_, step + 1, jnp.where(step < 0, step, ~step))


def noise_states(state: Any) -> list[TreeNoiseState | MatrixNoiseState]:
  """The states of all noise in a state, such as that of a run."""
  kinds = (TreeNoiseState, MatrixNoiseState)
  is_noise = lambda x: isinstance(x, kinds)
  return [x for x in jax.tree.leaves(state, is_leaf=is_noise) if is_noise(x)]


def check_open(state: Any) -> None:
  """Refuses, on the host, a state with noise that is closed.

  Args:
    state: with any number of noise states in it, which are waited for.

  Raises:
    Closed: names the round (from 0) that closed it.
  """
  for noise in noise_states(state):
    step = int(noise.step)
    if step < 0:
      raise Closed(
        f"the noise was closed in round {~step}: there it had no more rounds "
        "(max_rounds), or the clip norm had grown within a tree. What came "
        "after is NaN; no noise was used again."
      )


def check_rounds(state: Any, max_rounds: int) -> None:
  """Refuses, on the host, a state that has no rounds left.

  Under `jit` a mechanism past its last round gives NaN; this says why.

  Raises:
    Closed: `step` has reached `max_rounds`, or the state is closed.
  """
  step = int(state.step)
  if step < 0 or step >= max_rounds:
    at = ~step if step < 0 else step
    raise Closed(
      f"round {at} is not allowed: the noise was made for max_rounds="
      f"{max_rounds}. More rounds need a mechanism, and an account, for more."
    )


def _check_follows(given: Any, own: float, what: str) -> None:
  """Refuses a clipping norm that noise of one size does not cover."""
  if given is None:
    return
  if isinstance(given, jax.Array):
    raise ValueError(
      f"a clip_norm that can change is not allowed with {what}: its noise is "
      f"made for clip_norm={own}. Adaptive clipping needs tree noise that is "
      "not secure."
    )
  if given > own * (1 + 1e-6):
    raise ValueError(
      f"clip_norm={given} is not allowed: the noise was made for updates of at "
      f"most {own}."
    )


def _tree_starts(restart: tree.RestartPolicy | None) -> Callable:
  return tree.never if restart is None else restart.starts_tree


def _levels(max_rounds: int, restart: tree.RestartPolicy | None) -> int:
  longest = max_rounds
  if restart is not None:
    longest = min(restart.longest, 1 << (max_rounds - 1).bit_length())
  return tree.num_levels(longest)


def _drawer(key, tree_id, shape, sigma: float | None) -> tree.Draw:
  """Noise of a node of one array; integers of `sigma` if that is given."""

  def draw(level, index):
    node = keys.of_node(key, tree_id, level, index)
    if sigma is None:
      return sampling.normal(node, shape)
    return sampling.discrete_gaussian(node, shape, sigma).astype(jnp.float32)

  return draw


def add_tree_noise(
  noise_multiplier: float,
  clip_norm: float,
  *,
  key: jax.Array,
  max_rounds: int,
  estimator: str = "honaker",
  restart: tree.RestartPolicy | None = None,
  secure: bool = False,
  grid: float | None = None,
  allow_no_privacy: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Adds N_t - N_{t-1} of tree aggregation to the sum of round t.

  Args:
    noise_multiplier: z; every node has noise of standard deviation z C.
    clip_norm: C, bound on the L2 norm of one client's update.
    key: typed threefry key, from `keys.from_entropy` for a real release. It is
      kept in the state and never used for another run.
    max_rounds: rounds that it is good for. Later ones give NaN: closed, not
      repeated (`check_open`).
    estimator: `honaker` (less variance, same privacy) or `basic`.
    restart: when fresh trees start; None for one tree.
    secure: sums and noise on a grid of integers, the noise a discrete Gaussian,
      so that no low bits of a float tell on the sum. Needs `grid`, the basic
      estimator, and updates that were rounded to the grid client by client
      (`quantize`). Sums up to 2^24 grid cells are exact.
    grid: width of a cell, below z C.
    allow_no_privacy: permits z = 0.

  Returns:
    A transformation of sums. Extra argument `clip_norm`, `[]`: replaces C in
    the round that starts a tree. Within a tree it must not be larger than
    there, else it is closed: NaN from there on. With `secure` it must be a
    number of at most C. Memory: levels x model. Noise is float32; sums of
    float64 stay that.

  Raises:
    ValueError: a bad setting.
    RoundedAway: in `update`, sums of fewer than 32 bits (`sums.check_wide`).
  """
  own_norm = clip_norm
  std = _check(noise_multiplier, clip_norm, key, allow_no_privacy)
  _check_max_rounds(max_rounds)
  checks.one_of("estimator", estimator, tree.ESTIMATORS)
  sigma = _secure_sigma(secure, grid, std, estimator)
  levels = _levels(max_rounds, restart)
  starts = _tree_starts(restart)

  def init(params):
    _check_arrays(params)
    zeros = lambda p: jnp.zeros((levels, *p.shape), jnp.float32)
    zero = jnp.zeros((), jnp.int32)
    return TreeNoiseState(
      key=key,
      step=zero,
      tree_id=zero,
      leaves=zero,
      std=jnp.float32(std),
      buffers=jax.tree.map(zeros, params),
    )

  def update(updates, state, params=None, *, clip_norm=None, **extra):
    del params, extra
    sums.check_wide(updates)
    fresh = starts(state.step) & (state.step > 0)
    tree_id = state.tree_id + fresh
    begins = starts(state.step)
    new_std = state.std
    open_ = (state.step >= 0) & (state.step < max_rounds)
    if sigma is not None:
      _check_follows(clip_norm, own_norm, "secure=True")
    elif clip_norm is not None:
      asked = jnp.asarray(clip_norm, jnp.float32) * noise_multiplier
      new_std = jnp.where(begins, asked, state.std)
      open_ &= asked <= new_std * jnp.float32(1 + 1e-6)
    leaves = jnp.where(begins, 0, state.leaves)
    scale = jnp.float32(grid) if sigma is not None else new_std
    add = functools.partial(
      _residual, state, fresh, tree_id, leaves, estimator, restart, sigma
    )

    def one(path, x, buffers):
      own = keys.of_array(state.key, path)
      noise, carried, new = add(own, x.shape, buffers)
      if sigma is None:
        total = x + (scale * noise + state.std * carried)
      else:
        total = scale * (jnp.round(x / scale) + noise + carried)
      return _closed(open_, total).astype(x.dtype), new

    made = trees.map_with_path(one, updates, state.buffers)
    out, buffers = matrix.unzip(updates, made)
    step = _next_step(open_, state.step)
    new_state = TreeNoiseState(
      state.key, step, tree_id, leaves + 1, new_std, buffers
    )
    return out, new_state

  return optax.GradientTransformationExtraArgs(init, update)


def _residual(
  state, fresh, tree_id, leaves, estimator, restart, sigma, key, shape, buffers
):
  """`N_t - N_{t-1}`, what completion carries over, and the new buffers."""
  draw = _drawer(key, tree_id, shape, sigma)
  new, noise = tree.advance(buffers, leaves, draw, estimator)
  carried = jnp.zeros(shape, jnp.float32)
  if restart is not None and restart.completion:
    carried = jax.lax.cond(
      fresh,
      lambda: _completed(state, restart, estimator, key, shape, sigma, buffers),
      lambda: carried,
    )
  return noise, carried, new


def _completed(state, restart, estimator, key, shape, sigma, buffers):
  """`N_t' - N_L` of the tree that ends, filled up to a power of two."""
  draw = _drawer(key, state.tree_id, shape, sigma)

  def of_length(length: int):
    full, size = tree.complete(buffers, length, draw, estimator)
    at_end = tree.prefix(full, size, estimator)
    return at_end - tree.prefix(buffers, length, estimator)

  if not restart.warmup:
    return of_length(restart.period)
  return jax.lax.cond(
    state.leaves == restart.warmup,
    lambda: of_length(restart.warmup),
    lambda: of_length(restart.period),
  )


def _secure_sigma(secure, grid, std, estimator) -> float | None:
  """Standard deviation in grid cells, or None without the grid."""
  if not secure:
    if grid is not None:
      raise ValueError(f"grid={grid} is not allowed without secure=True.")
    return None
  if grid is None or estimator != "basic":
    raise ValueError(
      f"secure=True is not allowed with grid={grid}, estimator={estimator!r}: "
      "it needs a grid and the basic estimator, for Honaker's halves leave the "
      "grid."
    )
  checks.positive("grid", grid)
  return checks.in_range(
    "noise in grid cells", std / grid, 1, sampling.MAX_SIGMA
  )


def quantize(
  update: types.PyTree, grid: float, *, key: jax.Array
) -> types.PyTree:
  """A client's update on the grid, rounded up or down at random, unbiased.

  The norm can grow by at most `grid sqrt(d)`, d the number of parameters, which
  `quantized_norm` adds; account with that.

  Args:
    update: floating point arrays of 32 bits or more.
    grid: width of a cell.
    key: typed key, of the client.

  Raises:
    RoundedAway: an array of 16 bits, which cannot hold the cells.
  """
  checks.positive("grid", grid)
  sums.check_wide(update)

  def one(path, x):
    cells = x.astype(jnp.float32) / jnp.float32(grid)
    low = jnp.floor(cells)
    u = jax.random.uniform(keys.of_array(key, path), x.shape, jnp.float32)
    return ((low + (u < cells - low)) * jnp.float32(grid)).astype(x.dtype)

  return trees.map_with_path(one, update)


def quantized_norm(clip_norm: float, grid: float, num_params: int) -> float:
  """Largest norm of an update of norm C after `quantize`.

  >>> quantized_norm(1.0, 0.01, 10_000)
  2.0
  """
  checks.positive("clip_norm", clip_norm)
  checks.positive("grid", grid)
  return clip_norm + grid * math.sqrt(checks.positive_int("d", num_params))


def add_matrix_noise(
  strategy: matrix.Strategy,
  noise_multiplier: float,
  clip_norm: float,
  *,
  key: jax.Array,
  max_rounds: int,
  allow_no_privacy: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Adds row t of z C C^-1 Z to the sum of round t (see `matrix`).

  Args:
    strategy: of `matrix`.
    noise_multiplier, clip_norm, key, max_rounds, allow_no_privacy: as in
      `add_tree_noise`; the privacy also depends on the strategy's sensitivity.

  Returns:
    A transformation of sums. The extra argument `clip_norm` must be a number of
    at most C: the norm cannot change within the mechanism.

  Raises:
    ValueError: a bad setting, or a strategy with fewer rounds; in `update`, a
      `clip_norm` that is larger or an array.
    RoundedAway: in `update`, sums of fewer than 32 bits (`sums.check_wide`).
  """
  own_norm = clip_norm
  std = _check(noise_multiplier, clip_norm, key, allow_no_privacy)
  _check_max_rounds(max_rounds)
  if strategy.num_rounds is not None and max_rounds > strategy.num_rounds:
    raise ValueError(
      f"max_rounds={max_rounds} is not allowed: the strategy "
      f"{strategy.name!r} has {strategy.num_rounds}."
    )

  def init(params):
    _check_arrays(params)
    wide = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    return MatrixNoiseState(key, jnp.zeros((), jnp.int32), strategy.init(wide))

  def update(updates, state, params=None, *, clip_norm=None, **extra):
    del params, extra
    sums.check_wide(updates)
    _check_follows(clip_norm, own_norm, f"the strategy {strategy.name!r}")

    def draw(path, x):
      own = keys.of_array(state.key, path)
      return sampling.normal(keys.of_node(own, 0, 0, state.step), x.shape)

    z = trees.map_with_path(draw, updates)
    noise, inner = strategy.next(z, state.inner, state.step)
    open_ = (state.step >= 0) & (state.step < max_rounds)

    def add(x, n):
      return _closed(open_, x + jnp.float32(std) * n).astype(x.dtype)

    out = jax.tree.map(add, updates, noise)
    step = _next_step(open_, state.step)
    return out, MatrixNoiseState(state.key, step, inner)

  return optax.GradientTransformationExtraArgs(init, update)


def tree_prefix_noise(
  transformation: optax.GradientTransformationExtraArgs, state: TreeNoiseState
) -> tuple[types.PyTree, TreeNoiseState]:
  """The noise that the transformation adds in its next round, and its state."""
  zeros = jax.tree.map(lambda b: jnp.zeros(b.shape[1:], b.dtype), state.buffers)
  return transformation.update(zeros, state)


def reset_trace(
  inner: optax.GradientTransformation,
  starts_tree: Callable[[ArrayLike], jax.Array],
) -> optax.GradientTransformation:
  """`inner` from its first state in each round that starts a tree."""

  def init(params):
    return jnp.zeros((), jnp.int32), inner.init(params)

  def update(updates, state, params=None):
    step, kept = state
    zeros = inner.init(jax.tree.map(jnp.zeros_like, updates))
    fresh = starts_tree(step)
    kept = jax.tree.map(lambda a, b: jnp.where(fresh, a, b), zeros, kept)
    out, kept = inner.update(updates, kept, params)
    return out, (step + 1, kept)

  return optax.GradientTransformation(init, update)


def dp_ftrl(
  learning_rate: optax.ScalarOrSchedule,
  *,
  noise_multiplier: float,
  clip_norm: float,
  num_clients: float,
  key: jax.Array,
  max_rounds: int,
  momentum: float = 0.0,
  nesterov: bool = False,
  mechanism: str | matrix.Strategy = "tree",
  estimator: str = "honaker",
  restart: tree.RestartPolicy | None = None,
  allow_no_privacy: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """DP-FTRL (with momentum: DP-FTRLM) on sums over clients, as one optimiser.

  w_{t+1} = w_0 - eta G_t, G_t the noisy sum of all gradients so far divided by
  m; with momentum v_t = beta v_{t-1} + G_t in its place (arXiv 2103.00039,
  algorithms 1 and B). The chain of noise, division by m, and SGD.

  Args:
    learning_rate: of the server, or a schedule.
    noise_multiplier, clip_norm, key, max_rounds: of the noise.
    num_clients: m, the public number of clients of a round, above 0; never how
      many came. At most 2^21 z, else float32 sums would round the noise away.
    momentum: beta in [0, 1).
    nesterov: needs momentum.
    mechanism: `tree`, `independent` (DP-FedAvg), `none`, or a
      `matrix.Strategy`.
    estimator, restart: of the tree.
    allow_no_privacy: permits `none` and z = 0.

  Returns:
    A transformation of sums, which are float32 or wider; its updates are to be
    added to the parameters and have their dtypes, where it is told them. What
    parameters of 16 bits cannot hold is carried on to the next round
    (`core/narrow.py`); `update` then needs them.

  Raises:
    ValueError: a bad setting.
    RoundedAway: noise that float32 cannot keep beside the sum of m clients; in
      `update`, sums of fewer than 32 bits.
  """
  checks.positive("num_clients", num_clients)
  if not callable(learning_rate) and not isinstance(learning_rate, jax.Array):
    checks.nonnegative("learning_rate", learning_rate)
  checks.below("momentum", momentum, 0, 1)
  if nesterov and not momentum:
    raise ValueError("nesterov=True is not allowed with momentum=0.")
  shared = {
    "key": key,
    "max_rounds": max_rounds,
    "allow_no_privacy": allow_no_privacy,
  }
  if isinstance(mechanism, matrix.Strategy) or mechanism == "independent":
    strategy = matrix.identity() if mechanism == "independent" else mechanism
    noise = add_matrix_noise(strategy, noise_multiplier, clip_norm, **shared)
  elif checks.one_of("mechanism", mechanism, MECHANISMS) == "tree":
    noise = add_tree_noise(
      noise_multiplier,
      clip_norm,
      estimator=estimator,
      restart=restart,
      **shared,
    )
  else:
    _check(0.0, clip_norm, key, allow_no_privacy)
    noise = optax.identity()
  if mechanism != "none":
    sums.check_clients(num_clients, noise_multiplier)
  sgd = optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov)
  if restart is not None and restart.behaviour == "reset":
    sgd = reset_trace(sgd, restart.starts_tree)
  return sums.on_sums(optax.chain(noise, optax.scale(1.0 / num_clients), sgd))
