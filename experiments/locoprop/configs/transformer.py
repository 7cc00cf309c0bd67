"""A decoder-only language model: LocoProp next to AdamW.

No claim of a gain: LocoProp's case is the autoencoder. This shows that it
runs, sharded, at transformer size.

  python -m experiments.run --workdir runs/transformer \
    --config experiments/locoprop/configs/transformer.py:cpu
  python -m experiments.run --mode=check \
    --config experiments/locoprop/configs/transformer.py:paper

Variants: tiny (seconds), cpu (minutes, bytes of the standard library's own
source), paper (6 layers of 768, 32k tokens, 64 chips; your own token file in
`data.path`).
"""

from ml_collections import ConfigDict

VARIANTS = ("tiny", "cpu", "paper")


def get_config(variant: str = "cpu") -> ConfigDict:
  """The experiment at one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r} is not allowed: one of {VARIANTS}.")
  config = ConfigDict()
  config.experiment = "experiments.locoprop.language_model"
  config.data = {"name": "python", "num_bytes": 0, "path": ""}
  config.model = {
    "vocab_size": 256,
    "max_len": 128,
    "num_layers": 4,
    "num_heads": 4,
    "model_size": 128,
    "hidden_size": 512,
    "activation": "relu",
    "positions": "learned",
    "tie_embedding": False,
    "remat": "none",
    "dtype": "float32",
  }
  config.methods = ("adamw", "locoprop")
  config.method = "locoprop"
  config.adamw = {
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
    "b2": 0.99,
  }
  config.locoprop = {
    "learning_rate": 1e-3,
    "inner": "adam",
    "gamma": 1.0,
    "output": "softmax",
    "output_gamma": 1.0,
    "num_local_iters": 3,
    "max_rows": 512,
    "rotate_rows": True,
    "comm": "all_reduce",
    "fallback_ratio": 1.0,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
  }
  config.schedule, config.warmup_steps = "cosine", 20
  config.num_steps, config.batch_size = 300, 16
  config.eval_every, config.eval_batches, config.eval_batch_size = 100, 4, 16
  config.log_every, config.save_every = 10, 100
  config.profile = {"start": 0, "num_steps": 0}
  config.seed, config.seeds, config.results = 0, (0,), ""
  config.mesh = {"data": -1, "expert": 1, "model": 1}
  config.layout = "replicated"
  config.check = {"topology": "", "hbm_bytes": 0}
  globals()[f"_{variant}"](config)
  return config.lock()


def _tiny(config):
  config.data.update(name="grammar", num_bytes=20_000)
  config.model.update(max_len=16, num_layers=2, num_heads=2)
  config.model.update(model_size=16, hidden_size=32)
  config.adamw.learning_rate = config.locoprop.learning_rate = 1e-2
  config.locoprop.max_rows = 64
  config.num_steps, config.batch_size, config.warmup_steps = 30, 16, 3
  config.eval_every, config.eval_batches = 30, 2
  config.save_every = 15


def _cpu(config):
  del config


def _paper(config):
  """Half the layers of GPT-2 small, with an output layer; 16 x 4 chips."""
  config.data = {"name": "file", "num_bytes": 0, "path": ""}
  config.model.update(vocab_size=32_768, max_len=1024, num_layers=6)
  config.model.update(num_heads=12, model_size=768, hidden_size=3072)
  config.model.update(dtype="bfloat16", remat="attention")
  config.adamw.learning_rate = config.locoprop.learning_rate = 6e-4
  config.locoprop.max_rows = 8192
  config.num_steps, config.batch_size, config.warmup_steps = 50_000, 128, 1000
  config.eval_every, config.eval_batches, config.eval_batch_size = 1000, 8, 128
  config.log_every, config.save_every = 100, 1000
  config.mesh = {"data": 16, "expert": 1, "model": 4}
  config.layout = "model"
  config.check = {"topology": "v5e:8x8", "hbm_bytes": 0}
