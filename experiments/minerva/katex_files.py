"""KaTeX, which typesets formulas in a page, from its npm package.

The package is unpacked beside the page, its fonts inside the style sheet: a
page that is opened from a file may not read fonts of other files everywhere.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile

from locojax.core import files

VERSION = "0.19.1"
SHA256 = "24da5a599eb2fcede2e270b99a6ff48bca816beecc95feeb84e8cccbd1bb34fd"
VARIABLE = "LOCOJAX_KATEX"
_ROOT = pathlib.Path(__file__).parents[2]
_HELP = (
  f"get it by `npm pack katex@{VERSION}` and name that file (--katex, or the "
  f"variable {VARIABLE})"
)
# Name in the package -> name beside the page.
_SCRIPTS = {
  "dist/katex.min.js": "katex.js",
  "dist/contrib/auto-render.min.js": "auto-render.js",
  "LICENSE": "LICENSE",
}
_STYLE = "dist/katex.min.css"
_FONT = re.compile(r'src:url\((fonts/[\w.-]+\.woff2)\) format\("woff2"\)[^;}]*')


def _kept() -> pathlib.Path:
  """Where a package that was fetched is kept."""
  return _ROOT / ".cache" / f"katex-{VERSION}.tgz"


def _fetched() -> bytes:
  """The package, as npm gives it.

  Raises:
    FileNotFoundError: npm is not there or could not get it.
    ValueError: it is not the one that is known.
  """
  npm = shutil.which("npm")
  if npm is None:
    raise FileNotFoundError(f"KaTeX is not here, and npm neither: {_HELP}.")
  with tempfile.TemporaryDirectory() as folder:
    command = [npm, "pack", "--silent", f"katex@{VERSION}"]
    done = subprocess.run(
      command, cwd=folder, capture_output=True, text=True, check=False
    )
    found = list(pathlib.Path(folder).glob("katex-*.tgz"))
    if done.returncode or not found:
      lines = done.stderr.strip().splitlines() or ["no file"]
      raise FileNotFoundError(
        f"`{' '.join(command[1:])}`: {lines[-1]}; {_HELP}."
      )
    content = found[0].read_bytes()
  if hashlib.sha256(content).hexdigest() != SHA256:
    raise ValueError(
      f"katex@{VERSION} is not the package that is known (its SHA-256 differs)."
    )
  return content


def package(path: str = "") -> bytes:
  """The npm package of KaTeX.

  Args:
    path: of the packed file; empty takes `LOCOJAX_KATEX`, the one that was
      fetched before, or fetches it.

  Raises:
    FileNotFoundError: it is not there; says how to get it.
    ValueError: what npm gave is not the package that is known.
  """
  given = path or os.environ.get(VARIABLE, "")
  if given:
    found = pathlib.Path(given)
    if not found.is_file():
      raise FileNotFoundError(f"{given} is not there: {_HELP}.")
    return found.read_bytes()
  if _kept().is_file():
    return _kept().read_bytes()
  content = _fetched()
  files.write(_kept(), lambda file: file.write(content))
  return content


def _inlined(style: str, read) -> str:
  """A style sheet with its fonts inside."""

  def put(found: re.Match) -> str:
    font = base64.b64encode(read(f"dist/{found[1]}")).decode()
    return f'src:url(data:font/woff2;base64,{font}) format("woff2")'

  return _FONT.sub(put, style)


def unpack(content: bytes, folder: pathlib.Path) -> None:
  """Puts scripts, style sheet and licence into a folder.

  Raises:
    ValueError: it is no package of KaTeX.
  """
  try:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:

      def read(name: str) -> bytes:
        return archive.extractfile(f"package/{name}").read()

      for name, short in _SCRIPTS.items():
        _write(folder / short, read(name))
      style = _inlined(read(_STYLE).decode(), read)
  except (tarfile.TarError, KeyError, EOFError, OSError) as error:
    raise ValueError(
      f"this is no npm package of KaTeX: {error}; {_HELP}."
    ) from error
  if "url(fonts/" in style:
    raise ValueError(f"its style sheet is none that is known: {_HELP}.")
  _write(folder / "katex.css", style.encode())


def _write(path: pathlib.Path, content: bytes) -> None:
  files.write(path, lambda file: file.write(content))
