"""A study: many runs in one folder, then a table, a figure and a result file.

The runs of a study are its cells: methods x seeds, conditions x seeds, trials,
whatever the experiment compares. The experiment says what a cell is, and makes
rows and picture of the finished folders; what is the same for all is here: the
folder belongs to one study and one program, progress with the time that is
left for the whole of it, resuming, and what is written at the end.
"""

from __future__ import annotations

import contextlib
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from experiments.common import launch, stages, timing, trained_on
from locojax.core import checks
from locojax.report import results, runs, tables
from locojax.train import distributed, folder, lock, stopping, writers

CONFIG = "study.json"
TABLE = "table.md"


class Study:
  """Counts the cells of a study and says how far it is.

  Args:
    config: of the study.
    workdir: its folder.
    num_cells: runs in all, those of tuning among them.

  Attributes:
    config, workdir: as given.
    new: number of cells that were trained, at least in part, by this program.
  """

  def __init__(self, config: Any, workdir: pathlib.Path, num_cells: int):
    self.config, self.workdir = config, workdir
    self._total = checks.positive_int("num_cells", num_cells)
    self._done, self.new = 0, 0
    # Those that tell how long the others take: how many, and since when; time
    # that was not theirs moves that on.
    self._typical, self._since = 0, 0.0

  def cell(
    self,
    name: str,
    where: pathlib.Path,
    train: Callable[[], Any],
    end: str | None = None,
    typical: bool = True,
  ) -> Any:
    """Trains one cell, or finds it trained.

    Args:
      name: as it is told on the way.
      where: its run folder.
      train: trains in that folder and resumes by itself.
      end: what is told at its end; None tells what its result says.
      typical: whether most others take about as long. A pre-training does not:
        the time that is left is not told from it.

    Returns:
      What `train` returns.
    """
    stopping.stop_if_due(f"before {name}")
    known = any((where / n).exists() for n in (folder.RESULT, stages.DIVERGED))
    if not known and not self.new:
      self._announce()
    started = time.monotonic()
    if not self._typical:
      self._since = started
    out = train()
    self._done += 1
    self.new += not known
    if typical:
      self._typical += not known
    else:
      self._since += time.monotonic() - started
    said = self._end(where) if end is None else end
    stages.say(f"[{self._done}/{self._total}] {name}: {said}{self._left()}")
    return out

  def _announce(self) -> None:
    """Says how much there is to do, before anything shows how long it takes."""
    left = self._total - self._done
    if left > 1:
      stages.say(f"{left} runs; the time for all is told on the way.")

  def _end(self, where: pathlib.Path) -> str:
    found = stages.result(where)
    if "diverged" in found:
      return f"diverged: {found['diverged']}"
    return writers.duration(found["seconds"])

  def _left(self) -> str:
    """The time that is left, once a typical cell has shown how long they take.

    What is done between cells, such as asking them, counts as well.
    """
    left = self._total - self._done
    if not self._typical or not left:
      return ""
    spent = time.monotonic() - self._since
    return f"; ETA {writers.duration(left * spent / self._typical)}"

  def skip(self, count: int) -> None:
    """Takes cells off the total that turn out not to be needed."""
    self._total -= count

  def write(
    self,
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str] | Sequence[str],
    *,
    draw: Callable[[pathlib.Path], Any],
    seeds: Sequence[int],
    figure: str = "figure.png",
    notes: str | None = None,
    markdown: str | None = None,
    **options: Any,
  ) -> dict[str, Any]:
    """Writes `table.md`, the figure, and what `config.results` names.

    The figure also goes beside the result file, as PNG of its name.

    Args:
      rows: of the table; all processes make them.
      columns: of the table, see `tables.render`.
      draw: draws the figure into a file.
      seeds: of the result file.
      figure: name of the figure's file.
      notes: of the result file, and below the table.
      markdown: the table, if it is not simply that of rows and columns.
      **options: of `tables.render`.

    Returns:
      `rows`, `markdown`, and the paths `table` and `figure`.
    """
    if markdown is None:
      markdown = tables.render(rows, columns, **options)
    table, picture = self.workdir / TABLE, self.workdir / figure
    out = {"rows": list(rows), "markdown": markdown}
    out |= {"table": str(table), "figure": str(picture)}
    if distributed.is_main():
      draw(picture)
      below = f"\n{notes}\n" if notes else ""
      folder.write_text(table, f"{markdown}\n{below}")
      if self.config.results:
        self.save(self.config.results, rows, seeds=seeds, notes=notes)
        draw(pathlib.Path(self.config.results).with_suffix(".png"))
    self._tell(out)
    return out

  def save(
    self,
    path: str | pathlib.Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    seeds: Sequence[int],
    notes: str | None = None,
  ) -> None:
    """Writes a result file, with the seconds of all runs of the study."""
    found = runs.load_all(self.workdir)
    results.save(
      path,
      command="python -m experiments.run " + shlex.join(sys.argv[1:]),
      seeds=seeds,
      rows=rows,
      time_seconds=sum((r.result or {}).get("seconds", 0.0) for r in found),
      device=timing.device_name(),
      notes=notes,
    )

  def _tell(self, out: Mapping[str, Any]) -> None:
    if not self.new:
      stages.say("Everything was done already; nothing was trained.")
    stages.say(f"\n{out['markdown']}\n\ntable:  {out['table']}")
    stages.say(f"figure: {out['figure']}")


@contextlib.contextmanager
def opened(
  config: Any,
  workdir: str | pathlib.Path,
  *,
  num_cells: int,
  may_differ: Sequence[str] = (),
) -> Iterator[Study]:
  """A study in its folder, which is this program's while the context lasts.

  SIGTERM ends the program at the next safe place, wherever the study is.

  Args:
    config: of the study; kept in `study.json`.
    workdir: the folder; made if need be.
    num_cells: runs in all.
    may_differ: keys that a study may be taken up with otherwise, besides
      `folder.MAY_DIFFER`: the lists of what is compared.

  Raises:
    ValueError: a bad setting; the folder has a study of another config or of
      other data, or a single run.
    lock.Busy: another program works in it.
  """
  workdir = pathlib.Path(workdir).absolute()
  if config.get("experiment"):
    launch.check_settings(config)
  with stopping.listening(), lock.hold(workdir):
    if (workdir / folder.CONFIG).exists():
      raise ValueError(
        f"workdir={str(workdir)!r} is not allowed: it has a single run; take "
        "another folder for a study."
      )
    kept = trained_on.marked(config)
    folder.check_config(workdir, kept, may_differ, name=CONFIG)
    made = Study(config, workdir, num_cells)
    folder.write_config(workdir, kept, name=CONFIG)
    yield made
