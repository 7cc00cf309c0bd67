"""Every baseline with models of the house that are no ViT: an MLP, a ResNet.

A stream of three tasks of two digits each; plain jitted steps made by
`steps.from_loss`, of which one is compiled for all tasks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.data import continual as streams
from locojax.data import pipeline, sources
from locojax.methods import continual
from locojax.nn import mlp, resnet
from locojax.train import steps

C, BATCH, STEPS, DIM = 6, 16, 40, 16
KEY = jax.random.key(0)


def _scenario():
  digits = pytest.importorskip("sklearn.datasets").load_digits()
  rows = [np.flatnonzero(digits.target == c)[:80] for c in range(C)]
  train = np.concatenate([r[:60] for r in rows])
  test = np.concatenate([r[60:] for r in rows])
  images = (digits.images / 16).astype(np.float32)[..., None]
  labels = digits.target.astype(np.int32)
  make = lambda r: sources.from_arrays({"image": images[r], "label": labels[r]})
  return streams.split_classes(make(train), make(test), 3)


SCENARIO = _scenario()
IDS = [t.class_ids for t in SCENARIO.tasks]
EXAMPLE = {"image": np.zeros((8, 8, 1), np.float32), "label": np.int32(0)}
DARK = {**EXAMPLE, "logits": np.zeros(C, np.float32)}


@dataclasses.dataclass(frozen=True)
class Model:
  """A model as the library wants it: functions of parameters and state.

  Attributes:
    init: key -> (params, model_state).
    train, test: `ApplyFn`s of logits.
    embed: `ApplyFn` of features `[n, DIM]`, in training.
    features: the same, evaluated.
  """

  init: Callable[..., Any]
  train: continual.ApplyFn
  test: continual.ApplyFn
  embed: continual.ApplyFn
  features: continual.ApplyFn


def _mlp() -> Model:
  body = mlp.MLP(features=(64, DIM), activation=jax.nn.gelu)
  head = mlp.MLP(features=(C,))

  def init(key):
    one, two = jax.random.split(key)
    x, z = jnp.zeros((1, 64)), jnp.zeros((1, DIM))
    parts = {"body": body.init(one, x), "head": head.init(two, z)}
    return {k: v["params"] for k, v in parts.items()}, {}

  def embed(params, state, batch, key):
    del key
    x = batch["image"].reshape(len(batch["image"]), -1)
    return body.apply({"params": params["body"]}, x), state

  def logits(params, state, batch, key):
    z, state = embed(params, state, batch, key)
    return head.apply({"params": params["head"]}, jax.nn.gelu(z)), state

  return Model(init, logits, logits, embed, embed)


def _resnet() -> Model:
  net = resnet.PreActResNet(num_classes=C, stage_sizes=(1, 1), width=DIM // 2)

  def init(key):
    made = net.init(key, jnp.zeros((1, 8, 8, 1)), train=False)
    return made["params"], {"batch_stats": made["batch_stats"]}

  def apply(params, state, batch, key, *, train, which):
    del key
    variables, settings = {"params": params, **state}, {"train": train}
    settings["return_features"] = True
    if not train:
      return net.apply(variables, batch["image"], **settings)[which], state
    out, new = net.apply(
      variables,
      batch["image"],
      mask=batch.get("mask"),
      mutable=["batch_stats"],
      **settings,
    )
    return out[which], {**state, **new}

  ways = [(True, 0), (False, 0), (True, 1), (False, 1)]
  return Model(
    init, *(functools.partial(apply, train=t, which=w) for t, w in ways)
  )


_UPDATED = jax.jit(lambda matrix, t, hits: matrix.updated(t, hits))
_SUMMARY = jax.jit(lambda matrix: matrix.summary(2))


class Run:
  """A tiny stream with one compiled step; hooks are between the tasks."""

  def __init__(self, model: Model, make_loss, *, model_state=None):
    self.model, self.num_traces = model, 0
    tx = optax.adam(5e-3)
    params, state = jax.jit(model.init)(KEY)
    state = state if model_state is None else model_state(params, state)
    loss_fn = make_loss(model)

    def step(state, batch):
      self.num_traces += 1
      return steps.from_loss(loss_fn, tx)(state, batch)

    self.state = steps.init_state(params, tx, key=KEY, model_state=state)
    self._step = jax.jit(step)
    self._test = jax.jit(lambda *a: model.test(*a, KEY)[0])
    self.matrix = continual.AccuracyMatrix.empty(3)
    self.losses = []

  def train(self, source, seed=0, num_steps=STEPS, map=None):
    batches = pipeline.array_batches(
      source, batch_size=BATCH, seed=seed, map=map
    )(0)
    for _ in range(num_steps):
      self.state, found = self._step(self.state, next(batches))
      self.losses.append(float(found["loss"].value()))
    assert np.isfinite(self.losses).all()

  def plain(self):
    keep = ("batch_stats",)
    return {k: v for k, v in self.state.model_state.items() if k in keep}

  def logits(self, source):
    batch = sources.as_arrays(source)
    return self._test(self.state.params, self.plain(), batch)

  def measure(self, t, scores=None):
    scores, hits = scores or self.logits, []
    seen = np.isin(np.arange(C), np.concatenate(IDS[: t + 1]))
    for task in SCENARIO.tasks[: t + 1]:
      labels = streams.labels_of(task.test)
      found = np.where(seen, scores(task.test), -np.inf)
      hits.append(np.mean(np.argmax(found, axis=1) == labels))
    hits += [0.0] * (2 - t)
    self.matrix = _UPDATED(self.matrix, t, np.float32(hits))

  def stream(self, after=None, masked=False):
    for t, task in enumerate(SCENARIO.tasks):
      mask = streams.add_class_mask(task.class_ids, C) if masked else None
      self.train(task.train, seed=t, map=mask)
      if after:
        self.set(after(self, task))
      self.measure(t)
    assert self.num_traces == 1
    return self.summary()

  def summary(self):
    return {k: float(v) for k, v in _SUMMARY(self.matrix).items()}

  def set(self, model_state):
    self.state = self.state.replace(model_state=model_state)


def _with_buffer(example=EXAMPLE, inner=None):
  buffer = continual.reservoir(example, capacity=60)

  def state(params, model_state):
    made = inner(params, model_state) if inner else model_state
    return continual.with_replay(made, buffer, KEY)

  return state


def _finetune(model):
  return Run(model, lambda m: continual.cross_entropy(m.train)).stream()


def _er(model):
  make = lambda m: continual.er(continual.cross_entropy(m.train))
  return Run(model, make, model_state=_with_buffer()).stream()


def _derpp(model):
  make = lambda m: continual.derpp(m.train, alpha=0.1, beta=0.5)
  return Run(model, make, model_state=_with_buffer(DARK)).stream()


def _ewc(model):
  make = lambda m: continual.ewc(continual.cross_entropy(m.train), weight=100.0)

  @jax.jit
  def fisher(params, state, batch):
    found = continual.diagonal_fisher(model.test, params, state, batch, KEY)
    return found.value()

  def after(run, task):
    batch = sources.as_arrays(task.train)
    found = fisher(run.state.params, run.plain(), batch)
    own = run.state.model_state["ewc"]
    own = jax.jit(continual.ewc_summed)(own, run.state.params, found)
    return {**run.state.model_state, "ewc": own}

  run = Run(model, make, model_state=lambda p, s: continual.with_ewc(s, p))
  return run.stream(after=after, masked=True)


def _teacher(params, model_state):
  return continual.with_teacher(model_state, params, num_classes=C)


def _remember(run, task):
  state = run.state
  return continual.remember(state.model_state, state.params, task.class_ids)


def _lwf(model):
  make = lambda m: continual.lwf(m.train, weight=2.0, teacher_fn=m.test)
  run = Run(model, make, model_state=_teacher)
  return run.stream(after=_remember, masked=True)


def _bic(model):
  """The last 10 images of a class are for validation, and never trained on."""
  make = lambda m: continual.er(continual.bic(m.train, teacher_fn=m.test))
  state = lambda p, s: continual.with_bic(s, p, num_classes=C)
  run = Run(model, make, model_state=_with_buffer(inner=state))
  kept = {}
  fit = jax.jit(continual.bic_fit)

  def split(task):
    batch = sources.as_arrays(task.train)
    last = np.zeros(len(batch["label"]), bool)
    for c in task.class_ids:
      last[np.flatnonzero(batch["label"] == c)[-10:]] = True
    held = {k: v[last] for k, v in batch.items()}
    return sources.from_arrays({k: v[~last] for k, v in batch.items()}), held

  corrections = [continual.Correction.identity(C)]
  for t, task in enumerate(SCENARIO.tasks):
    run.set(continual.bic_begin(run.state.model_state, task.class_ids))
    train, kept[t] = split(task)
    run.train(train, seed=t)
    correction = continual.Correction.identity(C)
    if t:
      held = {k: np.concatenate([v[k] for v in kept.values()]) for k in EXAMPLE}
      num = len(held["label"])
      # The same shapes in all tasks.
      val = {k: np.resize(v, (60, *v.shape[1:])) for k, v in held.items()}
      correction = fit(
        run.logits(sources.from_arrays(val)),
        val["label"],
        continual.class_mask(task.class_ids, C),
        seen=continual.classes_seen(IDS, t, C),
        mask=(np.arange(60) < num).astype(np.float32),
      )
    corrections.append(correction)
    scores = lambda s, c=correction: c.apply(run.logits(s))
    run.measure(t, scores)
    run.set(
      continual.bic_end(run.state.model_state, run.state.params, correction)
    )
  assert run.num_traces == 1 and float(corrections[-1].beta) != 0
  return run.summary()


def _co2l(model):
  """Contrast, and a linear head on embeddings of buffer and last task."""
  make = lambda m: continual.er(continual.co2l(m.embed, teacher_fn=m.features))
  run = Run(model, make, model_state=_with_buffer(inner=_teacher))
  embed = jax.jit(lambda *a: model.features(*a, KEY)[0])
  of = lambda batch: embed(run.state.params, run.plain(), batch)
  probe = jax.jit(
    lambda z, y, w: continual.linear_probe(z, y, num_classes=C, l2=1e-3, mask=w)
  )
  for t, task in enumerate(SCENARIO.tasks):
    run.train(task.train, seed=t)
    run.set(_remember(run, task))
    held = continual.contents(run.state.model_state["replay"]["buffer"])
    now = sources.as_arrays(task.train)
    both = {k: np.concatenate([held[k], now[k]]) for k in EXAMPLE}
    counts = np.bincount(both["label"], minlength=C)
    weight = (1 / counts[both["label"]]).astype(np.float32)
    head = probe(of(both), both["label"], weight)
    scores = lambda s, h=head: (
      of(sources.as_arrays(s)) @ h["kernel"] + h["bias"]
    )
    run.measure(t, scores)
  assert run.num_traces == 1
  return run.summary()


def _gdumb(model):
  buffer = continual.balanced(EXAMPLE, capacity=60, num_classes=C)
  insert = jax.jit(
    lambda b, x: continual.insert(b, x, key=KEY, labels=x["label"])
  )
  for task in SCENARIO.tasks:
    buffer = insert(buffer, sources.as_arrays(task.train))
  assert buffer.class_counts(C).tolist() == [10] * C
  run = Run(model, lambda m: continual.cross_entropy(m.train))
  run.train(sources.from_arrays(continual.gdumb(buffer)), num_steps=3 * STEPS)
  return _only_the_end(run)


def _joint(model):
  run = Run(model, lambda m: continual.cross_entropy(m.train))
  run.train(streams.joint(SCENARIO).train, num_steps=3 * STEPS)
  return _only_the_end(run)


def _only_the_end(run):
  for t in range(3):
    run.measure(t)
  assert run.num_traces == 1
  return run.summary()


def _ncm(model):
  """On features of the model as it was initialised: a frozen backbone."""
  run = Run(model, lambda m: continual.cross_entropy(m.train))
  embed = jax.jit(lambda *a: model.features(*a, KEY)[0])
  of = lambda s: embed(run.state.params, run.plain(), sources.as_arrays(s))
  means = continual.ncm(C, DIM)
  update = jax.jit(lambda m, z, y: m.updated(z, y))
  for t, task in enumerate(SCENARIO.tasks):
    means = update(means, of(task.train), streams.labels_of(task.train))
    run.measure(t, lambda s, m=means: m.logits(of(s)))
  return run.summary()


METHODS = {
  "finetune": _finetune,
  "ewc": _ewc,
  "lwf": _lwf,
  "er": _er,
  "derpp": _derpp,
  "bic": _bic,
  "co2l": _co2l,
  "gdumb": _gdumb,
  "ncm": _ncm,
  "joint": _joint,
}

# Least average accuracy and most forgetting of the MLP; chance is 1/6, and a
# model that knows the last task alone has 1/3.
BOUNDS = {
  "finetune": (0.2, 1.0),
  "ewc": (0.2, 0.4),
  "lwf": (0.3, 0.5),
  "er": (0.45, 0.7),
  "derpp": (0.6, 0.5),
  "bic": (0.7, 0.3),
  "co2l": (0.7, 0.4),
  "gdumb": (0.55, 1.0),
  "ncm": (0.5, 0.5),
  "joint": (0.9, 0.1),
}


@pytest.mark.parametrize("method", METHODS)
def test_an_mlp_learns_a_stream(method):
  found = METHODS[method](_mlp())
  least, most = BOUNDS[method]
  assert found["average_accuracy"] > least
  assert 0 <= found["forgetting"] < most
  if method == "finetune":  # What the others are for.
    assert found["average_accuracy"] < 0.45 and found["forgetting"] > 0.6


SLOW = [pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "er"]


@pytest.mark.parametrize("method", ["er", *SLOW])
def test_a_residual_network_with_batch_statistics_learns_a_stream(method):
  found = METHODS[method](_resnet())
  assert found["learning_accuracy"] > 0.3
  if method in ("bic", "co2l", "gdumb", "joint"):
    assert found["average_accuracy"] > 0.5
