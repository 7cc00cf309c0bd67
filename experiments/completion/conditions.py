"""What is compared: how examples are made, and what sees them."""

from __future__ import annotations

from typing import NamedTuple


class Condition(NamedTuple):
  """A way to learn completion.

  Attributes:
    kind: 'encoder_decoder', 'decoder', or 'ngram', which is not trained.
    masking: see `completion.sample_example`.
    with_suffix: whether the model sees what is after the cursor.
    context: whether a decoder alone learns from its prompts as well.
    one_language: whether there is a model for each language.
  """

  kind: str = "encoder_decoder"
  masking: str = "line"
  with_suffix: bool = True
  context: bool = False
  one_language: bool = False


CONDITIONS = {
  "line": Condition(),
  "no_suffix": Condition(with_suffix=False),
  "whole_lines": Condition(masking="whole_lines"),
  "identifier": Condition(masking="identifier"),
  "span": Condition(masking="span"),
  "fim": Condition(kind="decoder", context=True),
  "fim_middle": Condition(kind="decoder"),
  "one_language": Condition(one_language=True),
  "ngram": Condition(kind="ngram"),
}
