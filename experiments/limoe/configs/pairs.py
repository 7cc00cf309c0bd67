"""One tower with experts for images and texts, and what it is compared to.

Claim: without the entropy losses and without priority routing the text's tokens
lose their places; with both they keep them. LIMoE is above the dense one-tower
model of equal compute.

  python -m experiments.run --workdir runs/limoe_scenes \\
    --config experiments/limoe/configs/pairs.py:cpu

Variants: tiny (seconds), quick (three conditions, a short run of each), cpu
(scenes drawn on the spot, minutes a run on 2 cores), emoji (drawings of several
vendors, by tfds), emoji_small (the same, a narrower model and more steps, so
that what it can hold decides), folder (your own; set `--config.data.path`), gpu
(three sets together, wider), and for `--mode=check` the paper's sizes: paper
(H/14), paper_l16, paper_b16, paper_b32, paper_s16, paper_s32.
"""

from ml_collections import ConfigDict

PAPER = {
  "paper": ("H/14", 32, "v5e:16x16"),
  "paper_l16": ("L/16", 8, "v5e:16x16"),
  "paper_b16": ("B/16", 8, "v5e:16x16"),
  "paper_b32": ("B/32", 8, "v5e:8x8"),
  "paper_s16": ("S/16", 8, "v5e:8x8"),
  "paper_s32": ("S/32", 8, "v5e:8x8"),
}
VARIANTS = (
  *("tiny", "quick", "cpu", "emoji", "emoji_small", "folder", "gpu"),
  *PAPER,
)
CONDITIONS = (
  "no_aux",
  "classic",
  "classic_bpr",
  "classic_entropy",
  "limoe",
  "dense_one_tower",
  "dense_two_tower",
)


def get_config(variant: str = "cpu") -> ConfigDict:
  """The experiment at one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r} is not allowed: one of {VARIANTS}.")
  config = ConfigDict()
  config.experiment = "experiments.limoe.experiment"
  config.conditions, config.condition = CONDITIONS, "limoe"
  config.data = {
    "names": ("scenes",),
    "data_dir": "",
    "path": "",
    "tokenizer": "",
    "vocab_size": 200,
    "text_length": 24,
    "image_size": 16,
    "num_train": 20000,
    "num_test": 720,
    "held_out_share": 0.2,
    "held_out_classes": (),
    "held_out_vendor": "fluent_flat",
    "num_keywords": 3,
    "noise": 12.0,
    "seed": 0,
  }
  config.model = {
    "preset": "",
    "width": 48,
    "num_layers": 4,
    "num_heads": 4,
    "hidden_size": 192,
    "patch_size": 4,
    "embed_dim": 0,
    "moe_layers": (1, 3),
    "dtype": "float32",
    "remat": False,
    "kernel": "full",
    "scan": False,
  }
  config.experts = {
    "num_experts": 8,
    "capacity_factor": 1.05,
    "noise_std": 1.0,
    "dispatcher": "gather",
  }
  # Balance by a bias moves each expert's by this much a step.
  config.balance_rate = 0.01
  config.group_examples, config.order = 32, "images_first"
  config.aux_weight, config.mask_padding = 0.04, True
  config.loss, config.max_scale = "softmax", 100.0
  config.optimizer = {"name": "adam", "weight_decay": 1e-4, "clip_norm": 1.0}
  config.learning_rate, config.schedule, config.warmup_steps = (
    2e-3,
    "cosine",
    50,
  )
  config.batch_size, config.num_steps = 128, 600
  config.num_evals, config.eval_batch_size, config.log_every = 6, 144, 10
  config.save_every = 0
  config.num_probe = 5
  # Images are shifted by up to so many pixels, their edges repeated.
  config.crop_pad = 0
  config.seeds, config.seed = (0, 1, 2), 0
  config.needs_data = True
  config.profile = {"start": 0, "num_steps": 0}
  config.results = ""
  config.mesh = {"data": -1, "expert": 1, "model": 1}
  config.check = {"topology": "", "hbm_bytes": 0}
  if variant in PAPER:
    _paper(config, *PAPER[variant])
  else:
    globals()[f"_{variant}"](config)
  return config.lock()


def _tiny(config):
  config.data.update(num_train=256, num_test=144, vocab_size=100)
  config.model.update(width=16, num_layers=2, num_heads=2, hidden_size=32)
  config.model.moe_layers, config.experts.num_experts = (1,), 4
  config.batch_size, config.num_steps, config.group_examples = 32, 6, 8
  config.num_evals, config.log_every, config.warmup_steps = 2, 1, 1
  config.conditions, config.seeds = (
    ("classic", "limoe", "dense_two_tower"),
    (0,),
  )


def _quick(config):
  """Of the quickstart."""
  config.conditions = ("classic", "limoe", "dense_one_tower")
  config.seeds, config.num_steps, config.num_evals = (0,), 300, 3


def _cpu(config):
  del config


def _emoji(config):
  config.data.update(
    names=("emoji",), image_size=48, vocab_size=1000, text_length=12
  )
  config.model.update(width=64, hidden_size=256, patch_size=8)
  config.batch_size, config.num_steps, config.group_examples = 96, 800, 32
  config.num_evals = 4


def _emoji_small(config):
  _emoji(config)
  config.model.update(patch_size=12, width=32, hidden_size=128, num_heads=2)
  config.num_steps, config.crop_pad = 1500, 4


def _folder(config):
  config.data.update(names=("folder",), image_size=48, text_length=16)
  config.model.patch_size = 8


def _gpu(config):
  config.data.update(
    names=("emoji", "cifar10", "scenes"),
    image_size=48,
    vocab_size=2000,
    text_length=16,
    num_train=30000,
  )
  config.model.update(
    width=384,
    num_layers=8,
    num_heads=6,
    hidden_size=1536,
    patch_size=4,
    moe_layers=(1, 3, 5, 7),
    dtype="bfloat16",
  )
  config.conditions = (*CONDITIONS, "expert_choice", "soft", "bias")
  config.batch_size, config.num_steps, config.group_examples = 2048, 3000, 32
  config.eval_batch_size, config.learning_rate = 1000, 1e-3
  config.warmup_steps, config.log_every = 200, 20


def _paper(config, preset, num_experts, topology):
  config.needs_data = False
  config.data.update(
    image_size=224, vocab_size=32000, text_length=16, num_train=0
  )
  config.model.preset, config.model.dtype = preset, "bfloat16"
  config.model.remat = config.model.scan = True
  config.model.kernel = "fused"
  config.experts.num_experts = num_experts
  config.batch_size, config.num_steps = 16384, 781_250
  config.mask_padding = False
  config.optimizer = {
    "name": "adafactor",
    "weight_decay": 1e-5,
    "clip_norm": 1.0,
    "momentum": 0.9,
  }
  config.learning_rate, config.schedule = 1e-3, "rsqrt"
  config.warmup_steps, config.log_every = 10_000, 100
  rows, columns = map(int, topology.partition(":")[2].split("x"))
  config.mesh = {
    "data": rows * columns // num_experts,
    "expert": num_experts,
    "model": 1,
  }
  # Routed where they lie: a group for each device.
  config.group_examples = 16384 // (rows * columns)
  config.check = {
    "topology": topology,
    "hbm_bytes": 0,
    # Tokens go to experts; embeddings, cut along both axes, meet once for the
    # contrast; gradients are summed. Weights of experts, cut along `expert`,
    # are never gathered.
    "allowed_collectives": (
      "all-to-all over expert",
      "all-gather over data,expert outside loops",
      "all-reduce",
    ),
  }
