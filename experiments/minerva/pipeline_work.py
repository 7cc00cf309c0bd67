"""What is done to a shard of the data pipeline, without Beam.

Each function depends on its arguments and the files it reads alone, and writes
its file at one stroke: a shard that was done twice has the same file.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.minerva import pipeline_inputs as inputs
from locojax.core import files
from locojax.data import (
  contamination,
  html_text,
  near_duplicates,
  pieces,
  tex_text,
)

CLEAN, NEAR, OVERLAPS, TOKENS = "clean", "near", "overlaps", "tokens"
TOKENIZER = "pieces.model"
# Why a document is not in the result; those of papers are `tex_text.REASONS`.
UNREADABLE, EMPTY, NO_FORMULA = "unreadable", "empty", "no_formula"
ONLY_RENDERED, TOO_SHORT = "only_rendered", "too_short"
EXACT, NEAR_DUPLICATE = "exact_duplicate", "near_duplicate"
CONTAMINATED = "contaminated"
REASONS = tuple(
  dict.fromkeys(
    (
      UNREADABLE,
      EMPTY,
      NO_FORMULA,
      ONLY_RENDERED,
      TOO_SHORT,
      *tex_text.REASONS,
      EXACT,
      NEAR_DUPLICATE,
      CONTAMINATED,
    )
  )
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """How texts are made; all that a result depends on besides its inputs.

  Attributes:
    min_formulas: pages of fewer are dropped.
    min_chars: texts of fewer characters are dropped.
    max_tokens, max_tokens_per_char: of papers, as of `clean_tex`; tokens are
      words and signs there, the tokenizer being made of what is left.
    shingle: words of a shingle.
    permutations, bands, threshold: of near duplicates.
    ngram: words in a row that make a question found.
    questions: files of evaluations, JSON lines.
    drop_contaminated: whether texts that hold a question are dropped.
    tokenizer: `bytes`, a SentencePiece file, or empty to train one.
    vocab_size, train_chars: of one that is trained.
    seq_len: tokens of a row.
    num_files: ArrayRecord files.
    docs_per_shard: documents of a shard.
    seed: of signatures and of the order of texts.
  """

  min_formulas: int = 1
  min_chars: int = 200
  max_tokens: int = 75_000
  max_tokens_per_char: float = 0.5
  shingle: int = 5
  permutations: int = 128
  bands: int = 16
  threshold: float = 0.8
  ngram: int = 13
  questions: tuple[str, ...] = ()
  drop_contaminated: bool = False
  tokenizer: str = ""
  vocab_size: int = 8192
  train_chars: int = 10_000_000
  seq_len: int = 2048
  num_files: int = 8
  docs_per_shard: int = 256
  seed: int = 0


def path_of(out: str, stage: str, shard: inputs.Shard) -> pathlib.Path:
  """The file of a shard at a stage."""
  suffix = ".jsonl.gz" if stage == CLEAN else ".json"
  return pathlib.Path(out) / stage / f"{shard.name}{suffix}"


def _paper(one: inputs.Document, settings: Settings) -> dict[str, Any]:
  text, reason = tex_text.clean_tex(
    [one.content],
    title=one.title,
    abstract=one.abstract,
    count_tokens=lambda text: len(near_duplicates.words_of(text)),
    max_tokens=settings.max_tokens,
    max_tokens_per_char=settings.max_tokens_per_char,
  )
  return {"text": text, "reason": reason, "counts": {}}


def _page(one: inputs.Document, settings: Settings) -> dict[str, Any]:
  text, counts = html_text.extract_math_text(one.content)
  reason = None
  if not text:
    reason = EMPTY
  elif html_text.num_kept(counts) < settings.min_formulas:
    lost = counts["rendered"] + counts["unparsed"]
    reason = ONLY_RENDERED if lost else NO_FORMULA
  return {"text": text, "reason": reason, "counts": counts}


def cleaned(one: inputs.Document, settings: Settings) -> dict[str, Any]:
  """A document as text, or why it is dropped.

  Returns:
    `id`, `kind`, `source`, `text` (null if dropped), `reason` (null if kept),
    and for pages the `counts` of formulas, of dropped ones too.
  """
  if one.content is None:
    found = {"text": None, "reason": UNREADABLE, "counts": {}}
  else:
    made = _page if one.kind == "html" else _paper
    # Halves of characters, which JSON may have, are none.
    plain = one.content.encode("utf-8", "surrogatepass")
    whole = dataclasses.replace(one, content=plain.decode("utf-8", "replace"))
    found = made(whole, settings)
  if found["reason"] is None and len(found["text"]) < settings.min_chars:
    found["reason"] = TOO_SHORT
  if found["reason"] is not None:
    found["text"] = None
  return {"id": one.id, "kind": one.kind, "source": one.source, **found}


def clean(shard: inputs.Shard, settings: Settings, out: str) -> None:
  """Writes the texts of a shard."""
  rows = (cleaned(one, settings) for one in inputs.documents(shard))
  content = "".join(json.dumps(row) + "\n" for row in rows).encode()
  packed = gzip.compress(content, 6, mtime=0)
  files.write(path_of(out, CLEAN, shard), lambda file: file.write(packed))


def rows_of(shard: inputs.Shard, out: str) -> Iterator[dict[str, Any]]:
  """What `clean` wrote."""
  for _, row in files.read_lines(path_of(out, CLEAN, shard)):
    yield row


def keys_of(
  shard: inputs.Shard, settings: Settings, out: str
) -> Iterator[tuple[bytes, tuple[int, str, bytes]]]:
  """Under which keys texts of a shard are compared with others.

  Yields:
    `(key, (shard, name, signature))`: a key for equal texts, without signature,
    and one for each band.
  """
  for row in rows_of(shard, out):
    if row["text"] is None:
      continue
    text = row["text"]
    words = " ".join(near_duplicates.words_of(text))
    equal = near_duplicates.hash_text(words).to_bytes(8, "big")
    yield b"=" + equal, (shard.number, row["id"], b"")
    found = near_duplicates.shingles(text, n=settings.shingle)
    if not found.size:
      continue
    made = near_duplicates.signature(
      found, permutations=settings.permutations, seed=settings.seed
    )
    plain = made.astype("<u4").tobytes()
    for key in near_duplicates.band_keys(made, settings.bands):
      yield b"~" + key, (shard.number, row["id"], plain)


def duplicates_in(
  key: bytes, bucket: list[tuple[int, str, bytes]], threshold: float
) -> Iterator[tuple[int, tuple[str, str, str, float]]]:
  """Duplicates among the texts of a key, given in any order.

  Yields:
    `(shard, (name, reason, the one it repeats, similarity))`.
  """
  where = {name: shard for shard, name, _ in bucket}
  if key.startswith(b"="):
    first, *others = sorted(where)
    for name in others:
      yield where[name], (name, EXACT, first, 1.0)
    return
  signed = [(name, np.frombuffer(made, "<u4")) for _, name, made in bucket]
  for name, other, near in near_duplicates.pairs_in(
    signed, threshold=threshold
  ):
    yield where[name], (name, NEAR_DUPLICATE, other, near)


def write_duplicates(
  shard: inputs.Shard,
  found: list[tuple[str, str, str, float]],
  out: str,
) -> None:
  """Writes which texts of a shard repeat others: name -> reason, other, share.

  Of several, that of the earliest name counts; an equal text before a near one.
  """
  best: dict[str, tuple[str, str, float]] = {}
  for name, *rest in sorted(found):
    best.setdefault(name, tuple(rest))
  rows = {name: list(best[name]) for name in sorted(best)}
  files.write_json(path_of(out, NEAR, shard), rows)


def _question(row: dict[str, Any]) -> str:
  for key in ("question", "problem", "text"):
    if isinstance(row.get(key), str):
      return row[key]
  return ""


@functools.lru_cache(maxsize=2)
def index_of(
  paths: tuple[str, ...], ngram: int
) -> tuple[contamination.Index, dict[str, str]]:
  """All questions of files, and the set (file) of each.

  Raises:
    ValueError: a file without questions.
  """
  asked, sets = {}, {}
  for path in paths:
    label = pathlib.Path(path).name.partition(".")[0]
    before = len(asked)
    for number, row in files.read_lines(path):
      text = _question(row) if isinstance(row, dict) else ""
      if text:
        asked[f"{label}/{number}"], sets[f"{label}/{number}"] = text, label
    if len(asked) == before:
      raise ValueError(
        f"--questions={path!r} is not allowed: no line of it has 'question', "
        "'problem' or 'text'."
      )
  return contamination.Index(asked, n=ngram, shortest=min(8, ngram)), sets


def overlaps(shard: inputs.Shard, settings: Settings, out: str) -> None:
  """Writes which questions texts of a shard hold: name -> [question, share]."""
  index, _ = index_of(settings.questions, settings.ngram)
  repeated = files.read_json(path_of(out, NEAR, shard))
  found = {}
  for row in rows_of(shard, out):
    if row["text"] is not None and row["id"] not in repeated:
      told = index.overlaps(row["text"])
      if told:
        found[row["id"]] = [list(one) for one in told]
  files.write_json(path_of(out, OVERLAPS, shard), found)


def fates(
  shard: inputs.Shard, settings: Settings, out: str
) -> Iterator[tuple[dict[str, Any], str | None]]:
  """Rows of a shard, each with the reason why it is dropped, None if kept."""
  repeated = files.read_json(path_of(out, NEAR, shard))
  found = {}
  if settings.questions and settings.drop_contaminated:
    found = files.read_json(path_of(out, OVERLAPS, shard))
  for row in rows_of(shard, out):
    reason = row["reason"]
    if reason is None and row["id"] in repeated:
      reason = repeated[row["id"]][0]
    if reason is None and row["id"] in found:
      reason = CONTAMINATED
    yield row, reason


@functools.lru_cache(maxsize=2)
def tokenizer_of(settings: Settings, out: str) -> Any:
  """The tokenizer of a result, once it is there."""
  if settings.tokenizer == "bytes":
    return pieces.Bytes()
  return pieces.load(pathlib.Path(out) / TOKENIZER, lower_case=False)


def tokens_of(
  shard: inputs.Shard, settings: Settings, out: str
) -> Iterator[tuple[int, tuple[int, str, bytes]]]:
  """Texts of a shard that are kept, as tokens.

  Yields:
    `(file, (place, name, tokens))`: both numbers are a hash of the name, so
    texts are mixed, in the same way however many work.
  """
  made = tokenizer_of(settings, out)
  for row, reason in fates(shard, settings, out):
    if reason is None:
      place = near_duplicates.hash_text(f"{settings.seed}/{row['id']}")
      ids = made.ids(row["text"])
      tokens = _bytes(ids)
      yield place % settings.num_files, (place, row["id"], tokens)


def _bytes(ids: list[int]) -> bytes:
  return np.array(ids, "<i4").tobytes()
