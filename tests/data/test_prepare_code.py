"""Archives of code become packages of a language; nothing else is kept."""

from __future__ import annotations

import tarfile
import zipfile

import pytest

from locojax.data import code
from scripts import prepare_code


def _archive(folder, files):
  """An npm package with a jar of sources in it."""
  inner = folder / "a-sources.jar"
  with zipfile.ZipFile(inner, "w") as made:
    made.writestr("kotlin/Inner.kt", "val inner = 1\n")
  root = folder / "raw"
  for name, text in files.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
  path = folder / "x.tgz"
  with tarfile.open(path, "w:gz") as made:
    made.add(root, "package")
    made.add(inner, "package/lib/a-sources.jar")
  return path


def test_a_package_is_unpacked_and_sorted(tmp_path, monkeypatch):
  files = {
    "src/one/a.kt": "val a = 1\n",
    "src/two/b.kt": "val b = 2\n",
    "src/two/min.kt": "x" * 2000,
    "src/c.ts": "let c = 3\n",
  }
  archive = _archive(tmp_path, files)
  monkeypatch.setattr(prepare_code, "fetch", lambda source, folder: [archive])
  data = tmp_path / "data"
  source = prepare_code.Source("npm", "x@1.0.0", "src", 1)
  num = prepare_code.prepare("kotlin", source, data, max_bytes=10_000)
  assert num == 2
  found = code.from_folder(data, depth=2)
  assert [(f.package, f.text) for f in found] == [
    ("kotlin/one", "val a = 1\n"),
    ("kotlin/two", "val b = 2\n"),
  ]
  whole = prepare_code.Source("npm", "x@1.0.0")
  assert prepare_code.prepare("kotlin", whole, data, max_bytes=10_000) == 3
  assert "val inner" in "".join(f.text for f in code.from_folder(data))
  few = prepare_code.prepare("kotlin", whole, tmp_path / "few", max_bytes=15)
  assert few == 1


def test_every_language_has_sources_and_failures_are_told(
  tmp_path, monkeypatch, capsys
):
  assert set(prepare_code.SOURCES) == set(code.LANGUAGES)
  for sources in prepare_code.SOURCES.values():
    assert all(s.kind in prepare_code.KINDS for s in sources)

  def fails(source, folder):
    raise ValueError("no such package")

  monkeypatch.setattr(prepare_code, "fetch", fails)
  assert prepare_code.main(["dart", "--data_dir", str(tmp_path)]) == 1
  assert "left out: no such package" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    prepare_code.main(["rust", "--data_dir", str(tmp_path)])
