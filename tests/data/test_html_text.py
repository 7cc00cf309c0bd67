"""Pages as text: every formula by its source, once, in the same characters."""

from __future__ import annotations

import collections
import gzip
import html
import json
import re
import time

import numpy as np
import pytest

from locojax.data import html_text, html_tokens

_TEX = r"\frac{a}{b} < c & d"
_ESCAPED = html.escape(_TEX, quote=False)
_KATEX = (
  '<span class="katex"><span class="katex-mathml"><math><semantics>'
  "<mrow><mi>a</mi></mrow>"
  f'<annotation encoding="application/x-tex">{_ESCAPED}</annotation>'
  "</semantics></math></span>"
  '<span class="katex-html" aria-hidden="true"><span class="base">a</span>'
  "</span></span>"
)
_BLOCK = _KATEX.replace("<math>", '<math display="block">')
_MATHJAX = (
  '<span class="MathJax_Preview"></span><span class="MathJax" id="1"><nobr>'
  '<span>a</span></nobr><span class="MJX_Assistive_MathML"><math><mi>a</mi>'
  "</math></span></span>"
)
# Page, text, and what is counted.
CASES = {
  "script": (
    f'<p>If {_MATHJAX}<script type="math/tex">{_TEX}</script>, then</p>',
    f"If ${_TEX}$, then",
    {"script": 1},
  ),
  "display": (
    f'x<script type="math/tex; mode=display">{_TEX}</script>y',
    f"x$${_TEX}$$y",
    {"script": 1},
  ),
  "latex": (
    '<script type="math/latex">x</script><script>var x = 1</script>',
    "$x$",
    {"script": 1},
  ),
  "asciimath": (
    '<script type="math/asciimath">a/b</script>',
    "`a/b`",
    {"script": 1},
  ),
  "katex": (
    f"so {_KATEX}.",
    f"so ${_TEX}$.",
    {"mathml_annotation": 1},
  ),
  "katex block": (
    _BLOCK,
    f"$${_TEX}$$",
    {"mathml_annotation": 1},
  ),
  "katex display": (
    f'<span class="katex-display">{_KATEX}</span>' + _KATEX,
    f"$${_TEX}$$${_TEX}$",
    {"mathml_annotation": 2},
  ),
  "encyclopedia": (
    '<math alttext="{\\displaystyle x_{1}}"><semantics><mi>x</mi><annotation '
    'encoding="application/x-tex">{\\displaystyle x_{1}}</annotation>'
    "</semantics></math>"
    '<img class="mwe-math-fallback-image-inline" alt="{\\displaystyle x_{1}}">',
    "$x_{1}$",
    {"mathml_annotation": 1},
  ),
  "alttext": (
    '<math alttext="x^2"><mi>x</mi></math>',
    "$x^2$",
    {"mathml_alttext": 1},
  ),
  "prefix": (
    "<m:math><m:annotation encoding='application/x-tex'><![CDATA[a<b]]>"
    "</m:annotation></m:math>",
    "$a<b$",
    {"mathml_annotation": 1},
  ),
  "presentation alone": (
    "a <math><mi>x</mi></math> b",
    "a b",
    {"unparsed": 1},
  ),
  "image": (
    '<img class="latex" alt="x &lt; 1" src="a.png">'
    '<div class="math"><p><img class="math" alt="y" src="b.png"/></p></div>'
    '<img src="cat.png" alt="a cat">',
    "$x < 1$\n$$y$$",
    {"image": 2},
  ),
  "image without alt": ('<img class="tex">', "", {"unparsed": 1}),
  "delimited": (
    '<span class="math">\\(a  &lt;\n b\\)</span> and \\[c\n\n  d\\] and \\(e',
    "\\(a  <\n b\\) and \\[c\n\n  d\\] and \\(e",
    {"delimited": 2},
  ),
  "line break before a bracket": (
    "\\[a\\\\(n+1) b\\]",
    "\\[a\\\\(n+1) b\\]",
    {"delimited": 1},
  ),
  "environment": (
    "\\begin{align*}a\n&amp;b\\end{align*}",
    "\\begin{align*}a\n&b\\end{align*}",
    {"delimited": 1},
  ),
  "code is no formula": ("<code>\\(x\\)</code>", "\\(x\\)", {}),
  "rendered alone": (
    "a<mjx-container><svg><text>x</text></svg></mjx-container>b",
    "ab",
    {"rendered": 1},
  ),
  "dropped": (
    "<head><title>t</title><style>p{}</style></head><noscript>n</noscript>"
    "<template><p>t</p></template><style>a</style><!-- c --><p>x</p>",
    "x",
    {},
  ),
  "head without an end": ("<head><title>t</title><body>x", "x", {}),
  "lines": (
    "<ul><li>a<li> b \n c<br>d</ul><hr><pre>if x:\n  y\n\n</pre>e&nbsp; f",
    "a\nb c\nd\nif x:\n  y\ne f",
    {},
  ),
  "not closed": ("<div><p>a <b>b <i>c<p>d <span class=katex", "a b c\nd", {}),
  "less than": ("a < b and 1<2 </ p> c", "a < b and 1<2 c", {}),
  "quoted": ("<a title='x > y' b=\"<p>\">c</a>", "c", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_page(name):
  page, text, counts = CASES[name]
  found, told = html_text.extract_math_text(page)
  assert found == text
  assert told == {**dict.fromkeys(html_text.COUNTS, 0), **counts}


def test_whole_wrappers_alone_are_removed():
  wrapped = r"{\displaystyle {a}\}{b}}"
  assert html_text.without_style(wrapped) == r"{a}\}{b}"
  for plain in (r"{\displaystyle a}{b}", r"{\displaystyles a}", "{a}", "", "{"):
    assert html_text.without_style(plain) == plain


def test_tokens_are_the_whole_page():
  page = "<P Class=A b='1' b=2 c>x<br/>&amp;<SCRIPT>a<b</p></Script >y"
  found = list(html_tokens.tokens(page))
  assert [t.value for t in found] == ["p", "x", "br", "&amp;", "script", "y"]
  attributes = html_tokens.attributes_of(found[0])
  assert attributes == {"class": "A", "b": "1", "c": ""}
  assert found[4].content == "a<b</p>"


def test_pages_of_any_characters_are_read():
  rng = np.random.default_rng(0)
  parts = ["<", ">", "</", "<p", " a='", '"', "<!--", "-->", "<math", "</math>"]
  parts += ["<script", "\\(", "\\)", "$$", "&", "&lt;", "x", "\n", "<![CDATA["]
  parts += [
    "<annotation encoding=application/x-tex>",
    "]]>",
    "<pre>",
    "=",
    "/>",
  ]
  for _ in range(300):
    page = "".join(rng.choice(parts, 40))
    text, counts = html_text.extract_math_text(page)
    assert isinstance(text, str) and min(counts.values()) >= 0


@pytest.mark.parametrize(
  "part",
  ["<a b='", "<", "\\(", "<!--", "<![CDATA[", "<script>", "$$", "<a =", "{"],
)
def test_time_is_linear(part):
  """A page of 400 kB of one opening; a quadratic reader takes minutes."""
  start = time.process_time()
  html_text.extract_math_text(part * (400_000 // len(part)))
  assert time.process_time() - start < 20


def test_a_page_that_is_no_text_is_refused():
  with pytest.raises(ValueError, match="page"):
    html_text.extract_math_text(b"<p>")


_SPHINX = re.compile(
  r'<(?:span|div) class="math[^"]*">\s*(\\[(\[].*?\\[)\]])</', re.DOTALL
)


@pytest.mark.real_data
def test_every_formula_of_real_pages_is_kept(data_dir):
  path = data_dir / "text" / "mathjax_pages.jsonl.gz"
  total = 0
  with gzip.open(path, "rt", encoding="utf-8") as file:
    for line in file:
      page = json.loads(line)["html"]
      wanted = [html.unescape(f) for f in _SPHINX.findall(page)]
      text, counts = html_text.extract_math_text(page)
      assert counts["delimited"] == len(wanted)
      assert not re.search(r"</?(?:p|div|span|a|table|script)[\s>]", text)
      for formula, times in collections.Counter(wanted).items():
        assert text.count(formula) >= times
      total += len(wanted)
  # The file says 8465: 14 are settings in a script, one is `\\(` in a formula.
  assert total == 8450
