"""The conditions that are compared, and what each changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Condition:
  """What a condition changes.

  Attributes:
    kind: `limoe`, `one_tower` or `two_tower` (both dense).
    experts: settings of `limoe.MoeMlp`.
    aux: `none`, `classic`, or `limoe` (classic and entropy losses).
    bias: whether experts are balanced by a bias for each modality.
  """

  kind: str = "limoe"
  experts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  aux: str = "none"
  bias: bool = False


_FIFO, _BPR = {"priority": "none"}, {"priority": "max"}
CONDITIONS: dict[str, Condition] = {
  "no_aux": Condition(experts=_FIFO),
  "classic": Condition(experts=_FIFO, aux="classic"),
  "classic_bpr": Condition(experts=_BPR, aux="classic"),
  "classic_entropy": Condition(experts=_FIFO, aux="limoe"),
  "limoe": Condition(experts=_BPR, aux="limoe"),
  "bias": Condition(experts=_BPR, bias=True),
  "expert_choice": Condition(experts={"router": "expert_choice"}),
  "soft": Condition(experts={"router": "soft"}),
  "dense_one_tower": Condition(kind="one_tower"),
  "dense_two_tower": Condition(kind="two_tower"),
}
