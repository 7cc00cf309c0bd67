"""Config of the toy experiment."""

from __future__ import annotations

import pathlib
import sys

import ml_collections

from locojax.core import checks

sys.path.insert(0, str(pathlib.Path(__file__).parent))


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
  """The variants: `tiny` and `slow`, whose batches take their time."""
  pause = checks.lookup("variant", variant, {"tiny": 0.0, "slow": 0.02})
  return ml_collections.ConfigDict(
    {
      "experiment": "toy",
      "num_steps": 20,
      "log_every": 5,
      "save_every": 4,
      "stages": 1,
      "seed": 0,
      "pause": pause,
      "bad": -1,
      "mesh": {"data": -1, "expert": 1, "model": 1},
      "check": {"topology": ""},
    }
  )
