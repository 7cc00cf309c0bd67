"""What the data pipeline reads: pages and papers, cut into shards.

A shard is a list of documents that are read one after the other. Which these
are depends on the inputs and `docs_per_shard`, never on how many work.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from locojax.core import checks
from locojax.data import folders, tex_text

KINDS = ("html", "tex")
_PAGES = (".html", ".htm", ".xhtml")
_META = "metadata.json"


@dataclasses.dataclass(frozen=True)
class Shard:
  """Documents of one input.

  Attributes:
    number: of the shard.
    kind: `html` or `tex`.
    path: of the input.
    names: of files or folders in it; none for a file of JSON lines.
    first: number of the first document in the input.
    count: how many.
    prefix: of the names of documents.
  """

  number: int
  kind: str
  path: str
  names: tuple[str, ...]
  first: int
  count: int
  prefix: str

  @property
  def name(self) -> str:
    """Of its files."""
    return f"{self.number:05d}"


@dataclasses.dataclass(frozen=True)
class Document:
  """A document as it was found.

  Attributes:
    id: names it, in the order of the inputs.
    kind: `html` or `tex`.
    source: where it is from.
    content: a page, or the sources of a paper as one text; None if it could
      not be read.
    title, abstract: of a paper, if known.
  """

  id: str
  kind: str
  source: str
  content: str | None
  title: str = ""
  abstract: str = ""


def _opened(path: str) -> Any:
  opener = gzip.open if path.endswith(".gz") else open
  return opener(path, "rt", encoding="utf-8")


def _is_lines(path: pathlib.Path) -> bool:
  return path.name.removesuffix(".gz").endswith(".jsonl")


def _names(kind: str, path: pathlib.Path) -> list[str]:
  """The pages or papers of a folder, sorted."""
  if kind == "html":
    found = folders.visible(path, deep=True)
    return [p.relative_to(path).as_posix() for p in found if p.suffix in _PAGES]
  inside = folders.visible(path, deep=False)
  if any(p.suffix == ".tex" for p in inside):
    return ["."]
  return [p.name for p in inside if p.is_dir()]


def _count(kind: str, path: pathlib.Path) -> tuple[int, list[str]]:
  if not path.exists():
    checks.refuse(f"--{kind}", str(path), "a file or folder that is there")
  if path.is_dir():
    names = _names(kind, path)
    return len(names), names
  if kind != "html" or not _is_lines(path):
    checks.refuse(
      f"--{kind}",
      str(path),
      "a folder, or (of pages) a file of JSON lines, .jsonl or .jsonl.gz",
    )
  with _opened(str(path)) as file:
    return sum(1 for _ in file), []


def plan(
  inputs: Sequence[tuple[str, str]], *, docs_per_shard: int
) -> list[Shard]:
  """The shards of all inputs, in order.

  Args:
    inputs: kind and path of each.
    docs_per_shard: documents of a shard, at most.

  Raises:
    ValueError: an input that is not there or holds no documents.
  """
  checks.positive_int("docs_per_shard", docs_per_shard)
  shards: list[Shard] = []
  for number, (kind, text) in enumerate(inputs):
    path = pathlib.Path(text)
    total, names = _count(checks.one_of("kind", kind, KINDS), path)
    if not total:
      checks.refuse(f"--{kind}", text, "an input with documents")
    label = path.name.partition(".")[0] or kind
    for first in range(0, total, docs_per_shard):
      count = min(docs_per_shard, total - first)
      part = tuple(names[first : first + count])
      prefix = f"{number:03d}-{label}"
      at = len(shards)
      shards.append(Shard(at, kind, text, part, first, count, prefix))
  return shards


def _row(line: str) -> dict[str, Any]:
  try:
    row = json.loads(line)
  except ValueError:
    return {}
  return row if isinstance(row, dict) else {}


def _lines(shard: Shard) -> Iterator[Document]:
  """Pages of a file of JSON lines, of its field `html`."""
  with _opened(shard.path) as file:
    for number, line in enumerate(file):
      if number >= shard.first + shard.count:
        return
      if number < shard.first:
        continue
      row = _row(line)
      page = row.get("html")
      source = row.get("url") or row.get("path") or f"{shard.path}:{number + 1}"
      yield Document(
        f"{shard.prefix}/{number:08d}",
        "html",
        str(source),
        page if isinstance(page, str) else None,
      )


def _page(path: pathlib.Path) -> str | None:
  try:
    return path.read_bytes().decode("utf-8-sig")
  except (OSError, UnicodeDecodeError):
    return None


def _paper(folder: pathlib.Path) -> dict[str, Any]:
  """Sources of a paper as one, with the title and abstract of its metadata."""
  found: dict[str, Any] = {"content": None}
  try:
    files = tex_text.read_folder(folder)
  except OSError:
    return found
  found["content"] = tex_text.flatten(files)
  meta = folder / _META
  row = _row(meta.read_text("utf-8", "replace")) if meta.is_file() else {}
  for key in ("title", "abstract"):
    if isinstance(row.get(key), str):
      found[key] = row[key]
  return found


def documents(shard: Shard) -> Iterator[Document]:
  """The documents of a shard, in order."""
  if not shard.names:
    yield from _lines(shard)
    return
  for number, name in enumerate(shard.names, shard.first):
    path = pathlib.Path(shard.path) / name
    found = _paper(path) if shard.kind == "tex" else {"content": _page(path)}
    yield Document(
      f"{shard.prefix}/{number:08d}", shard.kind, path.as_posix(), **found
    )
