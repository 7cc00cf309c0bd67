"""Bad settings of `experiments/minerva/configs/reasoning.py`."""

from __future__ import annotations

NAN = float("nan")

ROWS = [
  ("tiny", {"conditions": ()}, "conditions", "1 or more"),
  ("tiny", {"conditions": ("kept",)}, "conditions", "'preserved'"),
  ("tiny", {"condition": "striped"}, "condition", "mean 'stripped'"),
  ("tiny", {"condition": "pretrained"}, "condition", "data.name='problems'"),
  ("tiny", {"data.name": "gsm9k"}, "data.name", "mean 'gsm8k'"),
  ("gsm8k", {"data.data_dir": "no/such"}, "data.data_dir", "there is none"),
  ("own", {"data.path": ""}, "data.path", "JSON lines of questions"),
  ("tiny", {"data.num_train": 0}, "data.num_train", "1 or more"),
  ("tiny", {"data.num_test": 0}, "data.num_test", "1 or more"),
  ("tiny", {"data.size": 1}, "data.size", "in [2, 10000]"),
  ("tiny", {"data.tokenizer": "byte"}, "data.tokenizer", "mean 'bytes'"),
  ("tiny", {"data.tokenizer": "pieces"}, "data.vocab_size", "[300,"),
  ("tiny", {"model.preset": "palm_8B"}, "model.preset", "'palm_8b'"),
  ("tiny", {"model.head_dim": 5}, "model.head_dim", "2"),
  ("tiny", {"model.num_kv_heads": 3}, "model.num_heads", "num_kv_heads=3"),
  ("tiny", {"model.fused": True, "model.d_ff": 33}, "model.d_ff", "num_heads"),
  ("tiny", {"model.max_len": 4}, "model.max_len", "in [8,"),
  ("tiny", {"model.norm": "rmsnorm"}, "model.norm", "'rms'"),
  ("tiny", {"model.rope_style": "full"}, "model.rope_style", "'half'"),
  ("tiny", {"model.activation": "swich"}, "model.activation", "mean 'swish'"),
  ("tiny", {"model.dtype": "bf16"}, "model.dtype", "'bfloat16'"),
  ("tiny", {"model.remat": "all"}, "model.remat", "'block'"),
  ("tiny", {"z_loss": -1.0}, "z_loss", "0 or more"),
  ("tiny", {"optimizer.peak": 0.0}, "optimizer.peak", "above 0"),
  ("tiny", {"optimizer.momentum": 1.0}, "optimizer.momentum", "[0.0, 1.0)"),
  ("tiny", {"optimizer.final_drop": 1.5}, "final_drop", "[0.0, 1.0]"),
  ("tiny", {"optimizer.clip_norm": NAN}, "optimizer.clip_norm", "above 0"),
  ("tiny", {"batch_size": 0}, "batch_size", "1 or more"),
  ("tiny", {"num_steps": 0}, "num_steps", "1 or more"),
  ("tiny", {"sampling.num_samples": 2}, "ks[2]=4", "in [1, 2]"),
  ("tiny", {"sampling.max_new_tokens": 48}, "max_new_tokens", "at most 47"),
  ("tiny", {"sampling.temperature": -0.1}, "temperature", "0 or more"),
  ("tiny", {"sampling.top_p": 0.0}, "sampling.top_p", "1.0]"),
  ("tiny", {"sampling.batch": 0}, "sampling.batch", "1 or more"),
  ("tiny", {"ks": (0,)}, "ks", "1 or more"),
  ("tiny", {"grading.engine": "simpy"}, "grading.engine", "mean 'sympy'"),
  ("tiny", {"layout": "model"}, "layout", "'fsdp'"),
  ("tiny", {"eval_every": 0}, "eval_every", "1 or more"),
  ("paper", {"batch_size": 100}, "batch_size", "multiple of mesh.data"),
  ("paper", {"model.preset": "palm_540"}, "model.preset", "mean 'palm_540b'"),
]
FLAGS = [
  (["--config.condition=striped"], "condition", "striped", "'stripped'"),
  (["--config.num_steps=-1"], "num_steps", "-1", "1 or more"),
]
LEGAL: dict[str, str] = {
  "data.path": "it is looked up with data.name='file' alone",
}
