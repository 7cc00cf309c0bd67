"""Other extractors on pages, for `experiments.minerva.bench_pages`.

  python experiments/minerva/bench_pages_peer.py PAGES.json

PAGES.json is a list of pages; it prints, as JSON, the texts of each extractor,
the CPU seconds of all pages together, and the versions:

  trafilatura         `extract` with tables, as it comes
  trafilatura recall  the same, told to keep more
  resiliparse         `extract_plain_text` of the whole page
  resiliparse main    the same of what it takes for the main content
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
import time
from importlib import metadata

import trafilatura
from resiliparse.extract import html2text

EXTRACTORS = {
  "trafilatura": lambda page: trafilatura.extract(page),
  "trafilatura recall": lambda page: trafilatura.extract(
    page, favor_recall=True
  ),
  "resiliparse": lambda page: html2text.extract_plain_text(page),
  "resiliparse main": lambda page: html2text.extract_plain_text(
    page, main_content=True
  ),
}


def run(pages: list[str]) -> dict[str, dict]:
  """Texts and CPU seconds of each extractor."""
  out = {}
  for name, extract in EXTRACTORS.items():
    extract("<html><body><p>A page before the clock runs.</p></body></html>")
    start = time.process_time()
    texts = [extract(page) or "" for page in pages]
    out[name] = {"texts": texts, "cpu_seconds": time.process_time() - start}
  packages = ("trafilatura", "resiliparse")
  versions = {name: metadata.version(name) for name in packages}
  return {"extractors": out, "versions": versions}


if __name__ == "__main__":
  given = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
  with contextlib.redirect_stdout(sys.stderr):  # what libraries print
    found = run(given)
  print(json.dumps(found))
