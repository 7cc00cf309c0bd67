"""Bad settings of `experiments/dp_ftrl/configs/next_word.py`."""

from __future__ import annotations

NAN = float("nan")

ROWS = [
  ("tiny", {"data.name": "stdlid"}, "data.name", "mean 'stdlib'"),
  ("shakespeare", {"data.path": ""}, "data.path", "JSON lines"),
  ("folder", {"data.path": "absent"}, "data.path", "there is none"),
  ("tiny", {"data.unit": "files"}, "data.unit", "mean 'file'"),
  ("tiny", {"data.num_words": 0}, "data.num_words", "1 or more"),
  ("tiny", {"data.length": -1}, "data.length", "1 or more"),
  ("tiny", {"data.max_sentences": 0}, "data.max_sentences", "1 or more"),
  ("tiny", {"data.num_held_out": 0}, "data.num_held_out", "1 or more"),
  ("tiny", {"data.num_test": 0}, "data.num_test", "1 or more"),
  ("tiny", {"model.preset": "cifg_small_"}, "model.preset", "'cifg_small'"),
  ("tiny", {"batch_size": 0}, "batch_size", "1 or more"),
  ("tiny", {"num_rounds": -4}, "num_rounds", "1 or more"),
  ("tiny", {"clients_per_chunk": 0}, "clients_per_chunk", "1 or more"),
  ("tiny", {"cohort_size": 9, "clients_per_chunk": 2}, "cohort_size", "is 2"),
  ("paper", {"population": 100}, "cohort_size", "at most 100"),
  ("paper", {"delta": NAN}, "delta", "(0.0, 1.0)"),
]
FLAGS = [
  (["--config.model.preset=lstm"], "model.preset", "'lstm'", "'cifg_tiny'"),
]
LEGAL: dict[str, str] = {}
