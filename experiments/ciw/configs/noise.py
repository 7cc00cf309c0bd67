"""Accuracy on clean test images against noise in the training labels.

Claim: CICW keeps more accuracy than the other losses, and CICW with mixup most,
the more the higher the noise. Hyperparameters come from `search.py`, chosen on
noisy validation labels.

  python -m experiments.run --workdir runs/noise_cpu \\
    --config experiments/ciw/configs/noise.py:cpu

Variants: tiny (seconds), cpu (digits, all methods, noise 0.2 to 0.8; minutes on
2 cores), fashion_mnist, human (CIFAR-10 with labels of human annotators, small
images), folder (images of your own, a folder a class; set
`--config.data.path=DIR`), gpu (CIFAR-10, PreActResNet18), paper, paper_cifar100
(50,000 updates of batches of 128; for `--mode=check`).
"""

from ml_collections import ConfigDict

VARIANTS = (
  "tiny",
  "cpu",
  "fashion_mnist",
  "human",
  "folder",
  "gpu",
  "paper",
  "paper_cifar100",
)

ALL = (
  "cross_entropy",
  "label_smoothing",
  "bi_tempered",
  "nce_rce",
  "generalized_ce",
  "bootstrap_hard",
  "dynamic_bootstrapping",
  "mixup",
  "dynamic_mixup",
  "ciw",
  "cicw",
  "cicw_mixup",
  "ciw_label_smoothing",
)
# Those of the figure of the authors' blog post.
FIGURE = (
  "cross_entropy",
  "bi_tempered",
  "nce_rce",
  "mixup",
  "dynamic_mixup",
  "cicw",
  "cicw_mixup",
)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100_MEAN, CIFAR100_STD = (
  (0.5071, 0.4865, 0.4409),
  (0.2673, 0.2564, 0.2762),
)


def get_config(variant: str = "cpu") -> ConfigDict:
  """The study at one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r} is not allowed: one of {VARIANTS}.")
  config = ConfigDict()
  config.experiment = "experiments.ciw.experiment"
  config.data = {
    "name": "digits",
    "data_dir": "",
    "path": "",  # of a folder, with
    "side": 28,  # pixels, to which its images are resized, and
    "num_classes": 0,  # of it; 0: counted, like num_train and num_test there
    "num_train": 1442,  # with validation
    "num_test": 355,
    "validation": 0.1,
    "pool": 1,  # images are averaged over squares of so many pixels
    "exact": False,
    "mean": (0.3,),
    "std": (0.35,),
  }
  config.crop_pad = 0  # above 0: crop and flip
  config.model = {
    "kind": "mlp",
    "hidden": (128, 128),
    "width": 64,
    "stage_sizes": (2, 2, 2, 2),
    "dtype": "float32",
  }
  config.batch_size, config.num_epochs = 64, 60
  config.updates_per_step = 0  # of the loop; 0 is an epoch
  config.learning_rate, config.momentum = 0.1, 0.9
  config.weight_decay = 0.0
  config.schedule, config.warmup_updates = "cosine", 0
  config.drops = ()  # epochs, for the schedule `steps`
  config.methods, config.num_trials = ALL, 4
  config.noises = tuple(f"symmetric:{r}" for r in (0.2, 0.4, 0.6, 0.8))
  config.noise_together = True  # all noises side by side in one run
  config.num_seeds, config.how = 3, "vmap"
  config.method, config.noise = "cicw", config.noises
  config.options = {"divergence": "kl", "lam": 0.5, "burnin": 0.1}
  config.mixup_groups = 1
  config.eval_batch_size, config.eval_epochs, config.detect_epochs = 512, 1, 5
  config.seed, config.save_every = 0, 0
  config.profile = {"start": 0, "num_steps": 0}
  config.results = ""
  config.mesh = {"data": -1, "expert": 1, "model": 1}
  config.check = {"topology": "", "hbm_bytes": 0}
  globals()[f"_{variant}"](config)
  return config.lock()


def _tiny(config):
  config.methods = ("cross_entropy", "mixup", "cicw", "cicw_mixup")
  config.num_trials, config.num_seeds, config.num_epochs = 2, 2, 30
  config.noises = config.noise = ("symmetric:0.4", "symmetric:0.6")


def _cpu(config):
  del config


def _fashion_mnist(config):
  config.data.update(
    name="fashion_mnist",
    num_train=6000,
    num_test=4000,
    mean=(0.286,),
    std=(0.353,),
  )
  config.model.hidden = (256, 256)
  config.batch_size, config.num_epochs = 128, 30
  config.learning_rate = 0.05
  config.methods, config.num_trials = FIGURE, 3
  config.noises = config.noise = ("symmetric:0.4", "symmetric:0.8")
  config.eval_batch_size, config.eval_epochs = 1000, 2


def _folder(config):
  """Labels that are right, as far as you know; noise is put on top."""
  config.data.update(
    name="folder", num_train=0, num_test=0, mean=(0.5,), std=(0.25,)
  )
  config.batch_size, config.num_epochs = 32, 40
  config.learning_rate = 0.05
  config.methods, config.num_trials = FIGURE, 3
  config.noises = config.noise = ("symmetric:0.2", "symmetric:0.4")


def _cifar10(config):
  config.data.update(
    name="cifar10",
    num_train=50_000,
    num_test=10_000,
    mean=CIFAR10_MEAN,
    std=CIFAR10_STD,
  )
  config.model.kind, config.crop_pad = "resnet", 4
  config.batch_size = 128
  config.noise_together, config.how = False, "map"
  config.eval_batch_size = 1000


def _human(config):
  _cifar10(config)
  config.data.update(num_train=5000, num_test=2000, pool=2)
  config.model.update(width=16, stage_sizes=(1, 1, 1))
  config.crop_pad = 2
  config.num_epochs, config.learning_rate = 20, 0.1
  # No loops in the program: in them convolutions are slow on CPUs.
  config.updates_per_step, config.how = 1, "unroll"
  config.warmup_updates = 50
  config.methods = ("cross_entropy", "mixup", "cicw", "cicw_mixup")
  config.num_trials = 2
  config.noises = config.noise = ("human_worst",)
  config.eval_epochs, config.detect_epochs = 2, 10


def _gpu(config):
  _cifar10(config)
  config.model.dtype = "bfloat16"
  config.num_epochs, config.warmup_updates = 40, 351
  config.methods = ("cross_entropy", "mixup", "cicw", "cicw_mixup")
  config.num_trials, config.num_seeds = 1, 1
  config.noises = ("symmetric:0.4", "symmetric:0.8")
  config.noise = config.noises[:1]
  config.updates_per_step = 39
  config.eval_epochs, config.detect_epochs = 2, 10


def _paper(config):
  _cifar10(config)
  # 50,000 updates; the drops are epochs of 50,000 / 128 updates there.
  config.num_epochs, config.schedule = 143, "steps"
  config.drops = tuple(e * 50_000 / 45_000 for e in (30, 80, 110))
  config.methods, config.num_trials, config.num_seeds = ALL, 4, 1
  config.noises = (
    *(f"symmetric:{r}" for r in (0.2, 0.4, 0.6, 0.8)),
    "cifar10:0.4",
    "human_worst",
  )
  config.noise = ("symmetric:0.4",)
  config.method = "cicw_mixup"
  config.options = {
    **{"divergence": "alpha", "order": 0.1, "lam": 2.5, "burnin": 0.08},
    **{"class_divergence": "kl", "gamma": 0.01, "mixup_alpha": 2.0},
    "reweight_mixed": True,
  }
  config.updates_per_step, config.mixup_groups = 1, 16
  config.eval_epochs, config.detect_epochs = 3, 10
  config.mesh = {"data": 16, "expert": 1, "model": 1}
  config.check = {
    "topology": "v5e:4x4",
    "hbm_bytes": 0,
    "allowed_collectives": (
      "all-gather",
      "all-reduce",
      "all-to-all",
      "collective-permute",
      "reduce-scatter",
    ),
  }


def _paper_cifar100(config):
  _paper(config)
  config.data.update(name="cifar100", mean=CIFAR100_MEAN, std=CIFAR100_STD)
  config.noises = (*config.noises[:4], "cifar100:0.4")
