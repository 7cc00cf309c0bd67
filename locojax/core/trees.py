"""Trees by path: 'a/b/kernel' names, selection by regex, norms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def path_str(path: Sequence[Any]) -> str:
  """A key path as 'a/b/kernel'.

  >>> tree = {"a": {"b": 1}}
  >>> [path_str(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
  ['a/b']
  """
  return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def flatten(tree: PyTree) -> dict[str, Any]:
  """Leaves by path, in tree order.

  Raises:
    ValueError: two leaves have the same path.
  """
  out: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = path_str(path)
    if name in out:
      raise ValueError(f"two leaves of the tree have the path {name!r}.")
    out[name] = leaf
  return out


def children(tree: PyTree) -> dict[str, PyTree]:
  """What stands right below a node, by the part of the path that it adds.

  >>> children({"a": {"b": 1}, "c": [2, 3]})
  {'a': {'b': 1}, 'c': [2, 3]}
  """
  below, _ = jax.tree_util.tree_flatten_with_path(
    tree, is_leaf=lambda node: node is not tree
  )
  return {path_str(path): node for path, node in below if path}


def subtree(tree: PyTree, path: str) -> PyTree:
  """The part of a tree at a path of `flatten`, or at the head of one.

  >>> subtree({"a": [{"b": 1}]}, "a/0")
  {'b': 1}

  Raises:
    KeyError: there is nothing.
  """
  node = tree
  while path:
    found = children(node)
    part = next(
      (p for p in found if path == p or path.startswith(f"{p}/")), None
    )
    if part is None:
      raise KeyError(path)
    node, path = found[part], path[len(part) + 1 :]
  return node


def flatten_nested(trees_by_path: dict[str, PyTree]) -> dict[str, Any]:
  """Leaves by full path, of trees that stand at the given paths.

  >>> flatten_nested({"a/b": {"kernel": 1}, "": {"scale": 2}})
  {'a/b/kernel': 1, 'scale': 2}
  """
  return {
    "/".join(part for part in (head, tail) if part): leaf
    for head, tree in trees_by_path.items()
    for tail, leaf in flatten(tree).items()
  }


def map_with_path(
  f: Callable[..., Any], tree: PyTree, *rest: PyTree, is_leaf=None
) -> PyTree:
  """`jax.tree.map` with the path as 'a/b/kernel' for a first argument."""
  return jax.tree_util.tree_map_with_path(
    lambda p, *leaves: f(path_str(p), *leaves), tree, *rest, is_leaf=is_leaf
  )


def matches(path: str, patterns: str | Iterable[str]) -> bool:
  """Whether any of the regular expressions is found in `path`."""
  if isinstance(patterns, str):
    patterns = (patterns,)
  return any(re.search(p, path) for p in patterns)


def mask(tree: PyTree, patterns: str | Iterable[str]) -> PyTree:
  """A tree of bools: does the path of the leaf match any pattern?"""
  if isinstance(patterns, str):
    patterns = (patterns,)
  patterns = tuple(patterns)
  return map_with_path(lambda path, _: matches(path, patterns), tree)


def strong_types(tree: PyTree) -> PyTree:
  """Arrays without weak types, which would make a second compilation.

  Typed PRNG keys stay as they are.
  """

  def strong(x):
    x = jnp.asarray(x)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return x
    return jax.lax.convert_element_type(x, x.dtype)

  return jax.tree.map(strong, tree)


def num_params(tree: PyTree) -> int:
  """The number of scalars in a tree of arrays or shape structs."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
  """The number of bytes of a tree of arrays or shape structs."""
  return sum(
    leaf.size * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  )


def per_example_norm(tree: PyTree) -> jax.Array:
  """L2 norm over everything but the leading axis, in float32.

  Args:
    tree: arrays `[examples, ...]`, all with the same leading size.

  Returns:
    `[examples]` float32: for each example the norm of all its entries.
  """
  squares = [
    jnp.sum(jnp.square(x.astype(jnp.float32)), axis=tuple(range(1, x.ndim)))
    for x in jax.tree.leaves(tree)
  ]
  return jnp.sqrt(sum(squares))
