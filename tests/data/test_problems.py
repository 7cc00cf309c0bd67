"""Problems drawn from a seed: right answers, and what cleaning leaves."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from locojax.data import problems
from locojax.methods import minerva


@pytest.mark.parametrize("kind", problems.KINDS)
def test_answers_are_right_and_end_the_steps(kind):
  rng = np.random.default_rng(0)
  for _ in range(200):
    found = problems.draw(rng, kind)
    assert found.kind == kind and "\n" not in found.steps
    formula = found.question.split("$")[1]
    if kind == "equation":
      left, right = formula.split("=")
      a, b = left.split("x")
      value = Fraction(int(right) - int(b), int(a))
    else:
      value = minerva.read_answer(formula).value
    answer = minerva.read_answer(found.answer).value
    assert value == answer if kind != "equation" else str(value) == found.answer
    assert found.steps.split("=")[-1].rstrip("$") == found.answer


def test_draws_are_those_of_their_seed():
  one, two = (
    [problems.draw(np.random.default_rng(3), size=12) for _ in range(2)]
    for _ in range(2)
  )
  assert one == two
  kinds = {problems.draw(np.random.default_rng(s)).kind for s in range(40)}
  assert kinds == set(problems.KINDS)


@pytest.mark.parametrize(
  "text, left",
  [
    (r"Find $\frac{7}{12}-3^{2}$.", "Find 7 12 3 2 ."),
    ("Solve $3x-5=20$.", "Solve 3x 5 20 ."),
    ("$x=-4$", "x 4"),
    ("A well-known law, isn't it?", "A well-known law, isn't it?"),
    ("one\n$2\\cdot 3$ ", "one\n2 3"),
  ],
)
def test_cleaning_leaves_words_and_digits(text, left):
  assert problems.strip_notation(text) == left


def test_bad_values_are_refused():
  rng = np.random.default_rng(0)
  with pytest.raises(ValueError, match="kind='fraction'.*'fractions'"):
    problems.draw(rng, "fraction")
  with pytest.raises(ValueError, match="size=1"):
    problems.draw(rng, size=1)
