"""First tokens, re-ranking, checks, several lines: worked cases."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from locojax import engines
from locojax.methods import completion
from locojax.methods.completion import Suggestion

ITEMS = ["abs", "add", "all", "any", "append", "apply"]
TOKENS = ["append", "add", "zip", "apply", "all"]


@pytest.mark.parametrize(
  ("typed", "rest", "language", "want"),
  [
    ("app", "end(x)", "python", "append"),
    ("push", "(3)", "python", "push"),
    ("", " return x", "python", None),
    ("push(", "3)", "python", None),
    ("", "3x", "go", None),
    ("$a", "b.c", "java", "$ab"),
    ("$a", "b", "python", None),
    ("", "#x = 1", "typescript", "#x"),
    ("google.pro", "tobuf.Any v = 1;", "proto", "google.protobuf.Any"),
    ("", ".a.b c", "proto", ".a.b"),
  ],
)
def test_first_token(typed, rest, language, want):
  assert completion.first_token(typed, rest, language) == want


@pytest.mark.parametrize(
  ("prefix", "language", "want"),
  [
    ("x = self.ap", "python", "ap"),
    ("f(", "python", ""),
    ("12ab", "python", ""),
    ("a\n", "python", ""),
    ("x google.pro", "proto", "google.pro"),
    ("let $x", "java", "$x"),
    ("été", "python", "été"),
  ],
)
def test_what_is_typed(prefix, language, want):
  assert completion.typed(prefix, language) == want


def test_rerank():
  rerank = completion.rerank
  want = ["append", "add", "apply", "abs", "all", "any"]
  assert rerank(ITEMS, TOKENS, 3) == want
  assert rerank(want, TOKENS, 3) == want
  assert rerank(ITEMS, TOKENS, 3, select="top_then_intersect") == [
    *("append", "add", "abs", "all", "any", "apply")
  ]
  assert rerank(ITEMS, [None, "zip"]) == ITEMS == rerank(ITEMS, [])
  both = [("f", 1), ("g", 1), ("f", 2)]
  assert rerank(both, ["f"], name=lambda i: i[0]) == [
    *(("f", 1), ("f", 2), ("g", 1))
  ]
  sure = dict(probabilities=(0.5, 0.01, 0.3, 0.2, 0.1), min_probability=0.15)
  assert rerank(ITEMS, TOKENS, **sure)[:2] == ["append", "apply"]
  assert rerank(["a", "b"], ["b", "a"], only_up=True) == ["b", "a"]
  assert rerank(["a", "b"], ["b", "a"][::-1], only_up=True) == ["a", "b"]
  rng = np.random.default_rng(0)
  for _ in range(50):
    items = list(rng.choice(ITEMS, 5))
    tokens = list(rng.choice([*ITEMS, "zip"], 4))
    k = int(rng.integers(1, 5))
    out = rerank(items, tokens, k)
    assert sorted(out) == sorted(items) and rerank(out, tokens, k) == out
  with pytest.raises(ValueError, match="k=0"):
    rerank(ITEMS, TOKENS, 0)


def _judge(text):
  """Unknown names, and `f` without exactly one argument."""
  found = []
  known = {"f", "x", "y"}
  for number, line in enumerate(text.split("\n")):
    place = lambda m, n=number: engines.Range(
      engines.Position(n, m.start()), engines.Position(n, m.end())
    )
    for match in re.finditer(r"[a-z]+", line):
      if match[0] not in known:
        found.append(
          engines.Diagnostic(
            place(match), f"unknown {match[0]}", kind="reference", code="name"
          )
        )
    for match in re.finditer(r"f\(([^)]*)\)", line):
      if not match[1] or "," in match[1]:
        found.append(
          engines.Diagnostic(place(match), "arguments", kind="arity")
        )
  return found


@pytest.fixture
def checker(tmp_path):
  uri = engines.uri(tmp_path / "a.py")
  text = "y = f(x)\nx = \ny = zzz\n"
  with engines.StaticEngine(tmp_path, judge=_judge) as engine:
    engine.open(uri, text)
    yield completion.Checker(engine, uri, text.index("\ny = zzz"))
    assert engine.text(uri) == text


def test_checks_find_names_and_arguments_and_nothing_else(checker):
  assert checker("f(y)").kept and checker("f(y)").checked
  assert checker("nothing").kinds == ("reference",)
  assert checker("f(x, y)").kinds == ("arity",)
  assert not checker("f()").kept
  assert checker("f(y)\nx = f(x)").kept  # `zzz` moved a line on
  found = checker.longest("f(y)\nx = oops\ny = y")
  assert found.kept and found.text == "f(y)"
  assert checker.longest("oops\nx = y") == completion.Checked(
    "", False, ("reference",), ("unknown oops",)
  )


def test_errors_that_were_there_do_not_count(tmp_path):
  uri = engines.uri(tmp_path / "a.py")
  with engines.StaticEngine(tmp_path, judge=_judge) as engine:
    engine.open(uri, "old = ")
    check = completion.check
    assert check(engine, uri, 6, "x").kept
    assert not check(engine, uri, 6, "old").kept  # a second one is new
    assert check(engine, uri, 6, "f()", drops=("reference",)).kept
    with pytest.raises(ValueError, match="offset=7"):
      check(engine, uri, 7, "x")
    with pytest.raises(ValueError, match="drops='typo'"):
      check(engine, uri, 6, "x", drops=("typo",))


def test_an_answer_that_is_late_is_as_one_says(tmp_path):
  class Slow(engines.StaticEngine):
    def diagnostics(self, uri, *, timeout=None):
      raise engines.EngineTimeout("late")

  uri = engines.uri(tmp_path / "a.py")
  with Slow(tmp_path) as engine:
    engine.open(uri, "x")
    for policy, kept in (("keep", True), ("drop", False)):
      found = completion.check(engine, uri, 1, "y", on_timeout=policy)
      assert found.kept is kept and not found.checked
    assert engine.text(uri) == "x"


def test_lines_follow_as_long_as_they_are_sure():
  lines = [("a", 0.9), ("b", 0.6), ("c", 0.7), ("d", 0.1)]
  said = []

  def predict(prefix, suffix):
    said.append(prefix)
    text, p = lines[len(said) - 1]
    return Suggestion(text, math.log(p), 1)

  def run(thresholds, suffix="", **settings):
    said.clear()
    found = completion.multi_line(
      predict, "p", suffix, thresholds=thresholds, **settings
    )
    return [s.text for s in found]

  assert run([0.5]) == ["a", "b", "c"]
  assert said == ["p", "pa\n", "pa\nb\n", "pa\nb\nc\n"]
  assert run([0.95]) == [] and run([0.5, 0.65]) == ["a"]
  assert run([0.5], max_lines=2) == ["a", "b"]
  assert run([0.5], "\n  b\nx") == ["a"]
  assert run([0.5, math.inf]) == ["a"]
  with pytest.raises(ValueError, match="thresholds=\\[\\]"):
    run([])
  with pytest.raises(ValueError, match=r"thresholds\[1\]=1.5"):
    run([0.5, 1.5])


def test_thresholds_are_the_smallest_that_are_precise_enough():
  rng = np.random.default_rng(3)
  scores = rng.integers(0, 20, 200) / 20
  correct = rng.random(200) < scores
  for target in (0.3, 0.7, 0.9, 1.0):
    tau = completion.fit_threshold(scores, correct, target)
    good = [s for s in scores if correct[scores >= s].mean() >= target - 1e-12]
    assert tau == (min(good) if good else math.inf)
  assert completion.fit_threshold([0.5], [False], 0.5) == math.inf
  curve = completion.precision_coverage([0.1, 0.9], [False, True])
  assert curve == [(0.9, 0.5, 1.0), (0.1, 1.0, 0.5)]


def test_logistic_confidence_finds_the_weights():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4000, 4))
  true = np.array([0.5, 1.0, -2.0, 0.0, 0.7])
  p = 1 / (1 + np.exp(-(true[0] + x @ true[1:])))
  fitted = completion.LogisticConfidence.fit(
    x, rng.random(4000) < p, ridge=1e-6
  )
  np.testing.assert_allclose(fitted.weights, true, atol=0.2)
  made = fitted.features(-0.5, 1, "    x", "  y")
  np.testing.assert_allclose(made, [-0.5, 1, math.log(2), 1])
