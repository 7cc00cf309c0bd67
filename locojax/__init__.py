"""locojax: ten deep-learning systems as small, composable JAX libraries.

The methods are attributes of the package, imported when first used:

>>> import locojax
>>> locojax.locoprop.matching_losses.get("tanh").name
'tanh'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from locojax.methods import (
    ciw,
    completion,
    continual,
    dp_ftrl,
    l2p,
    limoe,
    locoprop,
    minerva,
    pix2seq,
    smelu,
    spl,
  )
else:

  def __getattr__(name: str) -> Any:
    """The package of a method, `locojax.methods.<name>`."""
    if name in METHODS + TOOLS:
      return importlib.import_module(f"locojax.methods.{name}")
    raise AttributeError(
      f"module 'locojax' has no attribute {name!r}: its methods are "
      f"{', '.join(METHODS)}, and beside them there is {', '.join(TOOLS)}."
    )


__version__ = "0.1.0"

METHODS = (
  *("ciw", "completion", "dp_ftrl", "l2p", "limoe", "locoprop"),
  *("minerva", "pix2seq", "smelu", "spl"),
)
# Libraries beside the ten systems, which several of them are compared by.
TOOLS = ("continual",)
__all__ = [
  "METHODS",
  "TOOLS",
  "__version__",
  "ciw",
  "completion",
  "continual",
  "dp_ftrl",
  "l2p",
  "limoe",
  "locoprop",
  "minerva",
  "pix2seq",
  "smelu",
  "spl",
]


def __dir__() -> list[str]:
  return sorted({*globals(), *METHODS, *TOOLS})
