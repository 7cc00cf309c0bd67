"""Rehearsal: losses on the batch and on examples kept of the past.

The buffer is the entry `replay` of the model state (`with_replay`). A loss
draws from it with its own key, and then offers it the batch, so that one
compiled step serves a whole stream, with task boundaries or without, and a
checkpoint has the buffer in it.

What is offered: the rows whose `mask`, and whose `insert` where the batch has
that entry, are not 0. Set `insert` to zeros to leave the buffer as it is (in
the second epoch of a task, say), or give `online=False` and call
`buffers.insert` between tasks.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from locojax.core import checks, metrics, types
from locojax.methods.continual import buffers, losses, masks

STATE = "replay"
INSERT, IS_REPLAY = "insert", "is_replay"
REPLAY_MASKS = ("none", "reverse", "same")
# Entries that a loss adds to a batch or looks at: no buffer holds them.
_OWN = (losses.MASK, masks.CLASS_MASK, INSERT, IS_REPLAY)


def with_replay(
  model_state: types.PyTree, buffer: buffers.ReplayBuffer, key: jax.Array
) -> types.PyTree:
  """The model state with a buffer in it.

  Args:
    model_state: variables of the model; None stands for `{}`.
    buffer: of any kind; its examples are a dict with the names of a batch.
    key: typed PRNG key of the insertions, one for the whole stream.
  """
  own = {"buffer": buffer, "key": key}
  return {**(model_state or {}), STATE: own}


def _rows(batch: types.Batch) -> int:
  return len(batch[losses.LABEL])


def _offered(batch: types.Batch) -> jax.Array:
  live = losses.live_rows(batch, _rows(batch))
  return live * jnp.asarray(batch.get(INSERT, 1.0))


def offer(
  own: dict[str, Any], batch: types.Batch, **more: jax.Array
) -> dict[str, Any]:
  """The entry `replay` after the batch was offered to its buffer.

  Args:
    own: the entry.
    batch: has the names that the buffer holds, and `label`.
    **more: further arrays that the buffer holds, such as `logits`.

  Raises:
    ValueError: as `buffers.insert`.
  """
  buffer = own["buffer"]
  examples = {
    k: v for k, v in {**batch, **more}.items() if k in buffer.examples
  }
  examples = jax.lax.stop_gradient(examples)
  labels = None if buffer.kind == "reservoir" else batch[losses.LABEL]
  buffer = buffers.insert(
    buffer, examples, key=own["key"], labels=labels, mask=_offered(batch)
  )
  return {**own, "buffer": buffer}


def _joined_class_mask(class_mask, live, num, replay_mask):
  """`[n + num, C]`: the rows of the batch, and those of the buffer."""
  current = jnp.any(class_mask & (live != 0)[:, None], axis=0)
  # A batch of padding alone has no current class, and masks nothing.
  current = current | ~jnp.any(current)
  is_replay = jnp.ones(num, bool)
  rows = {
    "none": lambda: masks.replay_no_mask(current, is_replay),
    "reverse": lambda: masks.replay_reverse_mask(current, is_replay),
    "same": lambda: jnp.broadcast_to(current, (num, current.shape[0])),
  }[replay_mask]()
  return jnp.concatenate([class_mask, rows])


def joined(
  batch: types.Batch,
  examples: types.Batch,
  mask: jax.Array,
  *,
  replay_mask: str = "none",
) -> dict[str, jax.Array]:
  """A batch and what came from a buffer, one after the other.

  Args:
    batch: `[n, ...]`.
    examples: `[m, ...]`, which has all names of the batch but `mask`,
      `class_mask`, `insert`.
    mask: `[m]`, zero for rows that do not count.
    replay_mask: what becomes of a `class_mask` in the rows of the buffer, one
      of `REPLAY_MASKS`: `none` (all classes), `reverse` (all but the current
      ones), `same` (the current ones).

  Returns:
    `[n + m, ...]` with those names, `mask`, `is_replay` (bool), and
    `class_mask` if the batch has it.

  Raises:
    ValueError: names that the buffer lacks; an unknown `replay_mask`.
  """
  checks.one_of("replay_mask", replay_mask, REPLAY_MASKS)
  names = [k for k in batch if k not in _OWN]
  lacking = sorted(set(names) - set(examples))
  if lacking:
    raise ValueError(
      f"batch has the names {sorted(names)}, of which the buffer does not hold "
      f"{lacking}: make it for an example that has them, or drop them."
    )
  live = losses.live_rows(batch, _rows(batch))
  out = {k: jnp.concatenate([batch[k], examples[k]]) for k in names}
  out[losses.MASK] = jnp.concatenate([live, mask])
  out[IS_REPLAY] = jnp.arange(len(live) + len(mask)) >= len(live)
  if masks.CLASS_MASK in batch:
    out[masks.CLASS_MASK] = _joined_class_mask(
      jnp.asarray(batch[masks.CLASS_MASK]), live, len(mask), replay_mask
    )
  return out


def er(
  loss_fn: types.LossFn,
  *,
  num_replay: int | None = None,
  replay_mask: str = "none",
  online: bool = True,
) -> types.LossFn:
  """Experience replay: any loss on the batch and as much of the buffer.

    loss = L(batch + sample of the buffer), the mean over all their examples

  Chaudhry et al. 2019, arXiv 1902.10486. With an empty buffer it is the loss of
  the batch alone. It wraps any loss: `er(lwf(...))`, `er(bic(...))`,
  `er(co2l(...))`, or the loss of prompts (L2P-R).

  Args:
    loss_fn: sees the joined batch (see `joined`), of `n + num_replay` rows.
    num_replay: examples drawn; None as many as the batch has.
    replay_mask: see `joined`.
    online: offer each batch to the buffer after use. False leaves that to you.

  Returns:
    A `LossFn`; the model state is made by `with_replay`. It couples the
    examples of a batch if `loss_fn` does.

  Raises:
    ValueError: a bad setting; a model state without a buffer.
  """
  if num_replay is not None:
    checks.positive_int("num_replay", num_replay)
  checks.one_of("replay_mask", replay_mask, REPLAY_MASKS)
  checks.boolean("online", online)

  @functools.wraps(loss_fn)
  def replayed(params, model_state, batch, key):
    own, rest = losses.take(model_state, STATE, "with_replay")
    draw_key, key = jax.random.split(key)
    examples, mask = buffers.sample(
      own["buffer"], draw_key, num_replay or _rows(batch)
    )
    both = joined(batch, examples, mask, replay_mask=replay_mask)
    loss, (found, rest) = loss_fn(params, rest, both, key)
    own = offer(own, batch) if online else own
    return loss, (found, {**rest, STATE: own})

  return replayed


def derpp(
  apply_fn: losses.ApplyFn,
  *,
  alpha: float,
  beta: float,
  num_replay: int | None = None,
) -> types.LossFn:
  """Dark experience replay: logits of the past as targets, and labels.

    loss = CE(batch) + alpha mean ||z(x') - z'||^2 + beta CE(x'', y'')

  x', z' and x'', y'' are two samples of the buffer, z' the logits at the time
  when x' was offered. Buzzega et al. 2020, arXiv 2004.07211, equation 6;
  `beta = 0` is DER. The square is summed over classes: implementations that
  average it have an alpha that is C times as large. The three batches go
  through the model as one. A class mask counts for the rows of the batch alone.

  Args:
    apply_fn: logits `[n, C]`.
    alpha: 0 or more.
    beta: 0 or more.
    num_replay: examples of each sample; None as many as the batch has.

  Returns:
    A `LossFn` with the metrics of `losses.cross_entropy` on the batch, and
    `replay_logits`, `replay_loss` (without factors). The model state is made by
    `with_replay` with a buffer that holds `logits` `[C]` float32 beside the
    names of the batch.

  Raises:
    ValueError: a bad number; a model state without a buffer, or one that holds
      no logits.
  """
  checks.nonnegative("alpha", alpha)
  checks.nonnegative("beta", beta)
  if num_replay is not None:
    checks.positive_int("num_replay", num_replay)

  def loss_fn(params, model_state, batch, key):
    batch = losses.clean(batch)
    own, rest = losses.take(model_state, STATE, "with_replay")
    if "logits" not in own["buffer"].examples:
      raise ValueError(
        f"the buffer holds {sorted(own['buffer'].examples)}: 'logits' is "
        "missing, [classes] float32 of each example."
      )
    size, num = _rows(batch), num_replay or _rows(batch)
    first_key, second_key, key = jax.random.split(key, 3)
    dark, live = buffers.sample(own["buffer"], first_key, num)
    plain, _ = buffers.sample(own["buffer"], second_key, num)
    samples = jax.tree.map(lambda *x: jnp.concatenate(x), dark, plain)
    both = joined(batch, samples, jnp.concatenate([live, live]))
    logits, rest = apply_fn(params, rest, both, key)
    now, then, again = jnp.split(logits, [size, size + num])
    loss, found = losses.of_logits(now, batch)
    gap = jnp.sum(jnp.square(then.astype(jnp.float32) - dark["logits"]), axis=1)
    gap = masks.mean_or_zero(metrics.mean(gap, live))
    ce, _ = masks.masked_cross_entropy(again, plain[losses.LABEL], mask=live)
    loss, found = losses.add_term(loss, found, "replay_logits", gap, alpha)
    loss, found = losses.add_term(loss, found, "replay_loss", ce, beta)
    own = offer(own, batch, logits=now.astype(jnp.float32))
    return loss, (found, {**rest, STATE: own})

  return loss_fn


def gdumb(buffer: buffers.ReplayBuffer) -> types.PyTree:
  """The training set of GDumb: what its balanced buffer holds.

  Prabhu, Torr and Dokania, ECCV 2020 (Algorithm 1): the buffer is filled
  greedily and balanced, and a fresh model is trained on it alone, by
  `losses.cross_entropy`, whenever one is asked for.

  Args:
    buffer: made by `buffers.balanced`.

  Returns:
    Tree of NumPy arrays `[filled, ...]`.

  Raises:
    ValueError: another kind of buffer, or an empty one.
  """
  if buffer.kind != "balanced":
    raise ValueError(
      f"buffer is of kind {buffer.kind!r}, which is not allowed: GDumb needs "
      "one made by `buffers.balanced`."
    )
  return buffers.contents(buffer)
