#!/usr/bin/env bash
# Package:  flax (linen.intercept_methods) with jax (eval_shape)
# Version:  flax 0.12.8, jax 0.10.2
# Expected: every `jax.eval_shape` inside `nn.intercept_methods` shows the
#           interceptor the calls of the modules that it traces.
# Happens:  only the first trace of a function does. The second call with the
#           same function and shapes takes JAX's cached trace, no module runs,
#           and the interceptor sees nothing; there is no warning.
# Matters:  tools that list layers, count operations or capture activations
#           with an interceptor and `eval_shape`, which costs no memory, report
#           an empty model the second time. A function of its own for each call
#           (`functools.partial` of it is enough) traces again.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'flax==0.12.8' \
  'jax==0.10.2' \
  'jaxlib==0.10.2'
cd "$work"
JAX_PLATFORMS=cpu "$work/venv/bin/python" -I - <<'END'
import functools
import sys

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

model = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
key = jax.random.key(0)


def init(key):
  return model.init(key, jnp.ones((1, 3)))


def seen_by_interceptor(function):
  seen = []

  def spy(next_fun, args, kwargs, context):
    seen.append(type(context.module).__name__)
    return next_fun(*args, **kwargs)

  with nn.intercept_methods(spy):
    jax.eval_shape(function, key)
  return seen


print(f"flax {flax.__version__}, jax {jax.__version__}")
found = {
  "first": seen_by_interceptor(init),
  "second": seen_by_interceptor(init),
  "partial": seen_by_interceptor(functools.partial(init)),
}
for name, seen in found.items():
  print(f"{name}: {seen}")
whole = ["Sequential", "Dense", "Dense"]
if found != {"first": whole, "second": [], "partial": whole}:
  sys.exit("changed: a second eval_shape no longer hides modules.")
print("so: the interceptor saw no module in the second call.")
END
