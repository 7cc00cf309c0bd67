"""Trees: arrays without weak types."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from locojax.core import trees


def test_strong_types_keep_values_and_keys():
  key = jax.random.key(0)
  found = trees.strong_types({"a": 1.5, "k": key, "b": jnp.zeros(2)})
  assert not any(jnp.asarray(found[n]).weak_type for n in ("a", "b"))
  assert float(found["a"]) == 1.5 and found["k"] is key
