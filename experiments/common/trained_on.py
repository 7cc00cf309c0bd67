"""What data a config names, so that a folder answers for no others.

A config is kept in a run folder with a further entry `data_digest`: a digest
(`locojax.data.digests`) for each set that is read from files. The config of a
run is compared with the folder's, and so are its data. Sets that are drawn or
come inside a package need none.
"""

from __future__ import annotations

import functools
import pathlib
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from experiments.common import (
  datasets,
  drawings,
  noisy_labels,
  places,
  tabular,
  text_files,
)
from locojax.data import code, digests, tfds_dirs
from locojax.train import folder as run_folder

_TFDS = {
  **{name: name for name in datasets.DATASETS if name != "digits"},
  "emoji": "emoji_pairs",
  **{name: name for name in ("bccd", "coco128")},
  "coco": "coco/2017",
}
_OWN = ("folder", "roles", "file")
_INTERPRETER = ("python", "stdlib")
_PACKAGES = ("installed", "library")  # of this interpreter


def _of_set(name: str, data: Mapping[str, Any]) -> str | None:
  """Digest of a set by its name; None if it is not read from files.

  What follows a slash names some of its classes.
  """
  name = str(name).partition("/")[0]
  data_dir = data.get("data_dir") or None
  if name in _TFDS:
    return digests.of_files(tfds_dirs.find(_TFDS[name], data_dir=data_dir))
  if name in drawings.SETS:
    return digests.of_files(drawings.files_of(name, data_dir))
  if name in tabular.FOLDERS:
    return digests.of_files(*tabular.files_of(name, data_dir))
  if name in text_files.FILES:
    found = text_files.files_of(name, data_dir=data_dir or "")
    return digests.of_files(found[0].parent, found)
  if name in _INTERPRETER:
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    return digests.of_files(root, root.glob("*.py"))
  if name in _PACKAGES:
    return code.digest_of_installed(only_library=name == "library")
  if name in _OWN and data.get("path"):
    return digests.of_files(places.expanded(data["path"]))
  return None


def _entries(
  data: Mapping[str, Any], noises: Sequence[Any]
) -> Iterator[tuple[str, Callable[[], str | None]]]:
  names = data.get("names") or [data.get("name")]
  more = (*data.get("backbone", ()), *data.get("sprites", ()))
  for name in (*names, *more):
    yield str(name), functools.partial(_of_set, name, data)
  for file in ("tokenizer", "checkpoint"):
    if data.get(file):
      yield (
        file,
        functools.partial(digests.of_files, places.expanded(data[file])),
      )
  if any(str(n).startswith(noisy_labels.HUMAN) for n in noises):
    data_dir = data.get("data_dir") or None
    yield (
      "human_labels",
      lambda: digests.of_files(noisy_labels.find_cifar10n(data_dir)),
    )


def of_data(
  data: Mapping[str, Any], noises: Sequence[Any] = ()
) -> dict[str, str]:
  """Digests of what the `data` of a config is read from, by name.

  Args:
    data: with `name` or `names`, and if need be `data_dir`, `path`,
      `tokenizer`, `checkpoint`, and `backbone` and `sprites`, more names.
    noises: kinds of label noise; human labels are files of their own.

  Returns:
    Name -> digest; a set that is not there has none.
  """
  out = {}
  for name, digest in _entries(data, noises):
    try:
      found = digest()
    except OSError:  # What reads it says so, and how to get it.
      continue
    if found is not None:
      out[name] = found
  return out


def of_config(config: Any) -> dict[str, str]:
  """`of_data` of a whole config; without `needs_data`, nothing."""
  data = config.get("data")
  if data is None or not config.get("needs_data", True):
    return {}
  noises = []
  for found in (config.get("noise"), config.get("noises")):
    noises += found if isinstance(found, list | tuple) else [found]
  return of_data(dict(data), noises)


def marked(config: Any) -> dict[str, Any]:
  """A config as its folder keeps it: with `data_digest`, if it has any."""
  out = dict(config.to_dict())
  found = of_config(config)
  return {**out, run_folder.DATA: found} if found else out


def check(config: Any, folder: pathlib.Path) -> None:
  """Refuses a folder whose run or study had other data.

  Raises:
    ValueError: the data are others; names them.
  """
  for name in (run_folder.CONFIG, "study.json"):
    path = folder / name
    if path.exists():
      run_folder.check_data(path, of_config(config))


def cached(data_of: Callable[..., Mapping[str, Any]], *, maxsize: int = 2):
  """`functools.lru_cache` of what is read from files, by their content too.

  Args:
    data_of: takes the arguments of the function; as `data` of a config, with
      `noises` if there are any.
    maxsize: results that are kept.
  """

  def wrap(function):
    @functools.lru_cache(maxsize=maxsize)
    def read(digest, *args, **settings):
      del digest
      return function(*args, **settings)

    @functools.wraps(function)
    def call(*args, **settings):
      data = data_of(*args, **settings)
      found = of_data(data, data.get("noises", ()))
      return read(tuple(sorted(found.items())), *args, **settings)

    call.cache_clear = read.cache_clear
    return call

  return wrap
