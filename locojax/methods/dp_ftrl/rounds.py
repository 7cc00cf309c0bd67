"""Federated rounds: any `LossFn` as a step over a cohort of clients.

One round, with the server's parameters w:

  client i:  w_i <- w, then its own local steps of `client_tx` on its examples
             delta_i = clip(w_i - w, C)
  server:    updates = tx(- sum_i delta_i),   w <- w + updates

`tx` sees the sum over clients, as a gradient would stand: it adds noise to
it, divides by the public number of clients, and makes the step (`server_sgd`,
or `dp_ftrl` with its noise inside). Every baseline is a choice of arguments:

  DP-FTRL        tx with tree or matrix noise
  DP-FedAvg      tx with independent noise; amplified where the cohort is a
                 Poisson sample and the accountant is told so
  DP-SGD         one local step of `optax.sgd(1.0)`; for privacy of examples,
                 let every client hold one example
  no privacy     `server_sgd` without noise

Why `lax.scan` over chunks of `vmap`, and not DrJAX. DrJAX's `map_fn` is a vmap
over all clients placed on a device, and its reduction comes after it, so all
updates of those clients live at once: 6500 of a 1.4M model are 37 GB. Here a
device holds `clients_per_chunk` updates and one sum, and the devices talk once
a round, in one psum of that sum. What DrJAX adds, a program of map and reduce
that other systems can run, is not needed within one `jit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from locojax.core import checks, metrics, trees, types
from locojax.methods.dp_ftrl import clipping, cohort_sum
from locojax.methods.dp_ftrl import noise as noise_lib
from locojax.methods.dp_ftrl import sums as sums_lib

# Metrics with this prefix, and `loss`, come from private data without noise.
NOT_PRIVATE = "not_private/"
REPORTS = ("all", "loss")
_CLIENT_STREAM = 0xC11E


class RoundState(NamedTuple):
  """`opt_state` under adaptive clipping.

  Attributes:
    server: state of the server's transformation.
    clip: state of the clipping.
  """

  server: Any
  clip: clipping.ClipState


def server_sgd(
  learning_rate: optax.ScalarOrSchedule,
  *,
  num_clients: float,
  noise: optax.GradientTransformation | None = None,
  momentum: float = 0.0,
  nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Noise on the sum, division by the public m, then SGD.

  Args:
    learning_rate: of the server.
    num_clients: m, the expected size of a cohort; never the realised one.
    noise: any transform on sums; None for no privacy.
    momentum: in [0, 1).
    nesterov: whether the momentum looks ahead; needs momentum above 0.

  Returns:
    The chain, for `make_step`.

  Raises:
    ValueError: a bad setting.
  """
  checks.positive("num_clients", num_clients)
  if not callable(learning_rate) and not isinstance(learning_rate, jax.Array):
    checks.nonnegative("learning_rate", learning_rate)
  checks.below("momentum", momentum, 0, 1)
  if nesterov and not momentum:
    checks.refuse("momentum", momentum, "above 0 with nesterov=True")
  sgd = optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov)
  parts = [] if noise is None else [noise]
  return sums_lib.on_sums(
    optax.chain(*parts, optax.scale(1.0 / num_clients), sgd)
  )


def init_state(
  params: types.PyTree,
  tx: optax.GradientTransformation,
  *,
  clip: clipping.Clip | clipping.QuantileClip,
  key: jax.Array,
  model_state: types.PyTree = None,
) -> types.TrainState:
  """A state at round 0, with all that a round needs.

  Server, noise (its key too) and adaptive clipping are all in `opt_state`, so
  a checkpoint of the state resumes a run exactly. So is what parameters of 16
  bits cannot hold, and the server's own arrays are float32 or wider.

  Args:
    params: trainable parameters.
    tx: the server's transformation.
    clip: as for `make_step`. With a fixed norm `opt_state` is `tx.init(params)`
      and any other way to make a state serves too.
    key: typed PRNG key of the run, for the clients' own randomness; not that of
      the noise.
    model_state: non-trainable variables; None stands for `{}`.

  Raises:
    ValueError: adaptive clipping of updates whose noise cannot follow it.
  """
  _check_clip(clip)
  opt_state = sums_lib.on_sums(tx).init(params)
  if isinstance(clip, clipping.QuantileClip):
    _check_noise_follows(opt_state)
  if isinstance(clip, clipping.QuantileClip):
    opt_state = RoundState(opt_state, clipping.quantile_clip_init(clip))
  return types.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state={} if model_state is None else model_state,
    opt_state=trees.strong_types(opt_state),
    key=key,
  )


def clip_norm_in_force(
  clip: clipping.Clip | clipping.QuantileClip,
  state: types.TrainState,
  *,
  starts_tree: bool,
) -> float | None:
  """The norm at which the next round will clip, on the host; for a ledger.

  Args:
    clip: as for `make_step`.
    state: before the round. Its values are read, which waits for them, under
      adaptive clipping only.
    starts_tree: whether the round is the first of a tree.
  """
  if not isinstance(clip, clipping.QuantileClip):
    return clip.norm
  inner = state.opt_state.clip
  return float(jax.device_get(inner.estimate if starts_tree else inner.norm))


def _check_noise_follows(opt_state: types.PyTree) -> None:
  """Refuses a matrix mechanism, whose noise is made for one norm."""
  is_matrix = lambda x: isinstance(x, noise_lib.MatrixNoiseState)
  if any(map(is_matrix, jax.tree.leaves(opt_state, is_leaf=is_matrix))):
    raise ValueError(
      "clip=QuantileClip(...) is not allowed with a matrix mechanism or "
      "independent noise: it must be a Clip, or tx have tree noise."
    )


def _check_clip(clip: Any) -> None:
  if not isinstance(clip, (clipping.Clip, clipping.QuantileClip)):
    raise ValueError(
      f"clip={clip!r} is not allowed: it must be a Clip or a QuantileClip."
    )


def make_step(
  loss_fn: types.LossFn,
  tx: optax.GradientTransformation,
  *,
  client_tx: optax.GradientTransformation,
  clip: clipping.Clip | clipping.QuantileClip,
  clients_per_chunk: int,
  mask: str = "mask",
  client_mask: str = "client_mask",
  axis: str = "data",
  next_model_state: Callable[[types.PyTree, jax.Array], types.PyTree]
  | None = None,
  report: str = "all",
) -> types.StepFn:
  """A federated round as a step: local training, clipping, sum, server.

  The batch is a cohort: leaves `[clients, local_steps, batch, ...]`, and

    * `client_mask` `[clients]`: zero for a client that is padding. It adds
      nothing, whatever its examples hold. Absent: all count.
    * `mask` `[clients, local_steps, batch, ...]`: zero for padded examples, and
      handed to the loss. A local step without any example changes nothing.
      Absent: all count.
    * scalars, such as `update` of `steps.with_update`: go to every client.

  Inside a mesh with the axis `axis` the clients are cut along it; each device
  scans over chunks of its clients, and one psum adds the sums. Parameters may
  be sharded over other axes: norms are those of the whole update. A loss must
  then not itself speak of `axis`.

  What is not clipped is not released: the clients start from the server's
  `model_state` and what they make of it is dropped (so batch statistics stay
  as they are; prefer layers without). The server's `tx` gets `clip_norm` (the
  C of this round) where it takes extra arguments, and nothing of the clients
  but the sum. A client whose update is not finite counts as zeros, and the
  noise moves on in any case.

  Args:
    loss_fn: any loss. Client i of the cohort gets keys
      `fold_in(fold_in(k, i), local step)`, k from the state's key and round.
    tx: any transformation, on the sum over clients of minus the clipped
      update, float32 (or wider). Parameters of 16 bits it sees as float32, and
      what they cannot hold is carried on to the next round.
    client_tx: the local optimiser, made anew each round.
    clip: at a fixed norm, or at a quantile. The fixed norm must be that of
      `tx`'s noise. The quantile needs a state from `init_state`.
    clients_per_chunk: updates that a device holds at once; it divides the
      clients on a device.
    mask, client_mask: their names in the batch.
    axis: mesh axis of the clients.
    next_model_state: (model_state, round) -> model_state of the server, from
      public values alone, such as a counter; None keeps it.
    report: `all`: the metrics of the loss (those of a client's counted steps,
      over the clients that count), `update_norm` (before clipping),
      `fraction_clipped`, `num_clients` and `num_finite`, all named
      `NOT_PRIVATE + name`. `loss`: the mean loss alone.

  Returns:
    A `StepFn`. Its metrics: `loss`, which is NOT private, as all that `report`
    adds; and `clip_norm`, `clip_estimate`, which are as private as the count.

  Raises:
    ValueError: a bad setting; when called, clients that do not divide.
  """
  _check_clip(clip)
  checks.positive_int("clients_per_chunk", clients_per_chunk)
  checks.one_of("report", report, REPORTS)
  tx = sums_lib.on_sums(tx)
  plan = cohort_sum.Plan(
    loss_fn,
    optax.with_extra_args_support(client_tx),
    clients_per_chunk,
    mask,
    client_mask,
    axis,
    getattr(clip, "grid", None),
    getattr(clip, "norm", None),
  )

  def step(state: types.TrainState, cohort: types.Batch):
    server, in_force = _start(clip, state)
    bounds = _bounds(clip, in_force)
    key = jax.random.fold_in(state.step_key(), _CLIENT_STREAM)
    sums = cohort_sum.sum_clients(plan, state, cohort, bounds, key)
    # A fixed norm stays a number, which noise that cannot follow one checks.
    norm = clip.norm if in_force is None else in_force.norm
    extra = {} if norm is None else {"clip_norm": norm}
    updates, server = tx.update(sums.update, server, state.params, **extra)
    opt_state, public = server, {}
    if in_force is not None:
      public = {"clip_norm": in_force.norm, "clip_estimate": in_force.estimate}
      in_force = clipping.quantile_clip_update(clip, in_force, sums.below)
      opt_state = RoundState(server, in_force)
    model_state = state.model_state
    if next_model_state is not None:
      model_state = next_model_state(model_state, state.step)
    new = state.advance(updates, trees.strong_types(opt_state), model_state)
    return new, {**_metrics(sums, report), **public}

  return step


def _start(clip, state: types.TrainState):
  """The server's state, and that of adaptive clipping or None."""
  adaptive = isinstance(clip, clipping.QuantileClip)
  if not adaptive:
    return state.opt_state, None
  if not isinstance(state.opt_state, RoundState):
    raise ValueError(
      f"opt_state is a {type(state.opt_state).__name__}: adaptive clipping "
      "needs a state made by `init_state`."
    )
  server, inner = state.opt_state
  return server, clipping.quantile_clip_start(clip, inner, state.step)


def _bounds(clip, in_force):
  """`(C, the norm that the count asks about)`, `[]` float32 or None."""
  if in_force is not None:
    return in_force.norm, in_force.estimate
  if clip.norm is None:
    return None, None
  return jnp.float32(clip.norm), None


def _metrics(sums: cohort_sum.Sums, report: str) -> dict[str, Any]:
  found = dict(sums.found)
  out = {"loss": found.pop("loss")}
  if report == "all":
    found["update_norm"] = metrics.Mean(sums.norm, sums.finite)
    found["fraction_clipped"] = metrics.Mean(sums.clipped, sums.finite)
    found["num_clients"], found["num_finite"] = sums.clients, sums.finite
    out |= {NOT_PRIVATE + name: value for name, value in found.items()}
  return out
