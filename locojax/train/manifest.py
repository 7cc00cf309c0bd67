"""What a checkpoint says of itself: the JSON beside its arrays.

`{"meta": ..., "arrays": {path: {shape, dtype, checksum, key_impl}}, "crc32"}`:
what the caller of `save` gave, and of every array what must be known to tell
its damage from a difference between two runs. The last is of the whole JSON,
so that the same holds for it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locojax.core import trees
from locojax.train import checksums

PyTree = Any
_PARTS = {"meta", "arrays", "crc32"}
# In the JSON of checkpoints without checksums, beside what the caller gave.
_OLD_KEYS = "key_impls"


class Manifest(NamedTuple):
  """What a checkpoint says of itself.

  Attributes:
    meta: what the caller of `save` gave.
    arrays: shape and dtype by path, typed keys as their data.
    impls: names of the generators of typed keys, by path.
    sums: checksums by path; None where there were none yet.
  """

  meta: dict[str, Any]
  arrays: dict[str, Any]
  impls: dict[str, str]
  sums: dict[str, int] | None


def is_key(leaf: Any) -> bool:
  """Whether an array, or the struct of one, is of typed keys."""
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def impls_of(flat: Mapping[str, Any]) -> dict[str, str]:
  """Names of the generators of typed keys, by path."""

  def impl(leaf):
    out = []

    def probe(key):
      out.append(str(jax.random.key_impl(key)))
      return key

    jax.eval_shape(probe, leaf)
    return out[0]

  return {path: impl(leaf) for path, leaf in flat.items() if is_key(leaf)}


def _crc32(parts: Mapping[str, Any]) -> int:
  """A checksum of what JSON keeps."""
  kept = json.loads(json.dumps(parts))
  return zlib.crc32(json.dumps(kept, sort_keys=True).encode())


def describe(
  meta: Mapping[str, Any], state: PyTree, plain: Mapping[str, jax.Array]
) -> dict[str, Any]:
  """The JSON of a checkpoint.

  Args:
    meta: anything that JSON can hold.
    state: the state that is saved.
    plain: its arrays by path, typed keys as their data.
  """
  sums, impls = checksums.of(plain), impls_of(trees.flatten(state))
  arrays = {
    path: {
      "shape": list(x.shape),
      "dtype": jnp.dtype(x.dtype).name,
      "checksum": sums[path],
    }
    for path, x in plain.items()
  }
  for path, impl in impls.items():
    arrays[path]["key_impl"] = impl
  parts = {"meta": dict(meta), "arrays": arrays}
  return {**parts, "crc32": _crc32(parts)}


def checked(record: Mapping[str, Any]) -> Manifest:
  """What the JSON says, if it is as it was written.

  Raises:
    ValueError: it is not.
  """
  parts = {name: x for name, x in record.items() if name != "crc32"}
  if set(record) != _PARTS or record["crc32"] != _crc32(parts):
    raise ValueError("the JSON is not as it was written (checksum)")
  arrays = record["arrays"]
  structs = {
    path: jax.ShapeDtypeStruct(tuple(x["shape"]), jnp.dtype(x["dtype"]))
    for path, x in arrays.items()
  }
  impls = {p: x["key_impl"] for p, x in arrays.items() if "key_impl" in x}
  sums = {path: x["checksum"] for path, x in arrays.items()}
  return Manifest(record["meta"], structs, impls, sums)


def is_old(record: Mapping[str, Any]) -> bool:
  """Whether the JSON is of before there were checksums."""
  return _OLD_KEYS in record and not _PARTS & set(record)


def of_old(record: Mapping[str, Any], tree: Mapping[str, Any]) -> Manifest:
  """What such JSON says, with shapes and dtypes as the store has them."""
  meta = {name: x for name, x in record.items() if name != _OLD_KEYS}
  return Manifest(meta, dict(tree), dict(record[_OLD_KEYS]), None)
