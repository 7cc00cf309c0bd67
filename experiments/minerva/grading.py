"""Grades of a model's samples: a file that grows question by question.

A file of grades has a JSON object on each line, a question, beside what the
file of samples knows of it (`id`, `task`, `subject`, `level`, `gold`):

  answers    final answer of each sample, null where it has none
  outcomes   of each sample: equal, unequal, unknown, timed out, or invalid
  strict     of each sample, whether it equals the gold answer as text after the
             normalisation of the paper
  classes    equal answers together, in order of arrival: list of
             {"answer": ..., "count": ..., "right": true or false}
  labels     the class of each sample, -1 where it has no answer
  majority   the answer with most votes, null if there is none
  right      whether it is right
  log_probs, num_tokens   of each sample, as they were given

`answers[i]` belongs to `samples[i]` of the file of samples.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from experiments.minerva import records, tasks
from locojax.core import checks, files
from locojax.methods import minerva
from locojax.train import stopping, workers

INVALID = "invalid"
OUTCOMES = (*minerva.OUTCOMES, INVALID)
ENGINES = (*minerva.ENGINES, "none")
GRADES = "grades.jsonl"


class Grader:
  """Grades questions, from many threads.

  Args:
    engine: decides what exact values leave open; None leaves it open.
  """

  def __init__(self, engine: minerva.Symbolic | None = None):
    self._compare = minerva.EquivalenceChecker(engine)
    self._group = minerva.EquivalenceChecker(engine, units="ignored")

  def verdict(self, answer: str, gold: str, task: str) -> minerva.Verdict:
    """Whether an answer is right."""
    made = checks.lookup("task", task, tasks.TASKS)
    return made.verdict(answer, gold, self._compare)

  def _voted(self, answers: Sequence[str | None], task: str) -> minerva.Classes:
    if task == "mmlu_stem":
      return minerva.group(answers, lambda a, b: False)
    return minerva.group(
      answers, self._group, key=lambda text: minerva.canonical_key(text)
    )

  def grade(self, question: records.Question, task: str) -> dict[str, Any]:
    """The grades of a question, as a line of the file."""
    made = checks.lookup("task", task, tasks.TASKS)
    answers = [made.extract(s.text) for s in question.samples]
    verdicts = {
      a: self.verdict(a, question.gold, task).outcome
      for a in dict.fromkeys(answers)
      if a is not None
    }
    classes = self._voted(answers, task)
    outcomes = [INVALID if a is None else verdicts[a] for a in answers]
    best = minerva.majority(classes)
    told = _classes(classes, outcomes)
    where = {c["answer"]: c["right"] for c in told}
    wanted = minerva.normalize_answer(question.gold)
    return {
      "id": question.id,
      "task": task,
      "subject": question.subject,
      "level": question.level,
      "gold": question.gold,
      "answers": answers,
      "outcomes": outcomes,
      "strict": [
        a is not None and minerva.normalize_answer(a) == wanted for a in answers
      ],
      "classes": told,
      "labels": classes.labels.tolist(),
      "majority": best,
      "right": best is not None and where[best],
      "log_probs": [s.log_prob for s in question.samples],
      "num_tokens": [s.num_tokens for s in question.samples],
    }


def _classes(
  classes: minerva.Classes, outcomes: Sequence[str]
) -> list[dict[str, Any]]:
  """Classes as the file has them: right if one of its samples is."""
  right = np.array([o == "equal" for o in outcomes], bool)
  return [
    {
      "answer": text,
      "count": int(classes.counts[i]),
      "right": bool(right[classes.labels == i].any()),
    }
    for i, text in enumerate(classes.representatives)
  ]


@contextlib.contextmanager
def grader(
  engine: str = "sympy", *, num_workers: int = 1, cpu_seconds: float = 5.0
) -> Iterator[Grader]:
  """A grader with processes of its own, which are ended at the end.

  Args:
    engine: one of `ENGINES`.
    num_workers: processes.
    cpu_seconds: CPU time that one comparison may take.

  Raises:
    ImportError: the engine lacks something; says what.
  """
  checks.one_of("engine", engine, ENGINES)
  if engine == "none":
    yield Grader()
    return
  with workers.WorkerPool(
    minerva.PROGRAM,
    num_workers=num_workers,
    cpu_seconds=cpu_seconds,
    options={"engine": engine},
  ) as pool:
    yield Grader(minerva.Symbolic(pool, engine))


def grade_all(
  questions: Sequence[records.Question],
  path: pathlib.Path,
  made: Grader,
  *,
  task: str,
  num_threads: int = 1,
  tell: Callable[[int, int], Any] = lambda done, total: None,
) -> list[dict[str, Any]]:
  """Grades what the file does not have yet; all grades, in order.

  A line is on the disk before the next is written, so a program that is killed
  loses what it was at and nothing else.

  Args:
    questions: with samples.
    path: of the file of grades.
    made: the grader.
    task: a key of `tasks.TASKS`.
    num_threads: questions at a time.
    tell: is told how many are done, of how many.

  Raises:
    ValueError: the file has grades of other questions.
  """
  names = {q.id for q in questions}
  with files.Lines(path) as lines:
    found = {row["id"]: row for row in lines.rows}
    for strange in sorted(set(found) - names)[:1]:
      raise ValueError(
        f"{path} has grades of {strange!r}, which is none of these questions: "
        "it belongs to other samples; take another folder."
      )
    left = [q for q in questions if q.id not in found]
    with futures.ThreadPoolExecutor(num_threads) as threads:
      jobs = [threads.submit(made.grade, q, task) for q in left]
      try:
        for job in futures.as_completed(jobs):
          row = job.result()
          lines.append(row)
          found[row["id"]] = row
          tell(len(found), len(names))
          stopping.stop_if_due(f"after {len(found)} of {len(names)} questions")
      except BaseException:
        threads.shutdown(wait=False, cancel_futures=True)
        raise
  return [found[q.id] for q in questions]
