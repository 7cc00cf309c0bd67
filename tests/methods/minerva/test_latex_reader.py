"""The reader of answers: kinds, bounds, and every gold answer at hand."""

from __future__ import annotations

import collections
import gzip
import json
import math
import time
from fractions import Fraction

import pytest

from locojax.methods import minerva
from locojax.methods.minerva import exact, latex_reader, latex_scalars, numeric

KINDS = [
  ("5", "scalar"),
  ("(1,2)", "tuple"),
  (r"\{1,2\}", "collection"),
  ("1, 2", "collection"),
  (r"(-\infty,1)\cup(2,3]", "union"),
  (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "matrix"),
  (r"\text{Sunday}", "text"),
  ("2215_6", "based"),
  ("3:5", "ratio"),
  (r"4:30\text{ p.m.}", "clock"),
  ("x+y=1", "equation"),
  (r"s^2 \le 8r^2", "inequality"),
  ("f(2) < f(1) < f(4)", "chain"),
]


@pytest.mark.parametrize(("text", "kind"), KINDS)
def test_kinds(text, kind):
  assert minerva.read_answer(text).kind == kind


VALUES = [
  (r"3\frac{1}{2}", Fraction(7, 2)),
  (r"-3\frac{1}{2}", Fraction(-7, 2)),
  ("3 1/2", Fraction(7, 2)),
  (r"0.1\overline{6}", Fraction(1, 6)),
  ("1e3", Fraction(1000)),
  ("2^{-3}", Fraction(1, 8)),
  ("2^10", Fraction(1024)),
  (r"\frac12", Fraction(1, 2)),
  (r"\frac{\frac12}{3}", Fraction(1, 6)),
  (r"2 \cdot -3", Fraction(-6)),
  (r"10{,}000", Fraction(10_000)),
  (r"\lfloor 3.7 \rfloor", Fraction(3)),
  (r"|-3|", Fraction(3)),
  (r"\sqrt{\frac{9}{4}}", Fraction(3, 2)),
  (r"(\sqrt{2})^2", Fraction(2)),
  (r"i^2", Fraction(-1)),
  ("-2^2", Fraction(-4)),
  ("2^{3^2}", Fraction(512)),
  ("1/2/2", Fraction(1, 4)),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_rational_values(text, value):
  assert minerva.read_answer(text).value.rational() == value


UNREADABLE = [
  *("", "   ", "1 2", r"\frac{1}{0}", "1/(2-2)", r"\foo", "(1", "1)", "2^"),
  *(r"\begin{cases} 1 \end{cases}", "{", r"\sqrt", "x=", "9_6", "0^{-1}"),
  r"\begin{pmatrix} 1 & 2 \\ 3 \end{pmatrix}",
  r"\begin{pmatrix} 1 \\ 2 \end{pmatrix} + 1",
]


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_is_no_answer_is_refused(text):
  with pytest.raises(minerva.Unreadable):
    minerva.read_answer(text)


HUGE = [
  "10^{10^{10}}",
  "9^{9^{9^{9}}}",
  "2^{100000000}",
  "(x+y+z+1)^{64}",
  "(1+x)^{100000}",
  "1000000!",
  r"\binom{100000}{50000}",
  "((((x+1)^{60}+1)^{60}+1)^{60}+1)^{60}",
  r"\sqrt{" * 60 + "2" + "}" * 60,
  "(" * 500 + "1" + ")" * 500,
  "9" * 1999,
  "9" * 5000,
  "1e999999999",
  "1.5^{1.5^{1.5^{100}}}",
  "{" * 300 + "}" * 300,
  "+".join(f"x_{{{k}}}" for k in range(150)),
  "(" + "+".join("abcdfghj") + ")^{40}",
  r"\frac{1}{\sqrt2+\sqrt3+\sqrt5+\sqrt7+\sqrt{11}+\sqrt{13}+\sqrt{17}}",
  "-" * 900 + "1",
  "1234567890123456789012345678901234567891^{1/2}",
  "x^{x^{x^{x^{x}}}}",
  r"\{" * 30 + r"\}" * 30,
]


@pytest.mark.parametrize("text", HUGE, ids=range(len(HUGE)))
def test_huge_answers_end_soon(text):
  start = time.process_time()
  other = text.replace("9", "8").replace("1", "3")
  assert minerva.is_equivalent(text, text)
  minerva.compare(text, other)
  assert time.process_time() - start < 5.0


def test_huge_powers_are_told_apart():
  assert not minerva.is_equivalent("10^{10^{10}}", "10^{10^{9}}")
  assert minerva.compare("2^{4950}", "2^{4951}").outcome == "unequal"
  assert minerva.compare("2^{99999}", "2^{99998}").outcome == "unequal"


def test_text_is_never_code():
  texts = ["__import__('os').getcwd()", "(lambda: 1)()", "open('x').read()"]
  for text in texts:
    with pytest.raises(minerva.Unreadable):
      minerva.read_answer(text)


def test_plus_minus_takes_both_signs_together():
  found = latex_scalars.read(latex_reader.tokens(r"1 \pm 2 \mp 3"))
  assert [v.rational() for v in found] == [0, 2]


def test_expressions_obey_the_rules_of_a_field():
  texts = ["x", r"\sqrt{2}", "1+i", r"\pi", r"\frac{x+1}{x-1}", "2", "e^{x}"]
  values = [minerva.read_answer(text).value for text in texts]
  one, zero = exact.number(1), exact.number(0)
  for a in values:
    assert numeric.equal(a / a, one) and numeric.equal(a - a, zero)
    for b in values:
      assert numeric.equal(a + b, b + a) and numeric.equal(a * b, b * a)
      assert numeric.equal((a + b) * (a - b), a * a - b * b)
      assert numeric.equal(a / b * b, a)


def test_sums_of_radicals_are_zero_only_if_nothing_is_left():
  root = lambda n: exact.power(exact.number(n), exact.number(Fraction(1, 2)))
  left = root(50) + root(18) - exact.number(8) * root(2)
  assert left.is_zero
  near = root(10) + root(17) - root(5) - root(27)
  assert numeric.equal(near, exact.number(0)) is False
  truth = sum(s * math.sqrt(n) for s, n in zip((1, 1, -1, -1), (10, 17, 5, 27)))
  assert abs(numeric.approximate(near) - truth) < 1e-12


@pytest.mark.parametrize("steps", range(-24, 25))
def test_exact_values_of_trigonometric_functions(steps):
  angle = exact.atom(exact.PI) * exact.number(Fraction(steps, 12))
  for name in ("sin", "cos"):
    found = exact.trigonometric(name, angle)
    near = numeric.approximate(exact.function(name, angle))
    assert exact.certain(found)
    assert abs(numeric.approximate(found) - near) < 1e-12


def _golds(folder):
  for name, key in [("math_answers", "answer"), ("ocw_courses_test", "answer")]:
    path = folder / "text" / f"{name}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
      yield name, [json.loads(line)[key] for line in file]


@pytest.mark.real_data
def test_gold_answers_are_read(data_dir):
  unread = {}
  for name, texts in _golds(data_dir):
    kinds = collections.Counter(map(minerva.answer_category, texts))
    unread[name] = kinds["unreadable"]
  assert unread == {"math_answers": 2, "ocw_courses_test": 0}  # two are empty
