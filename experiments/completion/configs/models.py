"""Code completion: a model beside an engine, and what each adds.

Claim: re-ranked lists need fewer characters, and checked lines compile more
often; an encoder-decoder is held against counting n-grams.

  python -m experiments.run --workdir runs/completion \\
    --config experiments/completion/configs/models.py:cpu

Variants: tiny (seconds, standard library), quick (a small model beside
n-grams), cpu (packages of this Python), masking (what training hides, and
decoders alone), languages (of `data.path`, as made by `scripts.prepare_code`:
one model against one for each), folder (your own code: set
`--config.data.path`), gpu (67M parameters), and for `--mode=check` paper
(0.5B).
"""

from ml_collections import ConfigDict

VARIANTS = (
  *("tiny", "quick", "cpu", "masking", "languages", "folder", "gpu"),
  "paper",
)


def get_config(variant: str = "cpu") -> ConfigDict:
  """The experiment at one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r} is not allowed: one of {VARIANTS}.")
  config = ConfigDict()
  config.experiment = "experiments.completion.experiment"
  config.methods = ("line", "no_suffix", "ngram")
  config.method, config.language = "line", ""
  _defaults_of_data(config)
  _defaults_of_models(config)
  _defaults_of_questions(config)
  config.batch_size, config.num_steps = 32, 600
  config.num_evals, config.eval_batch_size, config.eval_batches = 4, 32, 8
  config.log_every, config.save_every = 20, 0
  config.seeds, config.seed = (0, 1, 2), 0
  config.needs_data = True
  config.profile = {"start": 0, "num_steps": 0}
  config.results = ""
  config.mesh = {"data": -1, "model": 1}
  config.check = {"topology": "", "hbm_bytes": 0}
  globals()[f"_{variant}"](config)
  return config.lock()


def _defaults_of_data(config):
  config.data = {
    "name": "installed",
    "path": "",
    "languages": (),
    # Folders below `path` that name a package.
    "depth": 1,
    "max_bytes": 12_000_000,
    # Files that share so many of their words go.
    "near": 0.8,
    "seed": 0,
  }
  config.tokenizer = {
    "vocab_size": 4096,
    "kind": "bpe",
    "max_bytes": 4_000_000,
  }
  config.examples = {"starts": 0.3, "several_lines": 0.3, "max_follow": 10}


def _defaults_of_models(config):
  config.model = {
    "preset": "cpu_tiny",
    # What differs from the preset.
    "sizes": {},
    "max_inputs": 128,
    "max_targets": 48,
    "prefix_share": 0.75,
    # Of the prompt of a decoder alone, and the weight of its tokens.
    "order": "psm",
    "context_weight": 0.5,
    "dtype": "float32",
    "remat": "none",
    "scan": False,
    "z_loss": 1e-4,
  }
  config.ngram = {"order": 6, "cache_share": 0.5, "cache_words": 1500}
  config.optimizer = {
    "name": "adam",
    "learning_rate": 2e-3,
    "schedule": "cosine",
    "warmup_steps": 60,
    "final": 0.05,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
    "options": {"b2": 0.98},
  }


def _defaults_of_questions(config):
  # How a model is asked.
  config.ask = {
    "max_new_tokens": 24,
    "beam_size": 4,
    "name_beams": 8,
    "search": "beam",
    "node_budget": 64,
    "alpha": 0.6,
    "heal": True,
  }
  config.eval = {
    "num_positions": 200,
    # Behind dots, where the engine has a list.
    "num_members": 200,
    # Lines that simulated users write.
    "num_texts": 30,
    "num_several": 60,
    "max_lines": 3,
    "precision": 0.8,
    "k": 3,
    "visible": 5,
    # 'auto' takes the engine of each language that is installed.
    "engine": "auto",
    # Of Python, to tell what compiles; '' is the engine itself.
    "judge": "",
    "timeout": 5.0,
  }
  config.user = {
    "min_chars": 3,
    "visible": 5,
    "read_ms": 1000.0,
    "reading_cost": 0.2,
    "skips": 0,
  }


def _tiny(config):
  config.data.update(name="library", max_bytes=150_000)
  config.tokenizer.update(vocab_size=400, max_bytes=50_000)
  config.model.sizes = {
    "model_size": 16,
    "hidden_size": 24,
    "num_heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 1,
  }
  config.model.update(max_inputs=32, max_targets=8)
  config.ask.update(max_new_tokens=4, beam_size=2, name_beams=2)
  config.eval.update(
    num_positions=4, num_members=3, num_texts=1, num_several=2, max_lines=2
  )
  config.eval.update(engine="none")
  config.optimizer.warmup_steps = 1
  config.batch_size, config.num_steps, config.num_evals = 8, 4, 1
  config.eval_batch_size, config.eval_batches, config.log_every = 8, 1, 1
  config.methods, config.seeds = ("line", "ngram"), (0,)


def _sizes(config, model_size, hidden_size, num_heads):
  """Of small models, and what lets them learn sooner."""
  config.model.sizes = {
    "model_size": model_size,
    "hidden_size": hidden_size,
    "num_heads": num_heads,
  }
  config.tokenizer.vocab_size = 1024
  # Longer targets: more to learn from in each step, at the same cost.
  config.examples.several_lines = 0.8


def _cpu(config):
  """An hour and a half of one core."""
  config.methods = ("line", "no_suffix", "fim", "ngram")
  # As large as minutes can teach: a larger model learns less in them.
  _sizes(config, 96, 288, 3)
  config.batch_size, config.num_steps = 16, 3000
  config.eval_batches = 4
  config.eval.update(num_positions=150, num_members=150)
  config.eval.update(num_texts=16, num_several=40)


def _short(config):
  """Many small models, each asked for lines alone: no engine is."""
  _sizes(config, 64, 192, 2)
  config.batch_size, config.num_steps = 16, 1000
  config.optimizer.warmup_steps, config.eval_batches = 40, 4
  config.eval.update(num_members=0, num_several=0)


def _quick(config):
  """Of the quickstart."""
  _short(config)
  config.data.max_bytes, config.tokenizer.max_bytes = 4_000_000, 2_000_000
  config.eval.update(num_positions=60, num_members=60, num_several=12)
  config.eval.num_texts = 6
  config.methods, config.seeds = ("line", "ngram"), (0,)


def _masking(config):
  config.methods = ("line", "whole_lines", "identifier", "span", "fim")
  _short(config)


def _languages(config):
  config.data.update(name="folder", depth=2)
  config.methods = ("line", "one_language", "ngram")
  _short(config)


def _folder(config):
  config.data.name = "folder"
  config.methods, config.seeds = ("line", "ngram"), (0,)


def _gpu(config):
  """Card of the method: minutes on one H200."""
  config.data.update(name="folder", depth=2)
  config.tokenizer.update(vocab_size=16_384, max_bytes=20_000_000)
  config.model.update(preset="gpu_67m", max_inputs=1024, max_targets=128)
  config.model.update(dtype="bfloat16", remat="dots")
  config.ask.max_new_tokens = 48
  config.methods = ("line", "no_suffix", "one_language", "fim", "ngram")
  config.batch_size, config.num_steps = 256, 1500
  config.eval_batch_size, config.log_every = 128, 50
  config.optimizer.update(learning_rate=1e-3, warmup_steps=200)
  config.eval.update(num_positions=1000, num_members=1000, num_several=500)
  config.eval.num_texts = 200


def _paper(config):
  """0.5B parameters, 1,536 tokens around the cursor."""
  config.needs_data = False
  config.data.name = "folder"
  config.tokenizer.vocab_size = 32_768
  config.model.update(preset="paper_0p5b", max_inputs=1536, max_targets=256)
  config.model.update(dtype="bfloat16", remat="block", scan=True)
  config.ask.max_new_tokens = 64
  config.optimizer = {
    "name": "adafactor",
    "learning_rate": 1e-2,
    "schedule": "rsqrt",
    "warmup_steps": 1000,
    "final": 0.0,
    "weight_decay": 0.0,
    "clip_norm": 0.0,
    "options": {
      "decay_rate": 0.8,
      "clipping_threshold": 1.0,
      "min_dim_size_to_factor": 128,
    },
  }
  config.methods, config.seeds = ("line",), (0,)
  config.batch_size, config.num_steps = 2048, 100_000
  config.eval_batch_size, config.num_evals, config.log_every = 64, 20, 100
  config.mesh = {"data": 64, "model": 1}
  config.check.update(topology="v5e:8x8")
