"""Source code by package: read, filtered, freed of copies, split.

A corpus is a tuple of `SourceFile`. Text is as it stands in the file, line ends
included, so that `file.text.encode()` is the file.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import sysconfig
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from locojax.core import checks
from locojax.data import folders

SUFFIXES: dict[str, tuple[str, ...]] = {
  "python": (".py",),
  "typescript": (".ts", ".tsx"),
  "go": (".go",),
  "cpp": (".cc", ".cpp", ".cxx", ".h", ".hpp", ".hh", ".ipp"),
  "java": (".java",),
  "proto": (".proto",),
  "kotlin": (".kt", ".kts"),
  "dart": (".dart",),
}
LANGUAGES = tuple(SUFFIXES)
PARTS = ("train", "validation", "test")
_BY_SUFFIX = {s: name for name, found in SUFFIXES.items() for s in found}
_MAX_BYTES = 400_000
_MAX_LINE = 1000
_MAX_FOREIGN = 0.5
_GENERATED = re.compile(
  r"(?i)\b(do not edit|auto-?generated|generated (by|from)|@generated)\b"
)
_HEAD = 1000  # characters in which a generated file says so
_SHINGLE, _NUM_HASHES, _NUM_BANDS = 5, 64, 16
_PRIME = (1 << 61) - 1
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class SourceFile:
  """A file of source code.

  Attributes:
    package: what it belongs to; splits never part the files of one.
    path: below `root`, with `/`.
    language: one of `LANGUAGES`.
    text: all of it; line ends as in the file.
    root: the folder that an engine would work in; '' if it is in none.
  """

  package: str
  path: str
  language: str
  text: str
  root: str = ""

  @property
  def place(self) -> pathlib.Path:
    """Where the file is."""
    return pathlib.Path(self.root, self.path)


def language_of(name: str | os.PathLike) -> str | None:
  """The language of a file by its suffix; None for others."""
  name = os.fspath(name)
  if name.endswith(".d.ts"):  # declarations, mostly generated
    return None
  return _BY_SUFFIX.get(pathlib.PurePath(name).suffix)


def refusal(text: str) -> str | None:
  """Why a text is no source to learn from; None if it is.

  Refused are generated files (that say so in their first lines), minified ones
  (a line above 1000 characters), and those with more than half non-ASCII
  characters, with a NUL, or without a word.
  """
  if "\0" in text or not _WORD.search(text):
    return "binary or empty"
  if _GENERATED.search(text[:_HEAD]):
    return "generated"
  if any(len(line) > _MAX_LINE for line in text.split("\n")):
    return "minified"
  if not text.isascii():
    foreign = sum(not c.isascii() for c in text)
    if foreign > _MAX_FOREIGN * len(text):
      return "mostly not ASCII"
  return None


def read_text(path: str | os.PathLike) -> str | None:
  """A file's text as it is; None if it is no UTF-8 or too large."""
  path = pathlib.Path(path)
  if path.stat().st_size > _MAX_BYTES:
    return None
  try:
    return path.read_bytes().decode("utf-8")
  except UnicodeDecodeError:
    return None


def _read(
  package: str, root: pathlib.Path, paths: Iterable[pathlib.Path]
) -> list[SourceFile]:
  out = []
  for path in paths:
    language = language_of(path.name)
    text = None if language is None else read_text(path)
    if text is not None and refusal(text) is None:
      name = path.relative_to(root).as_posix()
      out.append(SourceFile(package, name, language, text, str(root)))
  return out


def packages_of_python(
  *, only_library: bool = False
) -> dict[str, tuple[pathlib.Path, list[pathlib.Path]]]:
  """Python files of the standard library and of installed packages.

  Args:
    only_library: leaves out what is installed.

  Returns:
    Top-level package -> the folder it is in, and files, sorted. Modules of the
    standard library are packages of their own (`stdlib/email`), as they know
    little of each other.
  """
  out: dict[str, tuple[pathlib.Path, list[pathlib.Path]]] = {}
  library = pathlib.Path(sysconfig.get_path("stdlib"))
  skipped = {"site-packages", "dist-packages", "test", "idlelib", "lib2to3"}
  for path in sorted(library.rglob("*.py")):
    parts = path.relative_to(library).parts
    if not skipped & set(parts):
      name = parts[0].removesuffix(".py")
      out.setdefault(f"stdlib/{name}", (library, []))[1].append(path)
  for root in () if only_library else _site_folders():
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
      found = sorted(folder.rglob("*.py"))
      if found and not folder.name.endswith("-info"):
        out.setdefault(folder.name, (root, []))[1].extend(found)
  return out


def _site_folders() -> list[pathlib.Path]:
  paths = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
  return [pathlib.Path(p) for p in sorted(paths) if pathlib.Path(p).is_dir()]


def installed(
  *,
  max_bytes: int,
  seed: int,
  max_share: float = 0.1,
  only_library: bool = False,
) -> tuple[SourceFile, ...]:
  """Python source of this interpreter and its packages.

  Files are taken in an order drawn by the seed, up to `max_bytes` in all, and
  no more than `max_share` of these of one package.

  Args:
    max_bytes: of all files.
    seed: of the order.
    max_share: in (0, 1].
    only_library: leaves out what is installed besides the library.

  Raises:
    ValueError: a bad setting; no source files in this installation.
  """
  checks.positive_int("max_bytes", max_bytes)
  checks.between("max_share", max_share, 0.0, 1.0 + 1e-9)
  found = packages_of_python(only_library=only_library)
  if not found:
    raise ValueError(
      "this Python has no source files to learn from: install its library, or "
      "give a folder."
    )
  both = [(name, path) for name, (_, paths) in found.items() for path in paths]
  order = np.random.default_rng(checks.seed("seed", seed)).permutation(
    len(both)
  )
  taken, sizes = [], {}
  for name, path in (both[i] for i in order):
    room = min(max_bytes - sum(sizes.values()), max_share * max_bytes)
    size = path.stat().st_size
    if size + sizes.get(name, 0) > room:
      continue
    got = _read(name, found[name][0], [path])
    if got:
      sizes[name] = sizes.get(name, 0) + size
      taken += got
    if sum(sizes.values()) > 0.99 * max_bytes:
      break
  return tuple(sorted(taken, key=lambda f: (f.package, f.path)))


@functools.cache
def digest_of_installed(*, only_library: bool = False) -> str:
  """Digest of the names and sizes of what `installed` draws from.

  It is looked at once a process.

  Returns:
    16 hexadecimal digits.
  """
  total = hashlib.sha256()
  for name, (root, paths) in sorted(
    packages_of_python(only_library=only_library).items()
  ):
    for path in paths:
      size = path.stat().st_size
      total.update(f"{name}\0{path.relative_to(root)}\0{size}\0".encode())
  return total.hexdigest()[:16]


def from_folder(
  root: str | os.PathLike,
  *,
  languages: Sequence[str] = LANGUAGES,
  depth: int = 1,
) -> tuple[SourceFile, ...]:
  """Source files of a folder, whatever they are in.

  Args:
    root: the folder; what is hidden in it is left out, see `folders`.
    languages: that are read.
    depth: how many folders below `root` name the package of a file: 1 for a
      folder of repositories, or for one repository whose parts are to be kept
      apart; 2 for `LANGUAGE/PACKAGE`, as `scripts.prepare_code` makes.

  Raises:
    FileNotFoundError: no such folder.
    ValueError: a bad setting, or no source files.
  """
  checks.positive_int("depth", depth)
  for name in languages:
    checks.one_of("languages", name, LANGUAGES)
  root = pathlib.Path(root)
  if not root.is_dir():
    raise FileNotFoundError(f"root={str(root)!r} is not a folder.")
  out = []
  for path in folders.visible(root, deep=True):
    if language_of(path.name) in languages:
      parts = path.relative_to(root).parts
      package = "/".join(parts[:-1][:depth]) or parts[-1]
      out += _read(package, root, [path])
  if not out:
    raise ValueError(
      f"root={str(root)!r} has no source files of {', '.join(languages)} that "
      "could be learnt from."
    )
  return tuple(out)


def _signature(text: str, factors: np.ndarray) -> np.ndarray | None:
  """MinHash of the set of shingles of five words, `[hashes]` uint64."""
  words = _WORD.findall(text)
  if len(words) < _SHINGLE:
    return None
  shingles = {
    " ".join(words[i : i + _SHINGLE]) for i in range(len(words) - _SHINGLE + 1)
  }
  # Python's own hash of a string differs from process to process.
  values = np.array([zlib.crc32(s.encode()) for s in shingles], np.uint64)
  mixed = (values[:, None] * factors[0] + factors[1]) % np.uint64(2**31 - 1)
  return mixed.min(axis=0)


def deduplicate(
  files: Sequence[SourceFile], *, threshold: float = 0.8
) -> tuple[SourceFile, ...]:
  """Files of which none is nearly a copy of an earlier one.

  Near is a share of common five-word shingles (Jaccard) of `threshold` or more,
  estimated by MinHash (Broder 1997) with 64 hashes; pairs are looked for in 16
  bands of 4. Copies of the whole text are always found. To be called before a
  split, and so that what comes first stays, in a fixed order.

  Args:
    files: in the order of preference.
    threshold: in (0, 1]; 1 takes away exact copies alone.

  Raises:
    ValueError: a threshold outside.
  """
  checks.between("threshold", threshold, 0.0, 1.0 + 1e-9)
  rng = np.random.default_rng(0)
  factors = rng.integers(1, 2**31 - 1, (2, _NUM_HASHES)).astype(np.uint64)
  seen: set[bytes] = set()
  buckets: dict[tuple, list[np.ndarray]] = {}
  out = []
  for file in files:
    digest = hashlib.sha256(file.text.encode()).digest()
    if digest in seen:
      continue
    seen.add(digest)
    signature = _signature(file.text, factors) if threshold < 1 else None
    if signature is not None:
      bands = signature.reshape(_NUM_BANDS, -1)
      keys = [(i, band.tobytes()) for i, band in enumerate(bands)]
      near = (s for key in keys for s in buckets.get(key, ()))
      if any(np.mean(s == signature) >= threshold for s in near):
        continue
      for key in keys:
        buckets.setdefault(key, []).append(signature)
    out.append(file)
  return tuple(out)


def split(
  files: Sequence[SourceFile],
  *,
  seed: int,
  shares: Mapping[str, float] | None = None,
) -> dict[str, tuple[SourceFile, ...]]:
  """Parts of a corpus that share no package.

  Packages are drawn in an order of the seed, and go to the part that lacks most
  of its share of the characters, language by language.

  Args:
    files: without copies, see `deduplicate`.
    seed: of the order.
    shares: part -> share, that sum to 1; None is 0.8, 0.1 and 0.1 of `PARTS`.

  Returns:
    Part -> files, in their order.

  Raises:
    ValueError: shares that do not sum to 1; fewer packages of a language than
      parts.
  """
  shares = dict(shares or dict(zip(PARTS, (0.8, 0.1, 0.1))))
  if abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
    checks.refuse("shares", shares, "shares that sum to 1")
  part_of: dict[str, str] = {}
  for language in sorted({f.language for f in files}):
    part_of |= _part_of(
      [f for f in files if f.language == language], seed, shares, part_of
    )
  return {p: tuple(f for f in files if part_of[f.package] == p) for p in shares}


def _part_of(files, seed, shares, known) -> dict[str, str]:
  """Package -> part, of the files of one language."""
  sizes: dict[str, int] = {}
  for file in files:
    sizes[file.package] = sizes.get(file.package, 0) + len(file.text)
  if len(sizes) < len(shares):
    raise ValueError(
      f"{files[0].language} has {len(sizes)} packages, {sorted(sizes)}: it "
      f"must have {len(shares)} or more, one for each of {list(shares)}."
    )
  names = sorted(sizes)
  order = np.random.default_rng(checks.seed("seed", seed)).permutation(
    len(names)
  )
  # The largest first, so that a small part is not filled by one of them.
  names = sorted((names[i] for i in order), key=lambda n: -sizes[n])
  total = sum(sizes.values())
  lacks = {part: share * total for part, share in shares.items()}
  out = {name: known[name] for name in names if name in known}
  for name, part in out.items():
    lacks[part] -= sizes[name]
  free = [name for name in names if name not in out]
  for i, name in enumerate(free):
    empty = [p for p in shares if p not in out.values()]
    wanted = empty if len(empty) >= len(free) - i else list(shares)
    part = max(wanted, key=lambda p: lacks[p])
    out[name], lacks[part] = part, lacks[part] - sizes[name]
  return out
