"""Layers of a tower in runs that `nn.scan` can take, and their parameters.

Unrolled, a tower has `block_0`, `block_1`, ...; with `scan` each run of a
repeated unit is one `units_<first>` with the blocks `block_0`, ... of the unit,
whose parameters have a leading axis of repetitions. Blocks that do not repeat
keep their names.

  32 blocks, experts in 9, 11, ..., 31:
    units_0   block_0 is blocks 0..7            8 times (dense)
    units_8   block_0 is blocks 8, 10, ..., 30  12 times (dense)
              block_1 is blocks 9, 11, ..., 31  12 times (experts)
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from locojax.core import types
from locojax.nn import transformer

# Found in the path of a parameter whose leading axis counts layers.
STACKED = r"\bunits_\d+/"
_UNITS = "units_{}"
_BLOCK = "block_{}"


class Run(NamedTuple):
  """Layers `first`, ..., `first + size * repeats - 1`.

  Attributes:
    first: number of the first layer.
    size: layers of the unit.
    repeats: how often it comes; 1 only with a size of 1.
  """

  first: int
  size: int
  repeats: int

  @property
  def name(self) -> str:
    """Of the parameters in a tower."""
    return (_BLOCK if self.repeats == 1 else _UNITS).format(self.first)

  def members(self, place: int) -> range:
    """Numbers of the layers at a place of the unit."""
    return range(
      self.first + place, self.first + self.size * self.repeats, self.size
    )


def runs(kinds: Sequence[Hashable]) -> tuple[Run, ...]:
  """Layers cut into runs of repeated units, with the fewest bodies in all.

  Args:
    kinds: what each layer is; layers of equal kinds are interchangeable.

  Returns:
    Runs in order that cover all layers. The sum of their sizes (what must be
    compiled) is the least, of equal ones the number of runs.

  >>> [tuple(r) for r in runs("ddddededed")]
  [(0, 1, 4), (4, 2, 3)]
  >>> [tuple(r) for r in runs("eeee")], [tuple(r) for r in runs("de")]
  ([(0, 1, 4)], [(0, 1, 1), (1, 1, 1)])
  """
  num = len(kinds)
  # best[i]: ((sum of sizes, number of runs), runs) of the layers from i on.
  best: list[Any] = [None] * num + [((0, 0), ())]
  for first in reversed(range(num)):
    options = []
    for size in range(1, num - first + 1):
      unit, repeats = kinds[first : first + size], 1
      while True:
        if repeats > 1 or size == 1:
          (bodies, count), rest = best[first + size * repeats]
          run = Run(first, size, repeats)
          options.append(((bodies + size, count + 1), (run, *rest)))
        start = first + size * repeats
        if kinds[start : start + size] != unit or start + size > num:
          break
        repeats += 1
    best[first] = min(options, key=lambda option: option[0])
  return best[0][1]


def tower_runs(num_layers: int, moe_layers: Iterable[int]) -> tuple[Run, ...]:
  """`runs` of a tower with experts in `moe_layers`.

  >>> [tuple(r) for r in tower_runs(32, range(9, 32, 2))]
  [(0, 1, 8), (8, 2, 12)]
  """
  with_experts = set(moe_layers)
  return runs(tuple(i in with_experts for i in range(num_layers)))


def scanned_layers(
  num_layers: int, moe_layers: Iterable[int]
) -> tuple[int, ...]:
  """Numbers of the layers that `scan` stacks.

  >>> scanned_layers(5, (0, 3, 4))
  (1, 2, 3, 4)
  """
  found = tower_runs(num_layers, moe_layers)
  return tuple(
    i
    for run in found
    if run.repeats > 1
    for i in range(run.first, run.first + run.size * run.repeats)
  )


def _towers(tree: Mapping[str, Any], convert) -> dict[str, types.PyTree]:
  return {
    name: convert(sub) if re.fullmatch(r"(\w+_)?tower", name) else sub
    for name, sub in tree.items()
  }


def _missing(tower: Mapping[str, Any], wanted: str) -> ValueError:
  return ValueError(
    f"a tower of tree has the names {sorted(tower)}: it must have {wanted}."
  )


def _stacked(run: Run, tower: Mapping[str, Any]) -> dict[str, types.PyTree]:
  """Each place of the unit of a run; a place without variables is left out."""
  unit = {}
  for place in range(run.size):
    names = [_BLOCK.format(i) for i in run.members(place)]
    found = [name for name in names if name in tower]
    if found and len(found) < len(names):
      raise _missing(tower, f"{', '.join(names)}, or none of these")
    if found:
      numbered = {_BLOCK.format(j): tower[n] for j, n in enumerate(names)}
      stacked = transformer.stack_blocks(numbered)["blocks"]
      unit[_BLOCK.format(place)] = stacked
  return unit


def stack_layers(tree: Mapping[str, Any], model) -> dict[str, types.PyTree]:
  """Variables of an unrolled model as the same one with `scan` wants them.

  Args:
    tree: parameters, another collection such as `balance`, or anything of
      their structure (a gradient, the moments of an optimiser), unrolled.
    model: the `OneTower` or `TwoTower`, with or without `scan`.

  Returns:
    The tree with runs of layers stacked.

  Raises:
    ValueError: blocks are missing.

  >>> import jax
  >>> import jax.numpy as jnp
  >>> from locojax.methods import limoe
  >>> model = limoe.OneTower(
  ...   width=8,
  ...   num_layers=2,
  ...   num_heads=2,
  ...   hidden_size=8,
  ...   patch_size=4,
  ...   vocab_size=9,
  ...   max_text_len=3,
  ... )
  >>> text = jnp.zeros((1, 3), jnp.int32)
  >>> made = jax.eval_shape(model.init, jax.random.key(0), text=text)
  >>> params = made["params"]
  >>> stacked = jax.eval_shape(lambda tree: stack_layers(tree, model), params)
  >>> len(params["tower"]), len(stacked["tower"])
  (3, 2)
  """
  found = tower_runs(model.num_layers, model.moe_layers)

  def convert(tower):
    out, taken = {}, set()
    for run in (r for r in found if r.repeats > 1):
      unit = _stacked(run, tower)
      out |= {run.name: unit} if unit else {}
      taken |= {
        _BLOCK.format(i) for k in range(run.size) for i in run.members(k)
      }
    if not out and not taken <= set(tower) and "norm" in tower:
      raise _missing(tower, "block_0, block_1, ... of an unrolled tower")
    return {n: v for n, v in tower.items() if n not in taken} | out

  return _towers(tree, convert)


def unstack_layers(tree: Mapping[str, Any], model) -> dict[str, types.PyTree]:
  """The inverse of `stack_layers`.

  Raises:
    ValueError: runs are missing.

  >>> import jax
  >>> import jax.numpy as jnp
  >>> from locojax.methods import limoe
  >>> model = limoe.OneTower(
  ...   width=8,
  ...   num_layers=2,
  ...   num_heads=2,
  ...   hidden_size=8,
  ...   patch_size=4,
  ...   vocab_size=9,
  ...   max_text_len=3,
  ...   scan=True,
  ... )
  >>> text = jnp.zeros((1, 3), jnp.int32)
  >>> made = jax.eval_shape(model.init, jax.random.key(0), text=text)
  >>> params = made["params"]
  >>> loose = jax.eval_shape(lambda tree: unstack_layers(tree, model), params)
  >>> len(params["tower"]), len(loose["tower"])
  (2, 3)
  """
  found = tower_runs(model.num_layers, model.moe_layers)

  def convert(tower):
    units = {r.name: r for r in found if r.repeats > 1}
    missing = [name for name in units if name not in tower]
    if missing and "norm" in tower:
      raise _missing(tower, ", ".join(units))
    out = {n: v for n, v in tower.items() if n not in units}
    for name, run in units.items():
      for place in range(run.size):
        stacked = tower.get(name, {}).get(_BLOCK.format(place))
        if stacked is None:
          continue
        each = transformer.unstack_blocks({"blocks": stacked})
        for j, i in enumerate(run.members(place)):
          out[_BLOCK.format(i)] = each[_BLOCK.format(j)]
    return out

  return _towers(tree, convert)
