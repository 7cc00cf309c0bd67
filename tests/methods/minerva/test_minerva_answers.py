"""Finding final answers, and both normalisers."""

from __future__ import annotations

import gzip
import json
import re

import pytest

from locojax.methods import minerva

MATH = "So it is $5$.\nFinal Answer: The final answer is ${}$. I hope"


def test_math_answers_are_found_where_generation_stops():
  # Generation stops at "I hope it is correct." or anywhere before; the phrase
  # is added again, so the blank before it must be there.
  whole = MATH.format("5") + " it is correct."
  assert minerva.extract_final_answer(whole) == "$5$"
  stopped = whole.removesuffix("I hope it is correct.")
  assert minerva.extract_final_answer(stopped) == "$5$"
  assert minerva.extract_final_answer(stopped.rstrip()) is None


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("Final Answer: The final answer is 1. I hope it is correct.", "1"),
    ("Final Answer: The final answer is 1! I hope it is correct.", "1"),
    ("Final answer: The final answer is 1. I hope it is correct.", None),
    ("Final Answer: The final answer is 1\n2. I hope it is correct.", None),
    ("The answer is 1.", None),
    ("", None),
  ],
)
def test_the_phrase_of_math_is_one_line_of_this_case(text, found):
  assert minerva.extract_final_answer(text, "math") == found


def test_first_or_last_of_several():
  text = "".join(
    f"Final Answer: The final answer is {k}. I hope it is correct.\n"
    for k in (1, 2)
  )
  assert minerva.extract_final_answer(text) == "1"
  assert minerva.extract_final_answer(text, which="last") == "2"


def test_ocw_answers_take_any_case_and_lines():
  text = "Final answer: The final answer is x=1,\ny=2. I hope it is correct."
  assert minerva.extract_final_answer(text, "ocw_courses") == "x=1,\ny=2"


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("She has <<1+1=2>>2 eggs.\n#### 1,000", "1000"),
    ("The answer is -3.", "-3"),
    ("The answer is $5.", "5"),
    ("So the answer is $1,234.50 in all.", "1234.50"),
    ("First 3, then 4.", "4"),
    ("#### none", None),
    ("nothing", None),
  ],
)
def test_gsm8k_numbers_keep_signs_commas_and_decimals(text, found):
  assert minerva.extract_final_answer(text, "gsm8k") == found


def test_choices_and_boxes():
  text = "Final Answer: The final answer is (B). I hope it is correct."
  assert minerva.extract_final_answer(text, "mmlu_stem") == "B"
  assert minerva.extract_final_answer("the answer is C", "mmlu_stem") == "C"
  assert minerva.extract_final_answer("none", "mmlu_stem") is None
  boxed = r"so \boxed{1} or \boxed{\frac{1}{2}} is it"
  assert minerva.extract_final_answer(boxed, "boxed") == r"\frac{1}{2}"


@pytest.mark.parametrize(
  ("text", "found"),
  [
    (r"\boxed{a{b}c}", "a{b}c"),
    (r"$\boxed 5$ of them", "5"),
    (r"\fbox{3}", "3"),
    (r"\fbox{3} \boxed{4}", "4"),
    (r"\boxed{1", None),
    ("1", None),
  ],
)
def test_the_last_box(text, found):
  assert minerva.last_boxed(text) == found


# Both columns are worked by hand from the five steps of the paper.
NORMALISED = [
  (r"\infty", r"\iny", r"\infty"),
  (r"\left(1,2\right)", r"\le(1,2\right)", "(1,2)"),
  ("1,2", "12", "1,2"),
  ("1,234", "1234", "1234"),
  (r"2\text{ and }3", "23", "2,3"),
  (r"\frac1{72}", r"\frac{1}{{}72}", r"\frac{1}{72}"),
  (r"90\text{ square" + "\n" + "units}", "90", "90"),
  (r"15\mbox{ cm}^2", "15", "15"),
  ("y = 2x+3", "2x+3", "2x+3"),
  (r"$x=5$", "5", "5"),
  (r"\$32,\!348", "32348", "32348"),
  (r"5 \text{ cm}", "5", "5"),
  ("12 inches", "12", "12"),
  (r"\text{Evelyn}", "Evelyn", "Evelyn"),
  (r"\sqrt3", r"\sqrt{3}", r"\sqrt{3}"),
  (r"45^\circ", "45", "45"),
  (r"\text{two lines}", "twolines", "two lines"),
  (r"x \in [1,2]", r"x\in[1,2]", r"x \in[1,2]"),
]


@pytest.mark.parametrize(("text", "paper", "robust"), NORMALISED)
def test_both_normalisers(text, paper, robust):
  assert minerva.normalize_answer(text) == paper
  assert minerva.normalize_answer(text, "paper") == paper
  assert minerva.normalize_answer(text, "robust") == robust


@pytest.mark.parametrize(
  "call",
  [
    lambda: minerva.normalize_answer("1", "papers"),
    lambda: minerva.normalize_answer(1),
    lambda: minerva.extract_final_answer("1", "gsm"),
    lambda: minerva.extract_final_answer(None),
    lambda: minerva.extract_final_answer("1", which="middle"),
    lambda: minerva.last_boxed(None),
  ],
)
def test_bad_arguments_are_named(call):
  with pytest.raises(ValueError, match="is not allowed"):
    call()


def _rows(folder, name):
  with gzip.open(folder / "text" / name, "rt", encoding="utf-8") as file:
    return [json.loads(line) for line in file]


@pytest.mark.real_data
def test_gsm8k_finals_are_found_and_marks_are_exact(data_dir):
  train, test = (
    _rows(data_dir, f"gsm8k_{split}.jsonl.gz") for split in ("train", "test")
  )
  finals = [r["answer"].rpartition("#### ")[2] for r in test]
  assert len(finals) == 1319 and sum("," in f for f in finals) == 14
  for row, final in zip(test, finals, strict=True):
    found = minerva.extract_final_answer(row["answer"], "gsm8k")
    assert found == final.replace(",", "")
  marks = [re.findall("<<(.*?)=(.*?)>>", r["answer"]) for r in test]
  assert sum(map(len, marks)) == 4282
  wrong = [m for found in marks for m in found if not _right(*m)]
  assert wrong == []
  # The last mark is no final answer: 18 questions have none at all.
  assert sum(not found for found in marks) == 18
  last = [
    bool(m) and not minerva.is_equivalent(m[-1][1], f)
    for m, f in zip(marks, finals, strict=True)
  ]
  assert sum(last) == 93
  assert len(train) == 7473


def _right(left: str, right: str) -> bool:
  return minerva.is_equivalent(left, right)
