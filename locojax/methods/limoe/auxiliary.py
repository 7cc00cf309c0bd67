"""Auxiliary losses of routers.

`classic` balance losses (importance, load, GShard, z) look at all tokens alike,
and are content when the many image tokens are spread and all text tokens go to
one expert. LIMoE's entropy losses look at each modality: the local one makes a
router sure of each token, the global one makes a modality use many experts.

Logits and gates are `[..., E]` with any leading axes (groups, tokens); what is
averaged is pooled over all of them, so under `jit` over the global batch.
Inside `shard_map` name the mesh axes by `axis_name`. All losses are float32
(float64 for float64), with natural logarithms. Tokens under a mask, `[...]` as
those of the logits, count as removed, whatever they hold; of none a loss is 0.

Sources: arXiv 2206.02770 (entropy), 2106.05974 (importance, load), 2006.16668
(GShard), 2202.08906 (z).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from locojax.core import arrays, checks

Axes = str | tuple[str, ...] | None


def _sum(x: jax.Array, axis_name: Axes) -> jax.Array:
  return x if axis_name is None else jax.lax.psum(x, axis_name)


def _mean(
  values: jax.Array, mask: jax.Array | None, axis_name: Axes
) -> jax.Array:
  """Mean over tokens of `values` `[tokens..., E]` or `[tokens...]`, or zeros.

  `mask` has the tokens' axes; values under it must be finite.
  """
  if mask is None:
    mask = jnp.ones(values.shape, values.dtype)
  mask = mask.astype(values.dtype)
  values = values * arrays.spread(mask, values.ndim)
  total = _sum(values.sum(axis=tuple(range(mask.ndim))), axis_name)
  return arrays.ratio(total, _sum(mask.sum(), axis_name), 0.0)


def _tokens(x: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Logits or gates in float32 at least, zeros where the mask is zero."""
  return arrays.kept(arrays.as_float(x), mask)


def _token_mean(x, mask, axis_name):
  """`[E]`: mean over all tokens of `[..., E]`."""
  if mask is None:
    mask = jnp.ones(x.shape[:-1], x.dtype)
  return _mean(x, mask, axis_name)


def _cv_squared(x: jax.Array) -> jax.Array:
  """(std / mean)^2 over the last axis, population std; 0 for all zeros."""
  mean = x.mean(axis=-1)
  variance = jnp.square(x - mean[..., None]).mean(axis=-1)
  safe = jnp.where(mean == 0, 1.0, mean)
  return jnp.where(mean == 0, 0.0, variance / jnp.square(safe))


def importance_loss(
  gates: jax.Array, *, mask: jax.Array | None = None, axis_name: Axes = None
) -> jax.Array:
  """(std / mean)^2 of the experts' summed gates (clean gates).

  >>> float(importance_loss(jnp.full((6, 3), 1 / 3)))
  0.0
  """
  return _cv_squared(_token_mean(_tokens(gates, mask), mask, axis_name))


def load_loss(
  logits: jax.Array,
  noisy_logits: jax.Array,
  *,
  noise_std: float,
  top_k: int,
  mask: jax.Array | None = None,
  axis_name: Axes = None,
) -> jax.Array:
  """(std / mean)^2 of the probabilities that experts are chosen again.

  With thr_i the K-th largest noisy logit of token i, p_ie = 1 - Phi((thr_i -
  logit_ie) / s): the chance that fresh noise would choose e.

  Args:
    logits: clean, `[..., E]`.
    noisy_logits: those that chose.
    noise_std: s, of the noise that was added (`noise_std / E` of a router).
    top_k: K.
    mask, axis_name: of the tokens; of the mesh.

  Raises:
    ValueError: no noise, for which the loss is undefined.

  >>> logits = jnp.array([[1.0, 0.0], [0.0, 1.0]])
  >>> float(load_loss(logits, logits, noise_std=0.5, top_k=1))
  0.0
  """
  checks.positive("noise_std", noise_std)
  checks.in_range("top_k", top_k, 1, logits.shape[-1])
  logits, noisy = _tokens(logits, mask), _tokens(noisy_logits, mask)
  top, _ = jax.lax.top_k(noisy, top_k)
  threshold = top[..., -1:]
  p = 1.0 - jax.scipy.stats.norm.cdf((threshold - logits) / noise_std)
  return _cv_squared(_token_mean(p, mask, axis_name))


def gshard_loss(
  gates: jax.Array, *, mask: jax.Array | None = None, axis_name: Axes = None
) -> jax.Array:
  """E^2 mean_e(share of first choices x mean gate); 1 when balanced.

  >>> float(gshard_loss(jnp.array([[0.75, 0.25], [0.25, 0.75]])))
  1.0
  """
  num, gates = gates.shape[-1], _tokens(gates, mask)
  first = jax.nn.one_hot(jnp.argmax(gates, axis=-1), num, dtype=gates.dtype)
  share = _token_mean(first, mask, axis_name)
  return num**2 * jnp.mean(share * _token_mean(gates, mask, axis_name))


def router_z_loss(
  logits: jax.Array, *, mask: jax.Array | None = None, axis_name: Axes = None
) -> jax.Array:
  """Mean squared logsumexp of the logits.

  >>> round(float(router_z_loss(jnp.zeros((4, 2)))), 4)  # log(2)^2
  0.4805
  """
  z = jax.nn.logsumexp(_tokens(logits, mask), axis=-1)
  return _mean(jnp.square(z), mask, axis_name)


def _token_entropy(logits: jax.Array) -> jax.Array:
  log_p = jax.nn.log_softmax(logits, axis=-1)
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def local_entropy_loss(
  logits: jax.Array, *, mask: jax.Array | None = None, axis_name: Axes = None
) -> jax.Array:
  """Mean entropy of the tokens' routing: small when routing is sure.

  Omega_local of LIMoE, equation 1. `mask` picks the tokens of one modality; of
  none the loss is 0.

  >>> round(float(local_entropy_loss(jnp.zeros((4, 2)))), 4)  # log(2)
  0.6931
  """
  return _mean(_token_entropy(_tokens(logits, mask)), mask, axis_name)


def mean_gate_entropy(
  logits: jax.Array, *, mask: jax.Array | None = None, axis_name: Axes = None
) -> jax.Array:
  """H(p bar), the entropy of the tokens' mean routing; log E at most.

  >>> logits = 99 * jnp.eye(2)  # each token is sure of one of two
  >>> round(float(mean_gate_entropy(logits)), 4)  # log(2)
  0.6931
  """
  log_p = jax.nn.log_softmax(_tokens(logits, mask), axis=-1)
  mean = _token_mean(jnp.exp(log_p), mask, axis_name)
  safe = jnp.where(mean > 0, mean, 1.0)
  return -jnp.sum(jnp.where(mean > 0, mean * jnp.log(safe), 0.0))


def global_entropy_loss(
  logits: jax.Array,
  *,
  threshold: float | None = None,
  soft_min_experts: float | None = None,
  mask: jax.Array | None = None,
  axis_name: Axes = None,
) -> jax.Array:
  """-H(p bar), or max(0, tau - H(p bar)): small when many experts are used.

  Omega_global of LIMoE. tau = log S is a soft minimum of S experts: nothing is
  asked of a modality that uses as many.

  Args:
    logits: `[..., E]`, clean.
    threshold: tau; None has none.
    soft_min_experts: S, for tau = log S; not together with `threshold`.
    mask: the tokens of a modality; of none the loss is 0.
    axis_name: of the mesh.

  Raises:
    ValueError: both given, or S outside [1, E].

  >>> logits = 99 * jnp.eye(4)  # each token is sure of one of four
  >>> round(float(global_entropy_loss(logits)), 4)  # -log(4)
  -1.3863
  >>> float(global_entropy_loss(logits, soft_min_experts=2))
  0.0
  """
  if soft_min_experts is not None:
    if threshold is not None:
      raise ValueError(
        f"threshold={threshold} is not allowed with soft_min_experts="
        f"{soft_min_experts}: one of the two."
      )
    num = logits.shape[-1]
    checks.in_range("soft_min_experts", soft_min_experts, 1, num)
    threshold = math.log(soft_min_experts)
  entropy = mean_gate_entropy(logits, mask=mask, axis_name=axis_name)
  loss = -entropy
  if threshold is not None:
    loss = jnp.maximum(0.0, threshold - entropy)
  if mask is None:
    return loss
  any_ = _sum(mask.astype(jnp.float32).sum(), axis_name) > 0
  return jnp.where(any_, loss, 0.0)


def mutual_information(
  logits: jax.Array, *, mask: jax.Array | None = None, axis_name: Axes = None
) -> jax.Array:
  """H(p bar) - mean H(p_i) of tokens and experts, in [0, log E].

  >>> logits = 99 * jnp.eye(2)
  >>> round(float(mutual_information(logits)), 4)  # log(2)
  0.6931
  """
  settings = {"mask": mask, "axis_name": axis_name}
  return mean_gate_entropy(logits, **settings) - local_entropy_loss(
    logits, **settings
  )
