"""Layers of Flax NNX on the tape.

NNX calls its layers as plain objects, so their `__call__` is put in brackets
while a loss is traced under `capture`, and put back afterwards. Where a layer's
parameters stand is told by the arrays themselves: those that `nnx.merge` puts
into the layer are the leaves of `params`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from locojax.core import trees, types

NAMES = ("Linear", "LinearGeneral", "Einsum", "Conv", "ConvTranspose", "Embed")
# Methods besides `__call__` that use a layer's parameters.
_OTHERS = {"Embed": ("attend",)}
# What the path of an NNX parameter has behind its name.
VALUE = "value"
_lock = threading.RLock()
_patched: dict[tuple[type, str], list[Any]] = {}


def loaded() -> bool:
  """Whether the program uses NNX at all; importing it takes time."""
  return "flax.nnx" in sys.modules


def stock() -> tuple[type, ...]:
  """The layers that are captured by default, if the program uses NNX."""
  if not loaded():
    return ()
  from flax import nnx

  return tuple(getattr(nnx, name) for name in NAMES)


def is_module(layer: Any) -> bool:
  """Whether a type is one of NNX's modules."""
  if not loaded():
    return False
  from flax import nnx

  return isinstance(layer, type) and issubclass(layer, nnx.Module)


def split_name(path: str) -> tuple[str, str]:
  """Path of the layer and name of the parameter, of the path of a leaf.

  >>> split_name("h/kernel"), split_name("h/kernel/value")
  (('h', 'kernel'), ('h', 'kernel'))
  """
  head, _, tail = path.rpartition("/")
  if tail == VALUE and head:
    head, _, tail = head.rpartition("/")
  return head, tail


@dataclasses.dataclass(frozen=True)
class Affine:
  """A layer as a function of its own parameters; equal by its structure.

  Attributes:
    graph: of the layer without its arrays, as `nnx.split` gives it.
    structure: of its parameters; they may come in any tree with these leaves.
    quiet: puts the tape away meanwhile.
  """

  graph: Any
  structure: Any
  quiet: Callable[[], contextlib.AbstractContextManager]

  def __call__(self, params: types.PyTree, *inputs: jax.Array) -> jax.Array:
    from flax import nnx

    state = jax.tree.unflatten(self.structure, jax.tree.leaves(params))
    with self.quiet():
      return nnx.merge(self.graph, state)(*inputs)

  def in_dtype(self, dtype: Any) -> Affine:
    """The same layer with its products in `dtype`, if it names one."""
    from flax import nnx

    shape = jax.ShapeDtypeStruct((), dtype)
    leaves = [shape] * self.structure.num_leaves
    layer = nnx.merge(self.graph, jax.tree.unflatten(self.structure, leaves))
    if getattr(layer, "dtype", None) is None:
      return self
    layer.dtype = dtype
    return dataclasses.replace(self, graph=nnx.split(layer)[0])


def paths(params: types.PyTree) -> dict[int, str]:
  """Path of every leaf, by the array's identity."""
  return {id(leaf): path for path, leaf in trees.flatten(params).items()}


def found(
  layer: Any,
  where: Mapping[int, str],
  quiet: Callable[[], contextlib.AbstractContextManager],
) -> tuple[str, Affine] | None:
  """Where a layer's parameters stand, and the layer as a function of them.

  None if they are not leaves of the parameters that are trained.
  """
  from flax import nnx

  graph, state = nnx.split(layer)
  leaves = trees.flatten(state)
  heads = set()
  for name, leaf in leaves.items():
    path, (own, tail) = where.get(id(leaf)), split_name(name)
    if path is None or own:
      return None
    head, last = split_name(path)
    if last != tail:
      return None
    heads.add(head)
  if len(heads) != 1:
    return None
  return heads.pop(), Affine(graph, jax.tree.structure(state), quiet)


def _own(layer: type, name: str) -> Any:
  """What a class itself has under a name; None if it inherits it."""
  return vars(layer).get(name)


@contextlib.contextmanager
def _replaced(
  layer: type, name: str, wrap: Callable[[Callable], Callable]
) -> Iterator[None]:
  """A method of a class in brackets; put once, for all threads that trace."""
  key = (layer, name)
  with _lock:
    if key in _patched:
      _patched[key][1] += 1
    else:
      _patched[key] = [_own(layer, name), 1]
      setattr(layer, name, wrap(getattr(layer, name)))
  try:
    yield
  finally:
    with _lock:
      _patched[key][1] -= 1
      if not _patched[key][1]:
        before, _ = _patched.pop(key)
        delattr(layer, name) if before is None else setattr(layer, name, before)


@contextlib.contextmanager
def calls_seen(
  layers: Sequence[type],
  called: Callable[..., Any],
  otherwise: Callable[[Any, str], None],
) -> Iterator[None]:
  """Shows calls of NNX layers while the context lasts.

  Args:
    layers: classes.
    called: `(original, layer, *args, **kwargs)`, in place of the call.
    otherwise: `(layer, method)`, before another method that uses the layer's
      parameters.
  """

  def of_call(original):
    def call(self, *args, **kwargs):
      return called(original, self, *args, **kwargs)

    return call

  def of_other(name):
    def wrap(original):
      def call(self, *args, **kwargs):
        otherwise(self, name)
        return original(self, *args, **kwargs)

      return call

    return wrap

  with contextlib.ExitStack() as stack:
    for layer in layers:
      stack.enter_context(_replaced(layer, "__call__", of_call))
      for name in _OTHERS.get(layer.__name__, ()):
        stack.enter_context(_replaced(layer, name, of_other(name)))
    yield
