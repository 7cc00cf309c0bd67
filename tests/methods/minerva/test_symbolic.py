"""SymPy in worker processes: what values leave open, and what it needs."""

from __future__ import annotations

import importlib.metadata

import pytest

from locojax.methods import minerva
from locojax.methods.minerva import exact, numeric, symbolic, symbolic_program
from locojax.train import workers


@pytest.fixture(scope="module")
def checker():
  with workers.WorkerPool(minerva.PROGRAM, cpu_seconds=10.0) as pool:
    assert pool.info["sympy"] and pool.info["engine"] == "sympy"
    yield minerva.EquivalenceChecker(minerva.Symbolic(pool), units="strict")


@pytest.mark.parametrize(
  ("a", "b", "outcome"),
  [
    (r"\sin 2x", r"2\sin x\cos x", "equal"),
    (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2", "equal"),
    (r"(1, \sin 2x)", r"(1, 2\sin x\cos x)", "equal"),
    (r"\sqrt{x^2}", "x", "unequal"),
  ],
)
def test_what_values_leave_open(checker, a, b, outcome):
  found = checker(a, b)
  assert (found.outcome, found.level) == (outcome, "sympy")
  assert checker(b, a) == found


def test_texts_are_parsed_whole_or_not_at_all():
  """Without `strict=True` SymPy reads `-2, 2` as -2, `2215_6` as 2215."""
  from sympy.parsing.latex import errors

  for text, cut in (("-2, 2", "-2"), ("2215_6", "2215"), (r"10\sqrt3", "10")):
    with pytest.raises(errors.LaTeXParsingError):
      symbolic_program.answer({"engine": "sympy", "texts": [text, cut]})
  same = {"engine": "sympy", "texts": [r"\int_0^1 x dx", r"\frac{1}{2}"]}
  assert symbolic_program.answer(same) == "equal"


@pytest.mark.parametrize(
  "text", [r"\text{east}", r"45^\circ", r"1 \pm 2", "3:5", r"x \in [1,2]"]
)
def test_what_sympy_misreads_is_not_sent(text):
  assert symbolic.misread(text)
  found = symbolic.Symbolic(None).texts(text, "1")
  assert found.outcome == "unknown" and found.reason


def test_trees_are_the_same_expressions():
  texts = [r"\frac{x^2-\sqrt{2}}{y+1}", r"e^{-t/3}+i\pi", r"\sqrt{x+1}"]
  for text in texts:
    value = minerva.read_answer(text).value
    found = symbolic_program.expression(symbolic.tree(value))
    names = {
      str(s): numeric.approximate(exact.variable(str(s)))
      for s in found.free_symbols
    }
    assert (
      abs(complex(found.evalf(subs=names)) - numeric.approximate(value)) < 1e-9
    )


def test_an_unusable_runtime_is_named(monkeypatch):
  """SymPy's parser raises ImportError with another antlr runtime."""
  from sympy.parsing import latex

  def refused(text):
    raise ImportError("LaTeX parsing requires the antlr4 Python package")

  monkeypatch.setattr(latex, "parse_latex", refused)
  found = importlib.metadata.version("antlr4-python3-runtime")
  with pytest.raises(ImportError, match=f"==4.11.*{found}.*pip install"):
    symbolic_program.start("sympy")


def test_engines_have_names():
  with pytest.raises(ValueError, match="engine='maple'"):
    minerva.Symbolic(None, "maple")
