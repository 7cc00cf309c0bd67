"""Prompts of the evaluations, with the examples of their papers or one's own.

    minerva.math_4shot(problem)
    minerva.gsm8k_8shot(question, examples=((question, steps, answer), ...))

A model goes on behind the prompt; `STOPS` says where it has ended.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from locojax.core import checks
from locojax.methods.minerva import prompt_texts

Example = prompt_texts.Example
_BY_MATH = (
  *("abstract_algebra", "college_mathematics", "college_physics"),
  *("elementary_mathematics", "high_school_mathematics"),
  *("high_school_physics", "high_school_statistics"),
)
MMLU_STEM = tuple(
  sorted(
    (
      *_BY_MATH,
      *("astronomy", "college_biology", "college_chemistry"),
      *("college_computer_science", "computer_security"),
      *("conceptual_physics", "electrical_engineering", "high_school_biology"),
      *("high_school_chemistry", "high_school_computer_science"),
      "machine_learning",
    )
  )
)
LETTERS = "ABCD"
_HOPE = "I hope it is correct."
# What ends a solution, besides the model's own end of text.
STOPS = {
  "math": _HOPE,
  "ocw_courses": _HOPE,
  "mmlu_stem": _HOPE,
  "gsm8k": "\n\nQ:",
}


def _examples(given: Sequence[Example] | None, default: tuple) -> list[Example]:
  if given is None:
    return list(default)
  for i, one in enumerate(given):
    good = isinstance(one, tuple | list) and len(one) == 3
    if not good or not all(isinstance(part, str) for part in one):
      checks.refuse(f"examples[{i}]", one, "(question, solution, answer)")
  return list(given)


def math_4shot(
  problem: str,
  *,
  examples: Sequence[Example] | None = None,
  verbatim: bool = False,
) -> str:
  """The prompt of MATH (Lewkowycz et al., arXiv 2206.14858, appendix D.2).

  Args:
    problem: what is asked.
    examples: (problem, solution, answer without dollars); None takes the
      paper's four.
    verbatim: with the stray brace behind the first problem that published
      evaluations have.
  """
  checks.text("problem", problem)
  shots = _examples(examples, prompt_texts.MATH)
  parts = [
    f"Problem:\n{q}{prompt_texts.STRAY if verbatim and i == 0 else ''}\n\n"
    f"Solution:\n{solution}\nFinal Answer: The final answer is ${answer}$. "
    f"{_HOPE}"
    for i, (q, solution, answer) in enumerate(shots)
  ]
  return "\n\n".join([*parts, f"Problem:\n{problem}\n\nSolution:"])


def ocw_4shot(
  problem: str, *, examples: Sequence[Example] | None = None
) -> str:
  """The prompt of OCWCourses.

  Args:
    problem: what is asked, with its preamble.
    examples: (problem, solution, answer); None takes the paper's four.
  """
  checks.text("problem", problem)
  parts = [
    f"Problem:\n{q}\nSolution:\n{solution}\nFinal answer: The final answer is "
    f"{answer}. {_HOPE}"
    for q, solution, answer in _examples(examples, prompt_texts.OCW)
  ]
  return "\n\n".join([*parts, f"Problem:\n{problem}\nSolution:"])


def gsm8k_8shot(
  question: str, *, examples: Sequence[Example] | None = None
) -> str:
  """The chain-of-thought prompt of GSM8K (Wei et al., arXiv 2201.11903).

  Args:
    question: what is asked.
    examples: (question, steps, answer); None takes the eight of the paper.
  """
  checks.text("question", question)
  parts = [
    f"Q: {q}\nA: {steps} The answer is {answer}."
    for q, steps, answer in _examples(examples, prompt_texts.GSM8K)
  ]
  return "\n\n".join([*parts, f"Q: {question}\nA:"])


def _choice(question: str, choices: Sequence[str]) -> str:
  listed = ", ".join(
    f"({letter}) {text}" for letter, text in zip(LETTERS, choices, strict=True)
  )
  return (
    f"{question}\nWhat of the following is the right choice? Explain your "
    f"answer.\n{listed}"
  )


def mmlu_stem(
  question: str,
  choices: Sequence[str],
  *,
  subject: str,
  examples: Sequence[tuple[str, Sequence[str], str, str]] | None = None,
) -> str:
  """The prompt of a question of MMLU-STEM.

  Seven subjects have the examples of MATH with four answers to choose from. The
  reasoning that the paper added to the examples of the other eleven is not
  public: give some.

  Args:
    question: what is asked.
    choices: four answers.
    subject: one of `MMLU_STEM`.
    examples: (question, choices, solution, letter); None takes those of MATH.

  Raises:
    ValueError: an unknown subject, not four choices, or no examples for a
      subject that needs them.
  """
  checks.text("question", question)
  checks.one_of("subject", subject, MMLU_STEM)
  if len(choices) != len(LETTERS):
    checks.refuse("choices", choices, "four answers")
  if examples is None and subject not in _BY_MATH:
    checks.refuse("examples", None, f"given for the subject {subject!r}")
  if examples is None:
    both = zip(prompt_texts.MATH, prompt_texts.MATH_CHOICES, strict=True)
    examples = [(q, c, s, letter) for (q, s, _), (c, letter) in both]
  parts = []
  for asked, given, solution, letter in examples:
    checks.one_of("letter of an example", letter, LETTERS)
    parts.append(
      f"Problem:\n{_choice(asked, given)}\n\nSolution:\n"
      f"{solution}{chr(10) if solution else ''}"
      f"Final Answer: The final answer is ({letter}). {_HOPE}"
    )
  last = f"Problem:\n{_choice(question, choices)}\n\nSolution:"
  return "\n\n".join([*parts, last])


def takes_math_examples(subject: str) -> bool:
  """Whether a subject of MMLU-STEM has the examples of MATH."""
  return checks.one_of("subject", subject, MMLU_STEM) in _BY_MATH


def without_marks(solution: str) -> str:
  """A solution of GSM8K without its calculator marks `<<16-3=13>>`."""
  return re.sub(r"<<[^<>]*>>", "", checks.text("solution", solution))


def left_truncate(tokens: Sequence[int], max_len: int = 1024) -> np.ndarray:
  """The last `max_len` tokens of a prompt, `[at most max_len]` int32."""
  checks.positive_int("max_len", max_len)
  row = checks.integers("tokens", tokens)
  if row.ndim != 1:
    checks.refuse("tokens", tokens, "a list of integers")
  return row[-max_len:]
