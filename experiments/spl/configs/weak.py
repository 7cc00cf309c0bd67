"""Students pre-trained on weakly labelled clips, fine-tuned on a clean target.

Claim: pairs of weak label and teacher's prediction as classes pre-train better
than either label and than clips on which they agree, the more the more clips a
video gives. Controls: the same two labels in two heads, and pairs of exchanged
predictions.

  python -m experiments.run --workdir runs/spl_cpu \\
    --config experiments/spl/configs/weak.py:cpu

Variants: tiny (drawn videos in memory) and tiny_images (digits of scikit-learn;
both seconds, no data), quick (the digits, seven methods), cpu (drawn videos
written as MP4 and WebM and read back), scaling (the same, 1, 2 and 4 clips a
video), images (CIFAR-10 with labels of human annotators as weak ones), folder
(your own videos; set `--config.data.path`), gpu, and for `--mode=check` paper
(3D ResNet-50, clips of 64 x 224 x 224, 40,000 pairs).
"""

from ml_collections import ConfigDict

METHODS = (
  *("scratch", "images", "weak", "teacher", "agreement", "agreement@epochs"),
  *("distillation", "two_heads", "data_parameters", "weak_ciw"),
  *("spl_raw", "spl_b", "spl_top_k", "spl_cluster"),
  *("random_pairs", "random_top_k"),
)
_IMAGE_METHODS = tuple(m for m in METHODS if m != "images")
VARIANTS = (
  *("tiny", "tiny_images", "quick", "cpu", "scaling", "images"),
  *("folder", "gpu", "paper"),
)
_DATA = {
  "name": "made_files",
  "data_dir": "",
  "path": "",
  "seed": 0,
  "validation": 0.25,  # of the clean clips of each class
  "num_classes": 12,
  "num_videos": 240,
  "train_per_class": 16,
  "test_per_class": 50,
  "right": 0.5,  # share of spans that show what was queried
  "context": 0.5,  # strength of the query's texture
  "pixel_noise": 30.0,  # standard deviation, of 255
  "num_frames": 16,
  "stride": 1,
  "rate": 0.0,  # frames a second of a grid in time; 0 counts frames
  "eval_clips": 1,  # of a clean video
  "size": 32,
  "short_side": 32,
  "channels": 3,
  "in_memory": True,
  "num_workers": 0,
  "mean": (0.35,),
  "std": (0.25,),
  # Images, other than the target, for weights to be inflated.
  "backbone": ("digits",),
  # Of sets of images.
  "num_target": 1000,
  "num_weak": 8000,
  "num_test": 2000,
}
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def get_config(variant: str = "cpu") -> ConfigDict:
  """The study at one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r} is not allowed: one of {VARIANTS}.")
  config = ConfigDict()
  config.experiment = "experiments.spl.experiment"
  config.methods, config.method = METHODS, "spl_b"
  # A run is one stage: images, teacher, pretrain or finetune; what follows is
  # of one run, and the study sets it.
  config.stage, config.clips, config.rate, config.labels = (
    "pretrain",
    0,
    0.0,
    "",
  )
  config.data = dict(_DATA)
  config.noise = ""
  config.clips_per_video = (4,)
  # What the weights of clips begin with: fresh, or images (inflated).
  config.start = "images"
  config.images = {"num_train": 0, "num_epochs": 5, "learning_rate": 0.1}
  config.augment = {"crop_pad": 2, "flip": False, "resized_crop": False}
  config.model = {
    "kind": "resnet_3d",
    "depth": 50,
    "stage_sizes": (1, 1, 1),
    "temporal_kernels": ((3,), (3,), (3,)),
    "width": 12,
    "stem_temporal": (1, 2, 1),
    "stem_spatial": (7, 4, 1),
    "self_gating": True,
    "dropout": 0.2,
    "bn_group_size": 0,
    "dtype": "float32",
    "remat": False,
  }
  config.teacher = {"num_epochs": 40, "learning_rate": 0.1}
  config.teacher_confidence = 0.0
  config.space = {"k": 16, "min_count": 10.0, "fallback": "drop"}
  config.pretrain = {"num_epochs": 10, "learning_rate": 0.1}
  config.finetune = {"num_epochs": 20, "learning_rates": (0.01, 0.03)}
  config.losses = {
    "temperature": 1.0,
    "weight": 1.0,
    "data_rate": 0.1,
    "data_decay": 1e-4,
    "ciw_lambda": 0.5,
  }
  config.batch_size, config.eval_batch_size = 32, 64
  config.momentum, config.weight_decay = 0.9, 1e-4
  config.clip_norm, config.warmup = 1.0, 0.1
  config.log_every, config.save_every = 50, 0
  config.pictures = 6
  config.seeds, config.seed = (0, 1, 2), 0
  config.needs_data = True
  config.profile = {"start": 0, "num_steps": 0}
  config.results = ""
  config.mesh = {"data": -1}
  config.check = {"topology": "", "hbm_bytes": 0}
  globals()[f"_{variant}"](config)
  return config.lock()


def _short(config):
  config.teacher.num_epochs = config.pretrain.num_epochs = 2
  config.finetune.update(num_epochs=2, learning_rates=(0.03,))
  config.images.update(num_train=16, num_epochs=1)
  config.batch_size, config.eval_batch_size, config.log_every = 8, 8, 2
  config.model.update(width=2, stage_sizes=(1,), temporal_kernels=((3,),))
  config.space.k, config.pictures, config.seeds = 3, 2, (0,)
  config.methods = ("scratch", "weak", "two_heads", "spl_raw", "spl_top_k")


def _tiny(config):
  _short(config)
  config.data.update(
    name="made",
    num_classes=3,
    num_videos=8,
    train_per_class=8,
    test_per_class=4,
    num_frames=8,
    size=16,
  )
  config.clips_per_video = (2,)
  config.methods = ("scratch", "images", "weak", "spl_raw")


def _images_of(config, name, channels, mean, std):
  config.data.update(name=name, channels=channels, mean=mean, std=std)
  config.data.backbone = ()
  config.model.update(kind="resnet", temporal_kernels=())
  config.start, config.clips_per_video = "fresh", (1,)
  config.methods = _IMAGE_METHODS


def _tiny_images(config):
  _images_of(config, "digits", 1, (0.3,), (0.35,))
  _short(config)
  config.data.update(size=8, num_target=120, num_weak=300, num_test=100)
  config.model.update(width=4, stage_sizes=(1,), temporal_kernels=())
  config.noise, config.augment.crop_pad, config.batch_size = "next:0.4", 0, 32
  config.teacher.num_epochs = 30


def _quick(config):
  """Of the quickstart: digits, of which 40 % of the weak labels are wrong."""
  _images_of(config, "digits", 1, (0.3,), (0.35,))
  config.data.update(size=8, num_target=300, num_weak=1000, num_test=600)
  config.model.update(width=16, stage_sizes=(1,))
  config.noise, config.augment.crop_pad = "next:0.4", 0
  config.methods = (
    *("scratch", "weak", "agreement", "two_heads", "spl_b", "spl_top_k"),
    "random_pairs",
  )
  config.teacher.num_epochs, config.pretrain.num_epochs = 80, 15
  config.finetune.update(num_epochs=40, learning_rates=(0.1,))
  config.space.k, config.seeds = 20, (0,)


def _cpu(config):
  del config


def _scaling(config):
  config.clips_per_video = (1, 2, 4)
  config.methods = (
    *("scratch", "weak", "teacher", "agreement"),
    *("two_heads", "spl_b", "spl_top_k"),
  )
  config.pictures = 0


def _images(config):
  _images_of(config, "cifar10", 3, CIFAR10_MEAN, CIFAR10_STD)
  config.noise = "human_worst"
  config.data.update(size=16, num_target=1500, num_weak=8000, num_test=4000)
  config.augment.update(crop_pad=2, flip=True)
  config.model.update(width=16, stage_sizes=(1, 1, 1))
  config.space.k = 30
  config.batch_size, config.eval_batch_size = 64, 500
  config.teacher.num_epochs = 40


def _folder(config):
  config.data.update(
    name="folder",
    num_classes=0,
    rate=12.5,
    num_frames=16,
    eval_clips=3,
    size=112,
    short_side=128,
    in_memory=False,
    num_workers=2,
    validation=0.1,
  )
  config.augment.update(crop_pad=0, flip=True, resized_crop=True)
  config.model.update(
    width=32,
    stage_sizes=(1, 1, 1, 1),
    temporal_kernels=(),
    stem_temporal=(5, 2, 2),
    stem_spatial=(7, 2, 2),
  )
  config.methods = (
    *("scratch", "images", "weak", "teacher", "agreement", "two_heads"),
    *("spl_raw", "spl_b", "spl_top_k", "random_pairs"),
  )


def _gpu(config):
  config.data.update(
    num_videos=2400,
    test_per_class=100,
    size=64,
    short_side=64,
  )
  config.model.update(
    depth=50,
    stage_sizes=(2, 2, 2, 2),
    temporal_kernels=(),
    width=32,
    stem_temporal=(5, 1, 2),
    stem_spatial=(7, 2, 1),
    dtype="bfloat16",
  )
  config.data.backbone = ("cifar10",)
  config.space.k = 40
  config.batch_size, config.eval_batch_size = 128, 256
  config.teacher.num_epochs, config.pretrain.num_epochs = 60, 20


def _paper(config):
  """Clips, network and 200 classes of the paper, as far as they are known."""
  config.data.update(
    name="folder",
    num_classes=200,
    num_videos=147_000,
    num_frames=64,
    size=224,
    short_side=256,
    in_memory=False,
    num_workers=16,
    mean=(0.0,),
    std=(1.0,),
  )
  config.augment.update(crop_pad=0, flip=True, resized_crop=True)
  config.model.update(
    stage_sizes=(),
    temporal_kernels=(),
    width=64,
    stem_temporal=(5, 2, 2),
    stem_spatial=(7, 2, 2),
    dtype="bfloat16",
    remat=True,
  )
  # Statistics of 16 clips each, as on devices that share none.
  config.model.bn_group_size = 16
  config.method, config.batch_size, config.eval_batch_size = "spl_raw", 256, 64
  config.clips_per_video = (5,)
  config.teacher.update(num_epochs=44, learning_rate=1.6)
  config.pretrain.update(num_epochs=44, learning_rate=1.6)
  config.finetune.update(num_epochs=20, learning_rates=(0.04, 0.16, 0.4))
  config.weight_decay, config.clip_norm = 1e-4, 0.0
  config.needs_data = False
  config.mesh = {"data": -1}
  config.check = {
    "topology": "v5p:2x2x4",
    "hbm_bytes": 0,
    "allowed_collectives": ("all-reduce",),
  }
