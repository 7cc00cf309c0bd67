import math

import numpy as np
import pytest
from scipy import stats

from locojax.report import tables


def test_summary():
  s = tables.summarize([1.0, 2.0, 4.0])
  x = np.array([1.0, 2.0, 4.0])
  assert s.mean == pytest.approx(7 / 3) and s.std == pytest.approx(
    x.std(ddof=1)
  )
  assert (s.low, s.high, s.n) == (1, 4, 3)
  assert math.isnan(tables.summarize(3.0).std)
  with pytest.raises(ValueError, match="values="):
    tables.summarize([])


@pytest.mark.parametrize("n", [2, 3, 10, 31])
def test_confidence_interval_is_students(n):
  x = np.random.default_rng(n).normal(size=n)
  expected = stats.t.ppf(0.975, n - 1) * x.std(ddof=1) / np.sqrt(n)
  assert tables.summarize(x).ci95 == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
  "value, text",
  [
    (53.31234, "53.31"),
    (0.00123456, "0.001235"),
    (1437, "1437"),
    (12345.6, "12346"),
    (0, "0"),
    (-0.5, "-0.5000"),
    (1.5e-9, "1.500e-09"),
    (math.nan, "nan"),
    (-math.inf, "-inf"),
  ],
)
def test_number(value, text):
  assert tables.number(value) == text


@pytest.mark.parametrize(
  "spread, text",
  [
    ("std", "50.00 ± 1.00"),
    ("range", "50.00 (49.00 to 51.00)"),
    ("ci95", "50.00 ± 2.48"),
    ("none", "50"),
  ],
)
def test_spread(spread, text):
  s = tables.summarize([49.0, 50.0, 51.0])
  assert tables.spread_text(s, spread) == text


def test_cells():
  assert tables.cell_text(None) == tables.MISSING
  assert tables.cell_text("a|b") == "a\\|b"
  assert tables.cell_text([1.5, None, 2.5], digits=2) == (
    "2.0 ± 0.7 [1 of 3 failed]"
  )
  assert tables.cell_text([None, math.nan]) == "failed"
  assert tables.cell_text([0.2, 1.3], decimals=1) == "0.8 ± 0.8"
  assert tables.cell_text(12.345, decimals=1) == "12.3"
  assert tables.cell_text(12.0, decimals=1) == "12"
  assert tables.cell_text(True) == "yes"


ROWS = [
  {"method": "adam", "train_loss": [2.0, 4.0]},
  {"method": "sgd", "train_loss": [5.0, 7.0], "note": "slow"},
]


def test_markdown_is_aligned_with_the_best_in_bold():
  text = tables.render(ROWS, best={"train_loss": "min"}, digits=3)
  assert text == (
    "| method |      train loss | note |\n"
    "| ------ | --------------: | ---- |\n"
    "| adam   | **3.00 ± 1.41** | –    |\n"
    "| sgd    |     6.00 ± 1.41 | slow |"
  )
  high = tables.render(ROWS, {"train_loss": "L"}, best={"train_loss": "max"})
  assert "**6.000 ± 1.414**" in high and "| **3" not in high


def test_ratio_to_a_reference_row():
  rows = tables.add_ratio(ROWS, "train_loss", key="method", reference="adam")
  assert [r["train_loss_ratio"] for r in rows] == [1.0, 2.0]
  assert "train_loss_ratio" not in ROWS[0]
  with pytest.raises(ValueError, match="reference='adm'.*did you mean"):
    tables.add_ratio(ROWS, "train_loss", key="method", reference="adm")


def test_bad_tables():
  with pytest.raises(ValueError, match="rows="):
    tables.render([])
  with pytest.raises(ValueError, match="column='loss'"):
    tables.render(ROWS, ["loss"])
  with pytest.raises(ValueError, match="best='least'"):
    tables.render(ROWS, best={"train_loss": "least"})
  with pytest.raises(ValueError, match="spread='sd'"):
    tables.render(ROWS, spread="sd")
