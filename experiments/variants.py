"""Lists experiments and their variants.

python -m experiments.variants         a line for each config file
python -m experiments.variants l2p     what the heads of its config files say
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

from experiments.common import commands
from locojax.core import checks

_ROOT = pathlib.Path(__file__).parents[1]


def configs() -> Iterator[tuple[str, str, ModuleType]]:
  """System, path in the checkout, and module of each config file."""
  for path in sorted(_ROOT.glob("experiments/*/configs/*.py")):
    place = path.relative_to(_ROOT)
    module = ".".join(place.with_suffix("").parts)
    yield place.parts[1], place.as_posix(), importlib.import_module(module)


def listed(system: str = "") -> str:
  """The text that is printed.

  Raises:
    ValueError: an unknown system.
  """
  every = list(configs())
  if not system:
    return "\n".join(f"{p}: {', '.join(m.VARIANTS)}" for _, p, m in every)
  checks.one_of("system", system, sorted({name for name, _, _ in every}))
  own = [(path, module) for name, path, module in every if name == system]
  heads = (f"{path}\n{m.__doc__.strip()}" for path, m in own)
  return "\n\n".join(heads)


def main(args: Sequence[str]) -> int:
  """Prints the list; the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("system", nargs="?", default="")
  return commands.run(lambda: print(listed(parser.parse_args(args).system)))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
