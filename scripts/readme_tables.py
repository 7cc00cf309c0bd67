"""Writes the tables of the READMEs from committed result files.

  python -m scripts.readme_tables           rewrites what is out of date
  python -m scripts.readme_tables --check   only says so, exit status 1

A block in README.md or experiments/*/README.md:

  <!-- table: results/locoprop/cpu.json columns=method,train_loss -->
  ... written by this script ...
  <!-- /table -->

Settings after the file, all optional, values without spaces:

  columns=a,b:My_heading   which columns, in order; `_` in a heading is a space
  where=dataset:mnist      rows with this text only; several joined by commas
  sort=train_loss          rows by the mean of a column, ascending; `-` before
                           it for descending
  best=train_loss:min      best in bold; several joined by commas
  ratio=train_loss:adam    adds the column train_loss_ratio, over the row whose
                           first column is `adam`
  spread=std               std, range, ci95 or none
  digits=4                 significant digits
  decimals=1               digits after the point, in place of `digits`

Below the table a line says from what it comes: seeds, hardware, time, date,
commit and command.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

from locojax.core import checks, files
from locojax.report import results, tables

_BLOCK = re.compile(
  r"(?P<open><!-- table:(?P<spec>[^\n]*?)-->\n)(?P<body>.*?)"
  r"(?P<close>^[ ]*<!-- /table -->)",
  re.DOTALL | re.MULTILINE,
)
_MARK = re.compile(r"^[ ]*<!-- (?P<end>/?)table\b", re.MULTILINE)
_SETTINGS = (
  *("columns", "where", "sort", "best", "ratio", "spread"),
  *("digits", "decimals"),
)


def parse_spec(text: str) -> tuple[str, dict[str, str]]:
  """`results/x.json a=b c=d` as the file and its settings.

  Raises:
    ValueError: no file, or an unknown setting.
  """
  words = text.split()
  if not words or "=" in words[0]:
    raise ValueError(f"the block 'table:{text}' names no result file.")
  settings = {}
  for word in words[1:]:
    key, equals, value = word.partition("=")
    checks.one_of("setting", key, _SETTINGS)
    if not equals or not value:
      raise ValueError(
        f"setting {word!r} is not allowed: it must be key=value."
      )
    settings[key] = value
  return words[0], settings


def _pairs(text: str) -> dict[str, str]:
  """`a:b,c:d` as a dict."""
  out = {}
  for item in text.split(","):
    key, colon, value = item.partition(":")
    if not colon:
      raise ValueError(f"{item!r} is not allowed: it must be name:value.")
    out[key] = value
  return out


def _columns(text: str | None, rows) -> dict[str, str]:
  if text is None:
    names = dict.fromkeys(k for row in rows for k in row)
    return {n: n.replace("_", " ") for n in names}
  out = {}
  for item in text.split(","):
    name, _, heading = item.partition(":")
    out[name] = (heading or name).replace("_", " ")
  return out


def _select(rows, settings: Mapping[str, str]) -> list[dict[str, Any]]:
  wanted = _pairs(settings["where"]) if "where" in settings else {}
  rows = [r for r in rows if all(str(r.get(k)) == v for k, v in wanted.items())]
  if not rows:
    raise ValueError(f"where={settings['where']} leaves no rows.")
  if "sort" in settings:
    column = settings["sort"].removeprefix("-")
    checks.one_of("sort", column, sorted({k for r in rows for k in r}))
    sign = -1 if settings["sort"].startswith("-") else 1

    def order(row):
      mean = tables.mean_of(row.get(column))
      return (mean != mean, sign * mean)  # NaN comes last.

    rows = sorted(rows, key=order)
  return rows


def render(result: Mapping[str, Any], settings: Mapping[str, str]) -> str:
  """The table of a result file and the line below it, as markdown."""
  rows = _select(result["rows"], settings)
  if "ratio" in settings:
    key = next(iter(_columns(settings.get("columns"), rows)))
    for column, reference in _pairs(settings["ratio"]).items():
      rows = tables.add_ratio(rows, column, key=key, reference=reference)
  spread = settings.get("spread", "std")
  table = tables.render(
    rows,
    _columns(settings.get("columns"), rows),
    spread=spread,
    digits=int(settings.get("digits", 4)),
    decimals=int(settings["decimals"]) if "decimals" in settings else None,
    best=_pairs(settings["best"]) if "best" in settings else None,
  )
  return f"{table}\n\n{_footer(result, spread)}\n"


def _footer(result: Mapping[str, Any], spread: str) -> str:
  num = len(result["seeds"])
  parts = [result["hardware"], _duration(result["time_seconds"])]
  parts.append(result["date"][:10])
  if num:  # what is compiled alone has none
    what = f"{num} seed{'s' if num != 1 else ''}"
    if num > 1:
      what += f", {checks.lookup('spread', spread, tables.SPREAD_NAMES)}"
    parts.insert(0, what)
  if result["commit"]:
    commit, _, dirty = result["commit"].partition("-")
    parts.append(f"commit {commit[:10]}{' with changes' if dirty else ''}")
  lines = [f"{'; '.join(parts)}.", f"Command: `{result['command']}`."]
  if result["notes"]:
    lines.append(result["notes"])
  return "\n".join(lines)


def _duration(seconds: float) -> str:
  if seconds < 120:
    return f"{seconds:.0f} s"
  if seconds < 7200:
    return f"{seconds / 60:.0f} min"
  return f"{seconds / 3600:.1f} h"


def rewrite(text: str, root: pathlib.Path) -> str:
  """The text of a README with its table blocks filled anew.

  Args:
    text: of the README.
    root: the folder that the paths of result files start from.

  Raises:
    FileNotFoundError: a result file is missing.
    ValueError: marks without a partner, a bad setting or result file.
  """
  marks = [m["end"] for m in _MARK.finditer(text)]
  if marks != ["", "/"] * (len(marks) // 2):
    raise ValueError(
      "each '<!-- table: ... -->' needs a '<!-- /table -->' before the next."
    )

  def fill(match):
    path, settings = parse_spec(match["spec"])
    body = render(results.load(root / path), settings)
    return f"{match['open']}{body}{match['close']}"

  return _BLOCK.sub(fill, text)


def readmes(root: pathlib.Path) -> list[pathlib.Path]:
  """README.md of the checkout and of each experiment."""
  found = [root / "README.md", *sorted(root.glob("experiments/*/README.md"))]
  return [p for p in found if p.is_file()]


def main(argv: list[str] | None = None) -> int:
  """Rewrites or checks; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m scripts.readme_tables",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--check", action="store_true", help="write nothing")
  parser.add_argument(
    "--root", default=pathlib.Path(__file__).parents[1], type=pathlib.Path
  )
  args = parser.parse_args(argv)
  stale = 0
  for path in readmes(args.root):
    text = path.read_text(encoding="utf-8")
    try:
      new = rewrite(text, args.root)
    except (ValueError, FileNotFoundError) as e:
      print(f"{path}: {e}", file=sys.stderr)
      return 1
    if new == text:
      continue
    stale += 1
    print(f"{path}: {'out of date' if args.check else 'written'}")
    if not args.check:
      files.write_text(path, new)
  if args.check and stale:
    print("Run `python -m scripts.readme_tables`.")
  return int(args.check and stale > 0)


if __name__ == "__main__":
  sys.exit(main())
