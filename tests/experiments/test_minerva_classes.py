"""Classes of answers, and which of them graders read."""

from __future__ import annotations

import collections
import doctest

import numpy as np
import pytest

from experiments.minerva import bench_checked, bench_classes, bench_grading


@pytest.mark.parametrize(
  "answer, name",
  [
    ("", "empty"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "matrix"),
    (r"(-\infty, 3]", "interval or infinity"),
    ("[2,5)", "interval or infinity"),
    ("(3,4)", "pair or tuple"),
    (r"\{1,2\}", "set"),
    (r"10{,}080", "thousands"),
    ("-2, 2", "list"),
    ("2215_6", "number base"),
    (r"\$65", "dollars"),
    (r"20\%", "percent"),
    (r"48^\circ", "degrees"),
    ("3:5", "time"),
    (r"3\frac{1}{8}", "mixed number"),
    (r"10\sqrt3", "brace-less"),
    (r"5\text{ cm}", "text or unit"),
    (r"1 \pm \sqrt{19}", "plus or minus"),
    ("x > 3", "inequality"),
    (".5", "leading zero or dot"),
    ("-12.5", "whole or decimal"),
    (r"\frac{13}{3}", "fraction"),
    (r"7\sqrt{3}", bench_classes.REST),
  ],
)
def test_classes(answer, name):
  assert bench_classes.class_of(answer) == name
  known = (*bench_classes.CLASSES, bench_classes.REST)
  assert name in known


@pytest.mark.parametrize(
  "answer, name, other",
  [
    (r"3\frac{1}{8}", "mixed number", r"3 \cdot \frac{1}{8}"),
    ("3:5", "time", r"\frac{3}{5}"),
    (r"10\sqrt3", "brace-less", "10"),
    ("(1,2)", "pair or tuple", "(2,1)"),
    (r"10{,}080", "thousands", "10"),
    ("x+1", bench_classes.REST, None),
    (r"\frac12", "brace-less", None),
  ],
)
def test_what_parsers_make_of_it(answer, name, other):
  assert bench_classes.misread(answer, name) == other


def test_rows_count_what_is_equal_to_itself_and_to_nothing_else():
  answers = ["1", "2", "(1,2)", "(3,3)", "2215_6", "x"]
  rng = np.random.default_rng(0)
  asked = bench_classes.drawn(answers, most=5, rng=rng)
  assert bench_classes.REST not in asked  # `x` is alone and has no digit
  pairs = bench_classes.pairs_of(asked)
  assert ("(1,2)", "(2,1)") in pairs and ("2215_6", "2215") in pairs
  assert ("(3,3)", "(3,4)") in pairs and len(pairs) == 2 + 2 + 3 + 2 + 3
  counts = collections.Counter(map(bench_classes.class_of, answers))
  verdicts = {
    "ours": bench_grading.ours(pairs)["verdicts"],
    "texts": [a == b for a, b in pairs],
    "yes": [True] * len(pairs),
  }
  rows = bench_classes.rows_of(counts, asked, verdicts)
  assert [row["count"] for row in rows] == [2, 1, 2]
  for row in rows:
    assert (row["ours"], row["texts"], row["yes"]) == (100.0, 100.0, 0.0)


def test_doctests():
  assert doctest.testmod(bench_classes).failed == 0


def test_checked_pairs_are_read_and_counted_both_ways_round(tmp_path):
  path = tmp_path / "pairs.tsv"
  path.write_text(
    "class\ta\tb\tverdict\nset\t{1}\t1\tequal\nx\t1\t2\tunequal\n"
  )
  pairs = bench_checked.read(str(path))
  told = {
    "ours": [True, True, False, False],
    "theirs": [True, False, True, True],
  }
  rows = bench_checked.rows_of(pairs, told)
  assert [r["ours"] for r in rows] == ["equal", "unequal"]
  assert [r["theirs"] for r in rows] == ["one way", "equal"]
  ours, theirs = bench_checked.summary(rows, ["ours", "theirs"])
  assert ours["right"] == ours["pairs"] == 2 and ours["one_way"] == 0
  assert theirs["right"] == 0 and theirs["one_way"] == 1


@pytest.mark.parametrize(
  "text, said",
  [
    ("a\tb\n", "columns"),
    ("class\ta\tb\tverdict\nx\t1\t2\n", "line 2 has 3 cells"),
    ("class\ta\tb\tverdict\nx\t1\t2\tsame\n", "line 2"),
  ],
)
def test_a_bad_table_of_pairs_names_its_line(tmp_path, text, said):
  (tmp_path / "pairs.tsv").write_text(text)
  with pytest.raises(ValueError, match=said):
    bench_checked.read(str(tmp_path / "pairs.tsv"))
