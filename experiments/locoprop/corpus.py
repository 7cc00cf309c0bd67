"""Tokens for the language model, made without any download.

`python`: the source text of the standard library's top-level modules, as this
interpreter ships them, one token a byte; it differs a little from one Python
release to the next. `grammar`: sentences of a small grammar, from a seed, the
same everywhere. `file`: your own tokens, a one-dimensional `.npy` of integers.
"""

from __future__ import annotations

import pathlib
import sysconfig

import numpy as np

from experiments.common import places, trained_on
from locojax.core import checks

NAMES = ("python", "grammar", "file")
_NOUNS = [
  "cat",
  "dog",
  "bird",
  "fish",
  "tree",
  "river",
  "stone",
  "cloud",
  "child",
  "king",
]
_VERBS = ["sees", "likes", "finds", "follows", "hears", "wants"]
_KINDS = ["old", "red", "small", "quick", "quiet"]


def _grammar(num_bytes: int) -> np.ndarray:
  """`the small cat sees the old tree.` and the like, one a line."""
  rng = np.random.default_rng(0)
  pick = lambda words: words[rng.integers(len(words))]
  lines, size = [], 0
  while size < num_bytes:
    phrases = [f"the {pick(_KINDS)} {pick(_NOUNS)}" for _ in range(2)]
    lines.append(f"{phrases[0]} {pick(_VERBS)} {phrases[1]}.\n")
    size += len(lines[-1])
  return np.frombuffer("".join(lines).encode()[:num_bytes], np.uint8)


def _python(num_bytes: int | None) -> np.ndarray:
  folder = pathlib.Path(sysconfig.get_path("stdlib"))
  paths = sorted(folder.glob("*.py"))
  if not paths:
    raise ValueError(
      f"data.name='python' is not allowed here: {str(folder)!r} has no source "
      "files. Install them, or take data.name='grammar'."
    )
  data = b"".join(path.read_bytes() for path in paths)
  return np.frombuffer(data[:num_bytes], np.uint8)


def _file(path: str) -> np.ndarray:
  where = places.expanded(path)
  if not path or not where.is_file():
    raise ValueError(
      f"data.path={path!r} is not allowed: with data.name='file' it must be a "
      "`.npy` file of tokens."
    )
  tokens = np.load(where, mmap_mode="r")
  if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
    raise ValueError(
      f"data.path={path!r} holds {tokens.dtype} of shape {tokens.shape}: it "
      "must be integers in one dimension."
    )
  return tokens


def _named(name: str, *, path: str = "", **settings) -> dict[str, str]:
  del settings
  return {"name": name, "path": path}


@trained_on.cached(_named)
def load(
  name: str,
  *,
  length: int,
  vocab_size: int,
  num_bytes: int | None = None,
  path: str = "",
) -> dict[str, np.ndarray]:
  """Windows of tokens, the last twentieth of the corpus for the test.

  Args:
    name: one of `NAMES`.
    length: inputs of a window; a window has one token more.
    vocab_size: no token may reach it.
    num_bytes: the first so many bytes; None takes all (100,000 of `grammar`).
    path: of the file, for `file`.

  Returns:
    'train' and 'test', `[n, length + 1]`; a window starts with the last token
    of the one before.

  Raises:
    ValueError: an unknown name, a corpus that is too short, a token out of
      the vocabulary.
  """
  checks.one_of("data.name", name, NAMES)
  if name == "grammar":
    tokens = _grammar(num_bytes or 100_000)
  else:
    tokens = _python(num_bytes) if name == "python" else _file(path)
  cut = len(tokens) - len(tokens) // 20
  splits = {"train": tokens[:cut], "test": tokens[cut:]}
  if len(splits["test"]) <= length:
    raise ValueError(
      f"model.max_len={length} is not allowed: the test split of the corpus "
      f"has {len(splits['test'])} tokens, and a window takes one more."
    )
  low, high = int(tokens.min()), int(tokens.max())
  if low < 0 or high >= vocab_size:
    raise ValueError(
      f"model.vocab_size={vocab_size} is not allowed: the corpus has the "
      f"token {low if low < 0 else high}, and all must be in [0, "
      f"{vocab_size - 1}]."
    )
  windows = np.lib.stride_tricks.sliding_window_view
  return {k: windows(v, length + 1)[::length] for k, v in splits.items()}
