"""Source code of a config: read, freed of copies, split by package."""

from __future__ import annotations

import functools
import os
import pathlib
from typing import Any, NamedTuple

from experiments.common import trained_on
from locojax.core import checks
from locojax.data import code, code_tokens

NAMES = ("installed", "library", "folder")
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


class Corpus(NamedTuple):
  """Parts that share no package.

  Attributes:
    train, validation, test: files.
    languages: of them, in the order of `code.LANGUAGES`.
  """

  train: tuple[code.SourceFile, ...]
  validation: tuple[code.SourceFile, ...]
  test: tuple[code.SourceFile, ...]
  languages: tuple[str, ...]


def _named(**settings) -> dict[str, Any]:
  return {"name": settings["name"], "path": settings["path"]}


@trained_on.cached(_named)
def _load(
  *,
  name: str,
  path: str,
  languages: tuple[str, ...],
  depth: int,
  max_bytes: int,
  near: float,
  seed: int,
) -> Corpus:
  if name == "folder":
    root = pathlib.Path(os.path.expandvars(path)).expanduser()
    files = code.from_folder(
      root, languages=languages or code.LANGUAGES, depth=depth
    )
  else:
    files = code.installed(
      max_bytes=max_bytes, seed=seed, only_library=name == "library"
    )
  files = code.deduplicate(files, threshold=near)
  files = _enough(files)
  parts = code.split(files, seed=seed, shares=SHARES)
  found = {f.language for f in files}
  return Corpus(
    **parts, languages=tuple(n for n in code.LANGUAGES if n in found)
  )


def _enough(files):
  """Without languages that have fewer packages than there are parts.

  Raises:
    ValueError: none is left.
  """
  packages: dict[str, set[str]] = {}
  for file in files:
    packages.setdefault(file.language, set()).add(file.package)
  kept = {n for n, found in packages.items() if len(found) >= len(SHARES)}
  if not kept:
    counts = {n: len(found) for n, found in packages.items()}
    checks.refuse(
      "data.path",
      counts,
      f"code of {len(SHARES)} packages or more (data.depth)",
    )
  return tuple(f for f in files if f.language in kept)


def load(config) -> Corpus:
  """The corpus of a config.

  Raises:
    ValueError: too little code.
  """
  return _load(**config.data.to_dict())


def of_language(files, language: str | None):
  """The files of a language; all of them for None or ''."""
  return tuple(f for f in files if not language or f.language == language)


@functools.lru_cache(maxsize=2)
def _tokenizer(corpus: Corpus, vocab_size: int, kind: str, max_bytes: int):
  made = code_tokens.train(
    [f.text for f in corpus.train],
    vocab_size=vocab_size,
    languages=corpus.languages,
    kind=kind,
    max_bytes=max_bytes,
  )
  made.check(f.text for part in corpus[:3] for f in part)
  return made


def tokenizer(config) -> code_tokens.CodeTokenizer:
  """The tokenizer, of the training part; it gives back every file.

  Raises:
    ValueError: a file of the corpus that it does not.
  """
  return _tokenizer(load(config), **config.tokenizer.to_dict())
