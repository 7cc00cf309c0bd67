"""What is in a folder of the user's, without what systems leave there.

Hidden files and folders, whose names begin with a dot, and what archivers and
disks make by themselves (`LEFT_BEHIND`) are never data. They are passed over
everywhere, and their number is logged.
"""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Callable, Iterator

LEFT_BEHIND = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")
_log = logging.getLogger(__name__)


def is_hidden(name: str) -> bool:
  """Whether a file or folder of this name is never data."""
  return name.startswith(".") or name in LEFT_BEHIND


def visible(root: str | os.PathLike, *, deep: bool) -> list[pathlib.Path]:
  """What is in a folder, sorted, without what is hidden.

  Args:
    root: the folder.
    deep: files at any depth; else files and folders right in it.
  """
  root, passed = pathlib.Path(root), []
  if deep:
    found = sorted(_walk(root, passed))
  else:
    entries = sorted(root.iterdir())
    found = [p for p in entries if not is_hidden(p.name)]
    passed = [p for p in entries if is_hidden(p.name)]
  if passed:
    _log.warning(
      "%d hidden files and folders in %s are left out, such as %s.",
      len(passed),
      root,
      passed[0].name,
    )
  return found


def _walk(
  folder: pathlib.Path, passed: list[pathlib.Path]
) -> Iterator[pathlib.Path]:
  for at, folders, names in os.walk(folder):
    hidden = [n for n in (*folders, *names) if is_hidden(n)]
    passed += [pathlib.Path(at, n) for n in hidden]
    folders[:] = [n for n in folders if not is_hidden(n)]
    yield from (pathlib.Path(at, n) for n in names if not is_hidden(n))


def of_classes(
  root: str | os.PathLike,
  inside: Callable[[pathlib.Path], tuple[list, list]],
  *,
  kind: str,
  rule: str,
) -> tuple[list[pathlib.Path], list[int], list[str]]:
  """The files of a folder that has a folder for each class.

  Args:
    root: the folder. Classes are its visible sub-folders in sorted order.
    inside: what of a class folder is taken, and what is not.
    kind: of what there must be in every class folder, for the error.
    rule: where files should lie, for the log of those that are not taken.

  Returns:
    Paths, class of each by number, and the names of the classes.

  Raises:
    FileNotFoundError: no such folder.
    ValueError: no sub-folders, or one of which nothing is taken.
  """
  root = pathlib.Path(root)
  if not root.is_dir():
    raise FileNotFoundError(f"root={str(root)!r} is not a folder.")
  entries = visible(root, deep=False)
  classes = [p.name for p in entries if p.is_dir()]
  if not classes:
    raise ValueError(f"root={str(root)!r} has no sub-folders, one per class.")
  paths, labels = [], []
  unused = [p.name for p in entries if not p.is_dir()]
  for label, name in enumerate(classes):
    taken, others = inside(root / name)
    if not taken:
      raise ValueError(f"the class folder {root / name} has no {kind}.")
    unused += [f"{name}/{p.name}" for p in others]
    paths += taken
    labels += [label] * len(taken)
  report_unused(root, unused, rule)
  return paths, labels, classes


def report_unused(root: pathlib.Path, unused: list, what: str) -> None:
  """Logs how many files of a folder no reader takes."""
  if unused:
    _log.warning(
      "%d files in %s are not read (%s), such as %s.",
      len(unused),
      root,
      what,
      unused[0],
    )
