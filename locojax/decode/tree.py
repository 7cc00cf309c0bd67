"""Best-first search over the tree of texts, with a budget of nodes.

Letters: B batch, K results, M nodes of a row, W nodes of a step, C children of
a node, P = C M entries, T new tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locojax.core import checks, types
from locojax.decode import beam, constraints, generation, sample
from locojax.decode import cache as caches


class _Entries(NamedTuple):
  """Children of nodes: texts that may be looked at next, `[B, P]`.

  Attributes:
    totals: sum of log-probabilities; -inf is no text.
    log_probs: of the last token.
    tokens: the last one.
    parents: the node that the text extends.
    depths: its length.
    ended: whether it is complete.
    taken: whether it has become a node.
  """

  totals: jax.Array
  log_probs: jax.Array
  tokens: jax.Array
  parents: jax.Array
  depths: jax.Array
  ended: jax.Array
  taken: jax.Array


class _State(NamedTuple):
  """What the loop carries.

  Attributes:
    turn: `[]`, steps done.
    entries: see there.
    nodes: `[B, M]`, the entry of each node; node 0, the prompt, has none.
    rule: state of the constraint, `[B M, ...]`.
    cache: of the nodes, `B M` rows.
  """

  turn: jax.Array
  entries: _Entries
  nodes: jax.Array
  rule: Any
  cache: types.PyTree


@dataclasses.dataclass(frozen=True)
class _Search:
  """What stays the same from step to step."""

  batch: int
  results: int
  turns: int
  width: int
  children: int
  num: int
  vocab_size: int
  stops: jax.Array
  pad_token: int
  constraint: constraints.Constraint
  penalty: str
  alpha: float
  axes: caches.Axes

  @property
  def num_nodes(self) -> int:
    return 1 + self.turns * self.width

  def divisor(self, length) -> jax.Array:
    return beam.length_penalty(length, self.penalty, alpha=self.alpha)

  def rows(self, nodes: jax.Array) -> jax.Array:
    """Nodes `[B, N]` as rows of the cache, `[B N]`."""
    first = jnp.arange(self.batch)[:, None] * self.num_nodes
    return (first + nodes).reshape(-1)

  def start(self, cache: types.PyTree, rows: jax.Array, logits) -> _State:
    """The children of the prompt."""
    shape = (self.batch, self.children * self.num_nodes)
    whole = lambda value, dtype: jnp.full(shape, value, dtype)
    entries = _Entries(
      totals=whole(-jnp.inf, jnp.float32),
      log_probs=whole(0.0, jnp.float32),
      tokens=whole(self.pad_token, jnp.int32),
      parents=whole(0, jnp.int32),
      depths=whole(0, jnp.int32),
      ended=whole(False, bool),
      taken=whole(False, bool),
    )
    state = _State(
      turn=jnp.zeros((), jnp.int32),
      entries=entries,
      nodes=jnp.zeros((self.batch, self.num_nodes), jnp.int32),
      rule=self.constraint.start(self.batch * self.num_nodes),
      cache=caches.repeat(cache, self.num_nodes, axes=self.axes),
    )
    rule = caches.gather_within(state.rule, self.root, axes=0)
    totals = jnp.where(rows, 0.0, -jnp.inf)[:, None]
    depths = jnp.zeros((self.batch, 1), jnp.int32)
    return state._replace(
      entries=self.grow(state, self.root, totals, depths, rule, logits)
    )

  @property
  def root(self) -> jax.Array:
    return jnp.zeros((self.batch, 1), jnp.int32)

  def grow(self, state, nodes, totals, depths, rule, logits) -> _Entries:
    """The entries with the children of nodes `[B, N]`."""
    log_probs = sample.log_softmax(logits)
    allowed, ends = self.judge(rule, depths.reshape(-1))
    log_probs = jnp.where(allowed, log_probs, -jnp.inf)
    found, tokens = jax.lax.top_k(log_probs, self.children)
    ended = jnp.take_along_axis(ends, tokens, axis=1)
    shape = (self.batch, -1)
    spread = lambda x: jnp.repeat(x, self.children, axis=1)
    new = _Entries(
      totals=spread(totals) + found.reshape(shape),
      log_probs=found.reshape(shape),
      tokens=tokens.reshape(shape),
      parents=spread(nodes),
      depths=spread(depths) + 1,
      ended=ended.reshape(shape),
      taken=jnp.zeros_like(ended).reshape(shape),
    )
    first = nodes[:, :1] * self.children
    place = first + jnp.arange(new.tokens.shape[1])
    rows = jnp.arange(self.batch)[:, None]
    return jax.tree.map(
      lambda x, y: x.at[rows, place].set(y.astype(x.dtype)), state.entries, new
    )

  def judge(self, rule, depths) -> tuple[jax.Array, jax.Array]:
    """Tokens that may follow rows, and those that end them, `[R, V]` each."""
    wide = lambda x: jnp.broadcast_to(x.reshape(-1), (self.vocab_size,))

    def one(rule, depth):
      row = jax.tree.map(lambda x: x[None], rule)
      ending = wide(self.constraint.ending(row))
      return wide(self.constraint.allowed(row, depth)), ending

    allowed, ending = jax.vmap(one)(rule, depths)
    return allowed, ending.at[:, self.stops].set(True)

  def open(self, entries: _Entries) -> jax.Array:
    """Totals of entries that may become nodes, -inf of the others."""
    free = ~entries.ended & ~entries.taken & (entries.depths < self.num)
    return jnp.where(free, entries.totals, -jnp.inf)

  def scores(self, entries: _Entries) -> jax.Array:
    """Totals over the penalty of complete and cut texts, -inf of others."""
    done = entries.ended | (entries.depths >= self.num)
    scores = entries.totals / self.divisor(jnp.maximum(entries.depths, 1))
    return jnp.where(done, scores, -jnp.inf)

  def goes_on(self, state: _State) -> jax.Array:
    """Whether a row may still find one of its best K."""
    bound = jnp.max(self.open(state.entries), axis=1) / self.divisor(self.num)
    least = jax.lax.top_k(self.scores(state.entries), self.results)[0][:, -1]
    return (state.turn < self.turns) & jnp.any(bound > least)

  def look(self, step: generation.Step, state: _State) -> _State:
    """The W best open entries become nodes."""
    entries = state.entries
    totals, index = jax.lax.top_k(self.open(entries), self.width)
    rows = jnp.arange(self.batch)[:, None]
    pick = lambda x: jnp.take_along_axis(x, index, axis=1)
    parents, tokens = pick(entries.parents), pick(entries.tokens)
    depths = pick(entries.depths)
    cache, logits = step(
      caches.gather_within(state.cache, parents, axes=self.axes),
      tokens.reshape(-1, 1),
    )
    rule = caches.gather_within(state.rule, parents, axes=0)
    rule = self.constraint.advance(rule, tokens.reshape(-1))
    nodes = 1 + state.turn * self.width + jnp.arange(self.width)
    nodes = jnp.broadcast_to(nodes, (self.batch, self.width))
    target = self.rows(nodes)
    taken = entries.taken.at[rows, index].set(True)
    state = state._replace(
      turn=state.turn + 1,
      entries=entries._replace(taken=taken),
      nodes=state.nodes.at[rows, nodes].set(index),
      rule=caches.insert(state.rule, target, rule, axes=0),
      cache=caches.insert(state.cache, target, cache, axes=self.axes),
    )
    grown = self.grow(state, nodes, totals, depths, rule, logits)
    return state._replace(entries=grown)

  def collect(self, state: _State) -> beam.Beams:
    """The best K, their tokens read backwards up to the prompt."""
    entries = state.entries
    scores, index = jax.lax.top_k(self.scores(entries), self.results)
    pick = lambda x, at: jnp.take_along_axis(x, at, axis=1)
    lengths, valid = pick(entries.depths, index), scores > -jnp.inf

    def back(at, place):
      there = place < lengths
      token = jnp.where(there, pick(entries.tokens, at), self.pad_token)
      log_prob = jnp.where(there, pick(entries.log_probs, at), 0.0)
      before = pick(state.nodes, pick(entries.parents, at))
      return jnp.where(there, before, at), (token, log_prob)

    places = jnp.arange(self.num)[::-1]
    _, (tokens, log_probs) = jax.lax.scan(back, index, places)
    order = lambda x: jnp.moveaxis(x[::-1], 0, -1)
    tokens = jnp.where(valid[..., None], order(tokens), self.pad_token)
    return beam.Beams(
      tokens=tokens,
      lengths=jnp.where(valid, lengths, 0),
      scores=scores,
      log_probs=jnp.where(valid[..., None], order(log_probs), 0.0),
      finished=valid & pick(entries.ended, index),
      valid=valid,
      num_steps=state.turn,
    )


def tree_search(
  step: generation.Step,
  cache: types.PyTree,
  logits: jax.Array,
  *,
  num_results: int,
  node_budget: int,
  max_new_tokens: int,
  width: int = 4,
  num_children: int | None = None,
  stop_tokens: Iterable[int] = (),
  pad_token: int = 0,
  penalty: str = "gnmt",
  alpha: float = 0.6,
  constraint: constraints.Constraint | None = None,
  rows: jax.Array | None = None,
  axes: caches.Axes = None,
) -> beam.Beams:
  """The best texts that a best-first search finds; for use under `jax.jit`.

  At each step the W texts of the highest sum of log-probabilities, whatever
  their lengths, are extended by one token. The search ends where no open text
  can come among the best K, as in `beam.beam_search`, or when the budget is
  used up. With all tokens as children and budget enough its results are those
  of an exhaustive search.

  Args:
    step, cache, logits, max_new_tokens, stop_tokens, pad_token, penalty, alpha,
      constraint, rows, axes: as of `beam.beam_search`.
    num_results: K.
    node_budget: texts of a row that may be extended; their caches are all
      kept.
    width: W, texts that are extended at once.
    num_children: C, the tokens of highest probability that a text is extended
      by; None is all of them.

  Returns:
    See `beam.Beams`. Texts that the budget left open are not among them.

  Raises:
    ValueError: an argument of another shape or range, by its name.
  """
  batch, vocab_size = generation.check_logits(logits)
  for name, value in (
    ("num_results", num_results),
    ("node_budget", node_budget),
    ("max_new_tokens", max_new_tokens),
  ):
    checks.positive_int(name, value)
  checks.int_in_range("width", width, 1, node_budget)
  children = vocab_size if num_children is None else num_children
  checks.int_in_range("num_children", children, 1, vocab_size)
  checks.int_in_range("pad_token", pad_token, 0, vocab_size - 1)
  beam.length_penalty(1, penalty, alpha=alpha)
  caches.check_rows(cache, batch, axes)
  search = _Search(
    batch=batch,
    results=num_results,
    turns=-(-node_budget // width),
    width=width,
    children=children,
    num=max_new_tokens,
    vocab_size=vocab_size,
    stops=generation.stop_array(stop_tokens, vocab_size),
    pad_token=pad_token,
    constraint=constraint or constraints.Constraint(),
    penalty=penalty,
    alpha=alpha,
    axes=axes,
  )
  checks.int_in_range(
    "num_results", num_results, 1, children * search.num_nodes
  )
  rows = generation.per_row("rows", rows, batch, True).astype(bool)
  step = generation.checked_step(step, batch * search.width, vocab_size)
  state = search.start(cache, rows, logits)
  state = jax.lax.while_loop(
    search.goes_on, lambda s: search.look(step, s), state
  )
  return search.collect(state)
