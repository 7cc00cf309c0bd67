"""The stages of the data pipeline as graphs of Apache Beam.

Beam gives the values of a key in an order that differs between runs, modes and
numbers of workers; what is made of a key here is sorted first. Every transform
has a label: Beam names others after their line of code, and two of one line
collide.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.minerva import pipeline_inputs as inputs
from experiments.minerva import pipeline_work as work
from locojax.core import files
from locojax.data import packing, token_records

try:
  import apache_beam as beam
except ImportError as error:
  raise ImportError(
    "the data pipeline needs Apache Beam: pip install 'locojax[minerva]' (this "
    f"is Python {sys.version.split()[0]}; Beam has packages for 3.11 to 3.13)."
  ) from error
from apache_beam.options import pipeline_options

# `DirectRunner` looks for a program in the network first, then takes this one.
RUNNER = "FnApiRunner"


def options_of(flags: Sequence[str]) -> pipeline_options.PipelineOptions:
  """Options of Beam from its flags; `--runner` is `RUNNER` if not given.

  Raises:
    ValueError: a flag that Beam does not know.
  """
  found = pipeline_options.PipelineOptions(list(flags))
  known = found.get_all_options(drop_default=True, retain_unknown_options=False)
  for flag in flags:
    name = flag.partition("=")[0].lstrip("-")
    if flag.startswith("--") and name not in known and not _has(found, name):
      raise ValueError(
        f"{flag} is not allowed: it is neither a flag of the pipeline nor one "
        "of Apache Beam."
      )
  standard = found.view_as(pipeline_options.StandardOptions)
  standard.runner = standard.runner or RUNNER
  if standard.runner == "DirectRunner":
    standard.runner = RUNNER
  worker = found.view_as(pipeline_options.WorkerOptions)
  worker.default_sdk_harness_log_level = (
    worker.default_sdk_harness_log_level or "WARNING"
  )
  return found


def _has(found: pipeline_options.PipelineOptions, name: str) -> bool:
  return name in found.get_all_options(retain_unknown_options=False)


class _Clean(beam.DoFn):
  """Writes the texts of a shard."""

  def __init__(self, settings: work.Settings, out: str):
    self._settings, self._out = settings, out

  def process(self, shard: inputs.Shard) -> None:
    work.clean(shard, self._settings, self._out)


class _Keys(beam.DoFn):
  """The keys under which texts are compared."""

  def __init__(self, settings: work.Settings, out: str):
    self._settings, self._out = settings, out

  def process(self, shard: inputs.Shard) -> Iterator[tuple]:
    yield from work.keys_of(shard, self._settings, self._out)


class _Compare(beam.DoFn):
  """Duplicates among the texts of a key."""

  def __init__(self, threshold: float):
    self._threshold = threshold

  def process(self, grouped: tuple[bytes, Iterable]) -> Iterator[tuple]:
    key, values = grouped
    bucket = list(values)
    if len(bucket) > 1:
      yield from work.duplicates_in(key, bucket, self._threshold)


class _WriteDuplicates(beam.DoFn):
  """Writes what repeats others, of a shard."""

  def __init__(self, shards: Sequence[inputs.Shard], out: str):
    self._shards, self._out = tuple(shards), out

  def process(self, grouped: tuple[int, Iterable]) -> None:
    number, values = grouped
    found = [value for value in values if value is not None]
    work.write_duplicates(self._shards[number], found, self._out)


class _Overlaps(beam.DoFn):
  """Writes which questions the texts of a shard hold."""

  def __init__(self, settings: work.Settings, out: str):
    self._settings, self._out = settings, out

  def process(self, shard: inputs.Shard) -> None:
    work.overlaps(shard, self._settings, self._out)


class _Tokens(beam.DoFn):
  """Texts as tokens, by the file that they go to."""

  def __init__(self, settings: work.Settings, out: str, wanted: Sequence[int]):
    self._settings, self._out = settings, out
    self._wanted = frozenset(wanted)

  def process(self, shard: inputs.Shard) -> Iterator[tuple]:
    for file, found in work.tokens_of(shard, self._settings, self._out):
      if file in self._wanted:
        yield file, found


def name_of(number: int, settings: work.Settings) -> str:
  """Of an ArrayRecord file."""
  return f"tokens-{number:05d}-of-{settings.num_files:05d}.array_record"


class _Pack(beam.DoFn):
  """Writes the rows of a file, and beside it what they are."""

  def __init__(self, settings: work.Settings, out: str):
    self._settings, self._out = settings, out

  def process(self, grouped: tuple[int, Iterable]) -> None:
    number, values = grouped
    found = sorted((v for v in values if v is not None), key=lambda v: v[:2])
    made = work.tokenizer_of(self._settings, self._out)
    packed = packing.pack_documents(
      [np.frombuffer(tokens, "<i4") for _, _, tokens in found],
      seq_len=self._settings.seq_len,
      eod_id=made.eod,
    )
    folder = pathlib.Path(self._out) / work.TOKENS
    name = name_of(number, self._settings)
    if len(packed.rows):
      content = token_records.file_of_rows(
        packed.rows, dtype=token_records.dtype_of(made.vocab_size)
      )
      files.write(folder / name, lambda file: file.write(content))
    told = {
      "rows": len(packed.rows),
      "texts": len(found),
      "rest": int(packed.rest.size),
    }
    files.write_json(folder / f"{name}.json", told)


def _run(options: Any, build: Any) -> None:
  with beam.Pipeline(options=options) as p:
    build(p)


def _missing(
  shards: Sequence[inputs.Shard], stage: str, out: str
) -> list[inputs.Shard]:
  return [s for s in shards if not work.path_of(out, stage, s).exists()]


def _each(
  stage: str, shards: Sequence[inputs.Shard], out: str, do: Any, options: Any
) -> int:
  """Does something to every shard that lacks its file; how many."""
  left = _missing(shards, stage, out)
  if left:
    _run(
      options,
      lambda p: (
        p
        | f"{stage} shards" >> beam.Create(left)
        | f"{stage} spread" >> beam.Reshuffle()
        | f"{stage} shard" >> beam.ParDo(do)
      ),
    )
  return len(left)


def clean(shards, settings: work.Settings, out: str, options: Any) -> int:
  """Texts of all shards; how many shards were left to do."""
  return _each(work.CLEAN, shards, out, _Clean(settings, out), options)


def near(shards, settings: work.Settings, out: str, options: Any) -> int:
  """Which texts repeat others, of any shard."""
  left = _missing(shards, work.NEAR, out)

  def build(p: beam.Pipeline) -> None:
    found = (
      p
      | "near shards" >> beam.Create(list(shards))
      | "near spread" >> beam.Reshuffle()
      | "near keys" >> beam.ParDo(_Keys(settings, out))
      | "near by key" >> beam.GroupByKey()
      | "near compare" >> beam.ParDo(_Compare(settings.threshold))
    )
    # So that shards without any have a file too.
    every = p | "near every" >> beam.Create([(s.number, None) for s in shards])
    _ = (
      (found, every)
      | "near both" >> beam.Flatten()
      | "near by shard" >> beam.GroupByKey()
      | "near write" >> beam.ParDo(_WriteDuplicates(shards, out))
    )

  if left:
    _run(options, build)
  return len(left)


def overlaps(shards, settings: work.Settings, out: str, options: Any) -> int:
  """Which questions of the evaluations texts hold."""
  return _each(work.OVERLAPS, shards, out, _Overlaps(settings, out), options)


def pack(shards, settings: work.Settings, out: str, options: Any) -> int:
  """Rows of tokens, in as many files as the settings say."""
  folder = pathlib.Path(out) / work.TOKENS
  told = lambda i: folder / f"{name_of(i, settings)}.json"
  left = [i for i in range(settings.num_files) if not told(i).exists()]

  def build(p: beam.Pipeline) -> None:
    found = (
      p
      | "pack shards" >> beam.Create(list(shards))
      | "pack spread" >> beam.Reshuffle()
      | "pack tokens" >> beam.ParDo(_Tokens(settings, out, left))
    )
    every = p | "pack every" >> beam.Create([(i, None) for i in left])
    _ = (
      (found, every)
      | "pack both" >> beam.Flatten()
      | "pack by file" >> beam.GroupByKey()
      | "pack write" >> beam.ParDo(_Pack(settings, out))
    )

  if left:
    _run(options, build)
  found = {
    name_of(i, settings): json.loads(told(i).read_text())["rows"]
    for i in range(settings.num_files)
  }
  made = work.tokenizer_of(settings, out)
  token_records.write_manifest(
    folder,
    {name: rows for name, rows in found.items() if rows},
    seq_len=settings.seq_len,
    dtype=token_records.dtype_of(made.vocab_size),
    eod_id=made.eod,
    vocab_size=made.vocab_size,
  )
  return len(left)
