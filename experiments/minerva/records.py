"""Files of samples: ours, and those of lm-evaluation-harness.

A file of samples has a JSON object on each line (`.gz` or not), a question:

  id        text, names the question; of no two questions the same
  task      one of `tasks.TASKS`
  question  what was asked, without the examples of a prompt
  gold      the right answer
  subject, level   text and number, or null
  samples   list of {"text": ..., "log_prob": ..., "num_tokens": ...}: what a
            model wrote, the sum of its tokens' log-probabilities (null if not
            known) and how many there are

Of these `gold` and `samples` are needed, and a sample may be its text alone. A
file of lm-evaluation-harness (`--log_samples`) has `doc`, `target` and `resps`
instead; its repeats of a document are samples of one question, and rows of a
document that differ in their filter alone count once.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from locojax.core import checks, files
from locojax.methods import minerva

_STAMP = re.compile(r"_\d{4}-\d\d-\d\dT[\d\-.:]+$")


@dataclasses.dataclass(frozen=True)
class Sample:
  """A solution that a model wrote.

  Attributes:
    text: as it was generated.
    log_prob: of the model itself, summed over tokens; None if not known.
    num_tokens: how many; None if not known.
  """

  text: str
  log_prob: float | None = None
  num_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Question:
  """A question with its right answer and a model's samples.

  Attributes:
    id: names it.
    gold: the right answer.
    samples: of a model; may be empty before it was asked.
    task, question, prompt, subject, level, choices: what is known of it.
  """

  id: str
  gold: str
  samples: tuple[Sample, ...] = ()
  task: str = ""
  question: str = ""
  prompt: str = ""
  subject: str = ""
  level: int | None = None

  def row(self) -> dict[str, Any]:
    """As a line of a file of samples."""
    out = dataclasses.asdict(self)
    out["samples"] = [dataclasses.asdict(s) for s in self.samples]
    return out


def with_samples(one: Question, samples: Sequence[Sample]) -> Question:
  """A question and what a model wrote."""
  return dataclasses.replace(one, samples=tuple(samples))


class Malformed(ValueError):
  """A row is no question; says where and why."""


def _text(row: Mapping[str, Any], key: str, default: str = "") -> str:
  found = row.get(key, default)
  found = default if found is None else found
  if isinstance(found, int | float) and not isinstance(found, bool):
    found = str(found)
  if not isinstance(found, str):
    raise Malformed(f"{key!r} is {found!r}: it must be text")
  return found


def _number(row: Mapping[str, Any], key: str, kind: type) -> Any:
  found = row.get(key)
  good = isinstance(found, int | float) and not isinstance(found, bool)
  if found is not None and (not good or found != found):
    raise Malformed(f"{key!r} is {found!r}: it must be a number or null")
  return None if found is None else kind(found)


def _sample(found: Any) -> Sample:
  if isinstance(found, str):
    return Sample(found)
  if not isinstance(found, Mapping) or not isinstance(found.get("text"), str):
    raise Malformed(
      f"'samples' has {found!r}: each must be a text, or an object with 'text'"
    )
  return Sample(
    found["text"],
    _number(found, "log_prob", float),
    _number(found, "num_tokens", int),
  )


def of_row(row: Mapping[str, Any], name: str) -> Question:
  """A question of a line of ours; `name` is for one without `id`."""
  gold = _text(row, "gold")
  samples = row["samples"]
  if not isinstance(samples, Sequence) or isinstance(samples, str):
    raise Malformed(f"'samples' is {samples!r}: it must be a list")
  if "gold" not in row:
    raise Malformed("it has no 'gold', the right answer")
  return Question(
    id=_text(row, "id", name),
    gold=gold,
    samples=tuple(map(_sample, samples)),
    task=_text(row, "task"),
    question=_text(row, "question"),
    prompt=_text(row, "prompt"),
    subject=_text(row, "subject"),
    level=_number(row, "level", int),
  )


def _responses(found: Any) -> tuple[Sample, ...]:
  """The texts of `resps`: a list for each request, of its repeats."""
  if not isinstance(found, Sequence) or isinstance(found, str):
    raise Malformed(f"'resps' is {found!r}: it must be a list")
  flat = []
  for one in found:
    flat.extend([one] if isinstance(one, str) else one)
  for text in flat:
    if not isinstance(text, str):
      raise Malformed(
        f"'resps' has {text!r}, which is no text: only tasks that generate "
        "(generate_until) can be graded, not log-likelihoods"
      )
  return tuple(map(Sample, flat))


def _harness_gold(doc: Mapping[str, Any], target: Any, task: str) -> str:
  """The right answer of a document of lm-evaluation-harness."""
  if task == "gsm8k":
    whole = _text(doc, "answer") or _text({"target": target}, "target")
    return minerva.extract_final_answer(whole, "gsm8k") or whole
  if task == "mmlu_stem":
    found = doc.get("answer", target)
    if isinstance(found, int) and 0 <= found < 4:
      return "ABCD"[found]
    return _text({"target": found}, "target").strip().strip("()")
  for place in (_text(doc, "solution"), _text({"target": target}, "target")):
    boxed = minerva.last_boxed(place)
    if boxed is not None:
      return boxed
  return _text(doc, "answer") or _text({"target": target}, "target")


def _level(found: Any) -> int | None:
  digits = re.search(r"\d+", str(found))
  return int(digits[0]) if digits else None


def _harness(row: Mapping[str, Any], name: str, task: str) -> Question:
  doc = row.get("doc")
  if not isinstance(doc, Mapping):
    raise Malformed("it has no 'doc', which lm-evaluation-harness writes")
  gold = _harness_gold(doc, row.get("target"), task)
  if not gold:
    raise Malformed("neither 'doc' nor 'target' has a right answer")
  asked = doc.get("problem") or doc.get("question") or ""
  return Question(
    id=name,
    gold=gold,
    samples=_responses(row["resps"]),
    task=task,
    question=str(asked),
    subject=str(doc.get("type") or doc.get("subject") or ""),
    level=_level(doc.get("level")),
  )


def _question(row: Any, name: str, task: str) -> Question:
  if not isinstance(row, Mapping):
    raise Malformed(f"it is a {type(row).__name__}, not an object")
  if "samples" in row:
    return of_row(row, name)
  if "resps" in row:
    label = name.rpartition("/")[0]
    doc_id = row.get("doc_id", name.rpartition("/")[2])
    return _harness(row, f"{label}/{doc_id}", task)
  raise Malformed(
    f"it has neither 'samples' nor 'resps' (but {sorted(row)[:8]})"
  )


def read(paths: Sequence[str | os.PathLike], *, task: str) -> list[Question]:
  """The questions of files of samples.

  Args:
    paths: files of ours or of lm-evaluation-harness.
    task: how the answers of the latter's documents are written.

  Raises:
    ValueError: a row that is no question, by file and line; a name that comes
      twice; a question without samples; none at all.
    OSError: a file that cannot be read.
  """
  found: dict[str, Question] = {}
  for path in map(pathlib.Path, paths):
    label = _STAMP.sub("", path.name.removesuffix(".gz").removesuffix(".jsonl"))
    if not path.is_file():
      checks.refuse("samples", str(path), "a file of JSON lines")
    for number, row in files.read_lines(path):
      try:
        one = _question(row, f"{label}/{number}", task)
        _add(found, one, by_filter="resps" in row)
      except Malformed as error:
        raise ValueError(f"{path}, line {number}: {error}.") from error
  if not found:
    raise ValueError(f"{', '.join(map(str, paths))} holds no questions.")
  return list(found.values())


def _add(found: dict[str, Question], one: Question, *, by_filter: bool) -> None:
  if not one.samples:
    raise Malformed(f"question {one.id!r} has no samples")
  before = found.get(one.id)
  if before is not None and not (by_filter and before == one):
    raise Malformed(f"the question {one.id!r} was there before")
  found[one.id] = one
