"""The baseline: n-grams of words, and a cache of the file at hand.

Both are interpolated by Witten and Bell's rule (1991), order by order; the
cache is that of Kuhn and De Mori (1990), as Tu et al. ("On the localness of
software", FSE 2014) have it for code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from locojax.core import checks
from locojax.methods.completion import languages
from locojax.methods.completion.completer import Name, Suggestion

_WORD = re.compile(r"[^\W\d]\w*|\d+|\r\n|\n|\r|[ \t]+|[^\w\s]|\s|\w")
_LINE_ENDS = frozenset({"\n", "\r", "\r\n"})
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def words(text: str) -> list[str]:
  """Identifiers, numbers, blanks and signs; joined, they are the text."""
  return _WORD.findall(text)


class _Cache:
  """Counts of the words that follow contexts, in the file at hand."""

  def __init__(self, tokens: Sequence[str], order: int):
    self._counts: dict[tuple, dict[str, int]] = {}
    for i, token in enumerate(tokens):
      for n in range(min(order, i + 1)):
        context = tuple(tokens[i - n : i])
        found = self._counts.setdefault(context, {})
        found[token] = found.get(token, 0) + 1

  def after(self, context: tuple[str, ...]) -> dict[str, int]:
    return self._counts.get(context, {})


class NGramCache:
  """A language model of words over files, for one language.

  Args:
    texts: of the files.
    order: the longest n-gram.
    language: of the texts.
    cache_share: weight of the cache, in [0, 1).
    cache_words: words before the cursor that it is made of.
  """

  def __init__(
    self,
    texts: Iterable[str],
    *,
    order: int = 6,
    language: str = "python",
    cache_share: float = 0.5,
    cache_words: int = 1500,
  ):
    checks.int_in_range("order", order, 1, 10)
    checks.below("cache_share", cache_share, 0.0, 1.0)
    checks.positive_int("cache_words", cache_words)
    languages.identifier(language)
    self.order, self.language = order, language
    self._share, self._num_cached = cache_share, cache_words
    files = [words(text) for text in texts]
    self._names = sorted({w for file in files for w in file})
    self._ids = {w: i for i, w in enumerate(self._names)}
    self._tables = self._count(files)
    self._frequent = self._after([], 0)

  def _count(self, files) -> list[tuple[np.ndarray, ...]]:
    """For each length of context: sorted hashes, next words, counts.

    Files are parted by as many marks as a context has words, so that none
    reaches across.
    """
    if not files:
      checks.refuse("texts", [], "one text or more")
    mark = len(self._names)
    rows = [np.full(self.order, mark, np.uint64)]
    for file in files:
      rows.append(np.array([self._ids[w] for w in file], np.uint64))
      rows.append(np.full(self.order, mark, np.uint64))
    tokens = np.concatenate(rows)
    out = []
    hashes = np.zeros(len(tokens), np.uint64)
    for n in range(self.order):
      if n:  # one more word, further back
        back = np.concatenate([np.zeros(n, np.uint64), tokens[:-n]])
        hashes = (hashes + back + np.uint64(1)) * _FACTOR
      real = tokens != mark
      pairs = np.stack([hashes[real], tokens[real]])
      order = np.lexsort(pairs[::-1])
      pairs = pairs[:, order]
      first = np.append(True, np.any(pairs[:, 1:] != pairs[:, :-1], axis=0))
      starts = np.flatnonzero(first)
      counts = np.diff(np.append(starts, pairs.shape[1])).astype(np.int32)
      out.append((pairs[0, starts], pairs[1, starts].astype(np.int32), counts))
    return out

  def _after(self, context: Sequence[str], n: int) -> dict[str, int]:
    """Counts of the words that follow the last n words of a context."""
    value = 0
    for word in reversed(context[len(context) - n :]):
      found = self._ids.get(word)
      if found is None:
        return {}
      value = (value + found + 1) * int(_FACTOR) & _MASK
    hashes, following, counts = self._tables[n]
    low = np.searchsorted(hashes, np.uint64(value), "left")
    high = np.searchsorted(hashes, np.uint64(value), "right")
    if high - low > 400:  # the frequent ones are enough
      best = np.argpartition(-counts[low:high], 400)[:400] + low
    else:
      best = np.arange(low, high)
    names = self._names
    return {
      names[f]: int(c)
      for f, c in zip(following[best].tolist(), counts[best].tolist())
    }

  def _mixed(self, levels: Sequence[dict[str, int]]) -> dict[str, float]:
    """Witten-Bell over levels, the shortest context first."""
    out: dict[str, float] = {}
    for counts in levels:
      if not counts:
        continue
      total, kinds = sum(counts.values()), len(counts)
      share = kinds / (total + kinds)
      out = {w: p * share for w, p in out.items()}
      for word, count in counts.items():
        out[word] = out.get(word, 0.0) + count / (total + kinds)
    return out

  def _next(self, context: list[str], cache: _Cache) -> dict[str, float]:
    longest = min(self.order - 1, len(context))
    learnt = self._mixed(
      [self._frequent]
      + [self._after(context, n) for n in range(1, longest + 1)]
    )
    recent = self._mixed(
      [
        cache.after(tuple(context[len(context) - n :]))
        for n in range(longest + 1)
      ]
    )
    share = self._share if recent else 0.0
    recent = recent if share else {}
    out = {w: (1 - share) * p for w, p in learnt.items()}
    for word, p in recent.items():
      out[word] = out.get(word, 0.0) + share * p
    return out

  def _context(self, prefix: str) -> tuple[list[str], str, _Cache]:
    """Words before the cursor, what of one is typed, and the cache."""
    typed = languages.typed(prefix, self.language)
    near = prefix[: len(prefix) - len(typed)][-8 * self._num_cached :]
    found = words(near)[-self._num_cached :]
    return found, typed, _Cache(found, self.order)

  def names(self, prefix: str, suffix: str = "", language: str = "") -> list:
    """The identifiers that may stand at the cursor, as of `Completer.names`.

    What is after the cursor is not looked at.
    """
    del suffix, language
    context, typed, cache = self._context(prefix)
    pattern = languages.identifier(self.language)
    found = {
      w: p
      for w, p in self._next(context, cache).items()
      if w.startswith(typed) and pattern.fullmatch(w)
    }
    best = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
    return [Name(*pair) for pair in best[:50]]

  def lines(
    self,
    prefix: str,
    suffix: str = "",
    language: str = "",
    *,
    max_words: int = 40,
    forced: str = "",
  ) -> list[Suggestion]:
    """The most probable line, word by word, as of `Completer.lines`."""
    del suffix, language
    context, typed, cache = self._context(prefix)
    wanted, out, total, finished = typed + forced, [], 0.0, False
    for _ in range(max_words):
      found = self._next(context, cache)
      if wanted:
        found = {
          w: p
          for w, p in found.items()
          if w.startswith(wanted) or wanted.startswith(w)
        }
      elif not out:
        found = {w: p for w, p in found.items() if w not in _LINE_ENDS}
      if not found:
        break
      word = max(found, key=lambda w: (found[w], w))
      total += float(np.log(found[word]))
      if word in _LINE_ENDS and not wanted:
        finished = True
        break
      out.append(word)
      context.append(word)
      wanted = wanted[len(word) :] if len(word) < len(wanted) else ""
    text = "".join(out)[len(typed) :]
    if wanted or not text.strip():
      return []
    return [Suggestion(text, total, len(out) + finished, finished)]
