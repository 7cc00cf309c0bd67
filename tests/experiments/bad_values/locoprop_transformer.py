"""Bad settings of `experiments/locoprop/configs/transformer.py`."""

from __future__ import annotations

NAN = float("nan")

ROWS = [
  ("tiny", {"data.name": "pyton"}, "data.name", "mean 'python'"),
  ("tiny", {"data.num_bytes": -1}, "data.num_bytes", "0 or more"),
  ("tiny", {"data.path": "absent.npy"}, "data.path", "there is none"),
  ("paper", {"data.name": "file"}, "data.path", "a `.npy` file of tokens"),
  ("tiny", {"data.num_bytes": 300}, "model.max_len", "below 15"),
  ("cpu", {"model.vocab_size": 255}, "model.vocab_size", "256 or more"),
  ("tiny", {"model.num_layers": 0}, "model.num_layers", "1 or more"),
  ("tiny", {"model.num_heads": 3}, "model.model_size", "model.num_heads=3"),
  ("tiny", {"model.num_heads": 0}, "model.num_heads", "1 or more"),
  ("tiny", {"model.hidden_size": -4}, "model.hidden_size", "1 or more"),
  ("tiny", {"model.dtype": "float33"}, "model.dtype", "mean 'float32'"),
  ("tiny", {"model.positions": "rotray"}, "model.positions", "mean 'rotary'"),
  (
    "tiny",
    {"model.remat": "all"},
    "model.remat",
    "'attention', 'dots', 'block'",
  ),
  ("tiny", {"model.tie_embedding": "no"}, "model.tie_embedding", "True or"),
  ("tiny", {"methods": ()}, "methods", "1 or more"),
  ("tiny", {"method": "adam"}, "method", "mean 'adamw'"),
  ("tiny", {"adamw.weight_decay": 0.0}, "adamw.weight_decay", "above 0"),
  ("tiny", {"adamw.b2": 1.5}, "adamw.b2", "in [0.0, 1.0]"),
  ("tiny", {"locoprop.inner": "adan"}, "locoprop.inner", "mean 'adam'"),
  ("tiny", {"locoprop.comm": "average"}, "locoprop.comm", "'all_reduce'"),
  ("tiny", {"locoprop.max_rows": 0}, "locoprop.max_rows", "1 or more"),
  ("tiny", {"locoprop.output": "sigmoid"}, "locoprop.output", "'softmax'"),
  ("tiny", {"locoprop.gamma": NAN}, "locoprop.gamma", "above 0"),
  ("tiny", {"schedule": "notebook"}, "schedule", "'cosine'"),
  ("tiny", {"warmup_steps": 31}, "warmup_steps", "at most 30"),
  ("tiny", {"num_steps": 0}, "num_steps", "1 or more"),
  ("tiny", {"batch_size": 5000}, "batch_size", "the windows of the corpus"),
  ("tiny", {"eval_every": 0}, "eval_every", "1 or more"),
  ("tiny", {"eval_batches": 0}, "eval_batches", "1 or more"),
  ("tiny", {"save_every": 0}, "save_every", "1 or more"),
  ("tiny", {"layout": "shards"}, "layout", "'fsdp'"),
  ("paper", {"batch_size": 100}, "batch_size", "multiple of mesh.data"),
]
FLAGS = [
  (["--config.model.dtype=float33"], "model.dtype", "'float33'", "'bfloat16'"),
  (["--config.num_steps=-1"], "num_steps", "-1", "1 or more"),
]
LEGAL: dict[str, str] = {}
