"""The tokens of boxes: special ones, classes and coordinates in one range."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from locojax.core import checks

LAYOUTS = ("compact", "official")
# What `Vocabulary.token_type` returns, by position.
TOKEN_TYPES = ("pad", "prompt", "noise", "class", "coord", "text", "unused")
_OFFICIAL = {"classes": 100, "coords": 1000, "text": 3000, "noise": 30}
_OFFICIAL_PROMPTS = {
  "detection": 10,
  "instance_segmentation": 11,
  "keypoints": 12,
  "captioning": 13,
  "panoptic": 16,
}
_COMPACT = {"noise": 1, "detection": 2}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Which token means what, for classes 1 to `num_classes` (0 is no object).

  `compact` has no gaps: padding 0, noise 1, the prompt of detection 2, then
  the classes, the bins and the text. `official` is the layout of
  google-research/pix2seq (Chen et al., arXiv 2109.10852): prompts 10 to 16,
  noise 30, class l at 100 + l, bin q at 1000 + q, text from 3000.

  Attributes:
    num_classes: classes; labels are 1 to this.
    num_bins: bins of a coordinate, 2 or more; x and y share them.
    num_special: ids before the first class. Compact: 3 or more (None: 3), the
      rest is free for other uses. Official: 101, as class 0 is padding.
    layout: `compact` or `official`.
    text_vocab_size: ids of text behind the bins, 0 for none.

  Raises:
    ValueError: a value that is not allowed, or ranges that overlap.
  """

  num_classes: int
  num_bins: int
  num_special: int | None = None
  layout: str = "compact"
  text_vocab_size: int = 0

  def __post_init__(self):
    checks.one_of("layout", self.layout, LAYOUTS)
    checks.positive_int("num_classes", self.num_classes)
    checks.nonnegative_int("text_vocab_size", self.text_vocab_size)
    if self.layout == "compact":
      checks.int_in_range("num_bins", self.num_bins, 2, 2**24)
      if self.num_special is not None:
        checks.int_in_range("num_special", self.num_special, 3, 2**24)
      return
    classes, coords, text = (
      _OFFICIAL[k] for k in ("classes", "coords", "text")
    )
    checks.int_in_range("num_classes", self.num_classes, 1, coords - 101)
    checks.int_in_range("num_bins", self.num_bins, 2, text - coords)
    checks.one_of("num_special", self.num_special, (None, classes + 1))

  @property
  def class_start(self) -> int:
    """The token of label 1."""
    if self.layout == "official":
      return _OFFICIAL["classes"] + 1
    return 3 if self.num_special is None else int(self.num_special)

  @property
  def coord_start(self) -> int:
    """The token of bin 0."""
    if self.layout == "official":
      return _OFFICIAL["coords"]
    return self.class_start + self.num_classes

  @property
  def text_start(self) -> int:
    """The token of text id 0."""
    if self.layout == "official":
      return _OFFICIAL["text"]
    return self.coord_start + self.num_bins

  @property
  def size(self) -> int:
    """Number of ids, that of logits: official 3000, with text 3000 + size."""
    return self.text_start + self.text_vocab_size

  @property
  def eos(self) -> int:
    """Padding, which is also the end of a sequence."""
    return 0

  @property
  def noise(self) -> int:
    """The class of objects that are none."""
    own = _OFFICIAL if self.layout == "official" else _COMPACT
    return own["noise"]

  @property
  def class_ids(self) -> range:
    """The tokens of the classes."""
    return range(self.class_start, self.class_start + self.num_classes)

  @property
  def class_range(self) -> range:
    """All ids that the layout keeps for classes, used or not.

    Official: 100 to 999, over which the official code draws random classes and
    reads detections. Compact: `class_ids`.
    """
    if self.layout == "official":
      return range(_OFFICIAL["classes"], _OFFICIAL["coords"])
    return self.class_ids

  def check_decoder(self, vocab_size: int) -> None:
    """Refuses a decoder of another vocabulary, by its `vocab_size`.

    Raises:
      ValueError: it is not `size`.
    """
    if vocab_size != self.size:
      checks.refuse(
        "vocab_size of the decoder",
        vocab_size,
        f"the size of the vocabulary, {self.size}",
      )

  def prompt(self, task: str = "detection") -> int:
    """The token that begins a sequence.

    Raises:
      ValueError: a task without a prompt; `compact` has `detection` alone.
    """
    if self.layout == "official":
      return checks.lookup("task", task, _OFFICIAL_PROMPTS)
    checks.one_of("task", task, ("detection",))
    return _COMPACT["detection"]

  def class_token(self, label: Any) -> Any:
    """Tokens of labels 1 to `num_classes`; `[...]` to `[...]`.

    Raises:
      ValueError: another label from the host; traced ones are not looked at.
    """
    shift = self.class_start - 1
    return _shifted("label", label, shift, 1, self.num_classes)

  def coord_token(self, q: Any) -> Any:
    """Tokens of bins 0 to `num_bins - 1`; raises as `class_token` does."""
    return _shifted("q", q, self.coord_start, 0, self.num_bins - 1)

  def token_type(self, ids: Any) -> Any:
    """What tokens `[...]` are, as int32 positions in `TOKEN_TYPES`.

    Ids that stand for nothing, outside the vocabulary too, are `unused`.
    """
    ids = checks.index_array("ids", ids)
    prompts = [self.prompt()]
    if self.layout == "official":
      prompts = list(_OFFICIAL_PROMPTS.values())
    of = lambda start, stop: (ids >= start) & (ids < stop)
    tests = (
      ids == self.eos,
      jnp.isin(ids, jnp.asarray(prompts)),
      ids == self.noise,
      of(self.class_start, self.class_start + self.num_classes),
      of(self.coord_start, self.coord_start + self.num_bins),
      of(self.text_start, self.size),
    )
    return jnp.select(
      tests, [jnp.int32(i) for i in range(len(tests))], jnp.int32(len(tests))
    )


def _shifted(name: str, values: Any, shift: int, low: int, high: int) -> Any:
  """`values + shift`, with those of the host in [low, high]."""
  if isinstance(values, jax.Array):
    return values + shift
  found = np.asarray(values)
  if found.dtype.kind not in "iu" and found.size:
    checks.refuse(name, values, f"integers in [{low}, {high}]")
  bad = found[(found < low) | (found > high)]
  if bad.size:
    checks.refuse(name, bad.ravel()[0].item(), f"an integer in [{low}, {high}]")
  moved = found.astype(np.int32) + np.int32(shift)
  return int(moved) if found.ndim == 0 else moved
