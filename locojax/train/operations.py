"""Floating-point operations of a compiled program, from its HLO text.

What was compiled need not be what was written: a ragged product can become a
dense one, a gather can leave its loop, a step can be computed on every device.
XLA counts the body of a loop once, and kernels not at all. Counted here are
products and convolutions, two operations for a multiply-add, as often as the
loops around them run; positions of a window that lie outside of the array or
between its elements are not.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

import numpy as np

from locojax.train import hlo

# Programs of their own, whose operations nobody tells.
KERNELS = ("tpu_custom_call", "__gpu$xla.gpu.triton")
_WINDOW = re.compile(r"(\w+)=([\dx_\-]+)")


@dataclasses.dataclass(frozen=True)
class Operations:
  """Operations on one device.

  Attributes:
    total: of products and convolutions.
    kernels: how often a kernel runs whose operations are not known.
    known: whether the lengths of all loops around them are known; a loop of
      unknown length counts once.
  """

  total: int
  kernels: int = 0
  known: bool = True


def count(text: str | hlo.Program) -> Operations:
  """The operations of a compiled program on one device.

  Args:
    text: `compiled.as_text()`, or the program that was read from it.

  Returns:
    `Operations`. Of the branches of a conditional all are counted.
  """
  program = hlo.Program(text) if isinstance(text, str) else text
  total, kernels, known = 0, 0, True
  for name, place in program.places().items():
    lines = program.computations[name]
    for one in lines.values():
      if one.opcode == "custom-call":
        target = (one.attribute("custom_call_target") or "").strip('"')
        kernels += place.runs * (target in KERNELS)
        continue
      if one.opcode not in _RULES:
        continue
      found = _RULES[one.opcode](one, lines)
      total += place.runs * found
      known &= place.known or not found
  return Operations(total, kernels, known)


def _dims(lines: hlo.Computation, name: str) -> tuple[int, ...]:
  found = hlo.shapes(lines[name].types) if name in lines else []
  return found[0][1] if found else ()


def _result(one: hlo.Instruction) -> int:
  found = hlo.shapes(one.types)
  return math.prod(found[0][1]) if found else 0


def _dot(one: hlo.Instruction, lines: hlo.Computation) -> int:
  left = _dims(lines, one.operands[0]) if one.operands else ()
  over = one.attribute("lhs_contracting_dims") or ""
  axes = [int(n) for n in re.findall(r"\d+", over)]
  if not left or any(a >= len(left) for a in axes):
    return 0
  return 2 * _result(one) * math.prod(left[a] for a in axes)


def _convolution(one: hlo.Instruction, lines: hlo.Computation) -> int:
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
  if not labels or len(one.operands) != 2:
    return 0
  left, right = (_dims(lines, name) for name in one.operands)
  out = hlo.shapes(one.types)[0][1]
  if not left or not right:
    return 0
  total = 2 * right[labels[2].index("i")]
  total *= out[labels[3].index("b")] * out[labels[3].index("f")]
  window = _window(one.attributes)
  for axis in range(len(out) - 2):
    at = str(axis)
    total *= _valid(
      left[labels[1].index(at)],
      right[labels[2].index(at)],
      out[labels[3].index(at)],
      *(window[k][axis] if k in window else d for k, d in _DEFAULTS.items()),
    )
  return total


_DEFAULTS = {"stride": 1, "pad": 0, "lhs_dilate": 1, "rhs_dilate": 1}


def _window(attributes: str) -> Mapping[str, list[int]]:
  """The settings of a window, a number for each axis (the pad in front)."""
  found = re.search(r"window=\{([^}]*)\}", attributes)
  pairs = _WINDOW.findall(found[1]) if found else []
  first = lambda text: int(re.match(r"-?\d+", text)[0])
  return {k: [first(n) for n in v.split("x")] for k, v in pairs}


@functools.lru_cache(maxsize=4096)
def _valid(
  size: int,
  kernel: int,
  out: int,
  stride: int,
  pad: int,
  lhs_dilate: int,
  rhs_dilate: int,
) -> int:
  """Pairs of an output and a window position that meet an element."""
  starts = np.arange(out, dtype=np.int64) * stride - pad
  end = (size - 1) * lhs_dilate + 1
  total = 0
  for k in range(kernel):
    at = starts + k * rhs_dilate
    total += int(np.sum((at >= 0) & (at < end) & (at % lhs_dilate == 0)))
  return total


_RULES = {"dot": _dot, "convolution": _convolution}
