#!/usr/bin/env bash
# Package:  jax (nn.dot_product_attention)
# Version:  jax 0.10.2
# Expected: a program for CUDA can be lowered on a machine without a GPU, as
#           `jax.export(..., platforms=["cuda"])` does for other functions, and
#           a CUDA branch of `lax.platform_dependent` does not matter on CPU.
# Happens:  with `implementation="cudnn"` both raise "cuDNN is not detected"
#           while they are traced: the library is looked for on the machine
#           that traces, not on the one that will run.
# Matters:  one program with a kernel for each device, chosen by
#           `platform_dependent`, can't be traced on CPU, and GPU programs with
#           this kernel can't be exported or checked on a machine without one.
#           The choice must be made in Python, by the default backend.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'jax==0.10.2' \
  'jaxlib==0.10.2'
cd "$work"
JAX_PLATFORMS=cpu "$work/venv/bin/python" -I - <<'END'
import functools
import sys

import jax
import jax.numpy as jnp
from jax import export

x = jnp.ones((1, 128, 2, 64), jnp.bfloat16)


def attention(x, implementation):
  return jax.nn.dot_product_attention(x, x, x, implementation=implementation)


cudnn = functools.partial(attention, implementation="cudnn")
plain = functools.partial(attention, implementation="xla")


def by_platform(x):
  return jax.lax.platform_dependent(x, cuda=cudnn, default=plain)


def told(run):
  try:
    run()
  except RuntimeError as error:
    return str(error)
  return "works"


print(f"jax {jax.__version__}")
exported = lambda f: export.export(jax.jit(f), platforms=["cuda"])(x)
found = {
  "platform_dependent on CPU": told(lambda: jax.jit(by_platform)(x)),
  "exported for CUDA": told(lambda: exported(cudnn)),
  "the plain form exported for CUDA": told(lambda: exported(plain)),
}
for name, what in found.items():
  print(f"{name}: {what}")
if list(found.values()) != ["cuDNN is not detected."] * 2 + ["works"]:
  sys.exit("changed: the kernel no longer needs cuDNN where it is traced.")
print("so: cuDNN must be on the machine that traces.")
END
