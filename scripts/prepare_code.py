"""Prepares code of several languages: `DIR/LANGUAGE/PACKAGE/...`.

  python -m scripts.prepare_code typescript go kotlin --data_dir runs/code
  python -m experiments.run --workdir runs/languages \\
    --config experiments/completion/configs/models.py:languages \\
    --config.data.path=runs/code

Packages are fetched by `npm pack`, `pip download` and `apt-get download`, none
is installed and nothing in them is run. npm and PyPI packages are pinned; of
Debian it is what the release at hand has. `python` copies the packages of this
interpreter. What is there already is left as it is.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from locojax.core import checks, files
from locojax.data import code

KINDS = ("npm", "pypi", "debian", "installed")
_ARCHIVES = (".zip", ".jar", ".whl")


class Source(NamedTuple):
  """Where code of a language comes from.

  Attributes:
    kind: one of `KINDS`.
    name: of the package there, with its version where that is pinned.
    inside: a folder that the code is in, at any depth; '' is all.
    depth: folders below it that name a package; 0 makes all one package.
  """

  kind: str
  name: str
  inside: str = ""
  depth: int = 0


_GO = ("tools", "net", "crypto", "text", "sys", "oauth2")
_DART = ("charts", "map", "video", "camera", "datatable2")
SOURCES: dict[str, tuple[Source, ...]] = {
  "python": (Source("installed", "packages"),),
  "typescript": tuple(
    Source("npm", name)
    for name in ("effect@3.18.4", "viem@2.38.3", "zod@4.1.12", "rxjs@7.8.2")
  ),
  "go": (
    Source("debian", "golang-1.19-src", "src", 1),
    Source("debian", "golang-google-grpc-dev"),
    *(Source("debian", f"golang-golang-x-{name}-dev") for name in _GO),
  ),
  "cpp": (Source("debian", "libboost1.74-dev", "include/boost", 1),),
  "java": (Source("debian", "openjdk-17-source", "java.base", 2),),
  "proto": (Source("npm", "google-proto-files@5.0.0", "google", 2),),
  "kotlin": (
    Source("npm", "kotlin-compiler@2.2.21"),
    Source("npm", "react-native@0.80.2"),
    Source("npm", "react-native-screens@4.18.0"),
  ),
  "dart": tuple(Source("pypi", f"flet-{n}==1.0.5") for n in _DART),
}


def _run(command: Sequence[str], folder: pathlib.Path) -> None:
  try:
    done = subprocess.run(
      command, cwd=folder, capture_output=True, text=True, check=False
    )
  except FileNotFoundError as error:
    raise FileNotFoundError(f"{command[0]} is not installed.") from error
  if done.returncode:
    said = (done.stderr or done.stdout).strip().splitlines()[-1:]
    raise ValueError(f"{' '.join(command)} failed: {' '.join(said)}")


def fetch(source: Source, folder: pathlib.Path) -> list[pathlib.Path]:
  """Fetches the archives of a source into an empty folder.

  Raises:
    FileNotFoundError: the program that fetches is not installed.
    ValueError: it fails; with the last line of what it says.
  """
  command = {
    "npm": ["npm", "pack", "--silent", source.name],
    "pypi": [
      *(sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"),
      *("--disable-pip-version-check", source.name),
    ],
    "debian": ["apt-get", "download", "-qq", source.name],
  }[source.kind]
  _run(command, folder)
  return sorted(p for p in folder.iterdir() if p.is_file())


def unpack(archive: pathlib.Path, into: pathlib.Path) -> None:
  """Unpacks an archive, and archives of sources in it; runs nothing."""
  into.mkdir(parents=True, exist_ok=True)
  if archive.suffix == ".deb":
    _run(["dpkg-deb", "-x", str(archive), str(into)], into)
  elif archive.suffix in _ARCHIVES:
    with zipfile.ZipFile(archive) as opened:
      opened.extractall(into)
  else:
    with tarfile.open(archive) as opened:
      opened.extractall(into, filter="data")
  if archive.suffix in _ARCHIVES:
    return
  for inner in sorted(into.rglob("*")):
    sources = inner.name == "src.zip" or inner.name.endswith("-sources.jar")
    if sources and inner.is_file() and not inner.is_symlink():
      unpack(inner, inner.with_name(inner.name + ".d"))


def _package(parts: tuple[str, ...], source: Source) -> str | None:
  """The package of a file by its folders; None if it is outside `inside`."""
  name = source.name.split("@")[0].split("==")[0].strip("/").replace("/", "_")
  inside = tuple(filter(None, source.inside.split("/")))
  for start in range(len(parts) - len(inside) + 1):
    if parts[start : start + len(inside)] == inside:
      rest = parts[start + len(inside) :][: source.depth]
      return "_".join(rest) or name if source.depth else name
  return None


def found(
  root: pathlib.Path, language: str, source: Source
) -> Iterator[tuple[str, pathlib.Path]]:
  """Packages and files of a language below an unpacked archive."""
  for path in sorted(root.rglob("*")):
    if not path.is_file() or path.is_symlink():
      continue
    if code.language_of(path.name) != language:
      continue
    package = _package(path.relative_to(root).parts[:-1], source)
    if package is not None:
      yield package, path


def prepare(
  language: str, source: Source, data_dir: pathlib.Path, *, max_bytes: int
) -> int:
  """Copies what can be learnt from of one source; the number of files.

  Args:
    language: of the files.
    source: where from.
    data_dir: files go to `data_dir/language/package`.
    max_bytes: of a package, the first files by name.
  """
  with tempfile.TemporaryDirectory() as folder:
    place = pathlib.Path(folder)
    (place / "archives").mkdir()
    for i, archive in enumerate(fetch(source, place / "archives")):
      unpack(archive, place / "unpacked" / str(i))
    files_of: dict[str, int] = {}
    num = 0
    for package, path in found(place / "unpacked", language, source):
      text = code.read_text(path)
      if text is None or code.refusal(text):
        continue
      files_of[package] = files_of.get(package, 0) + len(text)
      if files_of[package] <= max_bytes:
        short = "__".join(path.relative_to(place / "unpacked").parts[-4:])
        files.write_text(data_dir / language / package / short, text)
        num += 1
  return num


def prepare_installed(data_dir: pathlib.Path, *, max_bytes: int) -> int:
  """Copies Python files of this interpreter's packages."""
  taken = code.installed(max_bytes=max_bytes, seed=0)
  for file in taken:
    short = file.path.replace("/", "__")
    package = file.package.replace("/", "_")
    files.write_text(data_dir / "python" / package / short, file.text)
  return len(taken)


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares languages; the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("languages", nargs="+", choices=[*SOURCES, "all"])
  parser.add_argument("--data_dir", required=True, type=pathlib.Path)
  parser.add_argument(
    "--max_megabytes",
    type=float,
    default=6.0,
    help="of a package; of Python, in all",
  )
  given = parser.parse_args(argv)
  checks.positive("--max_megabytes", given.max_megabytes)
  languages = SOURCES if "all" in given.languages else given.languages
  max_bytes = int(given.max_megabytes * 1e6)
  failed = 0
  for language in languages:
    if (given.data_dir / language).is_dir():
      print(f"{language}: there already")
      continue
    for source in SOURCES[language]:
      try:
        if source.kind == "installed":
          num = prepare_installed(given.data_dir, max_bytes=max_bytes)
        else:
          num = prepare(language, source, given.data_dir, max_bytes=max_bytes)
        print(f"{language}: {num} files of {source.name}")
      except (OSError, ValueError) as error:
        failed += 1
        print(f"{language}: {source.name} left out: {error}", file=sys.stderr)
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
