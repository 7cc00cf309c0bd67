"""What can be said of two answers."""

from __future__ import annotations

import dataclasses

EQUAL, UNEQUAL, UNKNOWN, TIMED_OUT = "equal", "unequal", "unknown", "timed out"
OUTCOMES = (EQUAL, UNEQUAL, UNKNOWN, TIMED_OUT)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Whether two answers are equal, and who said so.

  Attributes:
    outcome: one of `OUTCOMES`; only `equal` counts as equal.
    level: `text`, `exact`, or the program that was asked.
    reason: why it is not known, if so.
  """

  outcome: str
  level: str
  reason: str = ""

  @property
  def equal(self) -> bool:
    """Whether they are known to be equal."""
    return self.outcome == EQUAL
