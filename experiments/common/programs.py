"""Compiled programs that the runs of a study share."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

_DIR = "jax_compilation_cache_dir"


@contextlib.contextmanager
def kept(folder: pathlib.Path) -> Iterator[None]:
  """Compiles once what the runs in a folder share, in `folder/compiled`.

  Initialisation, steps and evaluations are the same for many runs of a study,
  and compiling them takes longer than training a small network. Where a cache
  is set already, that one is used.
  """
  if jax.config.jax_compilation_cache_dir:
    yield
    return
  jax.config.update(_DIR, str(folder / "compiled"))
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update(_DIR, None)
    compilation_cache.reset_cache()
