"""Zero-shot classification and retrieval with embeddings of unit norm."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from locojax.core import checks
from locojax.methods.limoe import contrastive

# Every prompt of an ensemble has one `{}` for the class name.
PLAIN = ("{}",)
PHOTO = ("a photo of a {}", "a picture of a {}", "an image of {}", "{}")


def canonical(name: str) -> str:
  """First alias, lower case, blanks for underscores, no punctuation.

  >>> canonical("Sea_Lion, seal!")
  'sea lion'
  """
  first = name.split(",")[0].replace("_", " ").lower()
  kept = first.translate(str.maketrans("", "", string.punctuation))
  return " ".join(kept.split())


def class_embeddings(
  embed: Callable[[Sequence[str]], jax.Array],
  class_names: Sequence[str],
  templates: Sequence[str] = PLAIN,
  *,
  eps: float = 1e-8,
) -> jax.Array:
  """One unit vector a class: the mean over its prompts, made unit again.

  Args:
    embed: texts -> `[texts, d]`, unit norm.
    class_names: at least one.
    templates: prompts with one `{}` each.
    eps: added to the norm of the mean.

  Returns:
    `[classes, d]`.

  Raises:
    ValueError: no classes, no templates, or one without `{}`.

  >>> embed = lambda texts: jnp.array([[1.0, float("cat" in t)] for t in texts])
  >>> class_embeddings(embed, ["dog", "cat"], ["a {}", "one {}"]).shape
  (2, 2)
  """
  if not class_names or not templates:
    raise ValueError(
      f"class_names ({len(class_names)}) and templates ({len(templates)}) must "
      "not be empty."
    )
  for template in templates:
    if template.count("{}") != 1:
      raise ValueError(
        f"template {template!r} is not allowed: it needs one {{}}."
      )
  names = [canonical(n) for n in class_names]
  texts = [t.format(n) for n in names for t in templates]
  z = jnp.asarray(embed(texts))
  checks.same_shape("embeddings", z.shape[:1], "texts", (len(texts),))
  mean = z.reshape(len(names), len(templates), -1).mean(axis=1)
  return contrastive.unit_norm(mean, eps=eps)


def classify(z_img: jax.Array, classes: jax.Array) -> jax.Array:
  """`[n]` the class of the largest dot product; -1 where one is NaN.

  >>> classify(jnp.array([[0.9, 0.1], [0.2, 0.8]]), jnp.eye(2)).tolist()
  [0, 1]
  """
  s = jnp.asarray(z_img) @ jnp.asarray(classes).T
  return jnp.where(jnp.isnan(s).any(axis=-1), -1, jnp.argmax(s, axis=-1))


def retrieval_recall(
  z_query: np.ndarray,
  z_found: np.ndarray,
  relevant: np.ndarray,
  ks: Sequence[int] = (1, 5, 10),
  *,
  mask: np.ndarray | None = None,
) -> dict[int, float]:
  """Share of queries with a relevant entry among the k nearest.

  Args:
    z_query: `[n, d]`.
    z_found: `[m, d]`.
    relevant: `[n, m]` bool; several captions of an image all count.
    ks: each in [1, m].
    mask: `[n]`, zero at queries that count as removed; None keeps all.

  Returns:
    Recall by k; NaN of no queries.

  Raises:
    ValueError: a bad k, shapes that do not fit, or vectors that are not finite.

  >>> z = np.eye(3)
  >>> relevant = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1]], bool)
  >>> retrieval_recall(z, z, relevant, ks=(1, 3))
  {1: 0.6666666666666666, 3: 1.0}
  """
  if mask is not None:
    checks.same_shape("mask", np.shape(mask), "queries", np.shape(z_query)[:1])
    live = np.asarray(mask) != 0
    z_query, relevant = np.asarray(z_query)[live], np.asarray(relevant)[live]
  for name, z in (("z_query", z_query), ("z_found", z_found)):
    # In float32, for NumPy has no rule for bfloat16.
    if not np.isfinite(np.asarray(z, np.float32)).all():
      raise ValueError(f"{name} is not finite: its neighbours are not known.")
  s = np.asarray(z_query) @ np.asarray(z_found).T
  relevant = np.asarray(relevant, bool)
  checks.same_shape("relevant", relevant.shape, "[queries, entries]", s.shape)
  order = np.argsort(-s, axis=1, kind="stable")
  hits = np.take_along_axis(relevant, order, axis=1)
  out = {}
  for k in ks:
    checks.in_range("k", k, 1, s.shape[1])
    found = hits[:, :k].any(axis=1)
    out[k] = float(found.mean()) if found.size else float("nan")
  return out
