"""A model and an engine that say what a plan tells them to.

The plan: `names`, `lines` (texts, cut at what is typed), `slow` (seconds that
the model takes), `wait_ms`, `engine` ('ty', 'static' or ''), `engine_names`.
"""

from __future__ import annotations

import time

from experiments.completion.serving.assistant import Assistant, Settings
from experiments.completion.serving.backends import Backends
from locojax import engines
from locojax.methods import completion


class Model:
  """Says the same names and lines anywhere, and keeps what it was asked."""

  def __init__(self, plan):
    self._plan, self.asked = plan, []

  def _take(self, what):
    self.asked.append(what)
    time.sleep(self._plan.get("slow", 0))

  def names(self, prefix, suffix, language):
    self._take("names")
    return [completion.Name(n, 0.1) for n in self._plan.get("names", ())]

  def lines(self, prefix, suffix, language):
    self._take("lines")
    typed = completion.typed(prefix, language)
    return [
      completion.Suggestion(text[len(typed) :], -0.5, 3)
      for text in self._plan.get("lines", ())
      if text.startswith(typed)
    ]

  def continue_focused(self, prefix, suffix, language, item):
    self._take("focused")
    rest = item[len(completion.typed(prefix, language)) :]
    return [completion.Suggestion(rest + "(value, 1)", -0.5, 3)]


def starter(plan):
  """Gives engines as a plan has them; None for none."""
  kind = plan.get("engine", "")
  if kind == "static":
    names = plan.get("engine_names", ())
    return lambda language, root: engines.StaticEngine(root, names=names)
  return (
    (lambda language, root: engines.start(kind, root=root)) if kind else None
  )


def assistant(plan):
  """The assistant of a plan."""
  settings = Settings(
    wait_ms=plan.get("wait_ms", 0.0),
    debounce_ms=plan.get("debounce_ms", 1.0),
    check_ms=plan.get("check_ms", 2000.0),
  )
  return Assistant(lambda: Model(plan), Backends(starter(plan)), settings)
