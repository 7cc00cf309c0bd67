"""Small convex fits, deterministic, by L-BFGS on the whole set."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from locojax.core import types


def minimised(
  f, start: types.PyTree, *, num_steps: int, tolerance: float = 1e-6
) -> types.PyTree:
  """The minimum of a smooth convex function; jittable.

  Args:
    f: tree -> `[]` float32.
    start: tree of float32.
    num_steps: most steps of L-BFGS.
    tolerance: the largest entry of the gradient at which it stops.

  Returns:
    Tree like `start`: the best point visited.
  """
  tx = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(f)

  def top(grads):
    return jnp.max(
      jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(grads)])
    )

  def going(carry):
    _, _, _, step, size = carry
    return (step < num_steps) & (size > tolerance)

  def body(carry):
    x, best, state, step, _ = carry
    value, grads = value_and_grad(x, state=state)
    updates, state = tx.update(
      grads, state, x, value=value, grad=grads, value_fn=f
    )
    size = top(grads)
    better = value < best[0]
    keep = lambda new, old: jnp.where(better, new, old)
    best = (keep(value, best[0]), jax.tree.map(keep, x, best[1]))
    return optax.apply_updates(x, updates), best, state, step + 1, size

  infinity = jnp.float32(jnp.inf)
  carry = (start, (infinity, start), tx.init(start), 0, infinity)
  last, (value, best), *_ = jax.lax.while_loop(going, body, carry)
  better = f(last) < value
  return jax.tree.map(lambda a, b: jnp.where(better, a, b), last, best)
