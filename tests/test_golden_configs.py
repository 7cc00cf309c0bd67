"""Every variant of every config is what it was: `tests/golden/*.json`.

A change of a config is made on purpose or not at all. After one on purpose:

  python tests/test_golden_configs.py
"""

from __future__ import annotations

import importlib
import json
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
GOLDEN = ROOT / "tests" / "golden"


def _modules() -> dict[str, str]:
  """Config name -> module, `locoprop.autoencoder` -> its dotted path."""
  found = sorted((ROOT / "experiments").glob("*/configs/*.py"))
  return {
    f"{path.parts[-3]}.{path.stem}": ".".join(
      path.relative_to(ROOT).with_suffix("").parts
    )
    for path in found
    if path.stem != "__init__"
  }


def _cases() -> list[tuple[str, str]]:
  return [
    (name, variant)
    for name, module in _modules().items()
    for variant in importlib.import_module(module).VARIANTS
  ]


def _text(name: str, variant: str) -> str:
  module = importlib.import_module(_modules()[name])
  config = module.get_config(variant)
  assert config.is_locked
  return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


@pytest.mark.parametrize("name, variant", _cases())
def test_config_is_the_golden_one(name, variant):
  path = GOLDEN / f"{name}.{variant}.json"
  assert path.is_file(), f"no {path.name}: run python {pathlib.Path(__file__)}"
  assert _text(name, variant) == path.read_text()


def test_no_golden_file_is_left_over():
  wanted = {f"{name}.{variant}.json" for name, variant in _cases()}
  assert {p.name for p in GOLDEN.glob("*.json")} == wanted


@pytest.mark.parametrize("name", _modules())
def test_every_config_has_the_variants_of_the_house(name):
  module = importlib.import_module(_modules()[name])
  assert {"tiny", "cpu", "paper"} <= set(module.VARIANTS)
  with pytest.raises(ValueError, match="variant='nothing'"):
    module.get_config("nothing")


if __name__ == "__main__":
  GOLDEN.mkdir(exist_ok=True)
  for old in GOLDEN.glob("*.json"):
    old.unlink()
  for case in _cases():
    (GOLDEN / f"{case[0]}.{case[1]}.json").write_text(_text(*case))
