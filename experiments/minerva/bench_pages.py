"""Text of pages with formulas, against trafilatura and resiliparse.

  python -m experiments.minerva.bench_pages --pages DIR/text/... \\
    --results FILE.json

`--pages` is a file of JSON lines with `html` (gzip or not). Pages are read as
they are, and with their formulas written in other ways of the web: scripts of
MathJax, KaTeX, MathML with and without drawn duplicates, pictures. CPU seconds
are of one process each; the others have an environment of their own. Of a
formula's characters all must be in the text, blanks apart, as often as the page
has it; formulas of fewer than 6 are left out, as they stand in any text by
chance. Marked are those that stand in delimiters of mathematics; drawn is how
often what was drawn of a formula stands beside its source.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import html
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from experiments.common import benches, commands, peers
from locojax.core import checks, files
from locojax.data import html_text
from locojax.report import tables

PEER = pathlib.Path(__file__).with_name("bench_pages_peer.py")
PACKAGES = (
  "trafilatura==2.3.1",
  "lxml_html_clean==0.4.6",
  "resiliparse==2.0.1",
)
OURS = "locojax"
SHORTEST = 6
DRAWN = "drawnformula"
_DELIMITERS = (("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
# Formulas as documentation made by Sphinx has them.
_SHIPPED = re.compile(
  r'<(span|div) class="math[^"]*">\s*\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL
)


def read_pages(path: str) -> list[str]:
  """The pages of a file of JSON lines, gzip or not."""
  opened = gzip.open if str(path).endswith(".gz") else open
  with opened(path, "rt", encoding="utf-8") as file:
    pages = [json.loads(line)["html"] for line in file if line.strip()]
  return [page.replace("\r\n", "\n") for page in pages]


def formulas_of(page: str) -> list[str]:
  """The sources of the formulas of a page as it was shipped."""
  return [html.unescape(found[2]).strip() for found in _SHIPPED.findall(page)]


def _script(tex: str, display: bool) -> str:
  mode = "; mode=display" if display else ""
  drawn = f'<span class="MathJax"><span class="mi">{DRAWN}</span></span>'
  source = html.unescape(tex)
  return f'{drawn}<script type="math/tex{mode}">{source}</script>'


def _mathml(tex: str, display: bool) -> str:
  shown = ' display="block"' if display else ""
  return (
    f"<math{shown}><semantics><mrow><mi>{DRAWN}</mi></mrow>"
    f'<annotation encoding="application/x-tex">{tex}</annotation></semantics>'
    "</math>"
  )


def _katex(tex: str, display: bool) -> str:
  inner = (
    f'<span class="katex"><span class="katex-mathml">{_mathml(tex, False)}'
    '</span><span class="katex-html" aria-hidden="true"><span class="mord">'
    f"{DRAWN}</span></span></span>"
  )
  return f'<span class="katex-display">{inner}</span>' if display else inner


def _image(tex: str, display: bool) -> str:
  del display
  alt = tex.replace('"', "&quot;")
  return f'<img class="math" src="a.png" alt="{alt}">'


# Ways to write a formula, of its source as it stands in the page.
WAYS: dict[str, Callable[[str, bool], str] | None] = {
  "as shipped": None,
  "MathJax scripts": _script,
  "KaTeX": _katex,
  "MathML": _mathml,
  "images": _image,
}


def rewritten(page: str, way: str) -> str:
  """A page with its formulas written in one of `WAYS`."""
  made = checks.lookup("way", way, WAYS)
  if made is None:
    return page
  put = lambda found: made(found[3].strip(), found[2] == "[")
  return _SHIPPED.sub(put, page)


def _packed(text: str) -> str:
  return "".join(text.split())


def num_kept(
  text: str, formulas: Sequence[str], *, marked: bool = False
) -> int:
  """How many formulas of a page its text has, or has in delimiters."""
  text, kept = _packed(text), 0
  for tex, n in collections.Counter(map(_packed, formulas)).items():
    forms = [f"{a}{tex}{b}" for a, b in _DELIMITERS] if marked else [tex]
    kept += min(n, sum(map(text.count, forms)))
  return kept


def _long(formulas: Sequence[str]) -> list[str]:
  return [tex for tex in formulas if len(_packed(tex)) >= SHORTEST]


def _ours(pages: Sequence[str]) -> dict[str, Any]:
  start = time.process_time()
  texts = [html_text.extract_math_text(page)[0] for page in pages]
  return {"texts": texts, "cpu_seconds": time.process_time() - start}


def _others(python: str, pages: Sequence[str], folder: pathlib.Path) -> dict:
  given = files.write_json(folder / "pages.json", list(pages))
  command = [python, str(PEER), str(given)]
  done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
  return json.loads(done.stdout)


def _rows(
  way: str,
  pages: Sequence[str],
  formulas: Sequence[list[str]],
  found: dict[str, dict],
) -> list[dict[str, Any]]:
  """A row for each extractor."""
  total, rows = sum(map(len, formulas)), []
  for name, told in found.items():
    seconds = told["cpu_seconds"]
    both = list(zip(told["texts"], formulas, strict=True))
    kept = sum(num_kept(*one) for one in both)
    marked = sum(num_kept(*one, marked=True) for one in both)
    rows.append(
      {
        "formulas": way,
        "extractor": name,
        "pages": len(pages),
        "cpu_seconds": seconds,
        "pages_per_second": len(pages) / seconds,
        "megabytes_per_second": sum(map(len, pages)) / 1e6 / seconds,
        "of_formulas": total,
        "kept": kept,
        "share_kept": kept / total,
        "share_marked": marked / total,
        "drawn": sum(text.count(DRAWN) for text in told["texts"]),
        "characters": sum(map(len, told["texts"])),
      }
    )
  return rows


def measure(
  pages: Sequence[str],
  *,
  ways: Sequence[str] = tuple(WAYS),
  python: str | None = None,
) -> dict[str, Any]:
  """Rows of all extractors on all ways, and the versions of the others.

  Args:
    pages: as they were shipped.
    ways: of `WAYS`.
    python: the Python of an environment with `PACKAGES`; None makes one.

  Raises:
    ValueError: an unknown way, or pages without formulas.
  """
  formulas = [_long(formulas_of(page)) for page in pages]
  if not any(formulas):
    checks.refuse("--pages", f"{len(pages)} pages", "pages with formulas")
  rows: list[dict[str, Any]] = []
  with tempfile.TemporaryDirectory() as text:
    folder = pathlib.Path(text)
    python = python or peers.environment(folder / "venv", PACKAGES)
    for way in ways:
      made = [rewritten(page, way) for page in pages]
      others = _others(python, made, folder)
      found = {OURS: _ours(made), **others["extractors"]}
      rows += _rows(way, made, formulas, found)
  return {"rows": rows, "versions": others["versions"]}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--pages", required=True, help="JSON lines with html")
  parser.add_argument("--results", required=True, help="result file to write")
  parser.add_argument("--most", type=int, default=0, help="pages; 0 takes all")
  parser.add_argument("--python", help="Python of an environment that is there")
  return parser


def main(argv: list[str]) -> None:
  """Measures, prints the table and writes the file."""
  args, start = _parser().parse_args(argv), time.perf_counter()
  checks.nonnegative_int("--most", args.most)
  pages = read_pages(args.pages)[: args.most or None]
  found = measure(pages, python=args.python)
  versions = ", ".join(f"{n} {v}" for n, v in found["versions"].items())
  benches.save(
    args.results,
    "experiments.minerva.bench_pages",
    argv,
    found["rows"],
    start=start,
    seeds=[0],
    shown={args.pages: "PAGES", args.python: "PEER/bin/python"},
    notes=(
      f"{len(pages)} pages; CPU seconds of one process; formulas of "
      f"{SHORTEST} characters or more, blanks apart. {versions}."
    ),
  )
  print(tables.render(found["rows"], list(found["rows"][0])))


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
