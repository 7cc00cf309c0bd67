r"""Text of papers from their TeX sources, mathematics as it stands.

    files = flatten(read_folder(folder))
    text, reason = clean_tex([files], title="...")

After Lewkowycz et al. 2022 (arXiv 2206.14858, appendix on the arXiv data):
comments go, and what stands before the first section or behind the appendix or
the references.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from locojax.core import checks
from locojax.data import folders

# In the order in which they are looked for.
REASONS = ("empty", "no_section", "no_newline", "too_long", "token_rate")
_BEGIN = re.compile(r"\\section\*?\s*\{")
_END = re.compile(
  r"\\appendix(?![a-zA-Z])|\\begin\s*\{thebibliography\}|\\bibliography\s*\{"
  r"|\\section\*?\s*\{References\}|\\end\s*\{document\}"
)
# What a `%` does not end: source listings, and addresses.
_LITERAL = re.compile(
  r"\\begin\{(verbatim\*?|Verbatim|lstlisting|minted)\}.*?\\end\{\1\}"
  r"|\\verb\*?([^a-zA-Z\s*])(?:(?!\2)[^\n])*\2"
  r"|\\(?:url|path|href)\s*\{[^{}\n]*\}"
  r"|\\\\|\\%|(?P<comment>%[^\n]*)",
  re.DOTALL,
)
_ALONE = re.compile(r"^[ \t]*\0(?:\n|\Z)", re.MULTILINE)
_BESIDE = re.compile(r"[ \t]*\0")
_INPUT = re.compile(
  r"\\(?:input|include|subfile)(?:\s*\{([^{}\n]+)\}|\s+([^\s{}\\%]+))"
)
_MAIN = re.compile(r"\\(?:documentclass|documentstyle)(?![a-zA-Z])")


def without_comments(text: str) -> str:
  r"""A source without its comments.

  Lines that are a comment alone go; before another comment, blanks at the end
  of the line go too. `\%` is a per cent sign, and so is `%` in `verbatim`,
  listings, `\verb` and addresses.

  >>> without_comments("a % b\n% c\n5\\% d")
  'a\n5\\% d'
  """
  mark = lambda found: "\0" if found["comment"] else found[0]
  text = _LITERAL.sub(mark, text.replace("\0", ""))
  return _BESIDE.sub("", _ALONE.sub("", text))


def clean_tex(
  files: Sequence[str],
  *,
  title: str = "",
  abstract: str = "",
  count_tokens: Callable[[str], int] | None = None,
  max_tokens: int = 75_000,
  max_tokens_per_char: float = 0.5,
) -> tuple[str, None] | tuple[None, str]:
  r"""The body of a paper, or why there is none.

  Args:
    files: sources, in the order in which they are read.
    title, abstract: stand before the body; may be empty.
    count_tokens: of a text; None does not look at tokens.
    max_tokens: papers of more are dropped (`too_long`).
    max_tokens_per_char: and those of more per character (`token_rate`).

  Returns:
    `(text, None)` or `(None, reason)`, the reason one of `REASONS`.

  Raises:
    ValueError: a limit that is not positive.
  """
  checks.positive_int("max_tokens", max_tokens)
  checks.positive("max_tokens_per_char", max_tokens_per_char)
  whole = without_comments("\n".join(files).replace("\r\n", "\n"))
  if not whole.strip():
    return None, "empty"
  begin = _BEGIN.search(whole)
  if begin is None:
    return None, "no_section"
  body = whole[begin.start() :]
  end = _END.search(body)
  body = body[: end.start()].strip() if end else body.strip()
  if "\n" not in body:
    return None, "no_newline"
  heads = (part.strip() for part in (title, abstract))
  text = "\n\n".join([*filter(None, heads), body])
  if count_tokens is not None:
    num_tokens = count_tokens(text)
    if num_tokens > max_tokens:
      return None, "too_long"
    if num_tokens > max_tokens_per_char * len(text):
      return None, "token_rate"
  return text, None


def _decoded(content: bytes) -> str:
  """UTF-8, or what was usual before it."""
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError:
    return content.decode("latin-1")


def read_folder(folder: str | os.PathLike) -> dict[str, str]:
  """The `.tex` files of a folder at any depth, by their path in it.

  Raises:
    OSError: one cannot be read.
  """
  root = pathlib.Path(folder)
  found = (p for p in folders.visible(root, deep=True) if p.suffix == ".tex")
  return {
    p.relative_to(root).as_posix(): _decoded(p.read_bytes()) for p in found
  }


def main_of(files: Mapping[str, str]) -> str | None:
  r"""The file that a paper begins with.

  It is one with `\documentclass`, and of several the one that reads most of the
  others, then the first by name; None if no file has it.
  """
  found = [
    name
    for name in sorted(files)
    if _MAIN.search(without_comments(files[name]))
  ]
  reach = lambda name: len(set(_reached(files, name)))
  return max(found, key=reach, default=None)


def _reached(files: Mapping[str, str], name: str) -> Iterator[str]:
  seen, left = set(), [name]
  while left:
    now = left.pop()
    if now in seen:
      continue
    seen.add(now)
    yield now
    text = without_comments(files[now])
    for found in _INPUT.finditer(text):
      other = _named(files, now, found[1] or found[2])
      left.extend([other] if other else [])


def _named(files: Mapping[str, str], here: str, name: str) -> str | None:
  """The file that an `\\input` names, from the root or from where it stands."""
  name = name.strip().strip('"')
  for base in ("", here.rpartition("/")[0]):
    for tried in (name, f"{name}.tex"):
      path = os.path.normpath(os.path.join(base, tried)).replace(os.sep, "/")
      if path in files:
        return path
  return None


def flatten(files: Mapping[str, str]) -> str:
  r"""The sources of a paper as one, `\input` and `\include` followed.

  Each file is read once, where it is first named, and what is not there stays
  as it is. Without a main file, all follow each other by name; files that the
  main one does not reach are left out.

  Args:
    files: sources by path, of `read_folder`.
  """
  main = main_of(files)
  if main is None:
    return "\n".join(files[name] for name in sorted(files))
  return _expanded(files, main, {main})


def _expanded(files: Mapping[str, str], name: str, seen: set[str]) -> str:
  def put(found: re.Match) -> str:
    other = _named(files, name, found[1] or found[2])
    if other is None or other in seen:
      return found[0]
    seen.add(other)
    return _expanded(files, other, seen)

  return _INPUT.sub(put, without_comments(files[name]))
