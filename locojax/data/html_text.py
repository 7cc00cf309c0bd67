r"""Text of web pages with their mathematics in LaTeX.

    text, counts = extract_math_text(page)

A formula is kept by its source, in the same characters, wherever the page has
it: scripts of MathJax, annotations of MathML (KaTeX, Wikipedia), `alttext`,
pictures with TeX as `alt`, or `\(...\)` as it stands; what is drawn from it is
dropped, so that nothing comes twice (Lewkowycz et al. 2022, arXiv 2206.14858,
section 2.1; its expressions are not public).
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

from locojax.core import checks
from locojax.data import html_tokens
from locojax.data.html_tokens import CDATA, CLOSE, OPEN, TEXT, Token

# What is counted, in this order.
COUNTS = (
  "script",
  "mathml_annotation",
  "mathml_alttext",
  "image",
  "delimited",
  "unparsed",
  "rendered",
)
KEPT = COUNTS[:5]


def _names(text: str) -> frozenset[str]:
  return frozenset(text.split())


_BLOCKS = _names(
  "address article aside blockquote br button caption center dd details "
  "dialog dir div dl dt fieldset figcaption figure footer form h1 h2 h3 "
  "h4 h5 h6 header hgroup hr legend li listing main menu nav ol optgroup "
  "option p pre search section select summary table tbody td tfoot th "
  "thead tr ul"
)
_DROPPED = frozenset({"noscript", "template"})
_RENDERED = _names(
  "MathJax MathJax_Display MathJax_Preview MathJax_SVG "
  "MathJax_SVG_Display MathJax_CHTML mjx-chtml MJX_Assistive_MathML "
  "katex-html"
)
_IN_HEAD = frozenset(
  {"title", "meta", "link", "base", "script", "style", *_DROPPED}
)
_MARKED = re.compile(r"mathjax|mjx|katex|\bmath\b", re.IGNORECASE)
_IMAGES = frozenset({"tex", "latex", "math"})
_VERBATIM = frozenset({"pre", "listing", "textarea", "xmp"})
_CODE = frozenset({"code", "kbd", "samp", "tt", *_VERBATIM})
_VOID = _names("area base br col embed hr img input link meta source track wbr")
_TAGS = (OPEN, CLOSE)
_SPACE = re.compile(r"[ \t\n\r\f\v\xa0]+")
_DELIMITER = re.compile(
  r"\\\\|\\\(|\\\)|\\\[|\\\]|\$\$|\\(?:begin|end)\{[a-zA-Z]+\*?\}"
)
_TEX_TYPES = ("math/tex", "math/latex")
_PAIRS = {"\\(": "\\)", "\\[": "\\]", "$$": "$$"}
_STYLE = re.compile(r"\{\s*\\(?:displaystyle|textstyle)(?![a-zA-Z])\s*")


def _closer(opened: str) -> str | None:
  """What ends a formula that begins so; None if nothing begins."""
  if opened.startswith("\\begin"):
    return "\\end" + opened[len("\\begin") :]
  return _PAIRS.get(opened)


def delimited(text: str) -> list[tuple[int, int]]:
  r"""Where formulas stand in a text.

  They are `\(..\)`, `\[..\]`, `$$..$$` and environments. An opening
  without an end is text. Linear in the length of the text.

  Returns:
    `(start, end)` of each, delimiters included.

  >>> delimited(r"a \(b\) c")
  [(2, 7)]
  """
  found: list[tuple[int, int]] = []
  start, wanted = 0, None
  for match in _DELIMITER.finditer(text):
    if match[0] == wanted:
      found.append((start, match.end()))
      wanted = None
    elif wanted is None or _PAIRS.get(match[0]) == wanted:  # again
      opened = _closer(match[0])
      if opened is not None:
        start, wanted = match.start(), opened
  return found


def without_style(tex: str) -> str:
  r"""A formula without `{\displaystyle ...}` around all of it.

  >>> without_style(r"{\displaystyle x^{2}}")
  'x^{2}'
  """
  found = _STYLE.match(tex)
  if not found or not tex.endswith("}"):
    return tex
  depth, at = 1, 1
  while at < len(tex) and depth:
    if tex[at] == "\\":
      at += 1
    elif tex[at] in "{}":
      depth += 1 if tex[at] == "{" else -1
    at += 1
  return tex[found.end() : -1] if not depth and at == len(tex) else tex


class _Lines:
  """Text as it is put together: blanks collapse, formulas stay as they are."""

  def __init__(self):
    self._lines: list[str] = []
    self._line: list[str] = []
    self._blank = True  # whether a blank would be one too many

  def text(self, text: str) -> None:
    """Running text."""
    text = _SPACE.sub(" ", text)
    if self._blank:
      text = text.removeprefix(" ")
    if text:
      self._line.append(text)
      self._blank = text[-1] == " "

  def kept(self, text: str) -> None:
    """What stays as it is."""
    if text:
      self._line.append(text)
      self._blank = False

  def end(self) -> None:
    """Ends the line, if it has anything."""
    line = "".join(self._line).rstrip()
    if line.strip():
      self._lines.append(line)
    self._line, self._blank = [], True

  def lines(self, text: str) -> None:
    """Text whose line ends and indentation count."""
    first, *rest = text.split("\n")
    self.kept(first)
    for line in rest:
      self.end()
      self.kept(line)

  def result(self) -> str:
    """All lines."""
    self.end()
    return "\n".join(self._lines)


class _Scope:
  """An element that is open; elements of its name inside it are counted."""

  def __init__(self, name: str = ""):
    self.name, self._depth = name, int(bool(name))

  def __bool__(self) -> bool:
    return self._depth > 0

  def see(self, token: Token) -> None:
    """Takes note of a tag."""
    if self._depth and token.value == self.name:
      self._depth += {OPEN: 1, CLOSE: -1}.get(token.kind, 0)


class _Page:
  """Reads the tokens of one page."""

  def __init__(self):
    self.counts = dict.fromkeys(COUNTS, 0)
    self._out = _Lines()
    self._skipped, self._display = _Scope(), _Scope()
    self._pre, self._code = _Scope(), _Scope()
    self._scopes: list[_Scope] = []  # those three, while they are open
    self._head = False
    self._math: dict | None = None

  def read(self, token: Token) -> None:
    """Takes the next token."""
    if self._scopes and token.kind in _TAGS:
      for scope in self._scopes:
        scope.see(token)
      self._scopes = [scope for scope in self._scopes if scope]
    if self._skipped:
      self._skipped.see(token)
    elif self._math is not None:
      self._in_math(token)
    elif token.kind == TEXT:
      self._text(token.value)
    elif token.kind == OPEN:
      self._open(token)
    elif token.kind == CLOSE:
      self._close(token)

  def result(self) -> tuple[str, dict[str, int]]:
    """Text and counts, when all is read."""
    if self._math is not None:
      self._end_math()
    return self._out.result(), self.counts

  def _formula(self, tex: str, kind: str, display: bool) -> None:
    quote = "$$" if display else "$"
    self._out.kept(f"{quote}{tex}{quote}")
    self.counts[kind] += 1

  def _text(self, text: str) -> None:
    if self._head:
      return
    text = html.unescape(text) if "&" in text else text
    if self._pre:
      self._out.lines(text)
      return
    at = 0
    if ("\\" in text or "$$" in text) and not self._code:
      for start, end in delimited(text):
        self._out.text(text[at:start])
        self._out.kept(text[start:end])
        self.counts["delimited"] += 1
        at = end
    self._out.text(text[at:])

  def _open(self, token: Token) -> None:
    name = token.value
    if self._head and name not in _IN_HEAD:
      self._head = False
    if name in _BLOCKS:
      self._out.end()
    if name == "head":
      self._head = True
    elif name == "script":
      self._script(token)
    elif name == "math":
      self._begin_math(token)
    elif name == "mjx-container" or name in _DROPPED:
      self.counts["rendered"] += name == "mjx-container"
      self._skip(token)
    elif name == "img":
      self._image(html_tokens.attributes_of(token))
    elif name in html_tokens.RAW:
      self._raw(token)
    else:
      self._element(token)

  def _raw(self, token: Token) -> None:
    if token.value in _VERBATIM:
      self._out.lines(html.unescape(token.content))

  def _element(self, token: Token) -> None:
    """What its class says of an element."""
    name = token.value
    if name in _VERBATIM and not self._pre:
      self._pre = self._opened(name)
    if name in _CODE and not self._code:
      self._code = self._opened(name)
    if name in _VOID or not _MARKED.search(token.attributes):
      return
    classes = set(html_tokens.attributes_of(token).get("class", "").split())
    if classes & _RENDERED:
      self._skip(token)
    elif not self._display and (
      "katex-display" in classes or (name == "div" and "math" in classes)
    ):
      self._display = self._opened(name)

  def _opened(self, name: str) -> _Scope:
    self._scopes.append(_Scope(name))
    return self._scopes[-1]

  def _skip(self, token: Token) -> None:
    if not token.attributes.rstrip().endswith("/"):
      self._skipped = _Scope(token.value)

  def _close(self, token: Token) -> None:
    if token.value == "head":
      self._head = False
    if token.value in _BLOCKS:
      self._out.end()

  def _script(self, token: Token) -> None:
    kind = html_tokens.attributes_of(token).get("type", "").lower()
    kind, _, mode = kind.partition(";")
    if kind.strip() in _TEX_TYPES:
      content = token.content.strip()
      content = content.removeprefix("% <![CDATA[").removesuffix("% ]]>")
      self._formula(content, "script", "display" in mode)
    elif kind.strip() == "math/asciimath":
      self._out.kept(f"`{token.content}`")
      self.counts["script"] += 1

  def _image(self, found: Mapping[str, str]) -> None:
    alt = found.get("alt", "")
    if not _IMAGES & set(found.get("class", "").lower().split()):
      return
    if not alt.strip():
      self.counts["unparsed"] += 1
    elif alt.startswith("$") and alt.endswith("$") and len(alt) > 1:
      self._out.kept(alt)
      self.counts["image"] += 1
    else:
      self._formula(alt, "image", bool(self._display))

  def _begin_math(self, token: Token) -> None:
    found = html_tokens.attributes_of(token)
    display = found.get("display") == "block" or found.get("mode") == "display"
    self._math = {
      "alttext": found.get("alttext", ""),
      "display": display or bool(self._display),
      "tex": None,
      "inside": False,
    }
    if token.attributes.rstrip().endswith("/"):
      self._end_math()

  def _in_math(self, token: Token) -> None:
    """Looks for the annotation of a formula, and for its end."""
    now = self._math
    if token.kind == OPEN and token.value == "annotation":
      kind = html_tokens.attributes_of(token).get("encoding", "").lower()
      wanted = kind in ("application/x-tex", "application/x-latex", "tex")
      now["inside"] = wanted and now["tex"] is None
      if now["inside"]:
        now["tex"] = ""
    elif token.kind == CLOSE and token.value == "annotation":
      now["inside"] = False
    elif token.kind in (TEXT, CDATA) and now["inside"]:
      plain = token.value if token.kind == CDATA else html.unescape(token.value)
      now["tex"] += plain
    elif token.kind == CLOSE and token.value == "math":
      self._end_math()

  def _end_math(self) -> None:
    now, self._math = self._math, None
    tex, alttext = (now["tex"] or "").strip(), now["alttext"].strip()
    if tex:
      self._formula(without_style(tex), "mathml_annotation", now["display"])
    elif alttext:
      self._formula(without_style(alttext), "mathml_alttext", now["display"])
    else:
      self.counts["unparsed"] += 1


def extract_math_text(page: str) -> tuple[str, dict[str, int]]:
  r"""The text of a page, its formulas as `$...$` and `$$...$$`.

  Blanks and line ends of running text are one blank, block elements begin a
  line, empty lines go; `pre` keeps its lines and their indentation. Tags that
  are not closed do no harm.

  Args:
    page: HTML.

  Returns:
    `(text, counts)`, the counts by `COUNTS`: formulas from a `script`
    (AsciiMath among them, in backticks), a `mathml_annotation`,
    `mathml_alttext` or `image`; `delimited` in running text, which stay as they
    are; `unparsed` ones that have no source and are lost; and elements of
    MathJax 3 that are `rendered`, which are dropped.

  Raises:
    ValueError: the page is no text.

  >>> page = '<p>If <script type="math/tex">x<1</script>, then</p>'
  >>> extract_math_text(page)[0]
  'If $x<1$, then'
  """
  checks.text("page", page)
  reader = _Page()
  for token in html_tokens.tokens(page.replace("\r\n", "\n")):
    reader.read(token)
  return reader.result()


def num_kept(counts: Mapping[str, int]) -> int:
  """Formulas that are in the text."""
  return sum(counts[name] for name in KEPT)
