"""Analytic count of floating-point operations, by a walk over the jaxpr.

XLA's own count takes the body of a loop once; here it is taken as often as it
runs. Counted are matrix products, convolutions and dense factorisations, two
operations for a multiply-add; elementwise work is not, as is usual for model
FLOPs utilisation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core as jex

# Static scalars known at a point of the walk, by variable.
_Known = dict[Any, Any]


@dataclasses.dataclass(frozen=True)
class FlopCount:
  """Operations of one call over all devices.

  Attributes:
    total: the number of floating-point operations.
    notes: what was assumed, such as a loop of unknown length counted once.
  """

  total: int
  notes: tuple[str, ...] = ()


def count(fn: Callable[..., Any], *args: Any) -> FlopCount:
  """Counts the operations of `fn(*args)` without running it.

  Args:
    fn: any traceable function; jitted, differentiated and sharded ones too.
    *args: arrays or `jax.ShapeDtypeStruct`s.

  Returns:
    A `FlopCount` over the whole (global) arrays. A loop counts as often as it
    runs, a conditional as its dearest branch, `shard_map` once for each shard.
  """
  closed = jax.make_jaxpr(fn)(*args)
  notes: list[str] = []
  total = _jaxpr(closed.jaxpr, {}, notes)
  return FlopCount(total, tuple(dict.fromkeys(notes)))


def count_flops(fn: Callable[..., Any], *args: Any) -> int:
  """The total of `count`, for `Experiment.flops_per_step` and MFU."""
  return count(fn, *args).total


def _open(jaxpr: Any) -> Any:
  return jaxpr.jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jaxpr


def _value(atom: Any, known: _Known) -> Any:
  """The static scalar behind an atom, or None."""
  if isinstance(atom, jex.Literal):
    return atom.val if not getattr(atom.val, "shape", ()) else None
  return known.get(atom)


def _bind(inner: Any, atoms: Any, known: _Known) -> _Known:
  """What is known inside a jaxpr that is called with these atoms."""
  found = zip(inner.invars, (_value(a, known) for a in atoms))
  return {var: value for var, value in found if value is not None}


def _jaxpr(jaxpr: Any, known: _Known, notes: list[str]) -> int:
  known = dict(known)
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name in ("convert_element_type", "copy"):
      value = _value(eqn.invars[0], known)
      if value is not None:
        known[eqn.outvars[0]] = value
    rule = _RULES.get(eqn.primitive.name, _nested)
    total += rule(eqn, known, notes)
  return total


def _sub_jaxprs(params: Any) -> Iterator[Any]:
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, (jex.Jaxpr, jex.ClosedJaxpr)):
        yield _open(item)


def _nested(eqn, known, notes) -> int:
  """Calls of all kinds: what is inside, once."""
  total = 0
  for inner in _sub_jaxprs(eqn.params):
    same = len(inner.invars) == len(eqn.invars)
    bound = _bind(inner, eqn.invars, known) if same else {}
    total += _jaxpr(inner, bound, notes)
  return total


def _scan(eqn, known, notes) -> int:
  return eqn.params["length"] * _nested(eqn, {}, notes)


def _while(eqn, known, notes) -> int:
  body, cond = _open(eqn.params["body_jaxpr"]), _open(eqn.params["cond_jaxpr"])
  num_cond, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
  carry = eqn.invars[num_cond + num_body :]
  trips = _trip_count(cond, body, num_cond, num_body, eqn, carry, known)
  once = _jaxpr(body, {}, notes) + _jaxpr(cond, {}, notes)
  if trips is None:
    if once:
      notes.append("a while loop of unknown length was counted once")
    trips = 1
  return trips * once


def _trip_count(cond, body, num_cond, num_body, eqn, carry, known):
  """Runs of `while i < n: ...; i = i + 1` with static i and n, else None."""
  tests = [e for e in cond.eqns if e.outvars[0] is cond.outvars[0]]
  if len(tests) != 1 or tests[0].primitive.name != "lt":
    return None
  left, right = tests[0].invars
  places = {var: i - num_cond for i, var in enumerate(cond.invars)}
  index = -1 if isinstance(left, jex.Literal) else places.get(left, -1)
  if index < 0 or not _counts_up(body, num_body, index):
    return None
  stop = _value(right, {})
  if stop is None and right in places:
    place = places[right]
    atom = carry[place] if place >= 0 else eqn.invars[place + num_cond]
    kept = place < 0 or body.outvars[place] is body.invars[num_body + place]
    stop = _value(atom, known) if kept else None
  start = _value(carry[index], known)
  if start is None or stop is None:
    return None
  return max(0, int(stop) - int(start))


def _counts_up(body, num_body, index) -> bool:
  var = body.invars[num_body + index]
  for eqn in body.eqns:
    if eqn.outvars[0] is body.outvars[index]:
      by = [_value(a, {}) for a in eqn.invars]
      return eqn.primitive.name == "add" and eqn.invars[0] is var and by[1] == 1
  return False


def _cond(eqn, known, notes) -> int:
  return max(
    _jaxpr(_open(b), _bind(_open(b), eqn.invars[1:], known), notes)
    for b in eqn.params["branches"]
  )


def _shard_map(eqn, known, notes) -> int:
  sizes = dict(eqn.params["mesh"].shape)
  axes = eqn.params.get("manual_axes", sizes)
  return math.prod(sizes[a] for a in axes) * _nested(eqn, {}, notes)


def _pallas(eqn, known, notes) -> int:
  grid = getattr(eqn.params.get("grid_mapping"), "grid", ())
  if not all(isinstance(n, int) for n in grid):
    notes.append("a pallas kernel with a dynamic grid was counted once")
    grid = ()
  return math.prod(grid) * _nested(eqn, {}, notes)


def _linear_solve(eqn, known, notes) -> int:
  """`custom_linear_solve` runs its solve; the other functions are for AD."""
  return _jaxpr(_open(eqn.params["jaxprs"].solve), {}, notes)


def _dot(eqn, known, notes) -> int:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  shape = eqn.invars[0].aval.shape
  return 2 * eqn.outvars[0].aval.size * math.prod(shape[i] for i in contracted)


def _ragged_dot(eqn, known, notes) -> int:
  """Each row of the left side meets one group of the right side."""
  numbers = eqn.params["ragged_dot_dimension_numbers"]
  (contracted, _), _ = numbers.dot_dimension_numbers
  left = eqn.invars[0].aval.shape
  out, ragged = eqn.outvars[0].aval.size, numbers.lhs_ragged_dimensions
  if set(ragged) & set(contracted):  # one product for each group, of its rows
    groups = eqn.invars[2].aval.shape[-1]
    return 2 * out // groups * math.prod(left[i] for i in contracted)
  return 2 * out * math.prod(left[i] for i in contracted)


def _conv(eqn, known, notes) -> int:
  kernel = eqn.invars[1].aval
  features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
  window = kernel.size // features if features else 0
  holes = math.prod(eqn.params["lhs_dilation"])
  return 2 * eqn.outvars[0].aval.size * window // holes


def _per_matrix(formula):
  """Cost of a factorisation of `[..., m, n]`, for each of the leading."""

  def rule(eqn, known, notes) -> int:
    *lead, m, n = eqn.invars[0].aval.shape
    return math.prod(lead) * int(formula(m, n))

  return rule


def _triangular_solve(eqn, known, notes) -> int:
  size, right = eqn.invars[0].aval.shape[-1], eqn.invars[1].aval.size
  return right * size


def _iterative(eqn, known, notes) -> int:
  notes.append(f"{eqn.primitive.name} was counted as 9 n^3")
  return _per_matrix(lambda m, n: 9 * m * n * min(m, n))(eqn, known, notes)


_RULES = {
  "dot_general": _dot,
  "ragged_dot_general": _ragged_dot,
  "conv_general_dilated": _conv,
  "scan": _scan,
  "while": _while,
  "cond": _cond,
  "shard_map": _shard_map,
  "pallas_call": _pallas,
  "custom_linear_solve": _linear_solve,
  "cholesky": _per_matrix(lambda m, n: n**3 / 3),
  "lu": _per_matrix(lambda m, n: m * n**2 - n**3 / 3),
  "geqrf": _per_matrix(lambda m, n: 2 * m * n**2 - 2 * n**3 / 3),
  "triangular_solve": _triangular_solve,
  "eigh": _iterative,
  "svd": _iterative,
  "eig": _iterative,
}
