"""Prompts: their form, the examples of the papers, one's own."""

from __future__ import annotations

import numpy as np
import pytest

from locojax.methods import minerva
from locojax.methods.minerva import prompt_texts

OWN = (("What is 1 + 1?", "It is two.", "2"),)


def test_math_has_its_four_examples_and_their_answers():
  text = minerva.math_4shot("What?")
  shots = text.split("\n\nProblem:\n")
  assert len(shots) == 5
  found = [minerva.extract_final_answer(s, "math") for s in shots[:4]]
  want = ["$[2,5)$", "$24$", "$16$", r"$-\frac{2}{3}$"]
  assert found == want
  for (_, solution, answer), wanted in zip(prompt_texts.MATH, want):
    assert f"${answer}$" == wanted
    boxed = minerva.last_boxed(solution)
    assert minerva.is_equivalent(boxed, answer)
  assert text.endswith("Problem:\nWhat?\n\nSolution:")
  assert "5-x}}$.\n\nSolution" in text
  stray = minerva.math_4shot("What?", verbatim=True)
  assert "5-x}}$.}\n\nSolution" in stray and len(stray) == len(text) + 1


def test_ocw_and_gsm8k_say_what_their_tasks_read():
  shots = minerva.ocw_4shot("What?").split("\n\nProblem:\n")
  found = [minerva.extract_final_answer(s, "ocw_courses") for s in shots]
  assert [found[0], found[3], found[4]] == ["+2", "$s^{2}+b s+1$", None]
  assert found[1] == r"(-8, -8\sqrt{3})" and "e^{-a t}" in found[2]
  shots = minerva.gsm8k_8shot("What?").split("\n\nQ: ")
  assert len(shots) == 9 and shots[-1] == "What?\nA:"
  found = [minerva.extract_final_answer(s, "gsm8k") for s in shots[:8]]
  assert found == ["6", "5", "39", "8", "9", "29", "33", "8"]


def test_multiple_choice_has_the_examples_of_math():
  text = minerva.mmlu_stem("Why?", list("wxyz"), subject="college_physics")
  shots = text.split("\n\nProblem:\n")
  found = [minerva.extract_final_answer(s, "mmlu_stem") for s in shots[:4]]
  assert found == list("BDCA")
  for (choices, letter), (_, _, answer) in zip(
    prompt_texts.MATH_CHOICES, prompt_texts.MATH
  ):
    assert minerva.is_equivalent(choices["ABCD".index(letter)], answer)
  assert "(A) w, (B) x, (C) y, (D) z\n\nSolution:" in shots[-1]
  own = [("Who?", list("1234"), "", "C")]
  text = minerva.mmlu_stem("Why?", "wxyz", subject="astronomy", examples=own)
  assert "Solution:\nFinal Answer: The final answer is (C)." in text
  assert len(minerva.MMLU_STEM) == 18
  assert sum(map(minerva.takes_math_examples, minerva.MMLU_STEM)) == 7


@pytest.mark.parametrize(
  "make", [minerva.math_4shot, minerva.ocw_4shot, minerva.gsm8k_8shot]
)
def test_own_examples_take_the_place_of_the_papers(make):
  text = make("What?", examples=OWN)
  assert text.count("1 + 1") == 1 and "Terrell" not in text
  assert make("What?", examples=()).count("What?") == 1
  with pytest.raises(ValueError, match=r"examples\[0\]=.*answer"):
    make("What?", examples=[("a", "b")])


def test_bad_values_are_refused():
  with pytest.raises(ValueError, match="subject='physics'"):
    minerva.mmlu_stem("Why?", "wxyz", subject="physics")
  with pytest.raises(ValueError, match="choices=.*four"):
    minerva.mmlu_stem("Why?", "wxy", subject="college_physics")
  with pytest.raises(ValueError, match="examples=None.*astronomy"):
    minerva.mmlu_stem("Why?", "wxyz", subject="astronomy")
  with pytest.raises(ValueError, match="max_len=0"):
    minerva.left_truncate([1], 0)


def test_the_end_of_a_prompt_is_what_stays():
  np.testing.assert_array_equal(
    minerva.left_truncate(range(9), 4), [5, 6, 7, 8]
  )
  assert minerva.left_truncate([1, 2], 4).tolist() == [1, 2]
  solved = "16 - 3 = <<16-3=13>>13 eggs."
  assert minerva.without_marks(solved) == "16 - 3 = 13 eggs."
