"""Prompts of several lengths as one array, of few shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from locojax.core import checks

SIDES = ("left", "right")


def bucket_length(length: int, buckets: Sequence[int]) -> int:
  """The least bucket that holds `length` tokens.

  Raises:
    ValueError: buckets that are no sizes, or all too short.
  """
  buckets = sorted(checks.sizes("buckets", buckets))
  checks.int_in_range("length", length, 0, buckets[-1] if buckets else 0)
  return next(size for size in buckets if size >= length)


def pad_prompts(
  prompts: Sequence[Sequence[int]],
  buckets: Sequence[int],
  *,
  side: str = "left",
  pad_token: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
  """Prompts padded to a bucket, so that all of its lengths share a program.

  Args:
    prompts: B lists of tokens, none of them empty.
    buckets: the lengths that may come out; the least that fits is taken.
    side: where the padding goes, 'left' or 'right'.
    pad_token: what it is.

  Returns:
    Tokens `[B, P]` int32, and `[B, P]` bool, false at padding.

  Raises:
    ValueError: no prompts, an empty one, or one that no bucket holds.
  """
  checks.one_of("side", side, SIDES)
  checks.nonnegative_int("pad_token", pad_token)
  if not len(prompts):
    checks.refuse("prompts", prompts, "one prompt or more")
  rows = [checks.integers(f"prompts[{i}]", p) for i, p in enumerate(prompts)]
  for i, row in enumerate(rows):
    if row.ndim != 1 or not row.size:
      checks.refuse(f"prompts[{i}]", prompts[i], "a list of tokens, not empty")
  longest = max(range(len(rows)), key=lambda i: rows[i].size)
  largest = max(checks.sizes("buckets", buckets), default=0)
  size = rows[longest].size
  checks.int_in_range(f"length of prompts[{longest}]", size, 1, largest)
  width = bucket_length(size, buckets)
  tokens = np.full((len(rows), width), pad_token, np.int32)
  valid = np.zeros((len(rows), width), bool)
  for i, row in enumerate(rows):
    start = width - row.size if side == "left" else 0
    place = slice(start, start + row.size)
    tokens[i, place], valid[i, place] = row, True
  return tokens, valid
