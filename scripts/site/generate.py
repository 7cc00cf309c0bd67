"""The pages of the documentation site, made of what the repository has.

`mkdocs` runs this before it builds (`scripts/docs`). Nothing is written twice:
the front page and the page of each system are the READMEs, the reference is
every public name of every library, the recipes are the tests that run them.
Links to files that are no pages become their names.
"""

from __future__ import annotations

import ast
import pathlib
import posixpath
import re

import mkdocs_gen_files

ROOT = pathlib.Path(__file__).parents[2]
METHODS = ROOT / "locojax" / "methods"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_MARK = re.compile(r"^<!-- .*? -->\n", re.MULTILINE)
FRONT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
# Packages of the library with names to import, and what they are.
ROOMS = {
  "nn": "shared flax modules",
  "decode": "generation by any step function",
  "data": "sources, folders, pipelines",
  "train": "the loop, steps, sharding, checkpoints, the check of a pod",
  "report": "tables and figures from run folders",
}


def pages() -> dict[str, str]:
  """Page of each text of the repository, both as paths."""
  found = dict(FRONT)
  for path in sorted(ROOT.glob("experiments/*/README.md")):
    found[str(path.relative_to(ROOT))] = f"systems/{path.parent.name}.md"
  found["results/README.md"] = "results.md"
  found["findings/README.md"] = "findings.md"
  return {old: new for old, new in found.items() if (ROOT / old).exists()}


def _asset(path: str) -> str:
  """A picture of the repository in the site."""
  return f"assets/{path.replace('/', '_')}"


def _target(link: str, here: str, page: str, known: dict[str, str]):
  """Where a link leads in the site; None where the site has nothing."""
  path, _, anchor = link.partition("#")
  if "://" in link or not path:
    return link
  old = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
  if old.endswith(".png") and (ROOT / old).exists():
    with mkdocs_gen_files.open(_asset(old), "wb") as out:
      out.write((ROOT / old).read_bytes())
    new = _asset(old)
  elif old in known:
    new = known[old]
  else:
    return None
  start = posixpath.dirname(page) or "."
  return posixpath.relpath(new, start) + (f"#{anchor}" if anchor else "")


def converted(text: str, here: str, page: str, known: dict[str, str]) -> str:
  """A text of the repository as a page: its links, and no table markers."""

  def link(match):
    picture, name, target = match.groups()
    found = _target(target, here, page, known)
    return name if found is None else f"{picture}[{name}]({found})"

  parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
  parts[::2] = [_LINK.sub(link, _MARK.sub("", part)) for part in parts[::2]]
  return "".join(parts)


def exported(path: pathlib.Path) -> list[str]:
  """`__all__` of a package, read without importing it."""
  for node in ast.parse(path.read_text(encoding="utf-8")).body:
    named = isinstance(node, ast.Assign) and node.targets[0]
    if isinstance(named, ast.Name) and named.id == "__all__":
      return sorted(ast.literal_eval(node.value), key=str.lower)
  return []


def _library(name: str) -> str:
  """The reference page of a method: every name it exports."""
  names = exported(METHODS / name / "__init__.py")
  lines = [f"# locojax.{name}", ""]
  lines += [f"::: locojax.methods.{name}", "    options:"]
  lines += ["      members: []", "      show_root_heading: false", ""]
  for one in names:
    lines += [f"::: locojax.methods.{name}.{one}", ""]
  return "\n".join(lines)


def _room(name: str, what: str) -> str:
  """The reference page of a package: its modules with all public names."""
  lines = [f"# locojax.{name}", "", f"{what[0].upper()}{what[1:]}.", ""]
  for path in sorted((ROOT / "locojax" / name).glob("[a-z]*.py")):
    module = f"locojax.{name}.{path.stem}"
    lines += [f"## {module}", "", f"::: {module}", "    options:"]
    lines += ["      show_root_heading: false", ""]
  return "\n".join(lines)


def _recipes() -> str:
  """The tested programs with NNX, Equinox and plain functions."""
  source = (ROOT / "tests" / "test_recipes.py").read_text(encoding="utf-8")
  return f"# Recipes\n\nThese run as tests.\n\n```python\n{source}```\n"


def _gallery() -> str:
  """Every committed figure, by system."""
  lines = ["# Gallery", ""]
  for folder in sorted((ROOT / "results").iterdir()):
    figures = sorted(folder.glob("*.png")) if folder.is_dir() else []
    lines += [f"## {folder.name}", ""] if figures else []
    for path in figures:
      name = str(path.relative_to(ROOT))
      with mkdocs_gen_files.open(_asset(name), "wb") as out:
        out.write(path.read_bytes())
      lines += [f"![{path.stem}]({_asset(name)})", "", f"`{name}`", ""]
  return "\n".join(lines)


def write() -> None:
  """All pages."""
  known = pages()
  made = {
    new: converted((ROOT / old).read_text("utf-8"), old, new, known)
    for old, new in known.items()
  }
  for path in sorted(METHODS.glob("*/__init__.py")):
    made[f"reference/{path.parent.name}.md"] = _library(path.parent.name)
  for name, what in ROOMS.items():
    made[f"reference/{name}.md"] = _room(name, what)
  made |= {"recipes.md": _recipes(), "gallery.md": _gallery()}
  for name, text in made.items():
    with mkdocs_gen_files.open(name, "w") as out:
      out.write(text)


write()
