"""Mathematics kept in its notation, solved in steps, and voted on.

Claim: trained on as many tokens, a model of texts that keep their notation
solves far more than one of texts stripped of it, and one that is shown the
steps more than one that is shown answers alone. The vote of k samples rises
with k and levels off, any of k rises further, the likeliest of k is between.

  python -m experiments.run --workdir runs/minerva_cpu \\
    --config experiments/minerva/configs/reasoning.py:cpu

Variants: tiny (seconds), quick (two conditions, fewer samples), cpu (drawn
problems, minutes a run on 2 cores), gsm8k (real text: GSM8K, alone and after
drawn problems), own (your JSON lines; set `--config.data.path`), gpu (GSM8K, a
wider model), and for `--mode=check` PaLM's sizes as Minerva goes on with them:
paper (540B), paper_62b, paper_8b.
"""

from ml_collections import ConfigDict

# Preset, batch, steps and where PaLM stopped, mesh, slice.
PAPER = {
  "paper": ("palm_540b", 32, 399_000, 257_000, (32, 16), "v4:8x8x8"),
  "paper_62b": ("palm_62b", 128, 416_000, 520_000, (32, 8), "v4:4x8x8"),
  "paper_8b": ("palm_8b", 128, 624_000, 1_000_000, (32, 2), "v4:4x4x4"),
}
VARIANTS = ("tiny", "quick", "cpu", "gsm8k", "own", "gpu", *PAPER)


def get_config(variant: str = "cpu") -> ConfigDict:
  """The experiment at one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r} is not allowed: one of {VARIANTS}.")
  config = ConfigDict()
  config.experiment = "experiments.minerva.experiment"
  config.conditions = ("preserved", "stripped", "answer_only")
  config.condition = "preserved"
  config.data = {
    "name": "problems",
    "path": "",
    "data_dir": "",
    "num_train": 60_000,
    "num_test": 96,
    "size": 9,
    "tokenizer": "bytes",
    "vocab_size": 0,
    "seed": 0,
  }
  config.model = {
    "preset": "",
    "num_layers": 3,
    "d_model": 96,
    "num_heads": 3,
    "head_dim": 32,
    "num_kv_heads": 1,
    "d_ff": 0,
    "max_len": 160,
    "norm": "rms",
    "rope_style": "half",
    "parallel": True,
    "fused": False,
    "tie_embeddings": True,
    "logit_scale": True,
    "activation": "swish",
    "dtype": "float32",
    "remat": "none",
    "kernel": "full",
    "scan_layers": False,
  }
  config.z_loss = 1e-4
  config.optimizer = {
    "peak": 3e-2,
    "warm_constant": 300.0,
    "start_step": 0,
    "final_drop": 0.1,
    "final_fraction": 0.1,
    "clip_norm": 1.0,
    "momentum": 0.9,
    "decay_exponent": 2.0,
  }
  config.batch_size, config.num_steps = 16, 1400
  config.eval_every, config.eval_batches, config.eval_batch_size = 250, 4, 16
  config.log_every, config.save_every = 20, 0
  config.sampling = {
    "num_samples": 64,
    "max_new_tokens": 80,
    "batch": 8,
    "temperature": 0.6,
    "top_p": 0.95,
  }
  config.ks = (1, 2, 4, 8, 16, 32)
  config.grading = {"engine": "none", "workers": 1, "cpu_seconds": 5.0}
  config.layout = "replicated"
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
  config.data.update(num_train=200, num_test=4)
  config.model.update(num_layers=2, d_model=16, num_heads=2, head_dim=8)
  config.model.update(max_len=48)
  config.batch_size, config.num_steps = 8, 6
  config.eval_every, config.eval_batches, config.eval_batch_size = 3, 1, 4
  config.log_every = 1
  config.sampling.update(num_samples=4, max_new_tokens=8, batch=2)
  config.ks = (1, 2, 4)
  config.conditions, config.seeds = ("preserved", "stripped"), (0,)


def _quick(config):
  """Of the quickstart."""
  config.conditions, config.seeds = ("preserved", "answer_only"), (0,)
  config.data.num_test, config.num_steps = 48, 600
  config.sampling.num_samples, config.ks = 16, (1, 2, 4, 8)


def _cpu(config):
  del config


def _real(config):
  """GSM8K in pieces, alone and after drawn problems."""
  config.conditions = ("preserved", "pretrained", "answer_only")
  config.data.update(name="gsm8k", num_train=0, num_test=128, size=20)
  config.data.update(tokenizer="pieces", vocab_size=2000)
  config.model.max_len = 256
  config.sampling.max_new_tokens = 120


def _gsm8k(config):
  _real(config)
  config.conditions = ("preserved", "pretrained")
  config.model.update(num_layers=4, d_model=128, num_heads=4)
  config.batch_size, config.num_steps = 8, 1000


def _own(config):
  config.conditions = ("preserved", "answer_only")
  config.data.update(name="file", num_train=0, num_test=64)
  config.data.update(tokenizer="bytes")
  config.model.max_len = 512
  config.sampling.max_new_tokens = 256


def _gpu(config):
  _real(config)
  config.conditions = ("preserved", "pretrained", "answer_only", "stripped")
  config.data.update(num_test=1319, vocab_size=8000)
  config.model.update(num_layers=12, d_model=768, num_heads=12, head_dim=64)
  config.model.update(max_len=512, dtype="bfloat16", scan_layers=True)
  config.batch_size, config.num_steps = 128, 4000
  config.optimizer.update(peak=1e-2, warm_constant=1000.0)
  config.eval_every, config.eval_batch_size = 500, 64
  config.sampling.update(batch=32, max_new_tokens=256)
  config.ks = (1, 2, 4, 8, 16, 32, 64)


def _paper(config, preset, batch, num_steps, start, mesh, topology):
  config.needs_data = False
  config.conditions = ("preserved",)
  config.model.update(preset=preset, dtype="bfloat16", remat="block")
  config.model.kernel = "fused"
  config.model.scan_layers = True
  config.layout = "fsdp"
  config.batch_size, config.num_steps = batch, num_steps
  config.optimizer.update(peak=1e-2, warm_constant=10_000.0)
  config.optimizer.start_step = start
  config.optimizer.final_fraction = 0.04
  config.sampling.max_new_tokens = 512
  config.eval_every, config.log_every = 10_000, 100
  config.mesh = {"data": mesh[0], "expert": 1, "model": mesh[1]}
  config.check = {"topology": topology, "hbm_bytes": 0}
