"""Docstrings as the site's parser wants them.

Examples (`>>>`) stand in the text as they are, and become code blocks; a list
of arguments that share a description may take two lines, and becomes one.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_NAMES = re.compile(r"^( +)((?:\w+, )*\w+,)\n +((?:\w+, )*\w+:)", re.MULTILINE)


def readable(text: str) -> str:
  """A docstring with its examples fenced and its lists of names joined."""
  before = None
  while before != text:
    before, text = text, _NAMES.sub(r"\1\2 \3", text)
  out, inside = [], False
  for line in text.split("\n"):
    if line.startswith(">>> ") and not inside:
      out += ["```pycon"]
      inside = True
    elif inside and not line.strip():
      out += ["```"]
      inside = False
    out.append(line)
  return "\n".join(out + ["```"] * inside)


class Docstrings(griffe.Extension):
  """Changes every docstring before it is parsed."""

  def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
    """Of modules, classes, functions and attributes."""
    del kwargs
    if obj.docstring:
      obj.docstring.value = readable(obj.docstring.value)
