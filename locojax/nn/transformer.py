"""Transformer blocks and stacks, pre-LN (Xiong et al. 2020, arXiv 2002.04745).

Letters: B batch, T tokens, E model size, F feed-forward size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import arrays, checks, types
from locojax.nn import attention, norms

REMATS = ("none", "attention", "dots", "block")

# What is kept of a block where blocks are computed again.
_POLICIES = {"dots": jax.checkpoint_policies.dots_saveable, "block": None}


class FeedForward(nn.Module):
  """Two dense layers, `up` and `down`, with an activation between them.

  Attributes:
    hidden_size: F.
    activation: elementwise function.
    gated: whether what comes between is activation(gate(x)) * up(x), with a
      third dense layer `gate` (Shazeer 2020, arXiv 2002.05202).
    use_bias: whether the dense layers have one.
    dtype: dtype of the computation; None follows the input.
    kernel_init: initialiser of the dense layers.
    dropout: share of what the activation gives that is dropped in training.
  """

  hidden_size: int
  activation: Callable[[jax.Array], jax.Array] = nn.gelu
  gated: bool = False
  use_bias: bool = True
  dtype: Any = None
  kernel_init: Any = nn.initializers.xavier_uniform()
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """`[..., E]` to `[..., E]`; in training with keys of the name `dropout`."""
    checks.positive_int("hidden_size", self.hidden_size)
    checks.boolean("gated", self.gated)
    checks.below("dropout", self.dropout, 0, 1)

    def dense(size, name):
      return nn.Dense(
        size,
        use_bias=self.use_bias,
        dtype=self.dtype,
        kernel_init=self.kernel_init,
        name=name,
      )

    hidden = dense(self.hidden_size, "up")(x)
    if self.gated:
      hidden = self.activation(dense(self.hidden_size, "gate")(x)) * hidden
    else:
      hidden = self.activation(hidden)
    hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
    return dense(x.shape[-1], "down")(hidden)


class Block(nn.Module):
  """x + attention(norm(x)), then x + feed_forward(norm(x)).

  With `cross_attention`, x + cross_attention(norm(x), context) is between them;
  the context itself is not normed.

  Attributes:
    num_heads: heads of the attention.
    hidden_size: F.
    activation, gated: of the feed-forward layers.
    causal, use_rotary, decode, max_len: as in `attention.MultiHeadAttention`.
    cross_attention: whether the block attends to a context as well.
    remat: 'attention' computes the attention weights again in the backward
      pass; the rest is the stack's.
    use_bias: whether dense layers and norms have one.
    norm: kind of the norms, see `norms.make`.
    norm_eps: what the norms add to the variance.
    dtype: dtype of the computation; None follows the input.
    dropout: of the feed-forward layers.
    drop_path: probability, example by example, that in training what is added
      to x is nothing; otherwise it is divided by 1 - drop_path (stochastic
      depth, Huang et al. 2016, arXiv 1603.09382).
    kernel: of the self-attention, see `attention.MultiHeadAttention`.
  """

  num_heads: int
  hidden_size: int
  activation: Callable[[jax.Array], jax.Array] = nn.gelu
  gated: bool = False
  causal: bool = False
  use_rotary: bool = False
  decode: bool = False
  max_len: int | None = None
  cross_attention: bool = False
  remat: str = "none"
  use_bias: bool = True
  norm: str = "layer"
  norm_eps: float = 1e-6
  dtype: Any = None
  dropout: float = 0.0
  drop_path: float = 0.0
  kernel: str = "full"

  def _norm(self, name: str) -> nn.Module:
    return norms.make(
      self.norm,
      eps=self.norm_eps,
      dtype=self.dtype,
      use_bias=self.use_bias,
      name=name,
    )

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    valid: jax.Array | None = None,
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    prefix: tuple[jax.Array, jax.Array] | None = None,
    bias: jax.Array | None = None,
    context: jax.Array | None = None,
    context_valid: jax.Array | None = None,
    num_rows: int | None = None,
    train: bool = False,
  ) -> jax.Array:
    """`[B, T, E]` to `[B, T, E]`.

    Where `valid` is false, `x` counts as zeros, whatever it holds.

    Args:
      x, valid, mask, positions, prefix, bias: as for the self-attention.
      context, context_valid: `[B, S, C]` and `[B, S]`, of the cross-attention.
      num_rows: R, computes the first R tokens alone, `[B, R, E]`, which see all
        the others; not with `causal`, `use_rotary`, `decode`, `mask` or `bias`.
      train: whether anything is dropped, by keys of the name `dropout`.
    """
    checks.below("drop_path", self.drop_path, 0, 1)
    x = arrays.kept(x, valid)
    attend = attention.MultiHeadAttention(
      self.num_heads,
      causal=self.causal,
      use_rotary=self.use_rotary,
      use_bias=self.use_bias,
      decode=self.decode,
      max_len=self.max_len,
      remat=self.remat == "attention",
      dtype=self.dtype,
      kernel=self.kernel,
      name="attention",
    )
    feed_forward = FeedForward(
      self.hidden_size,
      activation=self.activation,
      gated=self.gated,
      use_bias=self.use_bias,
      dtype=self.dtype,
      dropout=self.dropout,
      name="feed_forward",
    )
    drop = lambda y: nn.Dropout(
      self.drop_path, broadcast_dims=(1, 2), deterministic=not train
    )(y)
    normed, others = self._norm("attention_norm")(x), None
    if num_rows is not None and num_rows < x.shape[1]:
      others, normed = normed, normed[:, :num_rows]
      x = x[:, :num_rows]
    y = attend(
      normed,
      others,
      valid=valid,
      mask=mask,
      positions=positions,
      prefix=prefix,
      bias=bias,
    )
    x = x + drop(y)
    if self.cross_attention:
      x = x + drop(self._cross(x, context, context_valid))
    y = feed_forward(self._norm("feed_forward_norm")(x), train=train)
    return x + drop(y)

  def _cross(self, x, context, context_valid) -> jax.Array:
    attend = attention.MultiHeadAttention(
      self.num_heads,
      use_bias=self.use_bias,
      decode=self.decode,
      cross=True,
      remat=self.remat == "attention",
      dtype=self.dtype,
      name="cross_attention",
    )
    normed = self._norm("cross_attention_norm")(x)
    return attend(normed, context, valid=context_valid)


def prepend(
  x: jax.Array, valid: jax.Array | None, extra: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
  """Extra tokens in front, which are no padding.

  Args:
    x: `[B, T, E]`.
    valid: `[B, T]`, true at real tokens, or None.
    extra: `[B, N, E]` or `[1, N, E]`; None or N = 0 changes nothing.

  Returns:
    `(x, valid)` of N + T tokens, in the dtype of `x`.

  Raises:
    ValueError: sizes that do not fit.
  """
  if extra is None:
    return x, valid
  batch, _, size = x.shape
  if extra.ndim != 3 or extra.shape[0] not in (1, batch):
    raise ValueError(
      f"extra tokens have shape {extra.shape}: it must be ({batch} or 1, N, "
      f"{size})."
    )
  if extra.shape[2] != size:
    raise ValueError(
      f"extra tokens have size {extra.shape[2]}: it must be {size}, that of "
      "the model."
    )
  shape = (batch, *extra.shape[1:])
  x = jnp.concatenate(
    [jnp.broadcast_to(extra, shape).astype(x.dtype), x], axis=1
  )
  if valid is not None:
    real = jnp.ones(shape[:2], valid.dtype)
    valid = jnp.concatenate([real, valid], axis=1)
  return x, valid


class Stack(nn.Module):
  """Blocks, then a `norm`; an encoder, or with `causal` a decoder.

  Unrolled, the blocks are `block_0`, `block_1`, ...; with `scan` they are one
  `blocks` whose parameters have a leading axis of layers (see
  `stack_blocks`), which compiles faster and hides the layers from taps.

  Attributes:
    num_layers: number of blocks.
    num_heads, hidden_size, activation, gated, causal, use_rotary, decode,
      max_len, cross_attention, use_bias, norm, norm_eps, dtype, dropout,
      drop_path, kernel: of the blocks, the same in all of them.
    scan: one block run `num_layers` times by `nn.scan`.
    remat: what the backward pass computes again instead of keeping it: 'none',
      'attention' (the weights alone), 'dots' (all of a block but its matrix
      products: cheap, and much less is kept), 'block' (all of a block).
  """

  num_layers: int
  num_heads: int
  hidden_size: int
  activation: Callable[[jax.Array], jax.Array] = nn.gelu
  gated: bool = False
  causal: bool = False
  use_rotary: bool = False
  decode: bool = False
  max_len: int | None = None
  cross_attention: bool = False
  scan: bool = False
  remat: str = "none"
  use_bias: bool = True
  norm: str = "layer"
  norm_eps: float = 1e-6
  dtype: Any = None
  dropout: float = 0.0
  drop_path: float = 0.0
  kernel: str = "full"

  def _block(self, name: str) -> nn.Module:
    return Block(
      self.num_heads,
      self.hidden_size,
      activation=self.activation,
      gated=self.gated,
      causal=self.causal,
      use_rotary=self.use_rotary,
      decode=self.decode,
      max_len=self.max_len,
      cross_attention=self.cross_attention,
      remat=self.remat,
      use_bias=self.use_bias,
      norm=self.norm,
      norm_eps=self.norm_eps,
      dtype=self.dtype,
      dropout=self.dropout,
      drop_path=self.drop_path,
      kernel=self.kernel,
      name=name,
    )

  def _last_norm(self) -> nn.Module:
    return norms.make(
      self.norm,
      eps=self.norm_eps,
      dtype=self.dtype,
      use_bias=self.use_bias,
      name="norm",
    )

  def _check_hooks(self, extra_tokens, extra_key_values) -> None:
    hooks = {
      "extra_tokens": extra_tokens,
      "extra_key_values": extra_key_values,
    }
    for name, hook in hooks.items():
      for i in hook:
        checks.int_in_range(f"layer of {name}", i, 0, self.num_layers - 1)
      if self.scan and set(hook) - ({0} if name == "extra_tokens" else set()):
        raise ValueError(
          f"{name} at the layers {sorted(hook)} are not allowed with "
          "scan=True, whose layers are one: only extra_tokens at layer 0 are "
          "(see unstack_blocks)."
        )

  def _check_rows(self, num_rows: int | None, limits: bool) -> None:
    if num_rows is None:
      return
    checks.positive_int("num_rows", num_rows)
    if limits or self.causal or self.use_rotary:
      raise ValueError(
        f"num_rows={num_rows} is not allowed with mask, positions, "
        "bias, causal=True, use_rotary=True or decode=True."
      )

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    valid: jax.Array | None = None,
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    bias: jax.Array | None = None,
    context: jax.Array | None = None,
    context_valid: jax.Array | None = None,
    extra_tokens: Mapping[int, jax.Array] | None = None,
    extra_key_values: Mapping[int, tuple[jax.Array, jax.Array]] | None = None,
    num_rows: int | None = None,
    train: bool = False,
  ) -> jax.Array:
    """`[B, T, E]` to `[B, T', E]`, T' larger than T by the extra tokens alone.

    Args:
      x, valid, mask, positions, bias: as for the attention.
      context, context_valid: `[B, S, C]` and `[B, S]`, of the cross-attention.
      extra_tokens: by the number of a block, `[B, N, E]` or `[1, N, E]` tokens
        that are put in front of its input and stay; the last ones come first.
      extra_key_values: by the number of a block, the `prefix` of its attention.
      num_rows: R, gives the first R of the T' tokens, `[B, R, E]`: the last
        block computes no others (with `scan` it does).
      train: whether anything is dropped, by keys of the name `dropout`.

    Where `valid` is false, `x` counts as zeros, whatever it holds.

    Raises:
      ValueError: bad settings; a number that is no block's; sizes that do not
        fit; more than `extra_tokens` at block 0 with `scan`; extra tokens with
        `mask`, `positions`, `bias` or `decode`; `num_rows` with these, `causal`
        or `use_rotary`; a context where blocks have no cross-attention.
    """
    x = arrays.kept(x, valid)
    checks.one_of("remat", self.remat, REMATS)
    checks.positive_int("num_layers", self.num_layers)
    checks.positive("norm_eps", self.norm_eps)
    tokens, prefixes = dict(extra_tokens or {}), dict(extra_key_values or {})
    self._check_hooks(tokens, prefixes)
    given = (mask, positions, bias)
    limits = self.decode or any(x is not None for x in given)
    if tokens and limits:
      raise ValueError(
        "extra_tokens are not allowed with mask, positions, bias or "
        "decode=True."
      )
    self._check_rows(num_rows, limits)
    if context is not None:
      checks.one_of("cross_attention", self.cross_attention, [True])

    def run(block, x, valid, prefix, rows=None):
      return block(
        x,
        valid=valid,
        mask=mask,
        positions=positions,
        prefix=prefix,
        bias=bias,
        context=context,
        context_valid=context_valid,
        num_rows=rows,
        train=train,
      )

    if self.remat in _POLICIES:
      run = nn.remat(
        run,
        prevent_cse=not self.scan,
        policy=_POLICIES[self.remat],
        static_argnums=(4,),
      )
    if self.scan:
      x, valid = prepend(x, valid, tokens.get(0))
      x, _ = nn.scan(
        lambda block, x, _: (run(block, x, valid, None, None), None),
        variable_axes={"params": 0, "cache": 0, "memory": 0},
        split_rngs={"params": True, "dropout": True},
        length=self.num_layers,
      )(self._block("blocks"), x, None)
      x = x if num_rows is None else x[:, :num_rows]
    else:
      for i in range(self.num_layers):
        x, valid = prepend(x, valid, tokens.get(i))
        rows = num_rows if i == self.num_layers - 1 else None
        x = run(self._block(f"block_{i}"), x, valid, prefixes.get(i), rows)
    return self._last_norm()(x)


def _numbers(params: Mapping[str, Any]) -> list[str]:
  """Names of the blocks in the order of their numbers."""
  names = [name for name in params if re.fullmatch(r"block_\d+", name)]
  names.sort(key=lambda name: int(name.removeprefix("block_")))
  if names != [f"block_{i}" for i in range(len(names))] or not names:
    raise ValueError(
      f"params has the names {sorted(params)}: it must have block_0, block_1, "
      "... of an unrolled stack."
    )
  return names


def stack_blocks(params: Mapping[str, Any]) -> dict[str, types.PyTree]:
  """Parameters (or cache) of an unrolled stack as one with `scan` wants them.

  Raises:
    ValueError: no blocks, or numbers missing.
  """
  names = _numbers(params)
  rest = {k: v for k, v in params.items() if k not in names}
  blocks = [params[name] for name in names]
  return {**rest, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}


def unstack_blocks(params: Mapping[str, Any]) -> dict[str, types.PyTree]:
  """The inverse of `stack_blocks`.

  Raises:
    ValueError: there is no `blocks`.
  """
  if "blocks" not in params:
    raise ValueError(
      f"params has the names {sorted(params)}: it must have 'blocks'."
    )
  rest = {k: v for k, v in params.items() if k != "blocks"}
  num = jax.tree.leaves(params["blocks"])[0].shape[0]
  each = {
    f"block_{i}": jax.tree.map(lambda x, i=i: x[i], params["blocks"])
    for i in range(num)
  }
  return {**rest, **each}
