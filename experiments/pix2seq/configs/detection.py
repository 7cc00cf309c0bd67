"""Object detection as language modelling, and what it is compared to.

Claim: with noise objects up to a fixed length a detector finds more where
annotations are incomplete; on clean ones it costs a little. It is as good as
set prediction of the same backbone and budget.

  python -m experiments.run --workdir runs/pix2seq_shapes \\
    --config experiments/pix2seq/configs/detection.py:cpu

Variants: tiny (seconds), quick (two methods, a short run of each), cpu
(canvases of shapes, drawn on the spot), missing (the same, where each box is
left out with probability 0.35 at every showing), ablation (orders, bins,
corruptions), cells (blood cells, by tfds), coco128 (256 photographs, by tfds),
both from pre-training on canvases against from scratch; own (your folder: set
`--config.data.path` and `--config.data.format`), gpu (pasted pictures, wider),
and for `--mode=check` the paper's sizes at 1333 pixels: paper (ResNet-50) and
paper_vit_l.
"""

from ml_collections import ConfigDict

VARIANTS = (
  *("tiny", "quick", "cpu", "missing", "ablation", "cells", "coco128"),
  *("own", "gpu", "paper", "paper_vit_l"),
)
_COCO_IMAGES = 118_287


def get_config(variant: str = "cpu") -> ConfigDict:
  """The experiment at one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r} is not allowed: one of {VARIANTS}.")
  config = ConfigDict()
  config.experiment = "experiments.pix2seq.experiment"
  config.methods = ("augmented", "plain", "uncorrupted", "detr")
  config.method = "augmented"
  # A run is a method, or the pre-training on canvases that methods begin with.
  config.stage = "detect"
  _defaults_of_data(config)
  _defaults_of_models(config)
  # What else finished runs are asked with; of the first for methods with noise
  # objects, of the second for those that stop at the end of the sequence.
  config.sweeps = {
    "top_p": (0.1, 0.2, 0.4, 0.6, 0.8, 0.9),
    "eos_offset": (-2.0, -1.0, 1.0, 2.0, 4.0),
  }
  config.learning_rate, config.warmup_steps = 2e-3, 100
  config.batch_size, config.num_steps = 32, 1800
  # Processes that read ahead; 0 reads by threads.
  config.num_workers = 0
  config.num_evals, config.eval_batch_size = 4, 100
  config.log_every, config.save_every = 20, 0
  config.num_pictures, config.score_shown = 6, 0.5
  config.seeds, config.seed = (0, 1, 2), 0
  config.needs_data = True
  config.profile = {"start": 0, "num_steps": 0}
  config.results = ""
  config.mesh = {"data": -1, "model": 1}
  config.check = {"topology": "", "hbm_bytes": 0}
  globals()[f"_{variant}"](config)
  return config.lock()


def _defaults_of_data(config):
  """Images, augmentations, sequences, and canvases to begin with."""
  config.data = {
    "name": "shapes",
    "data_dir": "",
    "path": "",
    "format": "",
    # Of formats voc and yolo: names in the order of their labels; () takes
    # what the folder says.
    "classes": (),
    # Of format voc: 1 where its pixels count from 1, 0 for edges as they are.
    "first_pixel": 1,
    "train_split": "",
    "test_split": "",
    "held_out_share": 0.2,
    "sprites": (),
    "image_size": 48,
    # Of canvases; `objects` and `sides` are least and most.
    "num_train": 8192,
    "num_test": 300,
    "objects": (1, 3),
    "sides": (9, 18),
    "clutter": 4,
    # Standard deviation of their pixels, of 255.
    "noise": 8.0,
    # Of each channel of canvases, least and most.
    "ground": (0, 255),
    # Of the vocabulary; 0 takes those of the data.
    "num_classes": 0,
    "in_memory": True,
    # Each box is left out with this probability at every showing.
    "missing": 0.0,
    "seed": 0,
  }
  # The canvas of the scale jitter is `image_size`; 1 and 1 is none.
  config.augment = {"low": 1.0, "high": 1.0, "flip": 0.5, "colour": 0.0}
  config.sequence = {
    "max_objects": 8,
    "num_bins": 64,
    "layout": "compact",
    "augment": True,
    "order": "random",
    "corruption": "rand_n_fake_cls",
    "noise_weight": 1.0,
    "eos_weight": 0.1,
    "jitter": 0.1,
  }
  config.pretrain = {
    "num_steps": 0,
    "num_images": 8192,
    "objects": (1, 12),
    "sides": (8, 40),
    # Of its sequences; 0 is `sequence.max_objects`.
    "max_objects": 0,
    "learning_rate": 1e-3,
    "batch_size": 32,
    "warmup_steps": 100,
  }


def _defaults_of_models(config):
  """Both kinds, how they are asked, and the optimiser."""
  config.model = {
    "preset": "tiny",
    # 'given' changes the preset by `encoder` and `decoder`, 'preset' does not.
    "sizes": "given",
    "encoder": {
      "width": 64,
      "num_layers": 2,
      "num_heads": 4,
      "hidden_size": 256,
      "patch_size": 8,
    },
    "decoder": {
      "model_size": 64,
      "num_layers": 2,
      "num_heads": 4,
      "hidden_size": 256,
    },
    "pixels": "standardised",
    "activation": "gelu",
    "dropout": 0.0,
    "drop_path": 0.0,
    "max_len": 0,
    "dtype": "float32",
    "remat": "none",
    "kernel": "full",
    "scan": False,
  }
  config.decode = {
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "top_p_rule": "official",
    "constrain": "slots",
    "eos_offset": 0.0,
  }
  config.detr = {"label": 1.0, "l1": 5.0, "giou": 2.0, "no_object": 0.1}
  config.optimizer = {
    "decay": "cosine",
    "end": 0.01,
    "weight_decay": 0.05,
    "decay_mask": "kernels",
    "b1": 0.9,
    "b2": 0.95,
    "clip_norm": 1.0,
  }


def _sizes(config, width, num_layers, num_heads, hidden_size):
  """Of encoder and decoder alike."""
  same = {"num_layers": num_layers, "num_heads": num_heads}
  same["hidden_size"] = hidden_size
  config.model.encoder.update(width=width, **same)
  config.model.decoder.update(model_size=width, **same)


def _tiny(config):
  config.data.update(num_train=64, num_test=12, image_size=32, sides=(8, 12))
  config.sequence.update(max_objects=4, num_bins=32)
  _sizes(config, 16, 1, 2, 32)
  config.pretrain.update(
    num_steps=4, num_images=32, objects=(1, 3), sides=(8, 16), warmup_steps=1
  )
  config.pretrain.update(batch_size=8, learning_rate=2e-3, max_objects=3)
  config.sweeps.update(top_p=(0.4,), eos_offset=(2.0,))
  config.batch_size, config.num_steps, config.warmup_steps = 8, 4, 1
  config.num_evals, config.eval_batch_size, config.log_every = 1, 8, 1
  config.num_pictures = 2
  config.methods, config.seeds = ("augmented", "plain", "detr_scratch"), (0,)


def _quick(config):
  """Of the quickstart."""
  _cpu(config)
  config.data.update(num_train=2048, num_test=100)
  config.methods, config.seeds = ("augmented", "plain"), (0,)
  config.num_steps, config.num_evals = 1000, 2
  config.sweeps.update(top_p=(0.4,), eos_offset=(2.0,))


def _cpu(config):
  # As plain as canvases can be, so that few steps are enough.
  config.data.update(ground=(0, 63), clutter=0, noise=0.0)


def _missing(config):
  _cpu(config)
  config.data.missing, config.methods = 0.35, ("augmented", "plain")


def _ablation(config):
  _cpu(config)
  config.methods = (
    *("augmented", "order_area", "order_dist2ori"),
    *("bins_16", "bins_32", "bins_128"),
    *("noise_weight_0.1", "random_classes"),
  )
  config.num_steps, config.sweeps.top_p = 1200, ()


def _photographs(config):
  """Small sets, from pre-training on canvases and from scratch."""
  config.methods = ("augmented", "scratch", "detr", "detr_scratch")
  # Few objects, in short sequences: what a decoder learns to look at images
  # from soonest.
  config.pretrain.update(num_steps=3000, objects=(1, 4), max_objects=8)
  config.pretrain.update(sides=(8, 28), learning_rate=2e-3)
  # Of the canvases, as those of `cpu`.
  config.data.update(ground=(0, 63), clutter=0, noise=0.0)
  config.learning_rate, config.num_steps = 1e-3, 2000
  config.model.update(dropout=0.1)


def _cells(config):
  _photographs(config)
  config.data.update(name="bccd", image_size=64)
  config.augment.update(low=0.7, high=1.4, colour=0.2)
  config.sequence.max_objects = 32
  config.batch_size, config.eval_batch_size = 16, 24


def _coco128(config):
  _photographs(config)
  # Too few pictures for a claim: half of the steps.
  config.data.update(name="coco128", image_size=64)
  config.num_steps = 1000
  config.augment.update(low=0.5, high=1.5, colour=0.3)
  config.sequence.max_objects = 24
  config.batch_size, config.eval_batch_size = 16, 32


def _own(config):
  _photographs(config)
  _sizes(config, 96, 2, 4, 384)
  config.data.update(name="folder", format="coco", image_size=128)
  config.pretrain.sides = (16, 56)
  config.augment.update(low=0.5, high=1.5, colour=0.3)
  config.sequence.update(max_objects=32, num_bins=256)
  config.batch_size, config.num_steps, config.seeds = 16, 3000, (0,)
  config.methods, config.eval_batch_size = ("augmented",), 16


def _gpu(config):
  """Card of the method: minutes on one H200."""
  config.data.update(
    name="sprites",
    sprites=("mnist", "fashion_mnist"),
    image_size=128,
    num_train=40_000,
    num_test=1000,
    objects=(1, 12),
    sides=(14, 44),
  )
  config.sequence.update(max_objects=24, num_bins=256)
  _sizes(config, 256, 4, 8, 1024)
  config.model.update(dtype="bfloat16", dropout=0.1)
  config.methods = (
    *("augmented", "plain", "uncorrupted", "order_area", "order_dist2ori"),
    *("bins_16", "bins_32", "bins_128", "bins_512", "detr"),
  )
  config.batch_size, config.num_steps, config.warmup_steps = 256, 4000, 400
  config.learning_rate, config.eval_batch_size = 1e-3, 250
  config.log_every, config.num_evals = 50, 2


def _paper(config):
  """ResNet-50 on COCO from scratch: 300 epochs, sections 3 and appendix."""
  _coco(config)
  config.sequence.num_bins = 2000
  config.model.preset = "resnet"
  config.data.image_size = 1333
  config.augment.update(low=0.1, high=3.0, colour=0.5)
  config.batch_size, config.learning_rate = 128, 3e-3
  config.num_steps = 300 * _COCO_IMAGES // 128
  config.warmup_steps = 10 * _COCO_IMAGES // 128
  config.mesh = {"data": 64, "model": 1}
  config.eval_batch_size = 128
  config.check.update(topology="v5e:8x8")


def _paper_vit_l(config):
  """ViT-L, fine-tuned; 1344 is the multiple of 16 next to 1333."""
  _coco(config)
  config.sequence.update(num_bins=1000, layout="official")
  config.model.preset, config.data.image_size = "vit_l", 1344
  config.augment.update(low=0.3, high=2.0)
  config.batch_size, config.learning_rate = 32, 3e-5
  config.num_steps = 20 * _COCO_IMAGES // 32
  config.warmup_steps = 2 * _COCO_IMAGES // 32
  config.mesh = {"data": 32, "model": 1}
  config.eval_batch_size = 32
  config.check.update(topology="v5e:4x8")


def _coco(config):
  config.needs_data = False
  config.data.update(name="coco", in_memory=False, num_classes=80)
  config.sequence.max_objects = 100
  config.model.encoder, config.model.decoder = ConfigDict(), ConfigDict()
  config.model.update(
    pixels="unit",
    dropout=0.1,
    drop_path=0.1,
    max_len=512,
    dtype="bfloat16",
    remat="block",
    kernel="fused",
    scan=True,
  )
  config.decode.update(temperature=1.0, top_p=0.4, constrain="none")
  config.methods = ("augmented",)
  config.optimizer.update(decay="linear", decay_mask="all", clip_norm=0.0)
  config.num_evals, config.log_every = 20, 100
