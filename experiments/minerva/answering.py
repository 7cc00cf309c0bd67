"""A model answers questions: samples, written to a file as they come."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.minerva import records
from locojax import decode
from locojax.core import checks, files, types
from locojax.methods import minerva
from locojax.nn import lm
from locojax.train import stopping

SAMPLES = "samples.jsonl"
_SHORTEST = 32  # prompts are padded to this times a power of two


class Answerer:
  """Samples of a model.

  Args:
    model: a decoder.
    params: its parameters.
    tokenizer: has `vocab_size`, `eod`, `ids(text)` and `decode(tokens)`.
    seed: of the samples.
    num_samples: of each question.
    max_new_tokens: of each sample.
    batch: questions at a time.
    temperature, top_p: as of `minerva.sampler`.
    stop: text that ends a solution, besides the end token; may be empty.
    max_prompt: longest prompt; what is before its last tokens is cut off. None
      leaves as much room as the model has.
  """

  def __init__(
    self,
    model: lm.DecoderLM,
    params: types.PyTree,
    tokenizer: Any,
    *,
    seed: int,
    num_samples: int,
    max_new_tokens: int,
    batch: int = 8,
    temperature: float = 0.6,
    top_p: float = 0.95,
    stop: str = "",
    max_prompt: int | None = None,
  ):
    self._params, self._tokenizer = params, tokenizer
    self._key = jax.random.key(checks.seed("seed", seed))
    self._batch = checks.positive_int("batch", batch)
    self._stop = stop
    room = model.max_len - checks.positive_int("max_new_tokens", max_new_tokens)
    self._longest = min(room, max_prompt or room)
    if self._longest < 1:
      checks.refuse(
        "max_new_tokens",
        max_new_tokens,
        f"below {model.max_len}, the longest sequence of the model",
      )
    self._buckets = _buckets(self._longest)
    self._settings = {
      "model": model,
      "num_samples": num_samples,
      "max_new_tokens": max_new_tokens,
      "stop_tokens": (tokenizer.eod,),
      "constraint": _ending(stop, tokenizer, model) if stop else None,
    }
    minerva.sampler(temperature, top_p)
    self._how = np.array([temperature, top_p], np.float32)

  def tokens(self, prompt: str) -> np.ndarray:
    """A prompt behind an end token, its last tokens if it is too long."""
    ids = [self._tokenizer.eod, *self._tokenizer.ids(prompt)]
    return minerva.left_truncate(ids, self._longest)

  def __call__(
    self, questions: Sequence[records.Question], numbers: Sequence[int]
  ) -> list[records.Question]:
    """Questions with samples.

    Args:
      questions: as many as `batch` at most.
      numbers: of the questions, which their keys are made of.
    """
    rows = [self.tokens(q.prompt) for q in questions]
    missing = self._batch - len(rows)
    prompts, valid = decode.pad_prompts(
      [*rows, *[rows[0]] * missing], self._buckets
    )
    out = _sampled(
      self._params,
      prompts,
      valid,
      self._how,
      self._key,
      np.array([*numbers, *[0] * missing], np.int32),
      np.arange(self._batch) < len(rows),
      **self._settings,
    )
    found = jax.device_get(out)
    return [
      records.with_samples(q, self._samples(found, i))
      for i, q in enumerate(questions)
    ]

  def _samples(self, out: decode.Generated, row: int) -> list[records.Sample]:
    """The texts of a question, up to the end and the text that stops."""
    samples = []
    for i, length in enumerate(out.lengths[row].tolist()):
      ids = out.tokens[row, i, :length]
      known = ids[ids < self._tokenizer.vocab_size]
      text = self._tokenizer.decode(known)
      if self._stop:
        text = text.split(self._stop)[0]
      total = float(out.log_probs[row, i].astype(np.float64).sum())
      samples.append(records.Sample(text, total, length))
    return samples


def _buckets(longest: int) -> list[int]:
  """Lengths of prompts: few, so that few programs are compiled."""
  out = []
  size = _SHORTEST
  while size < longest:
    out.append(size)
    size *= 2
  return [*out, longest]


def _ending(stop: str, tokenizer: Any, model: lm.DecoderLM):
  return decode.stop_sequences([tokenizer.ids(stop)], model.vocab_size)


@functools.partial(
  jax.jit,
  static_argnames=("model", "num_samples", "max_new_tokens", "stop_tokens"),
)
def _sampled(
  params, prompts, valid, how, key, ids, rows, *, model, **settings
) -> decode.Generated:
  return minerva.sample(
    model,
    params,
    prompts,
    valid=valid,
    temperature=how[0],
    top_p=how[1],
    key=key,
    row_ids=ids,
    rows=rows,
    **settings,
  )


def answer_all(
  made: Answerer,
  questions: Sequence[records.Question],
  path: pathlib.Path,
  *,
  batch: int,
  tell: Callable[[int, int], Any] = lambda done, total: None,
) -> list[records.Question]:
  """Answers what the file does not have yet; all questions, with samples.

  The samples of a question depend on its number in the list and on nothing
  else, so a program that goes on writes what one that was never stopped does.

  Args:
    made: answers.
    questions: all of them.
    path: of the file of samples.
    batch: questions at a time.
    tell: is told how many are done, of how many.

  Raises:
    ValueError: the file has answers to other questions.
  """
  with files.Lines(path) as lines:
    found = {row["id"]: records.of_row(row, row["id"]) for row in lines.rows}
    for strange in sorted(set(found) - {q.id for q in questions})[:1]:
      raise ValueError(
        f"{path} has answers to {strange!r}, which is none of these questions; "
        "take another folder."
      )
    left = [i for i, q in enumerate(questions) if q.id not in found]
    for start in range(0, len(left), batch):
      stopping.stop_if_due(f"after {len(found)} of {len(questions)} questions")
      some = left[start : start + batch]
      for one in made([questions[i] for i in some], some):
        lines.append(one.row())
        found[one.id] = one
      tell(len(found), len(questions))
  return [found[q.id] for q in questions]
