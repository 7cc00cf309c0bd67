"""Which tokens may come next, by position and by what came before.

A constraint is a pytree of arrays that knows how to follow R rows at once:

    state = constraint.start(num_rows)
    allowed = constraint.allowed(state, position)     # [R, V] or [V] bool
    ending = constraint.ending(state)                 # [R, V] or [V] bool
    state = constraint.advance(state, tokens)         # tokens [R]

The arrays of a state lead with the rows, so that rows can be repeated as
samples and picked as beams. Passed to a jitted function, another constraint of
the same shapes does not compile it again.

Letters: R rows, B batch, V vocabulary, N states or nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from locojax.core import checks


class Constraint:
  """Allows everything; the base of all constraints."""

  def start(self, num_rows: int) -> Any:
    """The state of `num_rows` rows before the first token."""
    return jnp.zeros((num_rows,), jnp.int32)

  def allowed(self, state: Any, position: jax.Array) -> jax.Array:
    """Tokens that may stand at `position`, the number of tokens so far."""
    del state, position
    return jnp.ones((1,), bool)

  def advance(self, state: Any, tokens: jax.Array) -> Any:
    """The state after `tokens` `[R]`."""
    del tokens
    return state

  @property
  def can_end(self) -> bool:
    """Whether `ending` may hold any token, known before tracing."""
    return False

  def ending(self, state: Any) -> jax.Array:
    """Tokens that end the text, as stop tokens do."""
    del state
    return jnp.zeros((1,), bool)


def _pytree(*static: str):
  """Registers a frozen dataclass: its arrays are data, `static` is not."""

  def register(cls):
    names = [f.name for f in dataclasses.fields(cls)]
    data = [n for n in names if n not in static]
    return jax.tree_util.register_dataclass(cls, data, list(static))

  return register


def _rows(values: jax.Array, num_rows: int, name: str) -> jax.Array:
  """`[B, ...]` or `[...]` of one row, for `num_rows` rows in turn."""
  checks.divisible("rows", num_rows, f"rows of {name}", values.shape[0])
  return jnp.repeat(values, num_rows // values.shape[0], axis=0)


@_pytree("periodic")
@dataclasses.dataclass(frozen=True)
class ByPosition(Constraint):
  """A table of what may stand where.

  Attributes:
    table: `[P, V]` bool. Row t is for position t; later positions allow all
      tokens, or begin with row 0 again.
    periodic: whether they do. `[1, V]` and periodic is one set of tokens.
  """

  table: jax.Array
  periodic: bool = False

  def allowed(self, state: Any, position: jax.Array) -> jax.Array:
    """As the base class."""
    del state
    num = self.table.shape[0]
    if self.periodic:
      return self.table[position % num]
    return self.table[jnp.minimum(position, num - 1)] | (position >= num)


def by_position(table: Any, *, periodic: bool = False) -> ByPosition:
  """A `ByPosition` of a table `[P, V]`.

  Raises:
    ValueError: a table that is not of two axes, or a row that allows nothing.
  """
  table = np.asarray(table).astype(bool)
  if table.ndim != 2 or not table.size:
    raise ValueError(f"table has shape {table.shape}: it must be [P, V].")
  empty = np.flatnonzero(~table.any(axis=1))
  if empty.size:
    raise ValueError(f"table allows no token at position {int(empty[0])}.")
  checks.boolean("periodic", periodic)
  return ByPosition(jnp.asarray(table), periodic)


def never(tokens: Iterable[int], vocab_size: int) -> ByPosition:
  """Tokens that come nowhere.

  Raises:
    ValueError: a token outside the vocabulary, or none left.
  """
  table = np.ones((1, checks.positive_int("vocab_size", vocab_size)), bool)
  for token in tokens:
    table[0, checks.int_in_range("token", token, 0, vocab_size - 1)] = False
  return by_position(table, periodic=True)


def not_first(tokens: Iterable[int], vocab_size: int) -> ByPosition:
  """Tokens that do not come first, such as a stop: no text is empty.

  Raises:
    ValueError: a token outside the vocabulary, or none left.
  """
  return dataclasses.replace(never(tokens, vocab_size), periodic=False)


@_pytree()
@dataclasses.dataclass(frozen=True)
class Automaton(Constraint):
  """A finite automaton over tokens, as a dense table.

  Attributes:
    transitions: `[N, V]` int32, the next state; -1 where the token is not
      allowed. A row that took one stays where it was.
    ends: `[N]` bool, states that end the text when they are reached.
    starts: `[B]` int32, the first state of each row of the batch, or of one
      row for all.
  """

  transitions: jax.Array
  ends: jax.Array
  starts: jax.Array

  def start(self, num_rows: int) -> jax.Array:
    """As the base class."""
    return _rows(self.starts, num_rows, "starts")

  def allowed(self, state: jax.Array, position: jax.Array) -> jax.Array:
    """As the base class."""
    del position
    return self.transitions[state] >= 0

  def advance(self, state: jax.Array, tokens: jax.Array) -> jax.Array:
    """As the base class."""
    following = self.transitions[state, tokens]
    return jnp.where(following >= 0, following, state)

  @property
  def can_end(self) -> bool:
    """As the base class."""
    return True

  def ending(self, state: jax.Array) -> jax.Array:
    """As the base class."""
    following = self.transitions[state]
    return (following >= 0) & self.ends[following]


def automaton(transitions: Any, *, ends: Any = None, starts: Any = 0):
  """An `Automaton` of a table `[N, V]`.

  Args:
    transitions: integers in [-1, N).
    ends: `[N]` bool; None is nowhere.
    starts: `[B]` or one integer in [0, N).

  Raises:
    ValueError: a shape, or a state that does not exist.
  """
  table = checks.integers("transitions", transitions)
  if table.ndim != 2 or not table.size:
    raise ValueError(
      f"transitions have shape {table.shape}: it must be [N, V]."
    )
  num = table.shape[0]
  starts = np.atleast_1d(checks.integers("starts", starts))
  for name, values, low in (("transitions", table, -1), ("starts", starts, 0)):
    wrong = values[(values < low) | (values >= num)]
    if wrong.size:
      checks.refuse(name, int(wrong[0]), f"an integer in [{low}, {num})")
  ends = np.zeros(num, bool) if ends is None else np.asarray(ends, bool)
  checks.same_shape("ends", ends.shape, "states", (num,))
  return Automaton(*map(jnp.asarray, (table, ends, starts)))


def stop_sequences(
  sequences: Sequence[Sequence[int]], vocab_size: int
) -> Automaton:
  """Ends a text after any of several sequences of tokens; forbids nothing.

  The automaton of Aho and Corasick (1975), so that a sequence is found wherever
  it begins.

  Args:
    sequences: at least one, none of them empty, of tokens in [0, V).
    vocab_size: V.

  Raises:
    ValueError: an empty list or sequence, or a token outside the vocabulary.
  """
  checks.positive_int("vocab_size", vocab_size)
  children, words = _tree(sequences, vocab_size)
  num = len(children)
  table = np.zeros((num, vocab_size), np.int32)
  ends = np.zeros(num, bool)
  ends[list(words)] = True
  for token, child in children[0].items():
    table[0, token] = child
  queue = [(child, 0) for child in children[0].values()]
  for node, fallback in queue:  # breadth first; the list grows
    ends[node] |= ends[fallback]
    table[node] = table[fallback]
    for token, child in children[node].items():
      queue.append((child, int(table[fallback, token])))
      table[node, token] = child
  return automaton(table, ends=ends)


def _tree(sequences, vocab_size) -> tuple[list[dict[int, int]], set[int]]:
  """Children of the nodes of a trie, by token, and nodes where words end."""
  if not len(sequences):
    checks.refuse("sequences", sequences, "one sequence of tokens or more")
  children, words = [{}], set()
  for i, sequence in enumerate(sequences):
    if not len(sequence):
      checks.refuse(f"sequences[{i}]", sequence, "one token or more")
    node = 0
    for token in sequence:
      checks.int_in_range(f"token of sequences[{i}]", token, 0, vocab_size - 1)
      if token not in children[node]:
        children[node][token] = len(children)
        children.append({})
      node = children[node][token]
    words.add(node)
  return children, words


@_pytree("vocab_size")
@dataclasses.dataclass(frozen=True)
class Trie(Constraint):
  """One of several sequences of tokens, and then anything or nothing.

  Attributes:
    tokens: `[N, C]` int32, the tokens that may follow each node; V is none.
    nodes: `[N, C]` int32, the nodes they lead to.
    free: `[N]` bool, nodes at which a sequence is complete and any token may
      follow.
    vocab_size: V.
  """

  tokens: jax.Array
  nodes: jax.Array
  free: jax.Array
  vocab_size: int

  def allowed(self, state: jax.Array, position: jax.Array) -> jax.Array:
    """As the base class."""
    del position
    none = jnp.zeros((self.vocab_size,), bool)
    mark = lambda tokens: none.at[tokens].set(True, mode="drop")
    found = jax.vmap(mark)(self.tokens[state])
    return found | self.free[state][:, None]

  def advance(self, state: jax.Array, tokens: jax.Array) -> jax.Array:
    """As the base class; a free row stays free."""
    hit = self.tokens[state] == tokens[:, None]
    following = jnp.max(jnp.where(hit, self.nodes[state], -1), axis=-1)
    keep = self.free[state] | (following < 0)
    return jnp.where(keep, state, following)


def trie(
  sequences: Sequence[Sequence[int]],
  vocab_size: int,
  *,
  then_free: bool = False,
  num_nodes: int | None = None,
  fanout: int | None = None,
) -> Trie:
  """A `Trie` of sequences, such as the items of a list of completions.

  Args:
    sequences: at least one, none of them empty, of tokens in [0, V).
    vocab_size: V.
    then_free: whether any token may follow a complete sequence. Otherwise the
      text must end with it: give each sequence a stop token at its end.
    num_nodes, fanout: sizes N and C of the arrays; None is as small as they
      can be. With fixed sizes other sequences need no new program.

  Raises:
    ValueError: an empty list or sequence, a token outside the vocabulary, or
      sizes that are too small.
  """
  checks.positive_int("vocab_size", vocab_size)
  checks.boolean("then_free", then_free)
  children, words = _tree(sequences, vocab_size)
  widest = max(map(len, children))
  num_nodes = len(children) if num_nodes is None else num_nodes
  fanout = widest if fanout is None else fanout
  checks.int_in_range("num_nodes", num_nodes, len(children), 2**31 - 1)
  checks.int_in_range("fanout", fanout, widest, 2**31 - 1)
  tokens = np.full((num_nodes, fanout), vocab_size, np.int32)
  nodes = np.full((num_nodes, fanout), -1, np.int32)
  free = np.zeros(num_nodes, bool)
  free[list(words)] = then_free
  for node, found in enumerate(children):
    tokens[node, : len(found)] = list(found)
    nodes[node, : len(found)] = list(found.values())
  return Trie(*map(jnp.asarray, (tokens, nodes, free)), vocab_size)


@_pytree()
@dataclasses.dataclass(frozen=True)
class TextPrefix(Constraint):
  """The text must begin with given characters, in whatever tokens.

  So a half-typed word is healed: it is taken off the prompt and asked for
  again. A token is allowed if it is a piece of what is missing, or begins with
  all of it. What follows is free.

  Attributes:
    pieces: `[V, M]` uint8, the bytes of each token.
    piece_lengths: `[V]` int32; tokens of length 0, such as stops, are allowed
      once nothing is missing.
    prefixes: `[B, L]` uint8, of each row of the batch, or of one row for all.
    prefix_lengths: `[B]` int32.
  """

  pieces: jax.Array
  piece_lengths: jax.Array
  prefixes: jax.Array
  prefix_lengths: jax.Array

  def start(self, num_rows: int) -> dict[str, jax.Array]:
    """As the base class."""
    return {
      "prefix": _rows(self.prefixes, num_rows, "prefixes"),
      "length": _rows(self.prefix_lengths, num_rows, "prefix_lengths"),
      "done": jnp.zeros((num_rows,), jnp.int32),
    }

  def allowed(self, state: Any, position: jax.Array) -> jax.Array:
    """As the base class."""
    del position
    shape = (state["done"].shape[0], self.pieces.shape[0])
    return jax.lax.cond(
      jnp.any(state["done"] < state["length"]),
      self._fitting,
      lambda _: jnp.ones(shape, bool),
      state,
    )

  def _fitting(self, state) -> jax.Array:
    place = state["done"][:, None] + jnp.arange(self.pieces.shape[1])
    wanted = jnp.take_along_axis(
      state["prefix"], jnp.minimum(place, state["prefix"].shape[1] - 1), axis=1
    )
    differs = self.pieces[None] != wanted[:, None]
    beyond = place[:, None] >= state["length"][:, None, None]
    unused = jnp.arange(self.pieces.shape[1]) >= self.piece_lengths[:, None]
    fits = jnp.all(~differs | beyond | unused, axis=-1)
    missing = (state["done"] < state["length"])[:, None]
    return jnp.where(missing, fits & (self.piece_lengths > 0), True)

  def advance(self, state: Any, tokens: jax.Array) -> Any:
    """As the base class."""
    done = state["done"] + self.piece_lengths[tokens]
    return {**state, "done": jnp.minimum(done, state["length"])}


def _as_bytes(name: str, texts: Sequence[str | bytes], width: int | None):
  """Texts as `[N, width]` uint8 with zeros behind, and their lengths."""
  if isinstance(texts, (str, bytes)) or not len(texts):
    checks.refuse(name, texts, "a list of texts or bytes")
  raw = [t.encode() if isinstance(t, str) else bytes(t) for t in texts]
  longest = max(1, *map(len, raw))
  width = longest if width is None else width
  if width < longest:
    text = max(raw, key=len)
    checks.refuse(name, text, f"texts of {width} bytes or fewer")
  out = np.zeros((len(raw), width), np.uint8)
  for row, text in zip(out, raw):
    row[: len(text)] = np.frombuffer(text, np.uint8)
  return out, np.array([len(t) for t in raw], np.int32)


def text_prefix(
  pieces: Sequence[str | bytes],
  prefixes: Sequence[str | bytes],
  *,
  max_bytes: int | None = None,
) -> TextPrefix:
  """A `TextPrefix`; `with_prefixes` makes others of the same pieces.

  Args:
    pieces: the text of each of the V tokens, in UTF-8 if it is bytes; empty
      for control tokens.
    prefixes: for each row of the batch; one serves all rows. It may be empty.
    max_bytes: size L of the array; None is that of the longest prefix. With a
      fixed size other prefixes need no new program.

  Raises:
    ValueError: no lists, or a prefix that is too long.
  """
  table, lengths = _as_bytes("pieces", pieces, None)
  unset = TextPrefix(jnp.asarray(table), jnp.asarray(lengths), None, None)
  return with_prefixes(unset, prefixes, max_bytes=max_bytes)


def with_prefixes(
  constraint: TextPrefix,
  prefixes: Sequence[str | bytes],
  *,
  max_bytes: int | None = None,
) -> TextPrefix:
  """The same pieces with other prefixes; arguments as of `text_prefix`."""
  if max_bytes is not None:
    checks.positive_int("max_bytes", max_bytes)
  wanted, lengths = _as_bytes("prefixes", prefixes, max_bytes)
  return dataclasses.replace(
    constraint,
    prefixes=jnp.asarray(wanted),
    prefix_lengths=jnp.asarray(lengths),
  )


@_pytree()
@dataclasses.dataclass(frozen=True)
class AllOf(Constraint):
  """What every one of several constraints allows; ends where any of them does.

  Attributes:
    parts: the constraints.
  """

  parts: tuple[Constraint, ...]

  def start(self, num_rows: int) -> tuple[Any, ...]:
    """As the base class."""
    return tuple(p.start(num_rows) for p in self.parts)

  def allowed(self, state: Any, position: jax.Array) -> jax.Array:
    """As the base class."""
    out = self.parts[0].allowed(state[0], position)
    for part, its in zip(self.parts[1:], state[1:]):
      out = out & part.allowed(its, position)
    return out

  def advance(self, state: Any, tokens: jax.Array) -> Any:
    """As the base class."""
    return tuple(p.advance(s, tokens) for p, s in zip(self.parts, state))

  @property
  def can_end(self) -> bool:
    """As the base class."""
    return any(p.can_end for p in self.parts)

  def ending(self, state: Any) -> jax.Array:
    """As the base class."""
    out = self.parts[0].ending(state[0])
    for part, its in zip(self.parts[1:], state[1:]):
      out = out | part.ending(its)
    return out


def all_of(*parts: Constraint) -> AllOf:
  """Several constraints at once.

  Raises:
    ValueError: none at all, or something that is no constraint.
  """
  if not parts:
    checks.refuse("parts", parts, "one constraint or more")
  for part in parts:
    if not isinstance(part, Constraint):
      checks.refuse("parts", part, "constraints")
  return AllOf(parts)
