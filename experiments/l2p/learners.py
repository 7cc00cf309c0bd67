"""What is compared: how each method learns a stream, task after task.

A learner says what is trained, by which loss, and what happens between tasks.
The loop, the optimiser and the data are the same for all.

  l2p              the pool of prompts, chosen by eq. (3), mask of the classes
  l2p_penalty      the same by eq. (4), which knows where tasks end
  l2p_forced       the released stand-in for it: each task its own prompts in
                   training, as far as the pool goes (the first M // N tasks);
                   later tasks choose
  l2p_token        the same as l2p with the head on [cls], as DualPrompt, CODA
                   and whole networks have it, not on the mean over prompts
  l2p_replay       L2P-R: with examples kept of the past
  single_prompt    one prompt for all, no pool
  dualprompt, coda_prompt
  ft_seq, ft_seq_masked                 the whole network, one task after the
                   other; with the mask of the task's classes
  ft_seq_frozen, ft_seq_frozen_masked   only the linear head
  ewc, lwf, er, derpp, gdumb, bic, co2l the whole network
  nearest_mean     the nearest class mean of the frozen features
  linear_probe     logistic regression on the frozen features of all tasks
  joint            the whole network on all tasks at once, for `num_epochs`

Masks: softmax and loss of those that say so, of prompts, ewc and lwf see the
classes of the task alone (without boundaries: of the batch, as in the released
code); those with examples kept and no prompts see all classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.l2p import learner, networks
from locojax.data import pipeline
from locojax.methods import continual, l2p

Setup, Learner, Arrays = learner.Setup, learner.Learner, learner.Arrays
_NCM = "nearest_mean"
# Of the Fisher information, where there are no boundaries (EWC++).
_ONLINE_DECAY = 0.9


class Masked(Learner):
  """Fine-tuning of the network with the mask of the task's classes."""

  masked = True


class Head(Learner):
  """Only the head is trained."""

  trains = "head"


class MaskedHead(Head):
  """Only the head, with the mask."""

  masked = True


class Prompts(Learner):
  """L2P, by eq. (3)."""

  trains, masked = "prompts", True
  pool: dict[str, Any] = {}

  def make_model(self):
    return networks.prompted(
      self.config, self.setup.net, self.setup.num_classes, **self.pool
    )

  def options(self) -> dict[str, Any]:
    """Of the loss."""
    return {}

  def loss(self):
    inner = l2p.make_loss_fn(self.model, **self.options())

    @functools.wraps(inner)
    def loss(params, model_state, batch, key):
      batch = {**batch, "image": networks.prepared(batch["image"])}
      return inner(params, model_state, batch, key)

    return self._replayed(loss)

  def extras(self, params, key):
    task = 0 if self.setup.boundaries else None
    state = l2p.init_pool_state(self.model, task_id=task)
    return {**super().extras(params, key), **state}

  def begin(self, state, task, data):
    kmeans = self.config.pool.key_init == "kmeans"
    if (
      task == 0 and kmeans and isinstance(self.model.pool, l2p.PromptPoolConfig)
    ):
      state = self._clustered(state, data)
    if task and self.setup.boundaries:
      model_state = l2p.start_task(state.model_state, task)
      state = state.replace(model_state=model_state)
    return state

  def _clustered(self, state, data):
    """Keys where the first queries are."""
    keys = l2p.kmeans_keys(
      data["query"][: 8 * self.config.batch_size],
      self.model.pool.pool_size,
      jax.random.fold_in(state.key, 1),
    )
    inner = {**state.params["prompt_pool"], "key": keys}
    return state.replace(params={**state.params, "prompt_pool": inner})


class PenaltyPrompts(Prompts):
  """L2P, by eq. (4)."""

  pool = {"frequency_penalty": "paper"}
  needs_boundaries = True


class ForcedPrompts(Prompts):
  """L2P, each task its own prompts in training."""

  pool = {"selection": "forced"}
  needs_boundaries = True


class TokenPrompts(Prompts):
  """L2P with the head of the others."""

  def make_model(self):
    setup = self.setup
    return networks.prompted(
      self.config, setup.net, setup.num_classes, head="token"
    )


class ReplayPrompts(Prompts):
  """L2P-R."""

  replays = True


class SinglePrompt(Prompts):
  """One prompt, no pool."""

  def make_model(self):
    setup = self.setup
    return networks.single(self.config, setup.net, setup.num_classes)


class DualPrompt(Prompts):
  """DualPrompt."""

  needs_boundaries = True

  def make_model(self):
    setup = self.setup
    return networks.dual(
      self.config, setup.net, setup.num_classes, setup.num_tasks
    )


class CodaPrompt(Prompts):
  """CODA-Prompt."""

  needs_boundaries = True

  def make_model(self):
    setup = self.setup
    return networks.coda(
      self.config, setup.net, setup.num_classes, setup.num_tasks
    )

  def options(self):
    return {"components_per_task": networks.CODA_PER_TASK}

  def begin(self, state, task, data):
    state = super().begin(state, task, data)
    num = networks.CODA_PER_TASK
    key = jax.random.fold_in(state.key, 2)
    new = (num * task, num * (task + 1))
    params = l2p.start_components(state.params, new, key)
    return state.replace(params=params)

  def outputs(self, state, batch, **options):
    """Components of tasks to come have no weight yet."""
    task = state.model_state["l2p"]["task"]
    new = (0, networks.CODA_PER_TASK * (task + 1))
    return super().outputs(state, batch, components=new, **options)


class Ewc(Learner):
  """Elastic weight consolidation, with the mask of the task's classes."""

  masked = True

  def loss(self):
    inner = continual.cross_entropy(self.apply)
    return continual.ewc(inner, weight=self.config.ewc_weight)

  def extras(self, params, key):
    return continual.with_ewc({}, params)

  @functools.cached_property
  def summed(self) -> Callable:
    """`(penalty, params, batch, key) -> penalty` with this task's, jitted."""

    def found(penalty, params, batch, key):
      one = continual.diagonal_fisher(self.apply, params, {}, batch, key)
      return continual.ewc_summed(penalty, params, one.value())

    return jax.jit(found)

  def wrap(self, step):
    """Without boundaries the penalty is renewed every so many steps."""
    return step if self.setup.boundaries else self._online(step)

  def _online(self, step):
    every = self.config.ewc_every

    def renewed(state, batch):
      key = jax.random.fold_in(state.key, 3)
      found = continual.diagonal_fisher(
        self.apply, state.params, {}, batch, key
      )
      new = continual.ewc_online(
        state.model_state["ewc"],
        state.params,
        found.value(),
        decay=_ONLINE_DECAY,
        rate=1 - _ONLINE_DECAY,
      )
      return {**state.model_state, "ewc": new}

    def run(state, batch):
      state, found = step(state, batch)
      model_state = jax.lax.cond(
        state.step % every == 0,
        lambda: renewed(state, batch),
        lambda: state.model_state,
      )
      return state.replace(model_state=model_state), found

    return run

  def finish(self, state, task, data):
    rows = _spread(len(data["label"]), self.config.ewc_examples)
    batch = {n: data[n][rows] for n in ("image", "label")}
    classes = np.asarray(self._classes(task))
    batch["class_mask"] = np.broadcast_to(classes, (len(rows), len(classes)))
    key = jax.random.fold_in(state.key, 3)
    new = self.summed(state.model_state["ewc"], state.params, batch, key)
    return state.replace(model_state={**state.model_state, "ewc": new})


class Lwf(Learner):
  """Learning without forgetting, with the mask of the new classes."""

  masked, needs_boundaries = True, True

  def loss(self):
    return continual.lwf(
      self.apply,
      weight=self.config.lwf_weight,
      temperature=self.config.lwf_temperature,
    )

  def extras(self, params, key):
    return continual.with_teacher(
      {}, params, num_classes=self.setup.num_classes
    )

  def finish(self, state, task, data):
    new = continual.remember(
      state.model_state, state.params, self._classes(task)
    )
    return state.replace(model_state=new)


class Replay(Learner):
  """Experience replay."""

  replays = True


class DarkReplay(Learner):
  """DER++."""

  replays = True

  def loss(self):
    return continual.derpp(
      self.apply,
      # Theirs is of the mean square over classes.
      alpha=self.config.derpp_alpha / self.setup.num_classes,
      beta=self.config.derpp_beta,
    )

  def _example(self):
    return {
      **super()._example(),
      "logits": np.zeros(self.setup.num_classes, np.float32),
    }


class GreedyReplay(Learner):
  """GDumb: from the backbone on a balanced buffer, after every task."""

  scratch = True

  def kept(self, tasks: list[Arrays], key: jax.Array) -> Arrays:
    """What the buffer holds after these tasks."""
    size = self.config.buffer_per_class * self.setup.num_classes
    buffer = continual.balanced(
      self._example(), capacity=size, num_classes=self.setup.num_classes
    )
    insert = jax.jit(continual.insert)
    for data in tasks:
      rows = {n: data[n] for n in ("image", "label")}
      buffer = insert(buffer, rows, key=key, labels=data["label"])
    return continual.gdumb(buffer)


class BiasCorrection(Learner):
  """BiC: distillation, replay, and two numbers for the new classes."""

  replays, needs_boundaries = True, True

  def loss(self):
    inner = continual.bic(self.apply, temperature=self.config.lwf_temperature)
    return self._replayed(inner)

  def extras(self, params, key):
    state = continual.with_bic({}, params, num_classes=self.setup.num_classes)
    return {**state, **self._buffer(key)}

  def begin(self, state, task, data):
    new = continual.bic_begin(state.model_state, self._classes(task))
    return state.replace(model_state=new)

  def finish(self, state, task, data):
    """Fits on what `data` keeps for validation, of all tasks so far."""
    correction = continual.Correction.identity(self.setup.num_classes)
    if task:
      seen = continual.classes_seen(
        self.setup.class_ids, task, self.setup.num_classes
      )
      valid = data["valid"]
      logits = self._plain_logits(state, valid)
      correction = continual.bic_fit(
        logits, valid["label"], self._classes(task), seen=seen
      )
    new = continual.bic_end(state.model_state, state.params, correction)
    return state.replace(model_state=new)

  def _plain_logits(self, state, batch):
    images = networks.prepared(jnp.asarray(batch["image"]))
    return self.model.apply({"params": state.params}, images)["logits"]

  def logits(self, state, batch):
    found = super().logits(state, batch)
    return state.model_state["bic"]["past"].apply(found)


class Contrast(Learner):
  """Co2L: contrast and distillation of relations, then a head."""

  replays, needs_boundaries = True, True

  def embed(self, params, model_state, batch, key):
    """[cls], whatever the head is."""
    del key
    images = networks.prepared(batch["image"])
    params = l2p.merged(params, model_state)
    out = self.model.apply({"params": params}, images)
    return out["pre_logits"], model_state

  def loss(self):
    return self._replayed(continual.co2l(self.embed))

  def extras(self, params, key):
    state = continual.with_teacher(
      {}, params, num_classes=self.setup.num_classes
    )
    return {**state, **self._buffer(key)}

  def finish(self, state, task, data):
    """The head, on the buffer and the task; each class weighs the same."""
    kept = continual.contents(state.model_state["replay"]["buffer"])
    old = ~np.isin(kept["label"], self.setup.class_ids[task])
    images = np.concatenate([data["image"], kept["image"][old]])
    labels = np.concatenate([data["label"], kept["label"][old]])
    embedded = self._embedded(state, images)
    weights = 1.0 / np.bincount(labels)[labels]
    head = continual.linear_probe(
      embedded,
      labels,
      num_classes=self.setup.num_classes,
      classes=np.unique(labels),
      mask=(weights / weights.mean()).astype(np.float32),
    )
    new = continual.remember(
      state.model_state, state.params, self._classes(task)
    )
    return state.replace(params={**state.params, "head": head}, model_state=new)

  @functools.cached_property
  def _embed(self) -> Callable:
    """`(params, images) -> [cls]`, jitted."""

    def found(params, images):
      out = self.model.apply({"params": params}, networks.prepared(images))
      return out["pre_logits"]

    return jax.jit(found)

  def _embedded(self, state, images) -> np.ndarray:
    size = self.config.eval_batch_size
    batches = pipeline.padded_batches({"image": images}, batch_size=size)
    run = functools.partial(self._embed, state.params)
    return np.concatenate(
      [np.asarray(run(b["image"]))[b["mask"] != 0] for b in batches]
    )


class NearestMean(Learner):
  """The nearest class mean of the frozen features."""

  trains = "nothing"

  def extras(self, params, key):
    empty = continual.ncm(self.setup.num_classes, self.setup.net.width)
    return {_NCM: empty}

  def finish(self, state, task, data):
    means = state.model_state[_NCM].updated(data["query"], data["label"])
    return state.replace(model_state={**state.model_state, _NCM: means})

  def logits(self, state, batch):
    return state.model_state[_NCM].logits(batch["query"])


class Probe(Learner):
  """Logistic regression on the frozen features of all tasks."""

  trains, whole = "nothing", True

  def finish(self, state, task, data):
    head = continual.linear_probe(
      data["query"], data["label"], num_classes=self.setup.num_classes
    )
    return state.replace(params={**state.params, "head": head})

  def logits(self, state, batch):
    head = state.params["head"]
    return batch["query"] @ head["kernel"] + head["bias"]


class Joint(Learner):
  """The whole network on all tasks at once."""

  whole = True


LEARNERS: dict[str, type[Learner]] = {
  "l2p": Prompts,
  "l2p_penalty": PenaltyPrompts,
  "l2p_forced": ForcedPrompts,
  "l2p_token": TokenPrompts,
  "l2p_replay": ReplayPrompts,
  "single_prompt": SinglePrompt,
  "dualprompt": DualPrompt,
  "coda_prompt": CodaPrompt,
  "ft_seq": Learner,
  "ft_seq_masked": Masked,
  "ft_seq_frozen": Head,
  "ft_seq_frozen_masked": MaskedHead,
  "ewc": Ewc,
  "lwf": Lwf,
  "er": Replay,
  "derpp": DarkReplay,
  "gdumb": GreedyReplay,
  "bic": BiasCorrection,
  "co2l": Contrast,
  "nearest_mean": NearestMean,
  "linear_probe": Probe,
  "joint": Joint,
}


def _spread(total: int, num: int) -> np.ndarray:
  """`num` rows of `total`, evenly spread."""
  return np.unique(np.linspace(0, total - 1, min(num, total)).astype(int))
