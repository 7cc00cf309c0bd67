"""A finished run taken up again to complete other code.

Its training data are not needed: the folder has the tokenizer.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.completion import asking, experiment, models
from locojax.core import checks, files
from locojax.data import code, code_tokens
from locojax.methods import completion
from locojax.train import experiment as experiment_lib
from locojax.train import folder as run_folder
from locojax.train import loop, sharding


class Restored(NamedTuple):
  """A run that can be asked.

  Attributes:
    config: of the run.
    completer: of its newest checkpoint.
    languages: that its tokenizer knows.
  """

  config: Any
  completer: completion.Completer
  languages: tuple[str, ...]


def _tuples(node: Any) -> Any:
  if isinstance(node, dict):
    return {k: _tuples(v) for k, v in node.items()}
  return tuple(map(_tuples, node)) if isinstance(node, list) else node


def _config(folder: pathlib.Path, vocab_size: int) -> ConfigDict:
  """The config of a run, on what devices there are and without its data."""
  remedy = "it must be as the run wrote it"
  found = _tuples(files.read_json(folder / run_folder.CONFIG, remedy=remedy))
  found.pop(run_folder.DATA, None)
  found |= {"needs_data": False, "mesh": {"data": -1, "model": 1}}
  found["data"] = {**found["data"], "path": ""}
  found["tokenizer"] = {**found["tokenizer"], "vocab_size": vocab_size}
  return ConfigDict(found)


def trained_config(run: str | os.PathLike) -> ConfigDict:
  """The config of a run as it was trained, its data included.

  Raises:
    ValueError: the folder is of no run.
  """
  folder, remedy = check_folder(run), "it must be as the run wrote it"
  found = _tuples(files.read_json(folder / run_folder.CONFIG, remedy=remedy))
  found.pop(run_folder.DATA, None)
  return ConfigDict(found)


def check_folder(run: str | os.PathLike) -> pathlib.Path:
  """The folder of a run, with what `load` needs in it.

  Raises:
    ValueError: it is none.
  """
  folder = pathlib.Path(run).expanduser()
  for name in (asking.TOKENIZER, run_folder.CONFIG):
    if not (folder / name).is_file():
      checks.refuse(
        "run",
        str(folder),
        f"the folder of a finished run, which has {name}, such as "
        "RUNS/line/seed_0",
      )
  return folder


def load(run: str | os.PathLike, **settings: Any) -> Restored:
  """A run from its folder.

  Args:
    run: the folder of one run, with `config.json`, `tokenizer.model`, `ckpt`.
    **settings: of `completion.Completer`, other than the run's.

  Raises:
    ValueError: it is none, or its checkpoint does not fit.
  """
  folder = check_folder(run)
  tokenizer = code_tokens.load(folder / asking.TOKENIZER)
  config = _config(folder, tokenizer.vocab_size)
  config.ask.update(settings)
  kept = []

  def keep(state):
    kept.append(jax.tree.map(np.asarray, state.params))
    return {}

  made = dataclasses.replace(
    experiment.build(config),
    evals={"restored": experiment_lib.Eval(1, keep)},
  )
  mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
  loop.evaluate(made, folder, mesh=mesh, key=jax.random.key(0))
  return Restored(
    config=config,
    completer=models.completer(config, kept[0], tokenizer),
    languages=tuple(n for n in code.LANGUAGES if tokenizer.knows(n)),
  )
