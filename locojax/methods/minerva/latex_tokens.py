"""The words of an answer in LaTeX, or in the plain text that models write.

Layout is dropped here: spacing, `\\left`, `\\displaystyle`, dollar signs around
formulas. What remains is a tuple of `Token`s; nothing is evaluated.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_LENGTH = 2_000
MAX_TOKENS = 800


class Unreadable(ValueError):
  """An answer that the reader does not understand; says why."""


class Token(NamedTuple):
  """A word of LaTeX.

  Attributes:
    kind: `number`, `letter`, `command`, `text`, `begin`, `end`, `row` or
      `symbol`.
    value: a number or letter as written, a command without its backslash, the
      content of a text, the name of an environment, or the symbol.
    spaced: whether white space stands before it.
  """

  kind: str
  value: str
  spaced: bool = False


_SAME = {
  **dict.fromkeys(("dfrac", "tfrac", "cfrac"), "frac"),
  **dict.fromkeys(("dbinom", "tbinom"), "binom"),
  **dict.fromkeys(("leq", "leqslant"), "le"),
  **dict.fromkeys(("geq", "geqslant"), "ge"),
  **dict.fromkeys(("neq",), "ne"),
  **dict.fromkeys(("lbrack",), "["),
  **dict.fromkeys(("rbrack",), "]"),
  **dict.fromkeys(("lvert", "rvert", "vert", "mid"), "|"),
  **dict.fromkeys(("asin",), "arcsin"),
  **dict.fromkeys(("acos",), "arccos"),
  **dict.fromkeys(("atan",), "arctan"),
  **dict.fromkeys(("infinity", "inf"), "infty"),
  **dict.fromkeys(("varnothing",), "emptyset"),
  **dict.fromkeys(("lt",), "<"),
  **dict.fromkeys(("gt",), ">"),
  **dict.fromkeys(("ast", "star", "times", "cdot"), "*"),
  **dict.fromkeys(("div",), "/"),
  **dict.fromkeys(("bar",), "overline"),
  **dict.fromkeys(("degree", "degrees"), "circ"),
  **dict.fromkeys(("varepsilon",), "epsilon"),
  **dict.fromkeys(("varphi",), "phi"),
  **dict.fromkeys(("colon",), ":"),
  **dict.fromkeys(("lor", "vee"), "or"),
}
_BRACES = {"lbrace": "{", "rbrace": "}"}
_DROPPED = frozenset(
  (
    *("left", "right", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl"),
    *("Bigr", "biggl", "biggr", "Biggl", "Biggr", "displaystyle", "textstyle"),
    *("scriptstyle", "limits", "nolimits", "quad", "qquad", "hfill"),
    *("boldsymbol", "mathbf", "mathit", "mathsf", "mathcal", "bf", "it"),
    *("boxed", "fbox", "ensuremath"),
  )
)
_PAIRS = {
  "−": "-",
  "–": "-",
  "×": "*",
  "·": "*",
  "⋅": "*",
  "÷": "/",
  "∞": r"\infty ",
  "π": r"\pi ",
  "θ": r"\theta ",
  "°": r"^\circ ",
  "≤": r"\le ",
  "≥": r"\ge ",
  "≠": r"\ne ",
  "√": r"\sqrt ",
  "±": r"\pm ",
  "∪": r"\cup ",
  "∈": r"\in ",
  "²": "^2",
  "³": "^3",
  "½": r"\frac12 ",
  "\u00a0": " ",
  "**": "^",
  "<=": r"\le ",
  ">=": r"\ge ",
  "!=": r"\ne ",
  "np.": "",
  "math.": "",
}
_TEXTS = (
  "text|mbox|hbox|textrm|textbf|textit|textsf|textnormal|mathrm|rm|mathop"
)
_PLAIN = (
  "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|sec|csc|cot|asin|acos|atan|"
  "ln|log|exp|sqrt|pi|infinity|infty|inf|theta|alpha|beta|gamma|lambda|omega"
)
_WORD = re.compile(
  r"(?P<row>\\\\(?:\[[^\]]*\])?)"
  r"|\\(?P<env>begin|end)\s*\{(?P<name>[a-zA-Z]+\*?)\}(?:\{[clr| ]*\})?"
  rf"|\\(?:{_TEXTS})\s*\{{(?P<text>[^{{}}]*)\}}"
  r"|\\operatorname\*?\s*\{(?P<operator>[a-zA-Z]+)\}"
  r"|\\(?P<command>[a-zA-Z]+)"
  r"|\\(?P<escaped>.)"
  r"|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
  rf"|(?<![a-zA-Z])(?P<plain>{_PLAIN})(?![a-zA-Z])"
  r"|(?P<letter>[a-zA-Z])"
  r"|(?P<symbol>\S)",
  re.DOTALL,
)
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,]*\d)")
_OUTER = (
  re.compile(r"^\$\$?(.*?)\$?\$\.?$", re.DOTALL),
  re.compile(r"^\\\((.*)\\\)\.?$", re.DOTALL),
  re.compile(r"^\\\[(.*)\\\]\.?$", re.DOTALL),
)


def unwrapped(text: str) -> str:
  """A formula without the dollar signs or brackets of mathematics around it."""
  text = text.strip()
  for pattern in _OUTER:
    match = pattern.match(text)
    if match and "$" not in match[1].replace(r"\$", ""):
      return match[1].strip()
  return text


def _join_thousands(text: str) -> str:
  """Commas between thousands taken out, not those of lists and pairs."""
  text = re.sub(r"(?<=\d)(?:\{,\}|,\\!|\\,)\s*(?=\d{3}(?!\d))", "", text)
  text = text.replace("{,}", ",").replace(r"\!", "")

  def joined(match: re.Match) -> str:
    before = text[: match.start()]
    inside = sum(map(before.count, ("(", "[", r"\{"))) - sum(
      map(before.count, (")", "]", r"\}"))
    )
    zero = re.search(r",0", match[0])
    return match[0].replace(",", "") if not inside or zero else match[0]

  return _THOUSANDS.sub(joined, text)


def tidy(text: str) -> str:
  """A text without what changes nothing: for comparing as it is written."""
  return " ".join(
    f"{t.kind[0]}{t.value}" if t.kind in ("text", "begin", "end") else t.value
    for t in tokens(text)
  )


def _token(match: re.Match, spaced: bool) -> Token | None:
  kind = match.lastgroup
  value = match[kind] if kind else ""
  if match["env"]:
    return Token(match["env"], match["name"].removesuffix("*"), spaced)
  if match["text"] is not None:
    return Token("text", " ".join(match["text"].split()), spaced)
  if kind == "row":
    return Token("row", "\\", spaced)
  if kind in ("command", "operator", "plain"):
    if value in _DROPPED:
      return None
    value = _SAME.get(value, value)
    if value in _BRACES:
      return Token("command", _BRACES[value], spaced)
    return Token("command" if value[0].isalpha() else "symbol", value, spaced)
  if kind == "escaped":
    if value in " ,;:>!~\n":
      return None
    named = {"{": "{", "}": "}", "$": "dollar", "%": "percent", "|": "|"}
    if value not in named:
      return Token("command", value, spaced)
    return Token("command", named[value], spaced)
  if value == "$":
    return None
  if value == "%":
    return Token("command", "percent", spaced)
  return Token(kind, value, spaced)


def _without_phantoms(words: list[Token]) -> list[Token]:
  """Without `\\phantom` and the group or word whose room it takes."""
  out, depth, waiting = [], 0, False
  for token in words:
    if token.kind == "command" and token.value.endswith("phantom"):
      waiting = True
    elif waiting or depth:
      waiting = False
      if token.kind == "symbol" and token.value in "{}":
        depth += 1 if token.value == "{" else -1
    else:
      out.append(token)
  return out


def tokens(text: str) -> tuple[Token, ...]:
  """The words of an answer.

  Args:
    text: LaTeX, with or without dollar signs around it, or plain text.

  Raises:
    Unreadable: longer than `MAX_LENGTH` characters or `MAX_TOKENS` words.
  """
  if len(text) > MAX_LENGTH:
    raise Unreadable(f"more than {MAX_LENGTH} characters")
  text = unwrapped(text)
  for one, other in _PAIRS.items():
    text = text.replace(one, other)
  text = _join_thousands(text.replace("~", " "))
  out, end = [], 0
  for match in _WORD.finditer(text):
    token = _token(match, match.start() > end)
    end = match.end()
    if token is not None:
      out.append(token)
  out = _without_phantoms(out)
  while out and out[-1][:2] in (("symbol", "."), ("symbol", ",")):
    out.pop()
  if len(out) > MAX_TOKENS:
    raise Unreadable(f"more than {MAX_TOKENS} words")
  return tuple(out)
