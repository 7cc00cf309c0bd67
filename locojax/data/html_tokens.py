"""HTML as a stream of tokens, by the rules that browsers cut it by.

Linear in the length of the page whatever it holds: a tag, comment or quoted
value that is not closed ends with the page, as the standard has it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import NamedTuple

# A tag, with its attributes; or a comment, a declaration, a CDATA section.
_MARKUP = re.compile(
  r"<(?:"
  r"(?P<close>/?)(?P<name>[a-zA-Z][^\s/>]*)"
  r"(?P<attributes>(?:[^>\"'=]++|=\s*+\"[^\"]*+(?:\"|\Z)|=\s*+'[^']*+(?:'|\Z)"
  r"|=|[\"'])*+)(?P<end>>|\Z)"
  r"|!\[CDATA\[(?P<cdata>.*?)(?:\]\]>|\Z)"
  r"|!--(?:-?>|.*?(?:--!?>|\Z))"
  r"|[!?/][^>]*+(?:>|\Z)"
  r")",
  re.DOTALL,
)
_ATTRIBUTE = re.compile(
  r"([^\s\"'>/=]+)(?:\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>][^\s>]*)))?"
)
# Their content is text whatever it looks like.
RAW = frozenset(
  {"script", "style", "textarea", "title", "xmp", "iframe", "noembed"}
)
_END_OF = {
  name: re.compile(rf"</{name}(?=[\s/>])[^>]*>?", re.IGNORECASE) for name in RAW
}
TEXT, OPEN, CLOSE, CDATA = "text", "open", "close", "cdata"


class Token(NamedTuple):
  """A piece of a page.

  Attributes:
    kind: `text`, `open`, `close` or `cdata`.
    value: the text as it stands in the page (entities not decoded), or the name
      of the element in lower case, without a prefix (`m:math` is `math`).
    attributes: as they stand in the page; of `open` alone.
    content: of an element in `RAW`, as it stands in the page.
  """

  kind: str
  value: str
  attributes: str = ""
  content: str = ""


def attributes_of(token: Token) -> dict[str, str]:
  """The attributes of an opened element, entities decoded; the first counts."""
  out: dict[str, str] = {}
  for name, *values in _ATTRIBUTE.findall(token.attributes):
    out.setdefault(name.lower(), html.unescape("".join(values)))
  return out


def tokens(page: str) -> Iterator[Token]:
  """The tokens of a page; comments and declarations are left out.

  >>> [(t.kind, t.value) for t in tokens("<p>a < b<!-- c --></p>")]
  [('open', 'p'), ('text', 'a < b'), ('close', 'p')]
  """
  at, told = 0, 0
  while True:
    found = _MARKUP.search(page, at)
    start = found.start() if found else len(page)
    if found is not None and found["name"] is None and found["cdata"] is None:
      if start > told:
        yield Token(TEXT, page[told:start])
      at = told = found.end()
      continue
    if start > told:
      yield Token(TEXT, page[told:start])
    if found is None:
      return
    at = told = found.end()
    if found["cdata"] is not None:
      yield Token(CDATA, found["cdata"])
      continue
    name = found["name"].lower().rpartition(":")[2]
    if found["close"]:
      yield Token(CLOSE, name)
      continue
    content = ""
    if name in RAW:
      end = _END_OF[name].search(page, at)
      content = page[at : end.start() if end else len(page)]
      at = told = end.end() if end else len(page)
    yield Token(OPEN, name, found["attributes"], content)
