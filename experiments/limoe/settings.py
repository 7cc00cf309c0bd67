"""What the settings of contrastive training may be."""

from __future__ import annotations

import dataclasses

from experiments.common import places, settings
from experiments.limoe import conditions, pairs
from locojax.core import checks
from locojax.data import scenes
from locojax.methods import limoe
from locojax.methods.limoe import model as limoe_model
from locojax.methods.limoe import moe, routing
from locojax.nn import attention
from locojax.train import optimizers

LOSSES = ("softmax", "sigmoid")
# The entropy losses want at least two experts for texts and one for images.
_LEAST_EXPERTS = 3

_SETTINGS = {
  **dict.fromkeys(
    (f.name for f in dataclasses.fields(moe.MoeMlp)), settings.anything
  ),
  "num_experts": checks.positive_int,
  "top_k": checks.positive_int,
  "capacity_factor": settings.either(None, checks.positive),
  "eval_capacity_factor": settings.either(None, checks.positive),
  "slots_per_expert": settings.either(None, checks.positive_int),
  "multiple_of": checks.positive_int,
  "group_size": settings.either(None, checks.positive_int),
  "router": settings.choice(moe.ROUTERS),
  "priority": settings.choice(routing.PRIORITIES),
  "noise_std": checks.nonnegative,
  "dispatcher": settings.choice(limoe.DISPATCHERS),
  "balance_rate": checks.nonnegative,
}
RULES: dict[str, settings.Rule] = {
  **settings.COMMON,
  "conditions": settings.several(
    settings.choice(conditions.CONDITIONS), what="conditions"
  ),
  "condition": settings.choice(conditions.CONDITIONS),
  "data.names": settings.several(settings.choice(pairs.SETS), what="data sets"),
  **dict.fromkeys(
    ("data.data_dir", "data.path", "data.tokenizer"), places.there
  ),
  **dict.fromkeys(
    ("data.vocab_size", "data.text_length", "data.image_size"),
    checks.positive_int,
  ),
  "data.num_train": checks.nonnegative_int,
  "data.num_test": checks.positive_int,
  "data.held_out_share": lambda name, found: checks.between(
    name, found, 0.0, 1.0
  ),
  "data.held_out_classes": settings.several(checks.text, least=0),
  "data.held_out_vendor": checks.text,
  "data.num_keywords": checks.nonnegative_int,
  "data.noise": checks.nonnegative,
  "data.seed": settings.seed,
  "model.preset": settings.either("", settings.choice(limoe.PRESETS)),
  **{
    f"model.{name}": checks.positive_int
    for name in ("width", "num_layers", "num_heads", "hidden_size")
  },
  "model.patch_size": checks.positive_int,
  "model.embed_dim": checks.nonnegative_int,
  "model.moe_layers": settings.several(checks.nonnegative_int, least=0),
  "model.dtype": settings.choice(settings.DTYPES),
  "model.remat": checks.boolean,
  "model.kernel": settings.choice(attention.KERNELS),
  "model.scan": checks.boolean,
  "experts": settings.group(_SETTINGS, required=("num_experts",)),
  "balance_rate": checks.nonnegative,
  "group_examples": checks.positive_int,
  "order": settings.choice(limoe_model.ORDERS),
  "aux_weight": checks.nonnegative,
  "mask_padding": checks.boolean,
  "loss": settings.choice(LOSSES),
  "max_scale": checks.nonnegative,
  "optimizer": settings.anything,
  "learning_rate": checks.positive,
  "schedule": settings.choice(optimizers.SCHEDULES),
  "warmup_steps": checks.nonnegative_int,
  **dict.fromkeys(("batch_size", "num_steps"), checks.positive_int),
  **dict.fromkeys(
    ("num_evals", "eval_batch_size", "log_every"), checks.positive_int
  ),
  "save_every": checks.nonnegative_int,
  "num_probe": checks.positive_int,
  "crop_pad": checks.nonnegative_int,
  "needs_data": checks.boolean,
}


def check(config) -> None:
  """Refuses what a run or the study cannot go on with.

  Raises:
    ValueError: names the key, its value, and what is allowed.
  """
  settings.check(config, RULES)
  _check_optimizer(config)
  _check_tower(config)
  _check_experts(config)
  settings.divides_mesh(config, "batch_size", ("data", "expert"))
  times = 2 if config.schedule == "rsqrt" else 1  # and as long down at the end
  why = f"a {times}th of num_steps" if times > 1 else "num_steps"
  settings.at_most(config, "warmup_steps", config.num_steps // times, why)
  if config.needs_data:
    _check_data(config)


def check_run(config) -> None:
  """What training needs besides: data.

  Raises:
    ValueError: names the key.
  """
  settings.must_read_data(config)


def _check_optimizer(config) -> None:
  options = config.optimizer.to_dict()
  name = settings.choice(optimizers.OPTIMIZERS)(
    "optimizer.name", options.pop("name", None)
  )
  settings.optimizer_options(
    "optimizer", name, options, more=("weight_decay", "clip_norm")
  )
  if name == "adamw":
    checks.positive("optimizer.weight_decay", options.get("weight_decay", 0))


def _check_tower(config) -> None:
  """Heads divide the width, patches the image; experts are in layers."""
  model = config.model
  if model.preset:
    side = limoe.PRESETS[model.preset]["patch_size"]
    name = f"the patch size of model.preset={model.preset!r},"
    if config.data.image_size % side:
      checks.refuse(
        "data.image_size",
        config.data.image_size,
        f"a multiple of {name} {side}",
      )
    return
  checks.divisible(
    "model.width", model.width, "model.num_heads", model.num_heads
  )
  settings.image_sides(config, "model.patch_size", config.data.image_size)
  layers = tuple(model.moe_layers)
  if any(i >= model.num_layers for i in layers):
    checks.refuse(
      "model.moe_layers", layers, f"below model.num_layers={model.num_layers}"
    )
  if not layers and _kinds(config) & {"limoe"}:
    checks.refuse("model.moe_layers", layers, "one or more layers")


def _kinds(config) -> set[str]:
  names = {*config.conditions, config.condition}
  return {conditions.CONDITIONS[n].kind for n in names}


def _check_experts(config) -> None:
  names = {*config.conditions, config.condition}
  size, group = config.batch_size, config.group_examples
  if "limoe" in _kinds(config) and size % group:
    checks.refuse("group_examples", group, f"a divisor of batch_size={size}")
  found, least = config.experts, 1
  if any(conditions.CONDITIONS[n].aux == "limoe" for n in names):
    least = _LEAST_EXPERTS
  if found.num_experts < least:
    checks.refuse(
      "experts.num_experts",
      found.num_experts,
      f"{least} or more with the entropy losses",
    )
  if found.get("top_k", 1) > found.num_experts:
    checks.refuse(
      "experts.top_k", found.top_k, f"at most {found.num_experts} experts"
    )


def _check_data(config) -> None:
  data, names = config.data, tuple(config.data.names)
  classes = {c for n in names for c in pairs.CLASSES.get(n, ())}
  settings.several(settings.choice(sorted(classes)), least=0)(
    "data.held_out_classes", tuple(data.held_out_classes)
  )
  if set(names) - {"emoji", "folder"}:
    checks.positive_int("data.num_train", data.num_train)
  if "scenes" in names:
    low = 1 / len(scenes.COMBINATIONS)
    checks.in_range("data.held_out_share", data.held_out_share, low, 0.5)
    checks.in_range("data.image_size", data.image_size, 8, 4096)
  if names == ("scenes",):
    settings.at_most(config, "batch_size", data.num_train, "data.num_train")
  if data.tokenizer:
    places.path("data.tokenizer", data.tokenizer, "a file", folder=False)
  for name in names:
    if name == "folder":
      what = "a folder of images with captions (see locojax.data.captions)"
      places.path("data.path", data.path, what, folder=True)
    elif name != "scenes":
      prepared = "emoji_pairs" if name == "emoji" else name
      places.data_set("data.names", prepared, data.data_dir, names)
