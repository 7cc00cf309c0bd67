"""Computer algebra in a worker process; loaded as a file, without the package.

A program for `locojax.train.workers`. Its engines are SymPy and math-verify;
neither is given anything to evaluate as code: SymPy gets expressions as trees
that `symbolic` made, or LaTeX for its own parser.
"""

from __future__ import annotations

from fractions import Fraction
from importlib import metadata
from typing import Any

NEEDED = "antlr4-python3-runtime==4.11.*"
PACKAGES = (
  *("sympy", "antlr4-python3-runtime", "math-verify"),
  "latex2sympy2_extended",
)


def versions() -> dict[str, str]:
  """Versions of what is installed of what the engines are made of."""
  found = {}
  for name in PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
  return found


def _start_sympy() -> None:
  try:
    import sympy  # noqa: F401
    from sympy.parsing import latex
  except ImportError as error:
    raise ImportError(
      "the engine 'sympy' needs: pip install 'locojax[minerva]'"
    ) from error
  try:
    latex.parse_latex("1")
  except ImportError as error:
    found = versions().get("antlr4-python3-runtime", "none")
    raise ImportError(
      f"SymPy's LaTeX parser needs {NEEDED}; version {found} is installed: "
      f"pip install '{NEEDED}'"
    ) from error


def _start_math_verify() -> None:
  try:
    import math_verify  # noqa: F401
  except ImportError as error:
    raise ImportError(
      "the engine 'math_verify' needs: pip install math-verify"
    ) from error


_STARTS = {"sympy": _start_sympy, "math_verify": _start_math_verify}


def start(engine: str = "sympy") -> dict[str, str]:
  """Loads an engine; versions of its packages.

  Raises:
    ImportError: something is missing or unusable; says what to install.
  """
  _STARTS[engine]()
  return {"engine": engine, **versions()}


def _number(text: str):
  import sympy

  value = Fraction(text)
  return sympy.Rational(value.numerator, value.denominator)


def _function(name: str, args: list):
  import sympy

  known = {
    **{
      n: getattr(sympy, n) for n in ("sin", "cos", "tan", "sec", "csc", "cot")
    },
    **{n: getattr(sympy, n) for n in ("sinh", "cosh", "tanh")},
    "arcsin": sympy.asin,
    "arccos": sympy.acos,
    "arctan": sympy.atan,
    "ln": sympy.log,
    "log": lambda base, x: sympy.log(x, base),
    "lg": lambda x: sympy.log(x, 10),
    "abs": sympy.Abs,
    "factorial": sympy.factorial,
    "binom": sympy.binomial,
    "power": lambda a, b: sympy.Pow(a, b, evaluate=False),
  }
  if name in known:
    return known[name](*args)
  return sympy.Function(name)(*args)


def expression(tree: list) -> Any:
  """The SymPy expression of a tree; see `symbolic.tree`."""
  import sympy

  kind, *parts = tree
  if kind == "number":
    return _number(parts[0])
  if kind == "variable":
    return sympy.Symbol(parts[0])
  if kind == "constant":
    return {"i": sympy.I, "pi": sympy.pi, "e": sympy.E, "oo": sympy.oo}[
      parts[0]
    ]
  if kind == "function":
    return _function(parts[0], [expression(part) for part in parts[1]])
  args = [expression(part) for part in parts[0]]
  if kind == "power":
    return sympy.Pow(*args)
  return {"sum": sympy.Add, "product": sympy.Mul}[kind](*args)


def _is_zero(difference: Any) -> str:
  import sympy

  return "equal" if sympy.simplify(difference) == 0 else "unequal"


def _expressions(a: list, b: list) -> str:
  return _is_zero(expression(a) - expression(b))


def _sympy_texts(a: str, b: str) -> str:
  """Parsed whole or not at all; relations compare by both of their sides."""
  import sympy
  from sympy.parsing.latex import parse_latex

  one, two = (parse_latex(text, strict=True) for text in (a, b))
  if isinstance(one, sympy.Expr) and isinstance(two, sympy.Expr):
    return _is_zero(one - two)
  return "equal" if one == two else "unknown"


def _math_verify_texts(a: str, b: str) -> str:
  """Equal only if each passes for the other: verdicts depend on the side."""
  from math_verify import parse, verify

  one, two = (parse(f"${text}$", parsing_timeout=None) for text in (a, b))
  ways = ((one, two), (two, one))
  same = all(verify(x, y, timeout_seconds=None) for x, y in ways)
  return "equal" if same else "unequal"


_TEXTS = {"sympy": _sympy_texts, "math_verify": _math_verify_texts}


def answer(request: dict[str, Any]) -> str:
  """`equal`, `unequal` or `unknown`.

  Args:
    request: `engine`; `texts`, two answers in LaTeX, or `trees`, two
      expressions.
  """
  if "trees" in request:
    return _expressions(*request["trees"])
  return _TEXTS[request["engine"]](*request["texts"])
