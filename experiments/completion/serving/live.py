"""Suggestions that are still true when somebody types along them.

A suggestion belongs to the text before and after the cursor; one that goes on
with what was typed since is shown again, shortened, without asking anybody.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

from locojax.core import checks


class Trie:
  """Texts with a rank each, by what they begin with."""

  def __init__(self):
    self._next: dict[str, Trie] = {}
    self._rank: int | None = None

  def add(self, text: str, rank: int) -> None:
    """Takes in a text; of two ranks the lower one counts."""
    node = self
    for character in text:
      node = node._next.setdefault(character, Trie())
    node._rank = rank if node._rank is None else min(rank, node._rank)

  def after(self, typed: str) -> list[str]:
    """What texts have behind what is typed, by rank; '' is not one."""
    node: Trie | None = self
    for character in typed:
      node = node._next.get(character)
      if node is None:
        return []
    return [text for _, text in sorted(node._rests("")) if text]

  def _rests(self, before: str) -> Iterator[tuple[int, str]]:
    todo = [(before, self)]
    while todo:
      text, node = todo.pop()
      if node._rank is not None:
        yield node._rank, text
      todo += [(text + c, child) for c, child in node._next.items()]


class Live:
  """Suggestions by document, for its last few cursors.

  Args:
    num: cursors that are remembered for each document.
  """

  def __init__(self, num: int = 8):
    self._num = checks.positive_int("num", num)
    self._known: dict[str, collections.OrderedDict] = {}

  def put(
    self, uri: str, prefix: str, suffix: str, texts: Sequence[str]
  ) -> None:
    """Remembers texts that may be inserted between prefix and suffix."""
    known = self._known.setdefault(uri, collections.OrderedDict())
    trie = known.setdefault((prefix, suffix), Trie())
    known.move_to_end((prefix, suffix))
    for rank, text in enumerate(texts):
      trie.add(text, rank)
    while len(known) > self._num:
      known.popitem(last=False)

  def find(self, uri: str, prefix: str, suffix: str) -> list[str]:
    """What goes on at a cursor; those of the newest other cursor first."""
    out: dict[str, None] = {}
    for (before, after), trie in reversed(self._known.get(uri, {}).items()):
      if after == suffix and prefix.startswith(before):
        out.update(dict.fromkeys(trie.after(prefix[len(before) :])))
    return list(out)

  def forget(self, uri: str) -> None:
    self._known.pop(uri, None)
