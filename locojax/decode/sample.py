"""Which token comes next: filters of logits, greedy choice, sampling.

Letters: V vocabulary. Logits are `[..., V]`, finite or minus infinity, which
stands for a token that cannot be. All is computed in float32. Ties go to the
token with the lower number, but for the official rule of `keep_top_p`.
"""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locojax.core import checks

TOP_P_RULES = ("nucleus", "official")
_NEVER = -jnp.inf


def log_softmax(logits: jax.Array) -> jax.Array:
  """Log-probabilities; where all logits are -inf, all of them stay so."""
  logits = logits.astype(jnp.float32)
  best = jnp.max(logits, axis=-1, keepdims=True)
  shifted = logits - jnp.where(jnp.isfinite(best), best, 0.0)
  total = jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True)
  return shifted - jnp.log(jnp.where(total > 0, total, 1.0))


def greedy(logits: jax.Array) -> jax.Array:
  """The best token, `[...]` int32; the lowest of several."""
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def scale(logits: jax.Array, temperature: float | jax.Array) -> jax.Array:
  """Logits over the temperature, the best one at 0.

  At temperature 0 only the best token is left, the lowest of several.

  Args:
    logits: `[..., V]`.
    temperature: a number, 0 or more.

  Raises:
    ValueError: a temperature below 0.
  """
  _nonnegative("temperature", temperature)
  logits = logits.astype(jnp.float32)
  best = jnp.max(logits, axis=-1, keepdims=True)
  shifted = logits - jnp.where(jnp.isfinite(best), best, 0.0)
  if _is_number(temperature) and temperature > 0:
    return shifted / temperature
  alone = jnp.arange(logits.shape[-1]) == greedy(logits)[..., None]
  coldest = jnp.where(alone, shifted, _NEVER)
  hot = jnp.asarray(temperature) > 0
  return jnp.where(hot, shifted / jnp.where(hot, temperature, 1.0), coldest)


def _keep_best(logits, least, count) -> jax.Array:
  """The `count` best, of which `least` is the worst; others become -inf."""
  above, tied = logits > least, logits == least
  left = count - jnp.sum(above, axis=-1, keepdims=True)
  kept = above | (tied & (jnp.cumsum(tied, axis=-1) <= left))
  return jnp.where(kept, logits, _NEVER)


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
  """The k best tokens; the others become -inf.

  Args:
    logits: `[..., V]`.
    k: how many; 0, or V and more, keeps all.

  Raises:
    ValueError: k below 0 or no integer.
  """
  checks.nonnegative_int("top_k", k)
  logits = logits.astype(jnp.float32)
  if k == 0 or k >= logits.shape[-1]:
    return logits
  if k == 1:  # which some compilers sort for
    least = jnp.max(logits, axis=-1, keepdims=True)
  else:
    least = jax.lax.top_k(logits, k)[0][..., -1:]
  return _keep_best(logits, least, k)


def keep_top_p(
  logits: jax.Array, p: float | jax.Array, *, rule: str = "nucleus"
) -> jax.Array:
  """The most probable tokens that make up a share p; the others become -inf.

  'nucleus' keeps the fewest tokens whose probabilities sum to p or more, the
  one that crosses p included (Holtzman et al. 2020, arXiv 1904.09751). It is
  the rule of most libraries.

  'official' keeps the tokens whose cumulative probability, their own included,
  is at most p, and the best one in any case: the stricter rule of the code of
  Pix2Seq (Chen et al. 2022, arXiv 2109.10852). Tokens as probable as the last
  one kept are kept as well.

  Args:
    logits: `[..., V]`.
    p: in (0, 1]; 1 keeps all.
    rule: 'nucleus' or 'official'.

  Raises:
    ValueError: p outside (0, 1], or an unknown rule.
  """
  _share("top_p", p)
  checks.one_of("top_p_rule", rule, TOP_P_RULES)
  logits = logits.astype(jnp.float32)
  if _is_number(p) and p == 1:
    return logits
  kept = (_nucleus if rule == "nucleus" else _strict_nucleus)(logits, p)
  return jnp.where(jnp.asarray(p) >= 1, logits, kept)


def _nucleus(logits: jax.Array, p) -> jax.Array:
  """Without sorting: the least logit that is kept is found by bisection.

  Its 32 bits, in the order of the numbers, are found one after the other; each
  takes a comparison and a sum over V. (Sorting takes 20 times as long on CPU.)
  """
  shares, order = jnp.exp(log_softmax(logits)), _ordered(logits)
  p = jnp.asarray(p, jnp.float32)

  def reaches(floor):
    return jnp.sum(jnp.where(order >= floor, shares, 0.0), -1, keepdims=True)

  def halve(i, low):
    above = low + (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
    return jnp.where(reaches(above) >= p, above, low)

  low = jnp.zeros((*logits.shape[:-1], 1), jnp.uint32)
  least = jax.lax.fori_loop(0, 32, halve, low)
  tied, above = order == least, order > least
  of = lambda which: jnp.sum(jnp.where(which, shares, 0.0), -1, keepdims=True)
  number = jnp.sum(tied, axis=-1, keepdims=True)
  each = of(tied) / jnp.maximum(number, 1)
  missing = jnp.ceil((p - of(above)) / jnp.where(each > 0, each, 1.0))
  kept = above | (tied & (jnp.cumsum(tied, axis=-1) <= jnp.maximum(missing, 1)))
  return jnp.where(kept, logits, _NEVER)


def _ordered(x: jax.Array) -> jax.Array:
  """Float32 numbers as uint32 of the same order."""
  bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.uint32)  # one zero
  sign = jnp.uint32(0x80000000)
  return jnp.where(bits >= sign, ~bits, bits | sign)


def _strict_nucleus(logits: jax.Array, p) -> jax.Array:
  values = -jnp.sort(-logits, axis=-1)
  shares = jnp.cumsum(jnp.exp(log_softmax(values)), axis=-1)
  count = jnp.maximum(jnp.sum(shares <= p, axis=-1, keepdims=True), 1)
  least = jnp.take_along_axis(values, count - 1, axis=-1)
  return jnp.where(logits >= least, logits, _NEVER)


def keep_min_p(logits: jax.Array, p: float | jax.Array) -> jax.Array:
  """The tokens at least p times as probable as the best; others become -inf.

  Nguyen et al. 2024, arXiv 2407.01082.

  Args:
    logits: `[..., V]`.
    p: in [0, 1]; 0 keeps all.

  Raises:
    ValueError: p outside [0, 1].
  """
  if _is_number(p):
    checks.in_range("min_p", p, 0.0, 1.0)
  logits = logits.astype(jnp.float32)
  best = jnp.max(logits, axis=-1, keepdims=True)
  return jnp.where(logits >= best + jnp.log(p), logits, _NEVER)


def _is_number(value: Any) -> bool:
  """A number of the host, which can be checked before tracing."""
  return not isinstance(value, jax.Array)


def _nonnegative(name: str, value: Any) -> None:
  if _is_number(value):
    checks.nonnegative(name, value)


def _share(name: str, value: Any) -> None:
  if _is_number(value):
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not 0 < value <= 1:
      checks.refuse(name, value, "a number in (0, 1]")


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Temperature, then top-k, then top-p, then min-p.

  Each filter sees the probabilities that those before it left, summing to 1. A
  sampler is a pytree: passed to a jitted function, another temperature, top-p
  or min-p does not compile it again; as a constant, filters that keep all are
  left out of the program.

  Attributes:
    temperature: 0 or more; 0 takes the best token.
    top_k: how many tokens may be drawn; 0 is all, 1 takes the best.
    top_p: their share of probability, in (0, 1]; 1 is all.
    top_p_rule: 'nucleus' or 'official', see `keep_top_p`.
    min_p: the least probability, over that of the best, in [0, 1]; 0 is none.

  Raises:
    ValueError: a setting outside of these.
  """

  temperature: float | jax.Array = 1.0
  top_k: int = 0
  top_p: float | jax.Array = 1.0
  top_p_rule: str = "nucleus"
  min_p: float | jax.Array = 0.0

  def __post_init__(self):
    _nonnegative("temperature", self.temperature)
    checks.nonnegative_int("top_k", self.top_k)
    _share("top_p", self.top_p)
    checks.one_of("top_p_rule", self.top_p_rule, TOP_P_RULES)
    if _is_number(self.min_p):
      checks.in_range("min_p", self.min_p, 0.0, 1.0)

  @property
  def is_greedy(self) -> bool:
    """Whether the best token is taken, known before tracing."""
    cold = _is_number(self.temperature) and self.temperature == 0
    return cold or self.top_k == 1

  def filter(self, logits: jax.Array) -> jax.Array:
    """Logits of the distribution that is drawn from, `[..., V]` float32."""
    logits = keep_top_k(scale(logits, self.temperature), self.top_k)
    logits = keep_top_p(logits, self.top_p, rule=self.top_p_rule)
    if _is_number(self.min_p) and self.min_p == 0:
      return logits
    return keep_min_p(logits, self.min_p)


def _flatten(sampler: Sampler):
  numbers_ = (sampler.temperature, sampler.top_p, sampler.min_p)
  return numbers_, (sampler.top_k, sampler.top_p_rule)


def _unflatten(static, numbers_) -> Sampler:
  """Without the checks, as a tree may hold anything in place of numbers."""
  sampler = object.__new__(Sampler)
  names = ("temperature", "top_p", "min_p", "top_k", "top_p_rule")
  for name, value in zip(names, (*numbers_, *static)):
    object.__setattr__(sampler, name, value)
  return sampler


jax.tree_util.register_pytree_node(Sampler, _flatten, _unflatten)
GREEDY = Sampler(temperature=0.0)


class Choice(NamedTuple):
  """The chosen tokens.

  Attributes:
    tokens: `[R]` int32.
    log_probs: `[R]` float32, under the logits as they came, at temperature 1.
    filtered_log_probs: `[R]` float32, under the distribution that was drawn
      from: after what is allowed, temperature and filters. 0 for a greedy
      choice, -inf where no token was allowed.
  """

  tokens: jax.Array
  log_probs: jax.Array
  filtered_log_probs: jax.Array


def choose(
  keys: jax.Array | None,
  logits: jax.Array,
  sampler: Sampler,
  allowed: jax.Array | None = None,
) -> Choice:
  """One token for each row, by the row's own key.

  Args:
    keys: `[R]` typed PRNG keys; None for a greedy sampler.
    logits: `[R, V]`.
    sampler: how to choose.
    allowed: `[R, V]` or `[V]` bool, tokens that may be chosen; None is all.

  Raises:
    ValueError: no keys for a sampler that draws.
  """
  model = log_softmax(logits)
  if allowed is not None:
    logits = jnp.where(allowed, logits, _NEVER)
  filtered = log_softmax(sampler.filter(logits))
  scores = filtered
  if not sampler.is_greedy:
    if keys is None:
      raise ValueError(
        "key=None is not allowed with a sampler that draws: it must be a key."
      )
    draw = lambda key: jax.random.gumbel(key, logits.shape[-1:], jnp.float32)
    scores = filtered + jax.vmap(draw)(keys)
  tokens = greedy(scores)
  of = lambda x: jnp.take_along_axis(x, tokens[:, None], axis=-1)[:, 0]
  return Choice(tokens, of(model), of(filtered))
