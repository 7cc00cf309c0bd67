"""Keys of privacy noise: from the system's entropy, one for every tree node.

The noise of a node is a function of (key, tree, level, index) and the path of
the array, so neither sharding nor the order of a pytree, `jit` or `scan`
changes it, and a node is the same whenever it is drawn. It needs threefry keys:
`rbg` keys are not stable across backends.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

IMPL = "threefry2x32"


def from_entropy() -> jax.Array:
  """A fresh typed key with 64 bits of the operating system's entropy.

  `jax.random.key(seed)` drops the upper 32 bits of a seed without x64; this
  does not. JAX makes no cryptographic claim for threefry.
  """
  words = [secrets.randbits(32), secrets.randbits(32)]
  return jax.random.wrap_key_data(np.array(words, np.uint32), impl=IMPL)


def check(key: jax.Array) -> jax.Array:
  """`key` if it can carry privacy noise.

  Raises:
    ValueError: not a single typed threefry key.
  """
  dtype = getattr(key, "dtype", None)
  typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  if not typed or key.shape != () or str(jax.random.key_impl(key)) != IMPL:
    raise ValueError(
      f"key={key!r} is not allowed: it must be one typed key of {IMPL!r}, as "
      "from `jax.random.key` or `keys.from_entropy`."
    )
  return key


def fingerprint(key: jax.Array) -> str:
  """16 hex digits of a SHA-256 of a key: names it without telling it.

  >>> fingerprint(jax.random.key(0)) == fingerprint(jax.random.key(1))
  False
  """
  data = np.asarray(jax.random.key_data(check(key)))
  return hashlib.sha256(b"dp-key" + data.astype("<u4").tobytes()).hexdigest()[
    :16
  ]


def of_array(key: jax.Array, path: str) -> jax.Array:
  """The key of one array of a pytree, by its path."""
  return jax.random.fold_in(key, jnp.uint32(path_hash(path)))


def path_hash(path: str) -> int:
  """32 bits of a path; arrays of one pytree must not share them."""
  return zlib.crc32(path.encode())


def of_node(
  key: jax.Array, tree: ArrayLike, level: ArrayLike, index: ArrayLike
) -> jax.Array:
  """The key of a node: `index` counts the nodes of its level from the left."""
  for part in (tree, level, index):
    key = jax.random.fold_in(key, part)
  return key
