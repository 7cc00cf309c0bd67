"""The benchmark of extractors: its pages and its counts."""

from __future__ import annotations

import json
import sys

import pytest

from experiments.minerva import bench_pages as bench
from locojax.data import html_text

_PAGE = (
  '<p>A <span class="math notranslate">\\(a_1 &lt; b_2\\)</span> and '
  '<span class="math">\\(n\\)</span></p><div class="math">\n'
  '\\[\\frac{a}{b} &amp; "c"\\]</div><p>\\(a_1 &lt; b_2\\)</p>'
)
_SOURCES = ["a_1 < b_2", "n", '\\frac{a}{b} & "c"']


def test_formulas_are_the_same_however_they_are_written():
  assert bench.formulas_of(_PAGE) == _SOURCES
  for way in bench.WAYS:
    page = bench.rewritten(_PAGE, way)
    text, counts = html_text.extract_math_text(page)
    assert bench.num_kept(text, _SOURCES, marked=True) == 3
    assert html_text.num_kept(counts) == 4 and bench.DRAWN not in text
  with pytest.raises(ValueError, match="images"):
    bench.rewritten(_PAGE, "pictures")


def test_what_is_kept_is_counted_once_each():
  formulas = ["x^2 + 1", "x^2 + 1", "y_{1}"]
  assert bench.num_kept("so x^2+ 1 and y_1", formulas) == 1
  assert bench.num_kept("$x^2+1$ \\(x^2\n+1\\) y_{1}", formulas) == 3
  assert (
    bench.num_kept("$x^2+1$ \\(x^2\n+1\\) y_{1}", formulas, marked=True) == 2
  )


_FAKE = """
import json, sys
pages = json.load(open(sys.argv[2]))
found = {"fake": {"texts": ["n"] * len(pages), "cpu_seconds": 1.0}}
print(json.dumps({"extractors": found, "versions": {"fake": "1"}}))
"""


def test_the_whole_benchmark(tmp_path, capsys):
  """With another program in the place of the other extractors."""
  given, told = tmp_path / "pages.jsonl", tmp_path / "told.json"
  given.write_text(json.dumps({"html": _PAGE}) + "\n")
  script = tmp_path / "fake.py"
  script.write_text(_FAKE)
  fake = tmp_path / "python"
  fake.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
  fake.chmod(0o755)
  argv = [f"--pages={given}", f"--results={told}", f"--python={fake}"]
  bench.main(argv)
  rows = json.loads(told.read_text())["rows"]
  ours = [r for r in rows if r["extractor"] == bench.OURS]
  assert len(rows) == 2 * len(bench.WAYS) == 10
  assert {r["share_marked"] for r in ours} == {1.0}
  assert "fake" in capsys.readouterr().out
  given.write_text(json.dumps({"html": "<p>none"}) + "\n")
  with pytest.raises(ValueError, match="pages with formulas"):
    bench.main(argv)
