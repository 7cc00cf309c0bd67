"""What the settings of detection may be."""

from __future__ import annotations

import logging

from experiments.common import places, settings
from experiments.pix2seq import conditions, matching, networks, sets
from locojax import decode
from locojax.core import checks
from locojax.methods import pix2seq
from locojax.methods.pix2seq import (
  encoders,
  generation,
  optimizer,
  quantization,
)
from locojax.methods.pix2seq import model as model_lib
from locojax.nn import attention, transformer

_log = logging.getLogger(__name__)
STAGES = ("detect", "pretrain")
LAYOUTS = ("compact", "official")
_COUNT = checks.nonnegative_int
_NUMBER = settings.within(-100.0, 100.0)
_SIZES = dict.fromkeys(
  ("width", "model_size", "num_layers", "num_heads", "hidden_size"),
  checks.positive_int,
)
_ENCODER = {
  **{k: v for k, v in _SIZES.items() if k != "model_size"},
  "patch_size": checks.positive_int,
  "stem": settings.choice(encoders.STEMS),
  "depth": settings.choice((50, 101, 152)),
  "variant": settings.choice(("standard", "c4", "dc5", "c3")),
  "resnet_width": checks.positive_int,
}


def _pair(least: int, most: int = 2**20) -> settings.Rule:
  """(least, most) integers."""

  def rule(name, found):
    settings.several(
      settings.within(least, most, whole=True),
      least=2,
      distinct=False,
      what="integers",
    )(name, found)
    if len(found) != 2 or found[0] > found[1]:
      checks.refuse(name, found, "(least, most)")
    return found

  return rule


RULES: dict[str, settings.Rule] = {
  **settings.COMMON,
  "methods": settings.several(
    settings.choice(conditions.CONDITIONS), what="methods"
  ),
  "method": settings.choice(conditions.CONDITIONS),
  "stage": settings.choice(STAGES),
  "data.name": settings.choice(sets.NAMES),
  **dict.fromkeys(("data.data_dir", "data.path"), places.there),
  "data.format": settings.either("", settings.choice(sets.FORMATS)),
  "data.classes": settings.several(checks.text, least=0, what="names"),
  "data.first_pixel": settings.within(0, 1, whole=True),
  **dict.fromkeys(("data.train_split", "data.test_split"), checks.text),
  "data.held_out_share": lambda name, found: checks.between(
    name, found, 0.0, 1.0
  ),
  "data.sprites": settings.several(
    settings.choice(sets.SPRITES), least=0, what="data sets"
  ),
  "data.image_size": settings.within(8, 8192, whole=True),
  **dict.fromkeys(
    (
      *("data.num_train", "data.num_test", "pretrain.num_images"),
      *("sequence.max_objects", "batch_size", "num_steps", "num_evals"),
      *("eval_batch_size", "log_every", "pretrain.batch_size"),
    ),
    checks.positive_int,
  ),
  **dict.fromkeys(("data.objects", "pretrain.objects"), _pair(0)),
  **dict.fromkeys(("data.sides", "pretrain.sides"), _pair(1)),
  "data.ground": _pair(0, 255),
  "data.noise": checks.nonnegative,
  **dict.fromkeys(
    (
      *("data.clutter", "data.num_classes", "warmup_steps", "save_every"),
      *("pretrain.num_steps", "pretrain.warmup_steps", "num_pictures"),
      "pretrain.max_objects",
      "num_workers",
    ),
    _COUNT,
  ),
  **dict.fromkeys(("data.in_memory", "needs_data"), checks.boolean),
  "data.missing": settings.share,
  "data.seed": settings.within(0, 2**30, whole=True),
  **dict.fromkeys(("augment.low", "augment.high"), checks.positive),
  "augment.flip": settings.share,
  "augment.colour": settings.within(0.0, 1.25),
  "sequence.num_bins": settings.within(2, quantization.MAX_BINS, whole=True),
  "sequence.layout": settings.choice(LAYOUTS),
  "sequence.augment": checks.boolean,
  "sequence.order": settings.choice(pix2seq.ORDERS),
  "sequence.corruption": settings.choice(pix2seq.CORRUPTIONS),
  **dict.fromkeys(
    ("sequence.noise_weight", "sequence.eos_weight"), checks.nonnegative
  ),
  "sequence.jitter": settings.within(0.0, 0.5),
  "detr": settings.group(
    dict.fromkeys(matching.Weights._fields, checks.nonnegative)
  ),
  "model.preset": settings.choice(model_lib.PRESETS),
  "model.sizes": settings.choice(networks.SIZES),
  "model.encoder": settings.group(_ENCODER),
  "model.decoder": settings.group(
    {k: v for k, v in _SIZES.items() if k != "width"}
  ),
  "model.pixels": settings.choice(networks.PIXELS),
  "model.activation": lambda name, found: _activation(name, found),
  **dict.fromkeys(("model.dropout", "model.drop_path"), settings.decay),
  "model.max_len": _COUNT,
  "model.dtype": settings.choice(settings.DTYPES),
  "model.remat": settings.choice(transformer.REMATS),
  "model.kernel": settings.choice(attention.KERNELS),
  "model.scan": checks.boolean,
  "decode.temperature": checks.nonnegative,
  "decode.top_k": _COUNT,
  "decode.top_p": lambda name, found: _top_p(name, found),
  "decode.top_p_rule": settings.choice(decode.TOP_P_RULES),
  "decode.constrain": settings.choice(generation.CONSTRAINTS),
  "decode.eos_offset": _NUMBER,
  "sweeps.top_p": settings.several(lambda n, x: _top_p(n, x), least=0),
  "sweeps.eos_offset": settings.several(_NUMBER, least=0),
  **dict.fromkeys(("learning_rate", "pretrain.learning_rate"), checks.positive),
  "optimizer.decay": lambda name, found: _decay(name, found),
  "optimizer.end": settings.share,
  "optimizer.decay_mask": settings.choice(optimizer.DECAY_MASKS),
  **dict.fromkeys(
    ("optimizer.weight_decay", "optimizer.clip_norm"), checks.nonnegative
  ),
  **dict.fromkeys(("optimizer.b1", "optimizer.b2"), settings.decay),
  "score_shown": settings.share,
}


def _activation(name: str, found: str) -> str:
  settings.made("model", networks.activation, checks.text(name, found))
  return found


def _decay(name: str, found: str) -> str:
  decay = checks.text(name, found)
  settings.made("optimizer", pix2seq.pix2seq_schedule, 1.0, 1, decay=decay)
  return found


def _top_p(name: str, found: float) -> float:
  checks.positive(name, found)
  return checks.in_range(name, found, 0.0, 1.0)


def check(config) -> None:
  """Refuses what a run or the study cannot go on with.

  Raises:
    ValueError: names the key, its value, and what is allowed.
  """
  settings.check(config, RULES)
  _check_model(config)
  _check_sequence(config)
  _check_batches(config)
  if config.augment.low > config.augment.high:
    most = f"at most augment.high={config.augment.high}"
    checks.refuse("augment.low", config.augment.low, most)
  _check_canvases(config)
  if config.needs_data:
    _check_data(config)
  elif not config.data.num_classes:
    checks.refuse("data.num_classes", 0, "1 or more where no data are read")


def check_sets(config, found: sets.Sets) -> None:
  """What is known once the data are read, before anything is trained.

  Raises:
    ValueError: names the key.
  """
  num, data, most = len(found.train), config.data, config.sequence.max_objects
  if config.batch_size > num:
    what = f"at most {num}, the images for training"
    checks.refuse("batch_size", config.batch_size, what)
  least = len(found.classes)
  if data.num_classes and data.num_classes < least:
    what = f"{least} or more, the classes of the data, or 0"
    checks.refuse("data.num_classes", data.num_classes, what)
  counts = getattr(found.train, "box_counts", None)
  if counts is None:  # of what is drawn, or decoded, when it is needed
    return
  if not counts.any():
    where = data.path or data.name
    raise ValueError(f"{where}: no image for training has a box.")
  if not len(found.truth["image_id"]):
    _log.warning("no image of the test has a box: there will be no AP.")
  if counts.max() > most:
    _log.warning(
      "%d of %d images have more boxes than sequence.max_objects=%d (up to %d):"
      " the others of these are not trained on.",
      *((counts > most).sum(), num, most, counts.max()),
    )


def check_run(config) -> None:
  """What training needs besides: data.

  Raises:
    ValueError: names the key.
  """
  settings.must_read_data(config)


_ENCODER_OF = {
  "a ResNet's": ("depth", "variant", "resnet_width"),
  "a ViT's": ("patch_size", "stem"),
}


def _check_model(config) -> None:
  """Heads divide widths; patches divide the image."""
  model, side = config.model, config.data.image_size
  make, of_encoder, of_decoder = model_lib.PRESETS[model.preset]
  given = networks.sizes(config)
  encoder = {**of_encoder, **given["encoder"]}
  decoder = {**of_decoder, **given["decoder"]}
  for name, sizes, width in (
    ("model.encoder", encoder, "width"),
    ("model.decoder", decoder, "model_size"),
  ):
    checks.divisible(
      f"{name}.{width}", sizes[width], f"{name}.num_heads", sizes["num_heads"]
    )
    checks.divisible(f"{name}.{width}", sizes[width], "sines and cosines", 4)
  vit = make is encoders.ViTEncoder
  kind = "a ResNet's" if vit else "a ViT's"
  for name in _ENCODER_OF[kind]:
    if name in given["encoder"]:
      what = f"{kind} alone (model.sizes=preset takes none of these)"
      checks.refuse(f"model.encoder.{name}", encoder[name], what)
  patch = encoder.get("patch_size", make.patch_size) if vit else 1
  if side % patch:
    checks.refuse(
      "data.image_size", side, f"a multiple of {patch}, the side of a patch"
    )


def _check_sequence(config) -> None:
  """Tokens that fit, and bins that the layout has room for."""
  least = pix2seq.PER_OBJECT * config.sequence.max_objects
  longest = config.model.max_len
  if longest and longest < least:
    what = f"{least} or more, 5 tokens for each of sequence.max_objects, or 0"
    checks.refuse("model.max_len", longest, what)
  for name in {*config.methods, config.method}:
    changes = conditions.CONDITIONS[name].sequence
    bins = changes.get("num_bins", config.sequence.num_bins)
    settings.made(
      "sequence",
      pix2seq.Vocabulary,
      num_classes=max(1, config.data.num_classes),
      num_bins=bins,
      layout=config.sequence.layout,
    )


def _check_batches(config) -> None:
  settings.divides_mesh(config, "batch_size")
  if config.pretrain.num_steps:
    settings.divides_mesh(config, "pretrain.batch_size")
  for head in ("", "pretrain."):
    steps = settings.value(config, f"{head}num_steps")
    if steps or not head:
      settings.at_most(config, f"{head}warmup_steps", steps, f"{head}num_steps")


def _check_canvases(config) -> None:
  """Objects fit on the canvas, and there are images for a batch."""
  data, pretrain = config.data, config.pretrain
  drawn = data.name in sets.CANVASES
  parts = [("data.sides", data.sides)] if drawn else []
  if pretrain.num_steps:
    parts.append(("pretrain.sides", pretrain.sides))
    settings.at_most(
      config,
      "pretrain.max_objects",
      config.sequence.max_objects,
      "sequence.max_objects",
    )
    slots = pretrain.max_objects or config.sequence.max_objects
    if pretrain.objects[1] > slots:
      what = f"at most {slots}, the slots of pre-training"
      checks.refuse("pretrain.objects", tuple(pretrain.objects), what)
    settings.at_most(
      config, "pretrain.batch_size", pretrain.num_images, "pretrain.num_images"
    )
  for name, sides in parts:
    if sides[1] > data.image_size:
      most = f"at most data.image_size={data.image_size}"
      checks.refuse(name, tuple(sides), most)
  if drawn:
    settings.at_most(config, "batch_size", data.num_train, "data.num_train")
    least = sets.canvas_classes(data)
    if data.num_classes and data.num_classes < least:
      checks.refuse(
        "data.num_classes", data.num_classes, f"{least} or more, or 0"
      )


def _check_data(config) -> None:
  data = config.data
  if data.name == "sprites":
    if not data.sprites:
      checks.refuse("data.sprites", (), f"one or more of {sets.SPRITES}")
    for name in data.sprites:
      places.data_set("data.sprites", name, data.data_dir, tuple(data.sprites))
  elif data.name in sets.TFDS:
    name = sets.TFDS[data.name][0]
    places.data_set("data.name", name, data.data_dir, data.name)
  elif data.name == sets.OWN:
    what = "a folder of images with boxes (see experiments/pix2seq/README.md)"
    places.path("data.path", data.path, what, folder=True)
    if not data.format:
      checks.refuse("data.format", "", f"one of {sets.FORMATS}")
    if data.classes and data.format == "coco":
      what = "() for format coco, whose files name the classes"
      checks.refuse("data.classes", tuple(data.classes), what)
  if data.first_pixel != 1 and (data.name, data.format) != (sets.OWN, "voc"):
    checks.refuse("data.first_pixel", data.first_pixel, "1 but for format voc")
