"""Texts that are almost the same: shingles, MinHash, bands.

Broder 1997 ("On the resemblance and containment of documents"): the share of
equal minima of two texts estimates the Jaccard similarity of their shingles,
`|A & B| / |A | B|`, with standard error `sqrt(J (1 - J) / permutations)`. Texts
are compared if all rows of a band agree (Leskovec, Rajaraman, Ullman, "Mining
of Massive Datasets", chapter 3), which two of similarity s do in one of b bands
of r rows with probability `1 - (1 - s^r)^b`.

All numbers depend on the text and the seed alone: no order, process or hash
seed of Python's changes them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from locojax.core import checks

# Words, commands of TeX and single signs: formulas count like words.
_WORD = re.compile(r"\\[a-zA-Z]+|\w+|[^\w\s]")
_ODD = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> list[str]:
  r"""Words, commands of TeX and single signs, in lower case.

  >>> words_of(r"If $\alpha_1 < 2$")
  ['if', '$', '\\alpha', '_', '1', '<', '2', '$']
  """
  return _WORD.findall(text.lower().replace("_", " _ "))


def hash_text(text: str) -> int:
  """64 bits of a text, the same everywhere."""
  found = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
  return int.from_bytes(found.digest(), "little")


def _mixed(values: np.ndarray) -> np.ndarray:
  """The finaliser of SplitMix64 (Steele, Lea, Flood 2014) on `[...]` uint64."""
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))


def ngram_hashes(words: Sequence[str], n: int) -> np.ndarray:
  """A 64-bit hash of every `n` words in a row, `[len(words) - n + 1]` uint64.

  Raises:
    ValueError: n below 1.
  """
  checks.positive_int("n", n)
  if len(words) < n:
    return np.zeros(0, np.uint64)
  known: dict[str, int] = {}
  for word in words:
    if word not in known:
      known[word] = hash_text(word)
  single = np.array([known[word] for word in words], np.uint64)
  count = len(words) - n + 1
  out = np.zeros(count, np.uint64)
  for i in range(n):
    out = _mixed((out + single[i : i + count]) * _ODD + np.uint64(i + 1))
  return out


def shingles(text: str, *, n: int = 5) -> np.ndarray:
  """The distinct runs of `n` words of a text as sorted hashes, uint64.

  A text of fewer words is one shingle; one without any has none.
  """
  words = words_of(text)
  if words and len(words) < n:
    checks.positive_int("n", n)
    words, n = [" ".join(words)], 1
  return np.unique(ngram_hashes(words, n))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
  """`|a & b| / |a | b|` of sets of shingles; of two empty ones 1."""
  if not a.size and not b.size:
    return 1.0
  both = np.intersect1d(a, b, assume_unique=True).size
  return both / (a.size + b.size - both)


def signature(
  found: np.ndarray, *, permutations: int = 128, seed: int = 0
) -> np.ndarray:
  """The minima of a set of shingles, `[permutations]` uint32.

  Args:
    found: of `shingles`, at least one.
    permutations: how many.
    seed: chooses them.

  Raises:
    ValueError: no shingles, a bad number or seed.
  """
  checks.positive_int("permutations", permutations)
  rng = np.random.default_rng(checks.seed("seed", seed))
  if not found.size:
    raise ValueError("found is empty: a text without words has no signature.")
  keys = rng.integers(0, 2**64, permutations, dtype=np.uint64)
  out = [(_mixed(found ^ key) >> np.uint64(32)).min() for key in keys]
  return np.array(out, np.uint32)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
  """The estimate of `jaccard` by two signatures."""
  return float(np.mean(a == b))


def band_keys(made: np.ndarray, bands: int) -> list[bytes]:
  """A key for each band of a signature; texts that share one are compared.

  Raises:
    ValueError: the bands are not of one length.
  """
  checks.positive_int("bands", bands)
  checks.divisible("permutations", made.size, "bands", bands)
  rows = made.astype("<u4").reshape(bands, -1)
  digest = lambda row: hashlib.blake2b(row.tobytes(), digest_size=8).digest()
  return [i.to_bytes(2, "big") + digest(row) for i, row in enumerate(rows)]


def chance_of_meeting(s: float, *, permutations: int, bands: int) -> float:
  """Probability that two texts of similarity `s` are compared."""
  checks.divisible("permutations", permutations, "bands", bands)
  return 1.0 - (1.0 - s ** (permutations // bands)) ** bands


def pairs_in(
  bucket: Sequence[tuple[str, np.ndarray]],
  *,
  threshold: float,
  most: int = 64,
) -> list[tuple[str, str, float]]:
  """Near duplicates among texts that share a band.

  Args:
    bucket: names and signatures, in any order: it does not matter.
    threshold: estimated similarity from which they are near duplicates.
    most: each is compared with the first so many names of the bucket, which
      bounds the work where thousands are alike.

  Returns:
    `(later name, earlier name, similarity)`, the first that is near for each
    name, by name.
  """
  checks.in_range("threshold", threshold, 0, 1)
  found = sorted(bucket, key=lambda one: one[0])
  out = []
  for i, (name, made) in enumerate(found):
    for earlier, other in found[: min(i, most)]:
      near = similarity(made, other)
      if near >= threshold and earlier != name:
        out.append((name, earlier, near))
        break
  return out


def near_duplicates(
  texts: dict[str, str],
  *,
  threshold: float = 0.8,
  n: int = 5,
  permutations: int = 128,
  bands: int = 16,
  seed: int = 0,
) -> dict[str, tuple[str, float]]:
  """Texts that are near duplicates of one with an earlier name.

  Args:
    texts: by name.
    threshold, n, permutations, bands, seed: as above.

  Returns:
    Name -> the earliest such name and the estimated similarity.
  """
  buckets: dict[bytes, list] = {}
  for name, text in texts.items():
    found = shingles(text, n=n)
    if found.size:
      made = signature(found, permutations=permutations, seed=seed)
      for key in band_keys(made, bands):
        buckets.setdefault(key, []).append((name, made))
  out: dict[str, tuple[str, float]] = {}
  for bucket in buckets.values():
    for name, earlier, near in pairs_in(bucket, threshold=threshold):
      out[name] = min(out.get(name, (earlier, near)), (earlier, near))
  return out
