"""A tiny regression that the tests train, also through `experiments.run`."""

from __future__ import annotations

import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from locojax.core import metrics, trees, types
from locojax.train import experiment, loop, sharding, writers

FEATURES = 4
BATCH = 16


def init(key: jax.Array) -> types.TrainState:
  """A linear map and its momentum; the run's key from the same key."""
  params = {"dense": {"kernel": jax.random.normal(key, (FEATURES, 8)) * 0.1}}
  return types.TrainState(
    step=jnp.int32(0),
    params=params,
    model_state={"mean": jnp.zeros((8,))},
    opt_state={"momentum": jax.tree.map(jnp.zeros_like, params)},
    key=jax.random.fold_in(key, 1),
  )


def step(state: types.TrainState, batch: types.Batch):
  """Momentum on a noisy squared error."""

  def loss_fn(params):
    noise = 0.1 * jax.random.normal(state.step_key(), (8,))
    out = batch["x"] @ params["dense"]["kernel"] + noise
    return jnp.mean(jnp.square(out - batch["y"])), jnp.mean(out, axis=0)

  (loss, mean), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
  momentum = jax.tree.map(
    lambda m, g: 0.9 * m + g, state.opt_state["momentum"], grads
  )
  params = jax.tree.map(lambda p, m: p - 0.05 * m, state.params, momentum)
  new = state.replace(
    step=state.step + 1,
    params=params,
    model_state={"mean": 0.9 * state.model_state["mean"] + 0.1 * mean},
    opt_state={"momentum": momentum},
  )
  return new, {"loss": metrics.mean(loss)}


def global_batch(k: int) -> dict[str, np.ndarray]:
  """Batch k, a function of k alone."""
  rng = np.random.default_rng([7, k])
  x = rng.normal(size=(BATCH, FEATURES)).astype(np.float32)
  y = np.repeat(x.sum(axis=1, keepdims=True), 8, axis=1).astype(np.float32)
  return {"x": x, "y": y}


def batches(start: int, *, bad: int = -1, pause: float = 0.0):
  """This process's rows of the batches; batch `bad` holds a NaN."""
  size = BATCH // jax.process_count()
  first = size * jax.process_index()
  k = start
  while True:
    batch = {n: x[first : first + size] for n, x in global_batch(k).items()}
    if k == bad:
      batch["x"][0, 0] = np.nan
    time.sleep(pause)
    yield batch
    k += 1


def norm(state: types.TrainState) -> dict[str, float]:
  """The norm of the kernel."""
  return {"norm": float(jnp.linalg.norm(state.params["dense"]["kernel"]))}


def make(num_steps: int = 20, *, eval_every: int = 5, rules=(), **data):
  """The experiment, with the settings that tests change."""
  shapes = jax.eval_shape(lambda: global_batch(0))
  return experiment.Experiment(
    init=init,
    step=step,
    batches=lambda start: batches(start, **data),
    num_steps=num_steps,
    batch_shapes=shapes,
    rules=rules,
    evals={"weights": experiment.Eval(eval_every, norm)},
    examples_per_step=BATCH,
    flops_per_step=6.0 * BATCH * FEATURES * 8,
  )


def build(config) -> experiment.Experiment:
  """The experiment of a config."""
  return make(config.num_steps, pause=config.pause, bad=config.bad)


def run(config, workdir) -> dict:
  """Two stages, a folder each, when `config.stages` says so."""
  pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
  pathlib.Path(workdir, f"pid{jax.process_index()}").write_text(
    str(os.getpid())
  )
  mesh = sharding.make_mesh(dict(config.mesh))
  for stage in range(config.stages):
    folder = pathlib.Path(workdir, f"stage_{stage}")
    loop.fit(
      build(config),
      folder,
      mesh=mesh,
      key=jax.random.key(config.seed),
      log_every=config.log_every,
      save_every=config.save_every,
      config=config.to_dict(),
      may_differ=("stages", "num_steps", "pause"),
    )
  return {}


def bits(state) -> dict[str, bytes]:
  """The bytes of all leaves, by path."""
  out = {}
  for path, x in trees.flatten(state).items():
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x = jax.random.key_data(x)
    out[path] = np.asarray(x).tobytes()
  return out


def rows(folder, timing=False) -> list[dict]:
  """The rows of `metrics.jsonl`, without `seconds` unless asked for."""
  found = writers.read_lines(pathlib.Path(folder) / writers.METRICS)
  if timing:
    return found
  return [{k: v for k, v in r.items() if k != "seconds"} for r in found]
