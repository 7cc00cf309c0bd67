"""Replicas: any experiment, several times side by side, to see what varies.

`from_experiment` gives the experiment with a leading replica axis on all of
its state but the step counter. The replicas differ only in the sources of
randomness that `vary` names; what is not named is the same for all:

    init      the key given to `experiment.init`
    order     the seed of the batches
    dropout   `state.key`: all that the step draws (dropout, mixup, ...)
    rounding  noise of the size of re-ordered float sums, on each update
    labels    the numbering of the classes

Each source has a stream of its own, `fold_in(fold_in(key, source), replica)`,
with replica 0 where the source is shared; so the draws of one do not depend on
which others vary. With nothing to vary all replicas are equal to the last bit.

    pairs = replicas.from_experiment(
      experiment, num_replicas=8, vary={"order"}, batches=batches, order_seed=0
    )
    state = loop.fit(pairs, workdir, key=jax.random.key(0))
    predictions = replicas.predictor(predict_fn)(state, test_batches())

`single` is one of the replicas on its own: the same draws, the same
arithmetic. With `how="map"` it mostly gives the same bits too. With `vmap` the
matrix products agree to the last bit on a CPU, but XLA may fuse other sums (of
a softmax, over a batch) in another order, which is one unit in the last place
of a gradient. Keys must be of a kind whose draws vmap keeps, as the default.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from locojax.core import checks, metrics, trees, types
from locojax.train import experiment as experiment_lib
from locojax.train import sharding, variation

SOURCES = variation.SOURCES
HOW = ("vmap", "map", "unroll")

Experiment = experiment_lib.Experiment
PredictFn = Callable[[types.TrainState, types.Batch], jax.Array]


def _row(tree, index: int):
  return jax.tree.map(lambda x: x[index], tree)


def _stack(trees_: list):
  return jax.tree.map(lambda *x: jnp.stack(x), *trees_)


def _over_replicas(f, how: str, num_replicas: int):
  """`f(own, shared)` for each replica; `own` has the leading axis.

  Under vmap what is shared is given that axis too, on the device: products
  with a matrix that lacks it would be merged, and summed in another order.
  """
  if how == "map":
    return lambda own, shared: jax.lax.map(lambda x: f(x, shared), own)
  if how == "unroll":
    return lambda own, shared: _stack(
      [f(_row(own, r), shared) for r in range(num_replicas)]
    )

  def spread(x):
    x = jnp.asarray(x)
    return jnp.broadcast_to(x, (num_replicas, *x.shape))

  return lambda own, shared: jax.vmap(f)(own, jax.tree.map(spread, shared))


def _fields(state: types.TrainState) -> dict[str, Any]:
  """The fields that have a replica axis."""
  names = [f.name for f in dataclasses.fields(state) if f.name != "step"]
  return {name: getattr(state, name) for name in names}


def _init(
  plan: variation.Variation, num_replicas: int, how: str, key: jax.Array
):
  indices = jnp.arange(num_replicas)
  over = functools.partial(_over_replicas, how=how, num_replicas=num_replicas)
  keys = jax.vmap(lambda r: plan.streams(key, r))(indices)
  if "init" in plan.vary:
    state = over(lambda r, key: plan.init(key, r))(indices, key)
    return state.replace(step=state.step[0], key=keys)
  state = plan.init(key, 0)
  spread = lambda x: jnp.broadcast_to(x, (num_replicas, *jnp.shape(x)))
  own = jax.tree.map(spread, _fields(state))
  return state.replace(**{**own, "key": keys})


def _step(plan: variation.Variation, num_replicas: int, how: str, each: bool):
  """The step of all replicas."""
  own_batch = "order" in plan.vary

  def one(own, shared):
    both = {**shared, **own}
    state = types.TrainState(step=both["step"], **own["state"])
    new, measured = plan.step(state, both["batch"])
    return new.step, _fields(new), measured

  over = _over_replicas(one, how, num_replicas)

  def step(state: types.TrainState, batch: types.Batch):
    own, shared = {"state": _fields(state)}, {"step": state.step}
    (own if own_batch else shared)["batch"] = batch
    steps, fields, measured = over(own, shared)
    new = types.TrainState(step=steps[0], **fields)
    return new, _merge_metrics(measured, num_replicas, each)

  return step


def _merge_metrics(measured, num_replicas: int, each: bool) -> types.Metrics:
  """One value over all replicas under each name, and those of each."""

  def merged(x):
    if isinstance(x, metrics.Mean):
      return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), x)
    return jnp.mean(x, axis=0)

  out = {name: merged(x) for name, x in measured.items()}
  for r in range(num_replicas if each else 0):
    one = jax.tree.map(operator.itemgetter(r), measured)
    out |= {f"replica_{r}/{name}": x for name, x in one.items()}
  return out


def _stacked(plan: variation.Variation, num_replicas: int):
  """`start -> iterator` of batches `[replicas, batch, ...]`."""

  def iterate(start):
    sources = [plan.batches_of(r)(start) for r in range(num_replicas)]
    for several in zip(*sources, strict=True):
      yield jax.tree.map(lambda *x: np.stack(x), *several)

  return iterate


def _without(spec: PartitionSpec, axis: str | None) -> tuple:
  """The entries of a spec, with a mesh axis taken out."""

  def keep(entry):
    names = entry if isinstance(entry, tuple) else (entry,)
    kept = tuple(n for n in names if n is None or n != axis)
    if len(kept) == len(names):
      return entry
    return kept if len(kept) > 1 else (kept[0] if kept else None)

  return tuple(keep(entry) for entry in spec)


def _rules(experiment: Experiment, axis: str | None):
  """Rules that lay each leaf out as before, and its replica axis on `axis`."""
  if not experiment.rules:
    all_leaves = lambda shape, mesh: PartitionSpec(axis)
    return ((".*", all_leaves),) if axis else ()
  state = jax.eval_shape(experiment.init, jax.random.key(0))

  @functools.cache
  def specs(mesh):
    found = sharding.state_shardings(state, mesh, experiment.rules)
    return {path: s.spec for path, s in trees.flatten(found).items()}

  def rule(path):
    def spec(shape, mesh):
      return PartitionSpec(axis, *_without(specs(mesh)[path], axis))

    regex = "^" + "".join(c if c.isalnum() else f"[{c}]" for c in path) + "$"
    return regex, spec

  leaves = trees.flatten(state)
  ruled = [
    p for p, x in leaves.items() if p != "step" and not sharding.is_key(x)
  ]
  # A rule for a parameter hits its companions too, so theirs come first.
  ruled.sort(key=lambda path: path.startswith("params/"))
  return tuple(rule(path) for path in ruled)


def _names(vary: Collection[str]) -> frozenset[str]:
  return frozenset((vary,) if isinstance(vary, str) else vary)


def _check_layout(how: str, replica_axis: str | None) -> None:
  checks.one_of("how", how, HOW)
  if replica_axis is None:
    return
  checks.one_of("replica_axis", replica_axis, sharding.AXES)
  if how != "vmap":
    raise ValueError(
      f"replica_axis={replica_axis!r} is not allowed with how={how!r}, which "
      "takes one replica after the other."
    )


def from_experiment(
  experiment: Experiment,
  *,
  num_replicas: int,
  vary: Collection[str],
  batches: variation.SeededBatches | None = None,
  order_seed: int | None = None,
  rounding_ulps: float = 1.0,
  label_name: str = "label",
  num_classes: int | None = None,
  how: str = "vmap",
  replica_axis: str | None = None,
  each: bool = False,
) -> Experiment:
  """The experiment as several replicas, trained together.

  `params`, `model_state` and `opt_state` of the state get a leading axis;
  `key` is `[replicas, 3]`, the streams of dropout, rounding and labels; the
  step counter is one. Metrics are those of all replicas together (a `Mean` is
  merged, a number averaged). Evaluations run on each replica in turn, as
  `slice_state` gives it, and tell the mean and `replica_<r>/<name>`. For
  others, on all replicas at once, replace `evals` of what is returned.

  Args:
    experiment: any, with any step.
    num_replicas: how many, 1 or more.
    vary: the sources of randomness in which replicas differ, of `SOURCES`.
    batches: `seed -> (start -> iterator)`, for `order`; None takes those of
      the experiment, for all replicas. Where the order varies a batch is
      `[replicas, batch, ...]`, else it is shared.
    order_seed: what the seeds of `batches` come from, in [0, 2^32).
    rounding_ulps: size of the rounding noise: an update u becomes
      `u (1 + rounding_ulps * eps * U(-1, 1))`, drawn for each weight, step and
      replica. It is a model of float sums in another order (atomic additions,
      other devices); a sum of n terms is off by about sqrt(n) such units. In
      `opt_state` nothing is changed.
    label_name: the class indices in a batch, for `labels`: class j becomes
      `label_permutations(...)[replica, j]`.
    num_classes: for `labels`.
    how: `vmap`, or `map`: one replica after the other, which takes less
      memory for activations; or `unroll`: the same without a loop, which
      compiles longer (XLA's convolutions in a loop are very slow on CPUs).
    replica_axis: mesh axis over which the replicas are spread, usually `data`;
      it is then taken out of all other layouts, so that every device sees
      whole batches (so must each process: `batches` must not cut them). None
      leaves the replicas together and the layout as it is.
    each: whether the metrics of training name each replica too.

  Returns:
    An `Experiment` for `loop.fit`.

  Raises:
    ValueError: on a bad argument; evaluations with `labels`, which cannot
      know the new numbers; or an experiment with a `journal`, which is for
      the state of one.
  """
  checks.positive_int("num_replicas", num_replicas)
  if experiment.journal is not None:
    raise ValueError(
      "experiment.journal is not allowed: it is for the state of one run. "
      "Replace it in what is returned."
    )
  _check_layout(how, replica_axis)
  plan = variation.Variation(
    experiment,
    _names(vary),
    batches,
    order_seed,
    rounding_ulps,
    label_name,
    num_classes,
  )
  flops = experiment.flops_per_step
  return dataclasses.replace(
    experiment,
    init=functools.partial(_init, plan, num_replicas, how),
    step=_step(plan, num_replicas, how, each),
    rules=_rules(experiment, replica_axis),
    evals=_each_eval(experiment.evals, num_replicas),
    examples_per_step=num_replicas * experiment.examples_per_step,
    flops_per_step=None if flops is None else num_replicas * flops,
    **_batch_fields(plan, num_replicas, replica_axis),
  )


def _batch_fields(
  plan: variation.Variation, num_replicas: int, axis: str | None
):
  experiment = plan.experiment
  entries = _without(experiment.batch_spec, axis)
  if "order" not in plan.vary:
    return dict(batches=plan.batches_of(0), batch_spec=PartitionSpec(*entries))
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((num_replicas, *x.shape), x.dtype),
    experiment.batch_shapes,
  )
  return dict(
    batches=_stacked(plan, num_replicas),
    batch_shapes=shapes,
    batch_spec=PartitionSpec(axis, *entries),
  )


def _each_eval(evals, num_replicas: int):
  def lifted(e):
    def run(state):
      found = [e.run(slice_state(state, r)) for r in range(num_replicas)]
      out = {n: float(np.mean([f[n] for f in found])) for n in found[0]}
      for r, values in enumerate(found):
        out |= {f"replica_{r}/{n}": float(v) for n, v in values.items()}
      return out

    return dataclasses.replace(e, run=run)

  return {name: lifted(e) for name, e in evals.items()}


def single(
  experiment: Experiment, *, replica: int, vary: Collection[str], **settings
) -> Experiment:
  """One replica of `from_experiment` alone, with the very same streams.

  Args:
    experiment: as for `from_experiment`.
    replica: its index; the number of replicas does not matter.
    vary: as for `from_experiment`.
    **settings: `batches`, `order_seed`, `rounding_ulps`, `label_name` and
      `num_classes`, as for `from_experiment`.

  Returns:
    An `Experiment`, its state like that of `experiment` but for `key`, `[3]`;
    `plain_state` makes it the same.

  Raises:
    ValueError: as `from_experiment`.
  """
  checks.nonnegative("replica", replica)
  plan = variation.Variation(experiment, _names(vary), **settings)

  def lifted(e):
    return dataclasses.replace(e, run=lambda state: e.run(plain_state(state)))

  return dataclasses.replace(
    experiment,
    init=lambda key: plan.init(key, replica),
    step=plan.step,
    batches=plan.batches_of(replica),
    evals={name: lifted(e) for name, e in experiment.evals.items()},
  )


def plain_state(state: types.TrainState) -> types.TrainState:
  """The state of a `single` replica as the experiment itself knows it."""
  if state.key.shape != (len(variation.STREAMS),):
    raise ValueError(
      f"state.key has shape {state.key.shape}: it must be that of one replica, "
      f"({len(variation.STREAMS)},)."
    )
  return state.replace(key=state.key[0])


def num_replicas(state: types.TrainState) -> int:
  """The number of replicas in a state.

  Raises:
    ValueError: it is not the state of replicas.
  """
  shape = state.key.shape
  if len(shape) != 2 or shape[1] != len(variation.STREAMS):
    raise ValueError(
      f"state.key has shape {shape}: the state of replicas has "
      f"(replicas, {len(variation.STREAMS)})."
    )
  return shape[0]


@jax.jit
def _at(tree, index):
  return jax.tree.map(lambda x: x[index], tree)


def slice_state(state: types.TrainState, replica: int) -> types.TrainState:
  """One replica's state, as the experiment itself knows it.

  Args:
    state: of `from_experiment`.
    replica: index of the replica.

  Returns:
    The state without replica axis; its `key` is that of dropout.

  Raises:
    ValueError: the state is not one of replicas, or has no such replica.
  """
  checks.one_of("replica", replica, range(num_replicas(state)))
  return plain_state(state.replace(**_at(_fields(state), np.int32(replica))))


def label_permutations(
  state: types.TrainState, *, num_classes: int
) -> np.ndarray:
  """What `labels` makes of the classes: int `[replicas, num_classes]`.

  Class j is `[r, j]` to replica r, if the experiment was made with `labels`
  in `vary` and this `num_classes`.
  """
  checks.positive_int("num_classes", num_classes)
  num_replicas(state)
  keys = state.key[:, variation.STREAMS.index("labels")]
  orders = jax.vmap(lambda key: jax.random.permutation(key, num_classes))(keys)
  return np.asarray(orders)


def unpermute(predictions: Any, permutations: Any) -> np.ndarray:
  """Predictions for classes in the order of the data, whatever replicas saw.

  Args:
    predictions: `[replicas, ..., classes]`, logits or probabilities.
    permutations: `[replicas, classes]`, from `label_permutations`.

  Returns:
    The same shape: entry j of replica r is its entry `permutations[r, j]`.

  Raises:
    ValueError: the shapes do not agree.

  >>> unpermute([[[0.7, 0.2, 0.1]]], [[2, 0, 1]]).tolist()
  [[[0.1, 0.7, 0.2]]]
  """
  predictions, orders = np.asarray(predictions), np.asarray(permutations)
  ends = predictions.shape[:1] + predictions.shape[-1:]
  checks.same_shape("predictions' ends", ends, "permutations", orders.shape)
  middle = (1,) * (predictions.ndim - 2)
  orders = orders.reshape(ends[0], *middle, ends[-1])
  return np.take_along_axis(predictions, orders, axis=-1)


def predictor(predict_fn: PredictFn, *, how: str = "vmap"):
  """Predictions of all replicas, batch by batch.

  Args:
    predict_fn: `(state, batch) -> [batch, ...]` for one replica, whose state
      is as `slice_state` gives it.
    how: as for `from_experiment`.

  Returns:
    `(state, batches) -> [replicas, examples, ...]` on the host. `batches` are
    those of `pipeline.padded_batches`, say: rows whose `mask` is 0 are left
    out. Batches of one shape compile once, however often it is called.

  Raises:
    ValueError: a bad `how`; no batches; a state that is not one of replicas.
  """
  checks.one_of("how", how, HOW)

  def one(own, shared):
    step, batch = shared
    state = plain_state(types.TrainState(step=step, **own))
    return predict_fn(state, batch)

  @functools.cache
  def compiled(count, replicated):
    over = _over_replicas(one, how, count)
    f = lambda state, batch: over(_fields(state), (state.step, batch))
    return jax.jit(f, out_shardings=replicated)

  def predict(state: types.TrainState, batches: Iterable[types.Batch]):
    f = compiled(num_replicas(state), state.step.sharding)
    parts = [_counted(f(state, batch), batch) for batch in batches]
    if not parts:
      raise ValueError("batches are empty: at least one is needed.")
    return np.concatenate(parts, axis=1)

  return predict


def _counted(predictions: jax.Array, batch: types.Batch) -> np.ndarray:
  """Rows that are no padding, on the host."""
  out = np.asarray(predictions)
  if "mask" not in batch:
    return out
  return out[:, np.asarray(batch["mask"]) != 0]
