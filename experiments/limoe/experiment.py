"""Contrastive training of LIMoE, conditions against each other.

`build` makes one run: a condition (`CONDITIONS`) with a seed. `run` trains all
conditions over all seeds, asks zero-shot and retrieval questions of what
training has not seen, and writes table and figures (`report.py`).
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import stages, study
from experiments.limoe import conditions, pairs, questions, report, settings
from locojax.core import checks, types
from locojax.data import image, pipeline
from locojax.methods import limoe
from locojax.train import experiment, optimizers, steps

Experiment = experiment.Experiment
LOSSES = settings.LOSSES
Condition, CONDITIONS = conditions.Condition, conditions.CONDITIONS
check, check_run = settings.check, settings.check_run
# What does not change a run: which others there are.
_NOT_IN_A_RUN = ("conditions", "seeds")


def _condition(config) -> Condition:
  return checks.lookup("condition", config.condition, CONDITIONS)


def _experts(config) -> dict[str, Any]:
  """Settings of the layers with experts."""
  found = _condition(config)
  out = {**config.experts.to_dict(), **found.experts}
  if found.bias:
    out["balance_rate"] = config.balance_rate
  if out.get("router") == "expert_choice":
    # It sees a whole group, so a single text must have places enough.
    out["eval_capacity_factor"] = out["capacity_factor"]
  if out.get("router") == "soft":
    _give_slots(config, out)
  else:
    out.pop("slots_per_expert", None)
  return out


def _give_slots(config, out: dict[str, Any]) -> None:
  """Soft MoE's slots, for the longer of an image's and a text's sequences.

  Their number is fixed by the config, whatever the size of a group.
  """
  if out.get("slots_per_expert") is None:
    preset = config.model.preset
    of = limoe.PRESETS[preset] if preset else config.model
    side = config.data.image_size // of["patch_size"]
    out["slots_per_expert"] = limoe.compute_capacity(
      max(side**2, config.data.text_length),
      out["num_experts"],
      out["capacity_factor"],
      multiple_of=out.get("multiple_of", 4),
    )


def model(config) -> limoe.OneTower:
  """The model of a config."""
  data, settings = config.data, config.model.to_dict()
  kind = _condition(config).kind
  common = {
    "vocab_size": _vocab_size(config),
    "max_text_len": data.text_length,
    "embed_dim": settings.pop("embed_dim") or None,
    "dtype": jnp.dtype(settings.pop("dtype")),
    "remat": settings.pop("remat"),
    "scan": settings.pop("scan"),
    "kernel": settings.pop("kernel"),
    "order": config.order,
  }
  if kind == "limoe":
    common["group_examples"] = config.group_examples
  preset = settings.pop("preset")
  if preset:
    return limoe.limoe_model(
      preset, kind=kind, experts=_experts(config), **common
    )
  layers = settings.pop("moe_layers")
  if kind == "limoe":
    common |= {"moe_layers": tuple(layers), "experts": _experts(config)}
  of = limoe.TwoTower if kind == "two_tower" else limoe.OneTower
  return of(**settings, **common)


def _vocab_size(config) -> int:
  if not config.needs_data:
    return config.data.vocab_size
  return pairs.tokenizer(config.data.to_dict()).vocab_size


def _aux(config, net: limoe.OneTower) -> limoe.LimoeAux:
  """Weights of the auxiliary losses."""
  kind = _condition(config).aux
  if kind == "none":
    return limoe.LimoeAux()
  if kind == "classic":
    return limoe.classic()
  side = config.data.image_size // net.patch_size
  tokens = {"image": side**2, "text": config.data.text_length}
  return limoe.limoe_aux(
    config.experts.num_experts, tokens, weight=config.aux_weight
  )


def prepared(images: jax.Array) -> jax.Array:
  """uint8 images in [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1.0


def _contrast(config, out: limoe.Outputs):
  if checks.one_of("loss", config.loss, LOSSES) == "sigmoid":
    return limoe.contrastive_sigmoid_loss(
      out.z_image,
      out.z_text,
      out.log_scale,
      out.bias,
      max_scale=config.max_scale or None,
    )
  return limoe.contrastive_softmax_loss(
    out.z_image, out.z_text, out.log_scale, max_scale=config.max_scale or None
  )


def loss_fn(config, net: limoe.OneTower) -> types.LossFn:
  """The contrastive loss with the auxiliary ones; couples the examples."""
  aux = _aux(config, net)

  @steps.couples_examples
  def loss(params, model_state, batch, key):
    out, new = net.apply(
      {"params": params, **model_state},
      prepared(batch["image"]),
      batch["text"],
      batch["text_mask"] if config.mask_padding else None,
      train=True,
      rngs={"gating": key},
      mutable=list(model_state),
    )
    value, found = _contrast(config, out)
    found = {**found, "contrast": value}
    if out.infos:
      extra, terms = limoe.auxiliary_loss(
        out.infos, out.modality, aux, mask=out.mask
      )
      value = value + extra
      found |= {f"aux/{n}": x for n, x in terms.items()}
      found |= limoe.routing_metrics(out.infos, out.modality, mask=out.mask)
    return value, (found, dict(new))

  return loss


def _place_experts(shape, mesh, *, axis: int, num_experts: int) -> jax.P:
  """The axis of experts over `expert`; what has none is replicated.

  An array of an optimiser may lack axes of its parameter (a factored moment,
  which is a mean over experts or has the size 1): its axis at this place then
  is not that of the experts.
  """
  size = dict(mesh.shape).get("expert", 1)
  has_experts = len(shape) > axis and shape[axis] == num_experts
  if not has_experts or num_experts % size:
    return jax.P()
  return jax.P(*(None,) * axis, "expert")


def rules(net: limoe.OneTower) -> tuple:
  """Sharding rules: experts along `expert`, all else on every device."""
  if not net.moe_layers:
    return ()
  place = functools.partial(
    _place_experts, num_experts=net.experts["num_experts"]
  )
  scanned, out = _stacked_layers(net), []
  if set(net.moe_layers) & set(scanned):
    stacked = functools.partial(place, axis=1)
    out.append((f"{limoe.STACKED}.*experts/", stacked))
  if set(net.moe_layers) - set(scanned):
    out.append((r"experts/", functools.partial(place, axis=0)))
  return tuple(out)


def _optimizer(config, net: limoe.OneTower) -> optax.GradientTransformation:
  rate = optimizers.schedule(
    config.schedule,
    learning_rate=config.learning_rate,
    num_steps=config.num_steps,
    warmup_steps=config.warmup_steps,
    cooldown_steps=config.warmup_steps if config.schedule == "rsqrt" else 0,
  )
  return optimizers.make(
    learning_rate=rate,
    decay_paths="kernel$",
    stacked_paths=limoe.STACKED if _stacked_layers(net) else (),
    **config.optimizer.to_dict(),
  )


def _stacked_layers(net: limoe.OneTower) -> tuple[int, ...]:
  """Numbers of the layers whose parameters are stacked."""
  if not net.scan:
    return ()
  return limoe.scanned_layers(net.num_layers, net.moe_layers)


def _shapes(config):
  data, n = config.data, config.batch_size
  side, length = data.image_size, data.text_length
  return {
    "image": jax.ShapeDtypeStruct((n, side, side, 3), jnp.uint8),
    "text": jax.ShapeDtypeStruct((n, length), jnp.int32),
    "text_mask": jax.ShapeDtypeStruct((n, length), jnp.int8),
  }


def batches(config, start: int):
  """Batches from `start` on; one of an image's captions at random."""
  data = config.data.to_dict()
  found = pairs.load(data)
  tokens, mask = pairs.tokenized(
    found.captions, pairs.tokenizer(data), data["text_length"]
  )

  def one_caption(batch, rng):
    rows = np.arange(len(batch["image"]))
    which = rng.integers(tokens.shape[1], size=len(rows))
    images = batch["image"]
    if config.crop_pad:
      pad = {"pad": config.crop_pad, "mode": "edge"}
      images = image.random_crop(images, rng, **pad)
    return {
      "image": images,
      "text": batch["text"][rows, which],
      "text_mask": batch["text_mask"][rows, which],
    }

  return pipeline.array_batches(
    {"image": found.image, "text": tokens, "text_mask": mask},
    batch_size=config.batch_size,
    seed=config.seed,
    random_map=one_caption,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )(start)


def build(config) -> Experiment:
  """One run: `config.condition` with `config.seed`."""
  check(config)
  net = model(config)
  tx = _optimizer(config, net)
  shapes = _shapes(config)

  def init(key):
    init_key, run_key = jax.random.split(key)
    image = jnp.zeros((1, *shapes["image"].shape[1:]), jnp.float32)
    text = jnp.zeros((1, config.data.text_length), jnp.int32)
    found = dict(net.init(init_key, image, text))
    params = found.pop("params")
    return steps.init_state(params, tx, key=run_key, model_state=found)

  evals = {}
  if config.needs_data:
    every = max(1, config.num_steps // config.num_evals)
    run_eval = functools.partial(_evaluate, config, net)
    evals["test"] = experiment.Eval(every, run_eval)
  return Experiment(
    init=init,
    step=steps.from_loss(loss_fn(config, net), tx),
    batches=functools.partial(batches, config),
    num_steps=config.num_steps,
    batch_shapes=shapes,
    rules=rules(net),
    batch_spec=jax.P(("data", "expert")),
    evals=evals,
    examples_per_step=config.batch_size,
  )


def _evaluate(config, net, state) -> dict[str, float]:
  data = config.data.to_dict()
  asked = questions.Embedder(
    net,
    state,
    pairs.tokenizer(data),
    config.data.text_length,
    batch_size=config.eval_batch_size,
    use_mask=config.mask_padding,
  )
  out = {}
  for name, test in pairs.load(data).tests.items():
    found = questions.ask(asked, test)
    out |= {f"{name}/{k}": v for k, v in found.items()}
  return out


def fit(config, folder: pathlib.Path) -> Mapping[str, Any]:
  """One run; its result, or why it diverged.

  Raises:
    ValueError: the folder has a finished run of another config.
  """
  return stages.fit_once(build, config, folder, may_differ=_NOT_IN_A_RUN)


def final(config, folder: pathlib.Path):
  """Model and final state of a finished run."""
  made = build(config)
  return model(config), stages.fit(
    made, config, folder, may_differ=_NOT_IN_A_RUN
  )


def _cell(made: study.Study, name: str, seed: int):
  """Trains a condition with a seed; its probes, None if it diverged."""
  one = stages.changed(made.config, condition=name, seed=seed)
  where = report.folder(made.workdir, name, seed)
  found = made.cell(
    f"{name}, seed {seed}", where, functools.partial(fit, one, where)
  )
  if "diverged" in found:
    return None
  return questions.probe_of(one, *final(one, where))


def _look(made: study.Study) -> questions.Looked | None:
  """Who goes where in the first seed of `limoe`, if there is one."""
  one = stages.changed(
    made.config, condition="limoe", seed=made.config.seeds[0]
  )
  where = report.folder(made.workdir, "limoe", one.seed)
  trained = (where / "result.json").exists()
  if "limoe" not in made.config.conditions or not trained:
    return None
  return questions.look(one, *final(one, where))


def run(config, workdir: str) -> dict[str, Any]:
  """All conditions over all seeds; resumes.

  Returns:
    The rows of the table and the paths of what was written.
  """
  for name in config.conditions:
    checks.lookup("conditions", name, CONDITIONS)
  cells = len(config.conditions) * len(config.seeds)
  with study.opened(
    config, workdir, num_cells=cells, may_differ=_NOT_IN_A_RUN
  ) as made:
    probes = {
      name: [_cell(made, name, seed) for seed in config.seeds]
      for name in config.conditions
    }
    return report.write(made, probes, _look(made))
