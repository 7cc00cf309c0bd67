"""Bad settings of `experiments/completion/configs/models.py`."""

from __future__ import annotations

NAN = float("nan")

ROWS = [
  ("tiny", {"methods": ()}, "methods", "1 or more"),
  ("tiny", {"methods": ("lines",)}, "methods", "mean 'line'"),
  ("tiny", {"methods": ("ngram",)}, "methods", "one that is trained"),
  ("tiny", {"method": "no_sufix"}, "method", "mean 'no_suffix'"),
  ("tiny", {"language": "pythn"}, "language", "mean 'python'"),
  ("tiny", {"data.name": "instaled"}, "data.name", "mean 'installed'"),
  ("folder", {"data.path": ""}, "data.path", "source code"),
  ("folder", {"data.path": "absent"}, "data.path", "there"),
  ("folder", {"data.depth": 0}, "data.depth", "1 or more"),
  ("tiny", {"data.languages": ("go",)}, "data.languages", "is Python"),
  ("folder", {"data.languages": ("rust",)}, "data.languages", "python"),
  ("tiny", {"data.max_bytes": 0}, "data.max_bytes", "1 or more"),
  ("tiny", {"data.near": 0.0}, "data.near", "(0.0"),
  ("tiny", {"tokenizer.vocab_size": 256}, "tokenizer.vocab_size", "[300"),
  ("tiny", {"tokenizer.kind": "bpee"}, "tokenizer.kind", "mean 'bpe'"),
  ("tiny", {"model.preset": "cpu_tny"}, "model.preset", "mean 'cpu_tiny'"),
  ("tiny", {"model.sizes.num_heads": 3}, "model_size", "num_heads=3"),
  ("tiny", {"model.sizes.hidden_size": 0}, "hidden_size", "1 or more"),
  ("tiny", {"model.max_inputs": 8}, "model.max_inputs", "[16"),
  ("tiny", {"model.prefix_share": 1.5}, "model.prefix_share", "[0"),
  ("tiny", {"model.order": "pms"}, "model.order", "'psm'"),
  ("tiny", {"model.dtype": "bf16"}, "model.dtype", "'bfloat16'"),
  ("tiny", {"model.z_loss": -1.0}, "model.z_loss", "0 or more"),
  ("tiny", {"model.context_weight": 0.0}, "context_weight", "above 0"),
  ("tiny", {"examples.starts": 2.0}, "examples.starts", "[0"),
  ("tiny", {"examples.max_follow": 0}, "examples.max_follow", "1 or more"),
  ("tiny", {"ngram.order": 0}, "ngram.order", "[1"),
  ("tiny", {"ngram.cache_share": 1.0}, "ngram.cache_share", "1.0)"),
  ("tiny", {"optimizer.name": "adm"}, "optimizer.name", "mean 'adam'"),
  ("tiny", {"optimizer.learning_rate": NAN}, "learning_rate", "above 0"),
  ("tiny", {"optimizer.warmup_steps": 5}, "warmup_steps", "at most 4"),
  ("tiny", {"optimizer.options.b2": 2.0}, "options.b2", "[0"),
  ("tiny", {"ask.beam_size": 0}, "ask.beam_size", "1 or more"),
  ("tiny", {"ask.max_new_tokens": 9}, "ask.max_new_tokens", "at most 8"),
  ("tiny", {"ask.search": "tre"}, "ask.search", "mean 'tree'"),
  ("tiny", {"eval.engine": "ty"}, "eval.engine", "'auto'"),
  ("tiny", {"eval.judge": "pyrigth"}, "eval.judge", "mean 'pyright'"),
  ("tiny", {"eval.precision": 0.0}, "eval.precision", "(0.0"),
  ("tiny", {"eval.timeout": 0.0}, "eval.timeout", "above 0"),
  ("tiny", {"eval.k": 0}, "eval.k", "1 or more"),
  ("tiny", {"user.min_chars": 0}, "user.min_chars", "1 or more"),
  ("tiny", {"num_evals": 5}, "num_evals", "at most 4"),
  ("tiny", {"mesh.data": 3}, "batch_size", "multiple of mesh.data"),
  ("paper", {"needs_data": False}, "needs_data", "--mode=check"),
]
FLAGS = [
  (["--config.methods=('lin',)"], "methods", "lin", "'line'"),
  (["--config.ask.alpha=-1.0"], "ask.alpha", "-1.0", "0 or more"),
]
LEGAL: dict[str, str] = {}
