"""Engines of `fake_server.py`, and what tests ask of it."""

from __future__ import annotations

import pathlib
import sys

from locojax.engines import calls, lsp, programs, settings

SERVER = pathlib.Path(__file__).parent / "fake_server.py"


def make(root, *, restarts=1, **options) -> lsp.LspEngine:
  """An engine whose server behaves as `options` say.

  `timeout`, `pull`, `newlines_only` and `skips_same` are for its settings.
  """
  known = ("timeout", "pull", "newlines_only", "skips_same")
  chosen = {k: options.pop(k) for k in known if k in options}
  program = programs.Program(
    (sys.executable,), "the package fake", "fake", "1.2.3"
  )
  return lsp.LspEngine(
    settings.Settings(
      name="fake",
      language="text",
      language_id="text",
      suffixes=(".txt",),
      program=program,
      arguments=(str(SERVER),),
      options=options,
      **{"timeout": 20.0, **chosen},
    ),
    root,
    restarts=restarts,
  )


def ask(engine, method: str, params=None):
  """What the server answers to a request of its own."""
  call = engine._ask(calls.Call(method, params))
  return call.result(20)


def texts(engine) -> dict[str, str]:
  """The documents as the server has them."""
  return ask(engine, "fake/texts")
