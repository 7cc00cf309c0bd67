"""Mean and spread over seeds, as markdown tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from locojax.report import names

SPREADS = ("std", "range", "ci95", "none")
SPREAD_NAMES = {
  "std": "mean ± standard deviation",
  "range": "mean (least to greatest)",
  "ci95": "mean ± half of the 95 % confidence interval (Student's t)",
  "none": "mean",
}
MISSING = "–"
# Student's t, 97.5 % quantile, for 1 to 30 degrees of freedom.
_T975 = (
  *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
  *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
  *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclasses.dataclass(frozen=True)
class Summary:
  """Mean and spread of one quantity over seeds.

  Attributes:
    mean: the mean.
    std: standard deviation with n - 1; NaN for one value.
    ci95: half of the 95 % confidence interval of the mean; NaN for one value.
    low: the least value.
    high: the greatest value.
    n: number of values.
  """

  mean: float
  std: float
  ci95: float
  low: float
  high: float
  n: int


def summarize(values: Sequence[float] | float) -> Summary:
  """Mean and spread of values over seeds; NaN anywhere gives NaN.

  >>> summarize([1.0, 2.0, 3.0]).std
  1.0
  """
  x = np.atleast_1d(np.asarray(values, dtype=np.float64))
  if x.ndim != 1 or not x.size:
    raise ValueError(f"values={values!r} is not allowed: it must be numbers.")
  n = x.size
  std = float(np.std(x, ddof=1)) if n > 1 else math.nan
  t = _T975[n - 2] if 2 <= n <= 31 else 1.96
  return Summary(
    mean=float(np.mean(x)),
    std=std,
    ci95=t * std / math.sqrt(n),
    low=float(np.min(x)),
    high=float(np.max(x)),
    n=n,
  )


def number(value: float, digits: int = 4, decimals: int | None = None) -> str:
  """A number with so many significant digits, never in powers of ten for
  everyday sizes; with `decimals` with so many after the point.

  >>> number(53.31234), number(0.00123456), number(1437)
  ('53.31', '0.001235', '1437')
  >>> number(0.05, decimals=1), number(53.31234, decimals=1)
  ('0.1', '53.3')
  """
  if not math.isfinite(value):
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
  if value == 0 or (float(value).is_integer() and abs(value) < 10**9):
    return str(int(value))
  if decimals is not None:
    return f"{value:.{decimals}f}"
  size = math.floor(math.log10(abs(value)))
  if not -5 <= size < 9:
    return f"{value:.{digits - 1}e}"
  return f"{value:.{max(digits - 1 - size, 0)}f}"


def spread_text(
  s: Summary,
  spread: str = "std",
  digits: int = 4,
  decimals: int | None = None,
) -> str:
  """`53.3 ± 0.2`, `53.3 (53.1 to 53.5)` or `53.3`."""
  names.one_of("spread", spread, SPREADS)
  if spread == "none" or s.n == 1 or not math.isfinite(s.mean):
    return number(s.mean, digits, decimals)
  places = _places(s.mean, digits) if decimals is None else decimals
  text = f"{s.mean:.{places}f}"
  if spread == "range":
    return f"{text} ({s.low:.{places}f} to {s.high:.{places}f})"
  width = s.std if spread == "std" else s.ci95
  return f"{text} ± {width:.{places}f}"


def _places(mean: float, digits: int) -> int:
  if mean == 0:
    return digits - 1
  return max(digits - 1 - math.floor(math.log10(abs(mean))), 0)


def mean_of(cell: Any) -> float:
  """The mean of a cell (number or list, null counts as NaN); NaN for text."""
  if cell is None or isinstance(cell, str):
    return math.nan
  values = cell if isinstance(cell, list | tuple | np.ndarray) else [cell]
  values = [math.nan if v is None else v for v in values]
  return summarize(values).mean


def cell_text(
  cell: Any,
  *,
  spread: str = "std",
  digits: int = 4,
  decimals: int | None = None,
) -> str:
  """A cell as text: see `locojax.report.results` for what cells there are.

  Of a list with nulls (runs that failed) the mean of the others is shown, and
  how many failed.
  """
  if cell is None:
    return MISSING
  if isinstance(cell, str):
    return cell.replace("|", "\\|")
  if isinstance(cell, bool):
    return "yes" if cell else "no"
  if not isinstance(cell, list | tuple | np.ndarray):
    return number(cell, digits, decimals)
  good = [v for v in cell if v is not None and math.isfinite(v)]
  failed = len(cell) - len(good)
  if not good:
    return "failed"
  text = spread_text(summarize(good), spread, digits, decimals)
  return f"{text} [{failed} of {len(cell)} failed]" if failed else text


def add_ratio(
  rows: Sequence[Mapping[str, Any]],
  column: str,
  *,
  key: str,
  reference: str,
) -> list[dict[str, Any]]:
  """Rows with a further column `<column>_ratio`, over a reference row.

  Args:
    rows: flat dicts.
    column: a column of numbers; the ratio is of the means.
    key: the column that names the rows.
    reference: value of `key` in the reference row.

  Raises:
    ValueError: no such row.
  """
  by_name = {str(r.get(key)): r for r in rows}
  base = mean_of(names.lookup("reference", reference, by_name).get(column))
  out = []
  for row in rows:
    ratio = mean_of(row.get(column)) / base
    extra = None if math.isnan(ratio) else ratio
    out.append({**row, f"{column}_ratio": extra})
  return out


def render(
  rows: Sequence[Mapping[str, Any]],
  columns: Sequence[str] | Mapping[str, str] | None = None,
  *,
  spread: str = "std",
  digits: int = 4,
  decimals: int | None = None,
  best: Mapping[str, str] | None = None,
) -> str:
  """Rows as an aligned markdown table.

  Args:
    rows: flat dicts; a cell is text, a number, None or a list of numbers, one
      for each seed.
    columns: names in order, or name -> heading; None shows all. A heading is
      by default the name with spaces for underscores.
    spread: `std`, `range`, `ci95` or `none`.
    digits: significant digits of the means.
    decimals: digits after the point, in place of `digits`.
    best: column -> `min` or `max`; the best mean is set in bold, and all cells
      that read the same.

  Returns:
    Markdown, without a newline at the end.

  Raises:
    ValueError: no rows, or a column that no row has.
  """
  if not rows:
    raise ValueError("rows=[] is not allowed: at least one is needed.")
  known = list(dict.fromkeys(k for row in rows for k in row))
  if columns is None:
    columns = known
  if not isinstance(columns, Mapping):
    columns = {c: c.replace("_", " ") for c in columns}
  best = best or {}
  for name in [*columns, *best]:
    names.one_of("column", name, known)
  cells, numeric = [], []
  for name in columns:
    column = [row.get(name) for row in rows]
    how = {"spread": spread, "digits": digits, "decimals": decimals}
    texts = [cell_text(c, **how) for c in column]
    if name in best:
      texts = _bold(column, texts, best[name])
    cells.append(texts)
    numeric.append(any(not math.isnan(mean_of(c)) for c in column))
  return _markdown(list(columns.values()), cells, numeric)


def _bold(column, texts, mode: str) -> list[str]:
  names.one_of("best", mode, ("min", "max"))
  means = np.asarray([mean_of(c) for c in column])
  if np.all(np.isnan(means)):
    return texts
  winner = np.nanargmin(means) if mode == "min" else np.nanargmax(means)
  return [f"**{t}**" if t == texts[winner] else t for t in texts]


def _markdown(headings, cells, numeric) -> str:
  widths = [
    max(3, len(h), *(len(t) for t in column))
    for h, column in zip(headings, cells)
  ]

  def line(texts):
    padded = [
      t.rjust(w) if right else t.ljust(w)
      for t, w, right in zip(texts, widths, numeric)
    ]
    return f"| {' | '.join(padded)} |"

  rule = [
    "-" * (w - 1) + ":" if right else "-" * w
    for w, right in zip(widths, numeric)
  ]
  return "\n".join([line(headings), line(rule), *map(line, zip(*cells))])
