"""Layers of equal shape solved together, as one batched product."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from locojax.core import types
from locojax.methods.locoprop import update

# A convolution over a stack becomes a grouped one, which is slow.
ALONE = ("conv", "convtranspose")


def _key(problem: update.Problem):
  """Equal for problems that differ in the values of their arrays alone."""
  tree = (problem.parts, problem.start)
  leaves, structure = jax.tree.flatten(tree)
  return structure, tuple((x.shape, jnp.result_type(x)) for x in leaves)


def groups(problems: dict[str, update.Problem]) -> list[tuple[str, ...]]:
  """Paths of the layers that can be stacked, in the order given.

  These have equal shapes and dtypes of inputs and parameters, the same
  transfer function, kind and way of taking rows. Convolutions stay alone.
  """
  found: dict = {}
  for path, problem in problems.items():
    alone = any(part.kind in ALONE for part in problem.parts)
    found.setdefault(path if alone else _key(problem), []).append(path)
  return [tuple(paths) for paths in found.values()]


def _stack(trees: list[types.PyTree]) -> types.PyTree:
  return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def together(problems: dict[str, update.Problem]) -> update.Changes:
  """As `update.each_alone`, each group of equal layers in one `vmap`.

  The stacks of inputs and pre-activations are made once, before the local
  iterations; those layers then stand on the tape and in a stack.
  """
  grouped = groups(problems)
  stacks = {
    paths: _stack([problems[p].parts for p in paths])
    for paths in grouped
    if len(paths) > 1
  }

  def group_change(paths, delta, t):
    def one(parts, d):
      return update.add([part(d, t) for part in parts])

    out = jax.vmap(one)(stacks[paths], _stack([delta[p] for p in paths]))
    out = update.sum_over_devices(out, problems[paths[0]].options)
    return {
      path: jax.tree.map(lambda x, i=i: x[i], out)
      for i, path in enumerate(paths)
    }

  def changes(delta, t):
    out = {}
    for paths in grouped:
      if paths in stacks:
        out |= group_change(paths, delta, t)
      else:
        out[paths[0]] = problems[paths[0]].change(delta[paths[0]], t)
    return out

  return changes
