"""Modules of flax as one program, and what a program says to other devices.

Op by op, every operation of every shape is a program of its own to compile:
some hundred for the parameters of a small network.
"""

from __future__ import annotations

import re

import jax


def init(module, rngs, *inputs, **named):
  """`module.init(rngs, *inputs, **named)`, the named arguments static."""
  run = jax.jit(lambda rngs, inputs: module.init(rngs, *inputs, **named))
  return run(rngs, inputs)


def apply(module, variables, *inputs, **named):
  """`module.apply(variables, *inputs, **named)`, the named ones static."""
  run = jax.jit(lambda v, inputs: module.apply(v, *inputs, **named))
  return run(variables, inputs)


def talks(program) -> list[tuple[str, str]]:
  """Shape and kind of each collective of a compiled program, in its order."""
  pattern = r"= (.*?) ([a-z-]+)\(.*channel_id="
  return re.findall(pattern, program.as_text())
