"""What a finished model is asked, with and without an engine.

In its folder: `asked.json`, numbers by language; `tokenizer.model`, so that the
run can be served without its data.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from experiments.completion import corpora, joined, places
from experiments.completion import settings as settings_lib
from experiments.completion.workspace import Workspace, available
from locojax.core import files
from locojax.methods import completion
from locojax.train import distributed

ASKED, TOKENIZER = "asked.json", "tokenizer.model"
_REMEDY = "remove it, to ask the run again"


def read(where: pathlib.Path) -> dict[str, Any]:
  """What a run was asked so far; empty if nothing."""
  path = pathlib.Path(where) / ASKED
  return files.read_json(path, remedy=_REMEDY) if path.exists() else {}


def engines_of(config, languages) -> dict[str, str]:
  """The engine of each language that a config asks with."""
  return _engines(config, languages)[0]


def _engines(config, languages) -> tuple[dict[str, str], dict[str, str]]:
  """Engines that check, and that judge, by language."""
  if config.eval.engine == settings_lib.NO_ENGINE:
    return {}, {}
  found = available(languages)
  judges = dict(found)
  if config.eval.judge:
    judges["python"] = config.eval.judge
  return found, judges


def _of_language(config, model, corpus, language, space, judge):
  """All numbers of one language."""
  asked, seed = config.eval, config.data.seed + 1
  test = corpora.of_language(corpus.test, language)
  validation = corpora.of_language(corpus.validation, language)
  lines = places.lines(test, asked.num_positions, seed)
  out = {"lines": joined.lines(model, lines)}
  follow = asked.max_lines - 1
  starts = lambda of: places.line_starts(
    of, asked.num_several, seed, follow_lines=follow
  )
  if asked.num_several:
    out["several"] = joined.several(
      model,
      starts(validation),
      starts(test),
      precision=asked.precision,
      max_lines=asked.max_lines,
    )
  if space is not None and asked.num_members:
    members = places.members(test, asked.num_members, seed)
    out["ranks"] = joined.ranks(
      model, members, space, k=asked.k, visible=asked.visible
    )
    out["checks"] = joined.checks(
      model, lines, space, judge, timeout=asked.timeout
    )
    out["users"] = joined.users(
      model,
      places.line_starts(test, asked.num_texts, seed),
      space,
      user=completion.SimulatedUser(**config.user.to_dict()),
      k=asked.k,
      timeout=asked.timeout,
      seed=seed,
    )
  return out


def ask(
  config, where: pathlib.Path, make: Callable[[], Any], languages
) -> Mapping[str, Any]:
  """Asks a finished model what its folder does not say yet.

  Args:
    config: of the run.
    where: its folder.
    make: gives the model, anything with `lines` and `names`.
    languages: that it is asked about.

  Returns:
    `asked.json`: language -> `lines`, `several`, and with an engine `ranks`,
    `checks`, `users`.
  """
  known = read(where)
  corpus = corpora.load(config)
  names, judges = _engines(config, languages)
  wanted = {
    n: {**config.eval.to_dict(), "engine": names.get(n, "")} for n in languages
  }
  if all(known.get(n, {}).get("asked") == wanted[n] for n in languages):
    return known
  model, out = make(), {}
  with contextlib.ExitStack() as stack:
    space = stack.enter_context(Workspace(names))
    judge = stack.enter_context(Workspace(judges)) if judges != names else space
    for language in languages:
      here = space if language in names else None
      out[language] = {
        **_of_language(config, model, corpus, language, here, judge),
        "asked": wanted[language],
      }
  if distributed.is_main():
    where.mkdir(parents=True, exist_ok=True)
    files.write_json(where / ASKED, out)
  return out
