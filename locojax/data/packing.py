"""Texts as rows of one length: one behind the other, none padded.

As PaLM and Minerva are trained (Chowdhery et al. 2022, arXiv 2204.02311,
section 5): texts follow each other, an end token behind each, and the whole is
cut into rows; a text may begin in one row and end in the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from locojax.core import checks


class Packed(NamedTuple):
  """Rows, and what did not fill one.

  Attributes:
    rows: `[n, seq_len]` int32.
    rest: `[less than seq_len]` int32, the end of the last text.
  """

  rows: np.ndarray
  rest: np.ndarray


def pack_documents(
  documents: Iterable[Sequence[int]], *, seq_len: int, eod_id: int
) -> Packed:
  """Texts one behind the other, cut into rows.

  Args:
    documents: tokens of each text, without an end token.
    seq_len: of a row.
    eod_id: the token behind each text.

  Returns:
    Rows and rest: together they are all tokens in order.

  Raises:
    ValueError: a bad length or number; a text that holds `eod_id`, or a token
      that is no int32 of 0 or more.

  >>> pack_documents([[5, 6], [7]], seq_len=2, eod_id=1).rows.tolist()
  [[5, 6], [1, 7]]
  """
  checks.positive_int("seq_len", seq_len)
  checks.int_in_range("eod_id", eod_id, 0, 2**31 - 1)
  parts = [part for found in _ended(documents, eod_id) for part in found]
  whole = np.concatenate(parts) if parts else np.zeros(0, np.int32)
  cut = whole.size // seq_len * seq_len
  return Packed(whole[:cut].reshape(-1, seq_len), whole[cut:])


def _ended(
  documents: Iterable[Sequence[int]], eod_id: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  end = np.array([eod_id], np.int32)
  for number, found in enumerate(documents):
    tokens = checks.integers(f"documents[{number}]", found)
    if tokens.size and (tokens.min() < 0 or (tokens == eod_id).any()):
      checks.refuse(
        f"documents[{number}]",
        tokens[:8].tolist(),
        f"tokens of 0 or more without the end token {eod_id}",
      )
    yield tokens.reshape(-1), end


def segments(tokens: np.ndarray, *, eod_id: int) -> np.ndarray:
  """Which text of its row a token belongs to, from 0; as `tokens` `[..., T]`.

  An end token belongs to the text that it ends. Attention masked by them does
  not cross from one text to another.
  """
  ends = np.asarray(tokens) == eod_id
  return (np.cumsum(ends, axis=-1) - ends).astype(np.int32)


def positions(tokens: np.ndarray, *, eod_id: int) -> np.ndarray:
  """Place of each token in its text, or in what its row has of it, from 0."""
  found = segments(tokens, eod_id=eod_id)
  place = np.broadcast_to(np.arange(found.shape[-1]), found.shape)
  first = np.diff(found, axis=-1, prepend=-1) != 0
  return (place - np.maximum.accumulate(np.where(first, place, 0), -1)).astype(
    np.int32
  )
