"""What a model is trained on and asked: problems as texts, texts as windows.

A text is `Q: question`, `A: steps` and `Answer: $...$`, each on a line, behind
an end token; all texts follow each other, cut into windows of equal length.
Conditions change texts and nothing else: without the steps, or stripped of
their notation (`problems.strip_notation`).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common import text_files, trained_on
from experiments.minerva import records
from locojax.core import checks, files
from locojax.data import pieces, problems
from locojax.methods import minerva

SETS = ("problems", "gsm8k", "file")
TOKENIZERS = ("bytes", "pieces")
TASK = "problems"


@dataclasses.dataclass(frozen=True)
class Condition:
  """What texts a model sees.

  Attributes:
    notation: whether mathematics keeps its notation.
    worked: whether the steps are there.
    first: share of the batches that are drawn problems, before all others.
  """

  notation: bool = True
  worked: bool = True
  first: float = 0.0


CONDITIONS = {
  "preserved": Condition(),
  "stripped": Condition(notation=False),
  "answer_only": Condition(worked=False),
  "pretrained": Condition(first=0.5),
}


class Solved(NamedTuple):
  """A question, its steps and its answer; all that the texts are made of."""

  question: str
  steps: str
  answer: str
  subject: str = ""


def _cleaned(text: str, condition: Condition) -> str:
  return text if condition.notation else problems.strip_notation(text)


def _end(answer: str, condition: Condition) -> str:
  return f"${answer}$" if condition.notation else _cleaned(answer, condition)


def prompt_of(one: Solved, condition: Condition) -> str:
  """What a model is asked."""
  last = "A:" if condition.worked else "Answer:"
  return f"Q: {_cleaned(one.question, condition)}\n{last}"


def text_of(one: Solved, condition: Condition) -> str:
  """What a model is trained on, which begins with its prompt."""
  end = _end(one.answer, condition)
  steps = f" {_cleaned(one.steps, condition)}\nAnswer:"
  between = steps if condition.worked else ""
  return f"{prompt_of(one, condition)}{between} {end}"


def question_of(
  one: Solved, condition: Condition, name: str
) -> records.Question:
  """A question to be answered.

  Where texts are stripped, so is the right answer: who has never seen a sign
  is not held to it.
  """
  return records.Question(
    id=name,
    gold=_cleaned(one.answer, condition),
    task=TASK,
    question=one.question,
    prompt=prompt_of(one, condition),
    subject=one.subject,
  )


def _drawn(
  num: int, *, seed: int, size: int, without: Iterable[Solved] = ()
) -> list[Solved]:
  """Problems of a seed, none of them one of `without`."""
  taken = {one.question for one in without}
  rng, out = np.random.default_rng(seed), []
  while len(out) < num:
    found = problems.draw(rng, size=size)
    if found.question not in taken:
      out.append(Solved(found.question, found.steps, found.answer, found.kind))
  return out


def _solved(row: dict[str, Any], path: Any, number: int) -> Solved:
  """A row of a file: GSM8K's, or `question`, `solution` and `answer`."""
  asked = row.get("question") or row.get("problem")
  told, answer = row.get("solution", ""), row.get("answer")
  if isinstance(answer, str) and "####" in answer:
    steps, _, answer = answer.rpartition("####")
    told = minerva.without_marks(steps)
    answer = minerva.extract_final_answer(f"#### {answer}", "gsm8k") or answer
  elif answer is None:
    answer = minerva.last_boxed(str(told))
  if not asked or not answer or not str(answer).strip():
    raise ValueError(
      f"{path}, line {number}: a row needs 'question' (or 'problem') and "
      "'answer' (or a 'solution' with a box)."
    )
  steps = " ".join(str(told).split())
  subject = str(row.get("subject") or "")
  return Solved(str(asked), steps, str(answer).strip(), subject)


def read(path: str | pathlib.Path) -> list[Solved]:
  """Solved problems of a file of JSON lines; a bad row is named."""
  return [_solved(row, path, n) for n, row in files.read_lines(path)]


class Texts(NamedTuple):
  """Solved problems, and how they become tokens.

  Attributes:
    train, test: problems.
    drawn: those of `Condition.first`; none if there is no such condition.
    tokenizer: has `vocab_size`, `eod`, `ids(text)` and `decode(tokens)`.
  """

  train: list[Solved]
  test: list[Solved]
  drawn: list[Solved]
  tokenizer: Any


def _source(name: str, *, path="", data_dir="", seed=0, **settings) -> dict:
  del settings, seed
  return {"name": name, "path": path, "data_dir": data_dir}


def _split(name: str, *, path, data_dir, num_test, seed) -> tuple[list, list]:
  """Training and test problems of a set that is read from files."""
  if name == "gsm8k":
    both = (text_files.find(name, s, data_dir=data_dir) for s in _SPLITS)
    train, test = map(read, both)
    return train, test[:num_test]
  rows = read(path)
  if num_test >= len(rows):
    raise ValueError(
      f"data.num_test={num_test} is not allowed: {path} has {len(rows)} rows, "
      "and some must be left to train on."
    )
  order = np.random.default_rng(seed).permutation(len(rows))
  mixed = [rows[i] for i in order]
  return mixed[num_test:], mixed[:num_test]


_SPLITS = ("train", "test")


@trained_on.cached(_source, maxsize=4)
def load(
  name: str,
  *,
  path: str = "",
  data_dir: str = "",
  num_train: int = 0,
  num_test: int = 128,
  size: int = 9,
  tokenizer: str = "bytes",
  vocab_size: int = 0,
  seed: int = 0,
) -> Texts:
  """The problems of a set.

  Args:
    name: one of `SETS`; `file` is your own JSON lines.
    path: of the file.
    data_dir: of `gsm8k`.
    num_train: problems to train on; 0 takes all there are of a file.
    num_test: of the test.
    size: of the numbers in drawn problems.
    tokenizer: one of `TOKENIZERS`.
    vocab_size: of `pieces`, which are trained on the training texts.
    seed: of what is drawn.

  Raises:
    ValueError: an unknown name, a file with a bad row.
    FileNotFoundError: a file that is not there.
  """
  checks.one_of("data.name", name, SETS)
  checks.one_of("data.tokenizer", tokenizer, TOKENIZERS)
  if name == "problems":
    test = _drawn(num_test, seed=seed, size=size)
    train = _drawn(num_train, seed=seed + 1, size=size, without=test)
    drawn = train
  else:
    train, test = _split(
      name, path=path, data_dir=data_dir, num_test=num_test, seed=seed
    )
    train = train[: num_train or None]
    drawn = _drawn(len(train), seed=seed + 1, size=size)
  if tokenizer == "bytes":
    return Texts(train, test, drawn, pieces.Bytes())
  plain = (text_of(one, CONDITIONS["preserved"]) for one in (*train, *drawn))
  made = pieces.train(
    plain, vocab_size=vocab_size, lower_case=False, exact=True
  )
  return Texts(train, test, drawn, made)


def windows(
  found: Sequence[Solved], condition: Condition, tokenizer: Any, length: int
) -> np.ndarray:
  """All texts one behind the other, cut into `[n, length + 1]` int32.

  A window begins with the last token of the one before.

  Raises:
    ValueError: the texts do not fill a window.
  """
  row: list[int] = []
  for one in found:
    row.append(tokenizer.eod)
    row.extend(tokenizer.ids(text_of(one, condition)))
  if len(row) <= length:
    raise ValueError(
      f"model.max_len={length} is not allowed: all texts together have "
      f"{len(row)} tokens, and a window takes one more."
    )
  tokens = np.array(row, np.int32)
  view = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)
  return np.ascontiguousarray(view[::length])


def _source_of(*args, **data) -> dict[str, Any]:
  del args
  return _source(**data)


@trained_on.cached(_source_of, maxsize=8)
def windows_of(
  condition: Condition, part: str, length: int, **data: Any
) -> np.ndarray:
  """`windows` of a part of `load(**data)`: `train`, `test` or `drawn`."""
  found = load(**data)
  return windows(getattr(found, part), condition, found.tokenizer, length)
