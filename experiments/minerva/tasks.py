"""The evaluations: their questions, prompts, and when an answer is right.

Data are files in `DIR/text/`, or your own file of JSON lines with `question`
(or `problem`) and `answer` (or a `solution` with its answer in `\\boxed{}`):

  math         MATH (Hendrycks et al. 2021, arXiv 2103.03874). Its questions may
               not be passed on, so give a file of your own
  gsm8k        GSM8K (Cobbe et al. 2021, arXiv 2110.14168)
  mmlu_stem    18 subjects of MMLU (Hendrycks et al. 2021, arXiv 2009.03300)
  ocw_courses  272 problems (Lewkowycz et al. 2022, arXiv 2206.14858)
  problems     whose solutions end in a line `Answer: ...`: what is trained here
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.common import text_files
from experiments.minerva import records
from locojax.core import checks, files
from locojax.methods import minerva

_ANSWER = re.compile(r"^Answer: *(.*?) *$", re.MULTILINE)
Compare = Callable[[str, str], Any]


def _said(text: str) -> str | None:
  """What stands behind `Answer:`, without dollars."""
  found = _ANSWER.search(text)
  answer = found[1].strip().strip("$").strip() if found else ""
  return answer or None


def _math(text: str) -> str | None:
  """As the prompt of the paper asks for, else the last box."""
  found = minerva.extract_final_answer(text, "math")
  return minerva.last_boxed(text) if found is None else found


def _ocw(text: str) -> str | None:
  found = minerva.extract_final_answer(text, "ocw_courses")
  return minerva.last_boxed(text) if found is None else found


def _of(task: str) -> Callable[[str], str | None]:
  return lambda text: minerva.extract_final_answer(text, task)


def _same(answer: str, gold: str, compare: Compare) -> Any:
  return compare(answer, gold)


def _same_letter(answer: str, gold: str, compare: Compare) -> Any:
  del compare
  told = "equal" if answer.strip() == gold.strip() else "unequal"
  return minerva.Verdict(told, "text")


def _same_ocw(answer: str, gold: str, compare: Compare) -> Any:
  """Right within a tolerance; what is not known stays so."""
  told: list[minerva.Verdict] = []

  def asked(a, b):
    told.append(compare(a, b))
    return told[-1]

  if minerva.grade_ocw(answer, gold, equal=asked):
    return minerva.Verdict("equal", told[-1].level if told else "exact")
  return told[-1] if told else minerva.Verdict("unequal", "exact")


@dataclasses.dataclass(frozen=True)
class Task:
  """An evaluation.

  Attributes:
    extract: the final answer of a solution, None if it has none.
    verdict: `(answer, gold, compare) -> Verdict`.
    prompt: the text of a question with its examples, of a row of the data.
    has_file: whether its questions are a set of `text_files`.
  """

  extract: Callable[[str], str | None]
  verdict: Callable[[str, str, Compare], minerva.Verdict]
  prompt: Callable[[Mapping[str, Any]], str] | None = None
  has_file: bool = False


def _asked(row: Mapping[str, Any]) -> str:
  return row.get("problem") or row.get("question") or ""


TASKS: dict[str, Task] = {
  "math": Task(_math, _same, lambda row: minerva.math_4shot(_asked(row))),
  "gsm8k": Task(
    _of("gsm8k"),
    _same,
    lambda row: minerva.gsm8k_8shot(_asked(row)),
    True,
  ),
  "mmlu_stem": Task(_of("mmlu_stem"), _same_letter, None, True),
  "ocw_courses": Task(
    _ocw,
    _same_ocw,
    lambda row: minerva.ocw_4shot(_asked(row)),
    True,
  ),
  "problems": Task(_said, _same),
}


def _gold(row: Mapping[str, Any], task: str) -> str:
  if task == "gsm8k":
    whole = str(row.get("answer", ""))
    return minerva.extract_final_answer(whole, "gsm8k") or whole
  if row.get("answer") is not None:
    return str(row["answer"])
  return minerva.last_boxed(str(row.get("solution", ""))) or ""


def _mmlu_prompts(rows: Sequence[Mapping[str, Any]]) -> Callable:
  """Prompts whose examples are those of MATH, or the five of the subject."""
  shots: dict[str, list] = {}
  for row in rows:
    if row.get("split") == "dev":
      one = (row["question"], row["choices"], "", row["answer"])
      shots.setdefault(row["subject"], []).append(one)

  def prompt(row):
    subject = row["subject"]
    own = None if minerva.takes_math_examples(subject) else shots.get(subject)
    asked = {"subject": subject, "examples": own}
    return minerva.mmlu_stem(row["question"], row["choices"], **asked)

  return prompt


def load(
  task: str, *, path: str = "", split: str = "test", data_dir: str = ""
) -> list[records.Question]:
  """The questions of a task, with prompts, not answered yet.

  Args:
    task: a key of `TASKS`, but `problems`.
    path: your own file of JSON lines; empty takes that of the data.
    split, data_dir: as of `text_files.find`.

  Raises:
    ValueError: a row without question or answer, by its line; a task that has
      no file.
    FileNotFoundError: the file is not there.
  """
  made = checks.lookup("task", task, TASKS)
  if not path and not made.has_file:
    raise ValueError(
      f"task={task!r} is not allowed here: its questions are in no file that "
      "may be passed on; give one of your own (path)."
    )
  path = path or text_files.find(task, split, data_dir=data_dir)
  rows = [row for _, row in files.read_lines(path)]
  prompt = _mmlu_prompts(rows) if task == "mmlu_stem" else made.prompt
  out = []
  for number, row in files.read_lines(path):
    if task == "mmlu_stem" and row.get("split", split) != split:
      continue
    gold, asked = _gold(row, task), _asked(row)
    if not gold or not asked:
      raise ValueError(
        f"{path}, line {number}: a question needs 'question' (or 'problem') "
        "and 'answer' (or a 'solution' with a box)."
      )
    out.append(
      records.Question(
        id=f"{task}/{split}/{row.get('id', number - 1)}",
        gold=gold,
        task=task,
        question=asked,
        prompt=prompt(row),
        subject=str(row.get("subject") or row.get("course") or ""),
        level=row.get("level"),
      )
    )
  return out
