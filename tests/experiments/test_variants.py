"""What `experiments.variants` says of the config files."""

from __future__ import annotations

import re

import pytest

from experiments import variants
from locojax import METHODS


def test_a_line_for_each_config_file():
  lines = variants.listed().splitlines()
  assert len(lines) == len(list(variants.configs()))
  assert {line.split("/")[1] for line in lines} == set(METHODS)
  for line in lines:
    assert re.fullmatch(r"experiments/\w+/configs/\w+\.py: tiny, .*", line)


def test_every_head_tells_of_its_variants():
  missing = [
    (path, name)
    for _, path, module in variants.configs()
    for name in module.VARIANTS
    if not re.search(rf"\b{name}\b", module.__doc__)
  ]
  assert not missing


def test_a_system_has_its_heads(capsys):
  assert variants.main(["dp_ftrl"]) == 0
  printed = capsys.readouterr().out
  for name in ("classification", "next_word"):
    assert f"experiments/dp_ftrl/configs/{name}.py\n" in printed


def test_an_unknown_system_is_refused(capsys):
  with pytest.raises(ValueError, match="did you mean 'l2p'"):
    variants.listed("l3p")
  assert variants.main(["l3p"]) == 2
  assert "l3p" in capsys.readouterr().err
