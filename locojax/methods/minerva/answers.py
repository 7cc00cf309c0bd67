"""Final answers: found in a solution, and brought to a common form.

`normalize_answer` has two modes. `paper` is the function of appendix D of
Lewkowycz et al., arXiv 2206.14858, as it is known from public graders, to the
letter and with what it does to answers: deleting "ft" makes `\\infty` into
`\\iny`, "1,2" becomes "12", `2\\text{ and }3` becomes "23". `robust` does what
was meant: it deletes words as words, and commas between thousands only.
"""

from __future__ import annotations

import re

from locojax.core import checks

INVALID = "[invalidanswer]"
END = "I hope it is correct."
MODES = ("paper", "robust")

_MATH = re.compile(
  r"Final Answer: The final answer is(.*?). I hope it is correct."
)
_ANY_CASE = re.compile(
  r"final answer:?\s*the final answer is:?(.*?)\.?\s*I hope it is correct\.",
  re.IGNORECASE | re.DOTALL,
)
_NUMBER = r"-?\s?\$?\s?-?\d[\d,]*(?:\.\d+)?|-?\s?\$?\s?-?\.\d+"
_CHOICE = re.compile(r"Final Answer: The final answer is \(?([A-Z])\)?\.?")
_IS = re.compile(r"(?:the )?answer is:?\s*(.*)", re.IGNORECASE)


def _stripped(text: str) -> str:
  """A formula or a number without a sentence around it."""
  return text.strip().rstrip(".").strip()


def _math(text: str, which: str) -> str | None:
  """Between the two phrases of the prompt; the end is added, as it stops at."""
  found = _MATH.findall(text + END)
  return found[0 if which == "first" else -1].strip() if found else None


def _ocw(text: str, which: str) -> str | None:
  found = [m.strip() for m in _ANY_CASE.findall(text + " " + END)]
  return found[0 if which == "first" else -1] if found else None


def _gsm8k(text: str, which: str) -> str | None:
  """After `####`, else after "answer is", else the last number there is."""
  marks = [part.strip() for part in text.split("####")[1:]]
  told = [m.group(1) for m in _IS.finditer(text)]
  pick = 0 if which == "first" else -1
  places = [marks[pick]] if marks else [told[pick]] if told else []
  for place in places:
    found = re.search(_NUMBER, place)
    if found:
      return plain_number(found[0])
  found = re.findall(_NUMBER, text) if not marks else []
  return plain_number(found[-1]) if found else None


def _choice(text: str, which: str) -> str | None:
  """The letter of a multiple choice."""
  found = _CHOICE.findall(text)
  if not found:
    found = re.findall(r"answer is:?\s*\(?([A-Z])\)?(?![a-z])", text)
  return found[0 if which == "first" else -1] if found else None


def _boxed(text: str, which: str) -> str | None:
  return last_boxed(text)


TASKS = {
  "math": _math,
  "ocw_courses": _ocw,
  "gsm8k": _gsm8k,
  "mmlu_stem": _choice,
  "boxed": _boxed,
}


def plain_number(text: str) -> str:
  """A number as GSM8K writes it, without dollar signs, blanks and commas."""
  return re.sub(r"[\s$,]", "", text)


def extract_final_answer(
  text: str, task: str = "math", *, which: str = "first"
) -> str | None:
  """The final answer of a solution.

  Args:
    text: the solution, as far as it was generated: the phrase "I hope it is
      correct." may be missing, but not the blank before it.
    task: `math` (`Final Answer: The final answer is ... . I hope it is
      correct.`, one line, this case), `ocw_courses` (the same in any case and
      over lines), `gsm8k` (after `####`, else "the answer is", else the last
      number; commas and dollar signs are taken out), `mmlu_stem` (a letter) or
      `boxed` (the last `\\boxed{}`).
    which: `first` or `last` of several, except for `boxed`.

  Returns:
    The answer, or None if there is none. The paper's evaluation has
    `INVALID` there.

  Raises:
    ValueError: `text` is no text, or an unknown task.
  """
  checks.text("text", text)
  checks.one_of("which", which, ("first", "last"))
  return checks.lookup("task", task, TASKS)(text, which)


def _closing(text: str, start: int) -> int | None:
  """Where the brace that opens at or after `start` closes."""
  depth = 0
  for at in range(start, len(text)):
    if text[at] == "{":
      depth += 1
    elif text[at] == "}":
      depth -= 1
      if depth == 0:
        return at
  return None


def last_boxed(text: str) -> str | None:
  """What stands in the last `\\boxed{}` of a solution.

  `\\boxed 5$` counts too, and `\\fbox{}` where there is no box.

  Args:
    text: a solution.

  Returns:
    The content, or None: no box, or one that does not close.
  """
  checks.text("text", text)
  if "\\boxed " in text:
    return text.split("\\boxed ")[-1].split("$")[0]
  for name in ("\\boxed", "\\fbox"):
    start = text.rfind(name)
    if start >= 0:
      opening, end = text.find("{", start), _closing(text, start)
      return None if end is None or opening < 0 else text[opening + 1 : end]
  return None


_Rules = tuple[tuple[re.Pattern, str], ...]


def _rules(*pairs: tuple[str, str]) -> _Rules:
  """Patterns and what is put in their place, compiled."""
  return tuple((re.compile(pattern), put) for pattern, put in pairs)


# The paper's lists, in its order.
_REPLACED = (
  ("an ", ""),
  ("a ", ""),
  (".$", "$"),
  ("\\$", ""),
  ("\\ ", ""),
  (" ", ""),
  ("mbox", "text"),
  (",\\text{and}", ","),
  ("\\text{and}", ","),
  ("\\text{m}", "\\text{}"),
)
_DELETED = (
  *("square", "ways", "integers", "dollars", "mph", "inches", "ft", "hours"),
  *("km", "units", "\\ldots", "sue", "points", "feet", "minutes", "digits"),
  *("cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges"),
  *("students", "childrentickets", "multiples", "\\text{s}", "\\text{.}"),
  *("\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}", "\\text{}"),
  *("\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"'),
  "\\dots",
)
_REWRITTEN = _rules(
  (r"(.*?)(\$)(.*?)(\$)(.*)", r"$\3$"),
  (r"(\\text\{)(.*?)(\})", r"\2"),
  (r"(\\textbf\{)(.*?)(\})", r"\2"),
  (r"(\\overline\{)(.*?)(\})", r"\2"),
  (r"(\\boxed\{)(.*)(\})", r"\2"),
  (r"(frac)([^{])(.)", r"frac{\2}{\3}"),
  (r"(sqrt)([^{])", r"sqrt{\2}"),
)


def _applied(text: str, rules: _Rules) -> str:
  """The text after all substitutions, one after the other."""
  for pattern, put in rules:
    text = pattern.sub(put, text)
  return text


def _as_the_paper(text: str) -> str:
  text = text.split("=")[-1]
  for one, other in _REPLACED:
    text = text.replace(one, other)
  for word in _DELETED:
    text = text.replace(word, "")
  text = _applied(text, _REWRITTEN)
  text = text.replace("$", "")
  return text.replace(",", "") if text.replace(",", "").isdigit() else text


_UNIT_WORDS = (
  "square|sq|cubic|ways?|integers?|dollars?|mph|inches|inch|ft|hours?|hrs?|km|"
  "cm|mm|gm|kg|units?|points?|foot|feet|minutes?|seconds?|digits?|cents?|"
  "degrees?|pounds?|meters?|meals?|edges?|students?|tickets?|multiples?|miles?|"
  "years?|days?|weeks?|months?|percent|th|sue|per|yards?|gallons?|liters?"
)
_UNIT_TEXT = re.compile(
  rf"\\text\{{[\s.]*(?:(?:{_UNIT_WORDS}|m|s|g)\b[\s.]*)+\}}"
  r"(?:\^(?:[23]|\{[23]\}))?",
  re.IGNORECASE,
)
_UNIT_PLAIN = re.compile(
  rf"(?<=[\d}}\)$\s])\s*\b(?:(?:{_UNIT_WORDS})\b[\s.]*)+(?:\^\{{?[23]\}}?)?$",
  re.IGNORECASE,
)
_TIDIED = _rules(
  (
    r"\\(?:mbox|textrm|textnormal|mathrm|textbf|textit|hbox)(?=\s*\{)",
    r"\\text",
  ),
  (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
  (r"\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])", ""),
  (r"\\[bB]igg?[lr]?(?![a-zA-Z])", ""),
  (r"(?<=\d)(?:\{,\}|,\\!)\s*(?=\d{3}(?!\d))", ""),
  (r"(?<![\\])\\[ ,;:!>]|~", " "),
  (r"\\l?dots(?![a-zA-Z])", ""),
  (r"(\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}\s*)", ","),
  (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})", ""),
  (r"\\[$%]|%", ""),
)
_FINISHED = _rules(
  (r"\\text\{([^{}]*)\}", r"\1"),
  (r"\\(?:boxed|fbox)\s*\{(.*)\}", r"\1"),
  (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
  (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
  (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
  (r"\\sqrt\s*(\d|[a-zA-Z])", r"\\sqrt{\1}"),
  (r"(?<![\w}])\s+|\s+(?![\w\\])|(?<=\})\s+(?=\d)", ""),
  (r"(?<![a-z}])\s+(?=[\\])", ""),
  (r",+", ","),
)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")


def _lone(side: str) -> bool:
  """Whether a side of an equation is a name alone, as in `y = 2x`."""
  return (
    re.fullmatch(r"\s*\\?[a-zA-Z]+(?:_\{?\w+\}?)?(?:\([a-z,]+\))?\s*", side)
    is not None
  )


def _repaired(text: str) -> str:
  """What the paper's function is for, without what it breaks."""
  text = text.strip()
  inner = re.fullmatch(r"(?:.*?[^\\])?\$(.+?)(?<!\\)\$\.?", text, re.DOTALL)
  text = inner[1] if inner else text
  left, sign, right = text.rpartition("=")
  if sign and _lone(left.rpartition("=")[0] or left):
    text = right
  text = _applied(text, _TIDIED)
  text = _UNIT_TEXT.sub("", text)
  text = _UNIT_PLAIN.sub("", text)
  text = re.sub(r"^\s*(?:an?|the)\s+(?=\S)", "", text)
  text = _applied(text, _FINISHED)
  text = text.strip().rstrip(".")
  return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def normalize_answer(text: str, mode: str = "paper") -> str:
  """An answer in the form in which answers are compared as texts.

  Args:
    text: an answer, as `extract_final_answer` gives it.
    mode: `paper`, bit for bit; or `robust`.

  Raises:
    ValueError: `text` is no text, or an unknown mode.
  """
  checks.text("text", text)
  checks.one_of("mode", mode, MODES)
  return _as_the_paper(text) if mode == "paper" else _repaired(text)
