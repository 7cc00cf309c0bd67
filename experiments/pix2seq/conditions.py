"""The methods that are compared, and what each changes of the settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# Told until the end of the sequence, and what is read is what is written.
_PLAIN = {"augment": False, "corruption": "none"}


@dataclasses.dataclass(frozen=True)
class Condition:
  """What a method changes.

  Attributes:
    kind: `pix2seq`, or `detr`: set prediction with the same encoder and blocks.
    sequence: settings of `config.sequence`.
    pretrained: whether it starts from the pre-training on canvases, where
      `config.pretrain.num_steps` is above 0.
  """

  kind: str = "pix2seq"
  sequence: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  pretrained: bool = True


def _changed(**sequence: Any) -> Condition:
  return Condition(sequence=sequence)


CONDITIONS: dict[str, Condition] = {
  "augmented": Condition(),
  "plain": Condition(sequence=_PLAIN),
  "uncorrupted": _changed(corruption="none"),
  "half_corrupted": _changed(corruption="real_n_rand_n_fake_cls"),
  "random_classes": _changed(corruption="rand_cls"),
  "order_area": _changed(order="area"),
  "order_dist2ori": _changed(order="dist2ori"),
  "order_none": _changed(order="none"),
  "bins_16": _changed(num_bins=16),
  "bins_32": _changed(num_bins=32),
  "bins_128": _changed(num_bins=128),
  "bins_256": _changed(num_bins=256),
  "bins_512": _changed(num_bins=512),
  "noise_weight_0.1": _changed(noise_weight=0.1),
  "noise_weight_0.5": _changed(noise_weight=0.5),
  "scratch": Condition(pretrained=False),
  "plain_scratch": Condition(sequence=_PLAIN, pretrained=False),
  "detr": Condition(kind="detr"),
  "detr_scratch": Condition(kind="detr", pretrained=False),
}
