"""The long description; all other metadata are in pyproject.toml.

The README's links are relative, which an index of packages cannot follow. They
become links below `[project.urls] Repository`; before a project has an address
they become their names, and pictures go.
"""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parent
_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def _link(match, repository):
  picture, name, target = match.groups()
  if "://" in target or (target.startswith("#") and not repository):
    return match[0] if "://" in target else name
  if not repository:
    return "" if picture else name
  start = "raw" if picture else "blob"
  place = "README.md" + target if target.startswith("#") else target
  return f"{picture}[{name}]({repository}/{start}/main/{place})"


def long_description(text, repository):
  """The README with absolute links alone.

  Args:
    text: of README.md.
    repository: address of the repository, or an empty text.
  """
  parts = _FENCE.split(text)
  address = repository.rstrip("/").removesuffix(".git")
  parts[::2] = [_LINK.sub(lambda m: _link(m, address), p) for p in parts[::2]]
  return "".join(parts)


if __name__ == "__main__":
  from setuptools import setup

  project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
  urls = project["project"].get("urls", {})
  setup(
    long_description=long_description(
      (ROOT / "README.md").read_text("utf-8"), urls.get("Repository", "")
    ),
    long_description_content_type="text/markdown",
  )
