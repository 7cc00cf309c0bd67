"""LocoProp: layer-wise local losses optimised by a few first-order steps.

Amid, Anil, Warmuth: "LocoProp: Enhancing BackProp via Local Loss
Optimization", AISTATS 2022, arXiv 2106.06199.
"""

from locojax.methods.locoprop import matching as matching_losses
from locojax.methods.locoprop.arguments import find_layers
from locojax.methods.locoprop.chain import verify_chain
from locojax.methods.locoprop.describe import (
  describe,
  diagnose,
  verify_gradients,
  verify_transfers,
)
from locojax.methods.locoprop.exact import exact_squared_update
from locojax.methods.locoprop.matching import MatchingLoss
from locojax.methods.locoprop.taps import (
  LayerRecord,
  LocoDense,
  Tape,
  capture,
  layer_paths,
  tap,
)
from locojax.methods.locoprop.targets import LocalOptions, target_outside
from locojax.methods.locoprop.transform import (
  INNER,
  LocoPropState,
  constant_local,
  linear_floor,
  linear_warmup_decay,
  locoprop,
  make_step,
  notebook_rmsprop,
)
from locojax.methods.locoprop.update import local_solve

__all__ = [
  "INNER",
  "LayerRecord",
  "LocalOptions",
  "LocoDense",
  "LocoPropState",
  "MatchingLoss",
  "Tape",
  "capture",
  "constant_local",
  "describe",
  "diagnose",
  "exact_squared_update",
  "find_layers",
  "layer_paths",
  "linear_floor",
  "linear_warmup_decay",
  "local_solve",
  "locoprop",
  "make_step",
  "matching_losses",
  "notebook_rmsprop",
  "tap",
  "target_outside",
  "verify_chain",
  "verify_gradients",
  "verify_transfers",
]
