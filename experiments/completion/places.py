"""Places of held-out files at which models are asked, the same for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.completion import feeding
from locojax.data import code
from locojax.methods import completion


class Place(NamedTuple):
  """A place in a file.

  Attributes:
    file: where.
    example: with the rest of the line as its target.
  """

  file: code.SourceFile
  example: completion.Example

  @property
  def name(self) -> str | None:
    """The identifier that truly stands at the cursor."""
    e = self.example
    typed = completion.typed(e.prefix, e.language)
    return completion.first_token(typed, e.target, e.language)


def _shuffled(files: Sequence[code.SourceFile], seed: int):
  rows = feeding.chunks(files)
  rng = np.random.default_rng(seed)
  return rows[rng.permutation(len(rows))], rng


def lines(files, num: int, seed: int) -> list[Place]:
  """Rests of lines, as examples of training are drawn."""
  rows, rng = _shuffled(files, seed)
  out = []
  for number, low, high in rows:
    file = files[number]
    example = completion.sample_example(
      file.text,
      rng,
      language=file.language,
      several_lines=0.0,
      low=int(low),
      high=int(high),
    )
    if example.target.strip():
      out.append(Place(file, example))
    if len(out) == num:
      break
  return out


def members(files, num: int, seed: int) -> list[Place]:
  """Places behind `.`, `::` or `->` at which a name stands."""
  rows, rng = _shuffled(files, seed)
  out = []
  for number, low, high in rows:
    file = files[number]
    found = completion.member_starts(file.text[low:high])
    if found:
      offset = int(low) + found[int(rng.integers(len(found)))]
      example = completion.make_example(
        file.text, offset, language=file.language
      )
      out.append(Place(file, example))
    if len(out) == num:
      break
  return out


def line_starts(
  files, num: int, seed: int, *, follow_lines: int = 0, least: int = 8
) -> list[Place]:
  """First characters of lines of `least` characters or more, no comments."""
  rows, rng = _shuffled(files, seed)
  out = []
  for number, low, high in rows:
    file = files[number]
    example = completion.sample_example(
      file.text,
      rng,
      language=file.language,
      masking="whole_lines",
      several_lines=0.0,
      low=int(low),
      high=int(high),
    )
    text = example.target.strip()
    if len(text) < least or text.startswith(("#", "//", "/*", "*", '"')):
      continue
    whole = completion.make_example(
      file.text, len(example.prefix), follow_lines, language=file.language
    )
    out.append(Place(file, whole))
    if len(out) == num:
      break
  return out
