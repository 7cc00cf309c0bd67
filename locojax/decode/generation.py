"""Generation by any step function, greedy or by sampling.

A step is `(cache, tokens [R, 1]) -> (cache, logits [R, V])`: the tokens follow
those of the calls before, and the logits are of the token after them. What a
step only reads (parameters, a projected memory) it closes over.

Letters: B batch, n samples of a prompt, R = B n rows (sample i of prompt b is
row b n + i), T new tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locojax.core import checks, types
from locojax.decode import cache as caches
from locojax.decode import constraints, sample

Step = Callable[[types.PyTree, jax.Array], tuple[types.PyTree, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Keep:
  """Which log-probabilities of the model are kept, besides the tokens' own.

  Those of tokens in [low, high) at the positions t with t % every == offset,
  under a softmax over all V, before constraints and filters. So the classes of
  a detector are kept at every fifth position, and not T x V logits.

  Attributes:
    every: 1 or more.
    offset: in [0, every).
    low, high: range of tokens; high None is V.
  """

  every: int = 1
  offset: int = 0
  low: int = 0
  high: int | None = None

  def __post_init__(self):
    checks.positive_int("every", self.every)
    checks.int_in_range("offset", self.offset, 0, self.every - 1)
    checks.nonnegative_int("low", self.low)
    if self.high is not None:
      checks.int_in_range("high", self.high, self.low + 1, 2**31 - 1)

  def count(self, num: int) -> int:
    """How many of `num` positions are kept."""
    return len(range(self.offset, num, self.every))


class Generated(NamedTuple):
  """What was generated.

  Attributes:
    tokens: `[B, n, T]` int32, `pad_token` behind the end.
    lengths: `[B, n]` int32, tokens before the padding, a stop token included.
    log_probs: `[B, n, T]` float32, of each token under the model as it is; 0
      behind the end.
    filtered_log_probs: `[B, n, T]` float32, under the distribution that it was
      drawn from: constraint, temperature, filters; 0 behind the end.
    finished: `[B, n]` bool, ended by a stop token or by the constraint; false
      where the limit cut the text, or the constraint allowed no token.
    kept: `[B, n, K, high - low]` float32 log-probabilities as `Keep` says, -inf
      behind the end; None without.
    num_steps: `[]` int32, calls of the step that were made.
  """

  tokens: jax.Array
  lengths: jax.Array
  log_probs: jax.Array
  filtered_log_probs: jax.Array
  finished: jax.Array
  kept: jax.Array | None
  num_steps: jax.Array


class _State(NamedTuple):
  """What the loop carries; arrays of R rows, but `position`."""

  position: jax.Array
  tokens: jax.Array
  lengths: jax.Array
  log_probs: jax.Array
  filtered_log_probs: jax.Array
  done: jax.Array
  finished: jax.Array
  kept: jax.Array
  rule: Any
  cache: types.PyTree


@dataclasses.dataclass(frozen=True)
class _Loop:
  """What stays the same from step to step."""

  sampler: sample.Sampler
  keys: jax.Array | None
  stops: jax.Array
  pad_token: int
  constraint: constraints.Constraint
  keep: Keep
  limits: jax.Array
  vocab_size: int

  def start(self, cache, num: int, done: jax.Array) -> _State:
    """Before the first token."""
    rows = done.shape[0]
    high = self.keep.high or self.vocab_size
    kept = (rows, self.keep.count(num), high - self.keep.low)
    return _State(
      position=jnp.zeros((), jnp.int32),
      tokens=jnp.full((rows, num), self.pad_token, jnp.int32),
      lengths=jnp.zeros((rows,), jnp.int32),
      log_probs=jnp.zeros((rows, num), jnp.float32),
      filtered_log_probs=jnp.zeros((rows, num), jnp.float32),
      done=done | (self.limits <= 0),
      finished=jnp.zeros((rows,), bool),
      kept=jnp.full(kept, -jnp.inf, jnp.float32),
      rule=self.constraint.start(rows),
      cache=cache,
    )

  def choose(self, state: _State, logits: jax.Array) -> _State:
    """Writes the token at `position`, which moves on."""
    at = state.position
    keys = None
    if self.keys is not None:
      fold = lambda key: jax.random.fold_in(key, at)
      keys = jax.vmap(fold)(self.keys)
    allowed = self.constraint.allowed(state.rule, at)
    choice = sample.choose(keys, logits, self.sampler, allowed)
    alive = ~state.done & (choice.filtered_log_probs > -jnp.inf)
    tokens = jnp.where(alive, choice.tokens, self.pad_token)
    ended = jnp.any(tokens[:, None] == self.stops, axis=-1)
    if self.constraint.can_end:
      ending = self.constraint.ending(state.rule)
      ending = jnp.broadcast_to(ending, logits.shape)
      ended |= jnp.take_along_axis(ending, tokens[:, None], axis=1)[:, 0]
    ended &= alive
    lengths = state.lengths + alive
    write = lambda to, x: to.at[:, at].set(jnp.where(alive, x, to[:, at]))
    return _State(
      position=at + 1,
      tokens=write(state.tokens, tokens),
      lengths=lengths,
      log_probs=write(state.log_probs, choice.log_probs),
      filtered_log_probs=write(
        state.filtered_log_probs, choice.filtered_log_probs
      ),
      done=~alive | ended | (lengths >= self.limits),
      finished=state.finished | ended,
      kept=self._kept(state.kept, logits, at, alive),
      rule=self.constraint.advance(state.rule, tokens),
      cache=state.cache,
    )

  def _kept(self, kept, logits, at, alive) -> jax.Array:
    if not kept.size:
      return kept
    some = sample.log_softmax(logits)[:, self.keep.low : self.keep.high]
    some = jnp.where(alive[:, None], some, -jnp.inf)
    hit = at % self.keep.every == self.keep.offset
    place = jnp.where(hit, at // self.keep.every, kept.shape[1])
    return kept.at[:, place].set(some, mode="drop")


# Of a `_State`: what is written of each row.
_WRITTEN = (
  *("tokens", "lengths", "log_probs", "filtered_log_probs"),
  *("done", "finished", "kept"),
)


def laid_out(state: Any, names: Sequence[str], data_axis) -> Any:
  """A state of a loop whose entries stay where the cache of their rows is.

  Args:
    state: a named tuple.
    names: its entries that have the rows first.
    data_axis: as of `cache.shard`.
  """
  written = {name: getattr(state, name) for name in names}
  return state._replace(**caches.shard(written, data_axis, axes=0))


def stop_array(stop_tokens: Iterable[int], vocab_size: int) -> jax.Array:
  """The stop tokens as `[S]`, each once.

  Raises:
    ValueError: one outside the vocabulary.
  """
  stops = checks.integers("stop_tokens", list(stop_tokens)).tolist()
  for token in stops:
    checks.int_in_range("stop_tokens", token, 0, vocab_size - 1)
  return jnp.asarray(sorted(set(stops)), jnp.int32)


def per_row(name: str, values: Any, num_rows: int, default: Any) -> jax.Array:
  """One value for each row of the batch, `[B]`.

  Raises:
    ValueError: values of another shape.
  """
  out = checks.array(name, default if values is None else values)
  if values is not None:
    checks.same_shape(name, out.shape, "rows of the batch", (num_rows,))
  return jnp.broadcast_to(out, (num_rows,))


def checked_step(step: Step, rows: int, vocab_size: int) -> Step:
  """A step whose logits are `[R, V]` or refused."""

  def run(cache, tokens):
    cache, logits = step(cache, tokens)
    want = (rows, vocab_size)
    checks.same_shape("logits of the step", logits.shape, "logits", want)
    return cache, logits

  return run


def _row_keys(key, sampler, ids, num_samples: int) -> jax.Array | None:
  """The key of each row: of its prompt's number, then of its sample's."""
  if sampler.is_greedy:
    return None
  if key is None:
    checks.refuse("key", key, "a PRNG key, for a sampler that draws")
  fold = jax.random.fold_in
  one = lambda row: jax.vmap(lambda i: fold(fold(key, row), i))(
    jnp.arange(num_samples)
  )
  return jax.vmap(one)(ids).reshape(-1)


def check_logits(logits: jax.Array) -> tuple[int, int]:
  """B and V of the logits of a prefill.

  Raises:
    ValueError: another shape.
  """
  if logits.ndim != 2:
    raise ValueError(f"logits have shape {logits.shape}: it must be [B, V].")
  return logits.shape


def generate(
  step: Step,
  cache: types.PyTree,
  logits: jax.Array,
  *,
  max_new_tokens: int,
  sampler: sample.Sampler = sample.GREEDY,
  key: jax.Array | None = None,
  num_samples: int = 1,
  stop_tokens: Iterable[int] = (),
  pad_token: int = 0,
  constraint: constraints.Constraint | None = None,
  keep: Keep | None = None,
  rows: jax.Array | None = None,
  row_ids: jax.Array | None = None,
  limits: jax.Array | None = None,
  axes: caches.Axes = None,
  data_axis: str | tuple[str, ...] | None = None,
  early_exit: bool = True,
) -> Generated:
  """Continues prompts that a prefill has read; for use under `jax.jit`.

  The token at position t of sample i of prompt b is drawn by the key
  fold_in(fold_in(fold_in(key, row_ids[b]), i), t). So it depends neither on the
  other prompts of the batch, nor on n, nor on padding, and equal prompts with
  other `row_ids` get other samples.

  Args:
    step: `(cache, tokens [B n, 1]) -> (cache, logits [B n, V])`.
    cache: of B rows, after the prompts.
    logits: `[B, V]`, of the first new token.
    max_new_tokens: T.
    sampler: how tokens are chosen; greedy unless given.
    key: typed PRNG key; needed unless the sampler is greedy.
    num_samples: n. The cache of a prompt is repeated; its prefill is not.
    stop_tokens: tokens that end a text, in any number.
    pad_token: what stands, and is fed, behind the end.
    constraint: which tokens may come; None allows all.
    keep: which log-probabilities to keep; None keeps none.
    rows: `[B]` bool, false for rows that only fill up the batch: nothing is
      generated for them, nor waited for.
    row_ids: `[B]` integers, names of the prompts for the keys; None counts.
    limits: `[B]` integers, the most tokens for each row, besides T.
    axes: where the rows of the cache are, see `cache.batch_axes`.
    data_axis: axis of the mesh for the B n rows of the cache; None leaves the
      layout to the compiler.
    early_exit: whether the loop ends once all rows have; the result is the
      same.

  Returns:
    See `Generated`.

  Raises:
    ValueError: an argument of another shape or range, by its name.
  """
  batch, vocab_size = check_logits(logits)
  checks.positive_int("max_new_tokens", max_new_tokens)
  checks.positive_int("num_samples", num_samples)
  checks.int_in_range("pad_token", pad_token, 0, vocab_size - 1)
  checks.boolean("early_exit", early_exit)
  if keep is not None:
    checks.int_in_range("high", keep.high or vocab_size, 1, vocab_size)
    checks.int_in_range("low", keep.low, 0, vocab_size - 1)
  caches.check_rows(cache, batch, axes)
  spread = lambda x: jnp.repeat(x, num_samples, axis=0)
  ids = per_row("row_ids", row_ids, batch, jnp.arange(batch))
  loop = _Loop(
    sampler=sampler,
    keys=_row_keys(key, sampler, ids, num_samples),
    stops=stop_array(stop_tokens, vocab_size),
    pad_token=pad_token,
    constraint=constraint or constraints.Constraint(),
    keep=keep or Keep(every=max_new_tokens + 1, offset=max_new_tokens),
    limits=spread(per_row("limits", limits, batch, max_new_tokens)),
    vocab_size=vocab_size,
  )
  done = ~spread(per_row("rows", rows, batch, True).astype(bool))
  cache = caches.repeat(cache, num_samples, axes=axes)
  cache = caches.shard(cache, data_axis, axes=axes)
  step = checked_step(step, batch * num_samples, vocab_size)
  state = loop.start(cache, max_new_tokens, done)
  state = laid_out(loop.choose(state, spread(logits)), _WRITTEN, data_axis)

  def goes_on(state):
    waited_for = ~jnp.all(state.done) if early_exit else True
    return (state.position < max_new_tokens) & waited_for

  def body(state):
    last = jax.lax.dynamic_slice_in_dim(state.tokens, state.position - 1, 1, 1)
    cache, logits = step(state.cache, last)
    return loop.choose(state._replace(cache=cache), logits)

  state = jax.lax.while_loop(goes_on, body, state)
  unfold = lambda x: x.reshape(batch, num_samples, *x.shape[1:])
  return Generated(
    *map(unfold, (state.tokens, state.lengths, state.log_probs)),
    *map(unfold, (state.filtered_log_probs, state.finished)),
    kept=None if keep is None else unfold(state.kept),
    num_steps=state.position - 1,
  )
