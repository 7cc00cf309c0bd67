"""Beam search with a length penalty and an early exit that loses nothing.

Letters: B batch, K beams, T new tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locojax.core import checks, types
from locojax.decode import cache as caches
from locojax.decode import constraints, generation, sample

PENALTIES = ("gnmt", "mean", "none")


def length_penalty(
  length: jax.Array | int, kind: str = "gnmt", *, alpha: float = 0.6
) -> jax.Array:
  """What a sum of log-probabilities is divided by.

  'gnmt': ((5 + length) / 6)^alpha (Wu et al. 2016, arXiv 1609.08144, eq. 14,
  without coverage); 'mean': the length; 'none': 1.

  Args:
    length: number of tokens, stop token included, 1 or more.
    kind: 'gnmt', 'mean' or 'none'.
    alpha: 0 or more, of 'gnmt'.

  Raises:
    ValueError: an unknown kind, or a negative alpha.
  """
  checks.one_of("penalty", kind, PENALTIES)
  checks.nonnegative("alpha", alpha)
  length = jnp.asarray(length, jnp.float32)
  if kind == "gnmt":
    return ((5.0 + length) / 6.0) ** alpha
  return length if kind == "mean" else jnp.ones_like(length)


class Beams(NamedTuple):
  """The best texts of each row, best first.

  Attributes:
    tokens: `[B, K, T]` int32, `pad_token` behind the end.
    lengths: `[B, K]` int32, a stop token included.
    scores: `[B, K]` float32, sum of log-probabilities over the penalty; never
      increasing, -inf where there is no text.
    log_probs: `[B, K, T]` float32, of each token under the model; 0 behind the
      end. Their sum and mean are a text's confidence.
    finished: `[B, K]` bool, false for a text that was cut at T.
    valid: `[B, K]` bool, whether there is a text at all.
    num_steps: `[]` int32, calls of the step that were made.
  """

  tokens: jax.Array
  lengths: jax.Array
  scores: jax.Array
  log_probs: jax.Array
  finished: jax.Array
  valid: jax.Array
  num_steps: jax.Array


class _Texts(NamedTuple):
  """K texts of each row; `[B, K, ...]`."""

  totals: jax.Array
  tokens: jax.Array
  log_probs: jax.Array
  lengths: jax.Array
  finished: jax.Array


class _State(NamedTuple):
  """What the loop carries.

  Attributes:
    position: `[]`, tokens of the live texts.
    live: texts that go on; a total of -inf is none.
    ended: finished texts, best first; totals are divided by the penalty.
    parents: `[B, K]`, the beam of the cache that each live text follows.
    rule: state of the constraint, `[B K, ...]`, of the live texts.
    cache: of the live texts before their last token, in the parents' order.
  """

  position: jax.Array
  live: _Texts
  ended: _Texts
  parents: jax.Array
  rule: Any
  cache: types.PyTree


def _pick(tree: types.PyTree, index: jax.Array) -> types.PyTree:
  """Texts `index` `[B, J]` of each row."""

  def take(x):
    at = index.reshape(*index.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, at, axis=1)

  return jax.tree.map(take, tree)


@dataclasses.dataclass(frozen=True)
class _Search:
  """What stays the same from step to step."""

  batch: int
  beams: int
  num: int
  vocab_size: int
  stops: jax.Array
  pad_token: int
  constraint: constraints.Constraint
  penalty: str
  alpha: float

  def divisor(self, length) -> jax.Array:
    """The penalty."""
    return length_penalty(length, self.penalty, alpha=self.alpha)

  def start(self, cache: types.PyTree, rows: jax.Array) -> _State:
    """One live text in each row, of no tokens, and none that has ended."""
    shape = (self.batch, self.beams)
    none = _Texts(
      totals=jnp.full(shape, -jnp.inf, jnp.float32),
      tokens=jnp.full((*shape, self.num), self.pad_token, jnp.int32),
      log_probs=jnp.zeros((*shape, self.num), jnp.float32),
      lengths=jnp.zeros(shape, jnp.int32),
      finished=jnp.zeros(shape, bool),
    )
    first = jnp.where(rows, 0.0, -jnp.inf)
    return _State(
      position=jnp.zeros((), jnp.int32),
      live=none._replace(totals=none.totals.at[:, 0].set(first)),
      ended=none,
      parents=jnp.broadcast_to(jnp.arange(self.beams), shape),
      rule=self.constraint.start(self.batch * self.beams),
      cache=cache,
    )

  def extend(self, state: _State, logits: jax.Array) -> _State:
    """One more token: the best K go on, those that end among the best end."""
    log_probs = sample.log_softmax(logits)
    allowed = self.constraint.allowed(state.rule, state.position)
    log_probs = jnp.where(allowed, log_probs, -jnp.inf)
    log_probs = log_probs.reshape(self.batch, self.beams, self.vocab_size)
    totals, index, ends = self._candidates(state, log_probs)
    own = jnp.take_along_axis(log_probs.reshape(self.batch, -1), index, axis=1)
    parents, tokens = index // self.vocab_size, index % self.vocab_size
    texts = _pick(state.live, parents)
    texts = _Texts(
      totals=totals,
      tokens=texts.tokens.at[:, :, state.position].set(tokens),
      log_probs=texts.log_probs.at[:, :, state.position].set(own),
      lengths=texts.lengths + 1,
      finished=ends,
    )
    among_best = jnp.arange(2 * self.beams) < self.beams
    scores = totals / self.divisor(state.position + 1)
    scores = jnp.where(ends & among_best, scores, -jnp.inf)
    going, index = jax.lax.top_k(jnp.where(ends, -jnp.inf, totals), self.beams)
    live = _pick(texts, index)._replace(totals=going)
    parents = _pick(parents, index)
    rule = caches.gather_within(state.rule, parents, axes=0)
    last = _pick(tokens, index).reshape(-1)
    return _State(
      position=state.position + 1,
      live=live,
      ended=self.merge(state.ended, texts._replace(totals=scores)),
      parents=parents,
      rule=self.constraint.advance(rule, last),
      cache=state.cache,
    )

  def _candidates(self, state, log_probs):
    """The best K continuations that go on and the best K that end, as one list.

    So the best K of all are its first K.

    Returns:
      Totals, places in K V, and whether they end; `[B, 2 K]`, best first, of
      equals the one with the lower place.
    """
    totals = state.live.totals[..., None] + log_probs
    ends = jnp.zeros((self.vocab_size,), bool).at[self.stops].set(True)
    ends = jnp.broadcast_to(ends, totals.shape)
    if self.constraint.can_end:
      ending = self.constraint.ending(state.rule)
      flat = (self.batch * self.beams, self.vocab_size)
      ends |= jnp.broadcast_to(ending, flat).reshape(ends.shape)
    going = jnp.where(ends, -jnp.inf, totals).reshape(self.batch, -1)
    lists = [_top(going, self.beams), self._ending(totals, ends)]
    totals, index = (jnp.concatenate(x, axis=1) for x in zip(*lists))
    ends = jnp.arange(2 * self.beams) >= self.beams
    ends = jnp.broadcast_to(ends, index.shape).astype(jnp.int32)
    totals, index, ends = jax.lax.sort((-totals, index, ends), num_keys=2)
    return -totals, index, ends.astype(bool)

  def _ending(self, totals, ends) -> tuple[jax.Array, jax.Array]:
    """Totals and places of the best K continuations that end."""
    if self.constraint.can_end:
      ending = jnp.where(ends, totals, -jnp.inf)
      return _top(ending.reshape(self.batch, -1), self.beams)
    if not self.stops.size:
      return _top(jnp.full((self.batch, 1), -jnp.inf), self.beams)
    found, index = _top(
      totals[:, :, self.stops].reshape(self.batch, -1), self.beams
    )
    beam, which = index // self.stops.size, index % self.stops.size
    return found, beam * self.vocab_size + self.stops[which]

  def merge(self, ended: _Texts, new: _Texts) -> _Texts:
    """The best K of both; of equals, those that ended earlier."""
    both = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), ended, new)
    scores, index = jax.lax.top_k(both.totals, self.beams)
    return _pick(both, index)._replace(totals=scores)

  def hopeful(self, state: _State) -> jax.Array:
    """`[B]`, whether a live text may still be one of the best K.

    A total only falls and the divisor only grows, so no live text ends above
    its total over the divisor of length T.
    """
    bound = jnp.max(state.live.totals, axis=1) / self.divisor(self.num)
    return bound > state.ended.totals[:, -1]

  def results(self, state: _State) -> Beams:
    """Ended texts, and live ones as cut at T."""
    cut = state.live.totals / self.divisor(self.num)
    cut = jnp.where(state.position >= self.num, cut, -jnp.inf)
    both = self.merge(state.ended, state.live._replace(totals=cut))
    valid = both.totals > -jnp.inf
    blank = lambda x, fill: jnp.where(valid[..., None], x, fill)
    return Beams(
      tokens=blank(both.tokens, self.pad_token),
      lengths=jnp.where(valid, both.lengths, 0),
      scores=both.totals,
      log_probs=blank(both.log_probs, 0.0),
      finished=valid & both.finished,
      valid=valid,
      num_steps=state.position - 1,
    )


def _top(values: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
  """`lax.top_k`, filled up with -inf at place 0 where there are too few."""
  found, index = jax.lax.top_k(values, min(num, values.shape[1]))
  short = ((0, 0), (0, num - found.shape[1]))
  return jnp.pad(found, short, constant_values=-jnp.inf), jnp.pad(index, short)


def beam_search(
  step: generation.Step,
  cache: types.PyTree,
  logits: jax.Array,
  *,
  beam_size: int,
  max_new_tokens: int,
  stop_tokens: Iterable[int] = (),
  pad_token: int = 0,
  penalty: str = "gnmt",
  alpha: float = 0.6,
  constraint: constraints.Constraint | None = None,
  rows: jax.Array | None = None,
  axes: caches.Axes = None,
  data_axis: str | tuple[str, ...] | None = None,
  early_exit: bool = True,
) -> Beams:
  """The K best texts that follow prompts; for use under `jax.jit`.

  At each step the K best continuations of all live texts are looked at. Those
  that end are put among the best K ended ones, by their sum over the length
  penalty; the live ones are filled up to K, so that the ended ones starve
  none. A row is done when no live text can come among its ended ones, whatever
  follows; so a result depends on no other row. Texts that reach T are cut and
  compete with the others. With as many beams as there are texts the search is
  exhaustive; one beam without a penalty is the greedy text.

  A constraint takes tokens away and leaves the log-probabilities of the others
  as they are.

  Args:
    step: `(cache, tokens [B K, 1]) -> (cache, logits [B K, V])`.
    cache: of B rows, after the prompts. The beams copy it, but not what the
      step closes over.
    logits: `[B, V]`, of the first new token.
    beam_size: K.
    max_new_tokens: T.
    stop_tokens: tokens that end a text, in any number.
    pad_token: what stands behind the end.
    penalty, alpha: see `length_penalty`.
    constraint: which tokens may come; None allows all.
    rows: `[B]` bool, false for rows that only fill up the batch: no result of
      theirs is valid.
    axes, data_axis: as of `generation.generate`.
    early_exit: whether the loop ends once all rows are done; the result is the
      same.

  Returns:
    See `Beams`.

  Raises:
    ValueError: an argument of another shape or range, by its name.
  """
  batch, vocab_size = generation.check_logits(logits)
  checks.positive_int("beam_size", beam_size)
  checks.positive_int("max_new_tokens", max_new_tokens)
  checks.int_in_range("pad_token", pad_token, 0, vocab_size - 1)
  checks.boolean("early_exit", early_exit)
  length_penalty(1, penalty, alpha=alpha)
  caches.check_rows(cache, batch, axes)
  search = _Search(
    batch=batch,
    beams=beam_size,
    num=max_new_tokens,
    vocab_size=vocab_size,
    stops=generation.stop_array(stop_tokens, vocab_size),
    pad_token=pad_token,
    constraint=constraint or constraints.Constraint(),
    penalty=penalty,
    alpha=alpha,
  )
  rows = generation.per_row("rows", rows, batch, True).astype(bool)
  cache = caches.repeat(cache, beam_size, axes=axes)
  cache = caches.shard(cache, data_axis, axes=axes)
  step = generation.checked_step(step, batch * beam_size, vocab_size)
  first = jnp.repeat(logits, beam_size, axis=0)
  state = search.extend(search.start(cache, rows), first)
  even = caches.even(data_axis, batch)
  state = generation.laid_out(state, ("live", "ended", "parents"), even)

  def goes_on(state):
    waited_for = jnp.any(search.hopeful(state)) if early_exit else True
    return (state.position < max_new_tokens) & waited_for

  def body(state):
    cache = caches.gather_within(state.cache, state.parents, axes=axes)
    last = jax.lax.dynamic_index_in_dim(
      state.live.tokens, state.position - 1, 2, keepdims=False
    )
    cache, logits = step(cache, last.reshape(-1, 1))
    return search.extend(state._replace(cache=cache), logits)

  state = jax.lax.while_loop(goes_on, body, state)
  return search.results(state)
