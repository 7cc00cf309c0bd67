"""A frozen vision transformer, prompted.

The query is the [cls] row of the un-prompted model, prompts are put in front of
the tokens of some blocks (or of their keys and values), and a linear head looks
at the rows of the prompts (arXiv 2112.08654). With a pool of prefixes and
general ones it is DualPrompt (`dual_prompt`), with components CODA-Prompt.

Letters: B examples, E size, C classes.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike

from locojax.core import checks
from locojax.methods.l2p import coda as coda_lib
from locojax.methods.l2p import pool as pool_lib
from locojax.methods.l2p import selection as selection_lib

HEADS = ("prompt", "token", "token+prompt", "gap")
QUERIES = ("full", "first_layers")
EMBEDDING_KEYS = ("cls", "mean", "max", "mean_max")
_LEAK = (
  "Prompts are chosen by {}: what an example gets then depends on {}, so that "
  "accuracies are higher than those of a model that sees one example at a "
  "time. Use it only to compare with numbers that were measured so."
)


@dataclasses.dataclass(frozen=True)
class GeneralPromptConfig:
  """Prompts that every input gets.

  Attributes:
    length: tokens of a layer's prompt.
    layers: blocks that get one, each its own.
    style: one of `pool.STYLES`.
    prompt_init: as in `PromptPoolConfig`.

  Raises:
    ValueError: a setting that is not allowed.
  """

  length: int = 5
  layers: tuple[int, ...] = (0,)
  style: str = "prompt"
  prompt_init: str | Callable[..., jax.Array] = "uniform_small"

  def __post_init__(self):
    checks.positive_int("length", self.length)
    check_layers("layers of general", self.layers)
    checks.one_of("style", self.style, pool_lib.STYLES)
    pool_lib.initializer("prompt_init", self.prompt_init)


def check_layers(name: str, layers, num_layers: int | None = None) -> None:
  """Different indices of blocks, one or more."""
  indices = tuple(layers)
  for index in indices:
    checks.nonnegative_int(name, index)
    if num_layers is not None and index >= num_layers:
      checks.refuse(name, indices, f"below num_layers={num_layers}")
  if not indices or len(set(indices)) != len(indices):
    checks.refuse(name, indices, "different blocks, one or more")


class Head(nn.Module):
  """Rows of a sequence to logits: pool, then a linear layer that starts at 0.

  Attributes:
    num_classes: C.
    head: which rows are averaged, one of `HEADS`.
    normalize: whether the average is made a unit vector (epsilon 1e-10).
    temperature: what logits are divided by.
    reweight_prompt: whether rows of prompts have learned softmax weights.
  """

  num_classes: int
  head: str = "prompt"
  normalize: bool = False
  temperature: float = 1.0
  reweight_prompt: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, num_prompts: int):
    """Logits and what the head saw.

    Args:
      x: `[B, n + 1 + L, E]`: prompts, [cls], patches; all, or as many as the
        head looks at.
      num_prompts: n.

    Returns:
      `[B, C]` and `[B, E]`, float32 or wider.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    pooled = self._pooled(x, num_prompts)
    features = pooled
    if self.normalize:
      features = selection_lib.unit_rows(pooled, epsilon=1e-10)
    zeros = nn.initializers.zeros
    kernel = self.param("kernel", zeros, (x.shape[-1], self.num_classes))
    bias = self.param("bias", zeros, (self.num_classes,))
    return (features @ kernel + bias) / self.temperature, pooled

  def _pooled(self, x: jax.Array, num: int) -> jax.Array:
    if self.head == "token":
      return x[:, num]
    if self.head == "gap":
      return x.mean(axis=1)
    if self.head == "token+prompt":
      return x[:, : num + 1].mean(axis=1)
    if not self.reweight_prompt:
      return x[:, :num].mean(axis=1)
    weights = self.param("reweight", nn.initializers.zeros, (num,))
    return jnp.einsum("n,bne->be", jax.nn.softmax(weights), x[:, :num])


class PromptedViT(nn.Module):
  """A vision transformer with prompts; parameters `backbone`, `prompt_pool`,
  `general_prompt` and `head`.

  Nothing here is frozen by itself: see `freezing`.

  Attributes:
    backbone: a `ViT`.
    num_classes: C.
    pool: a `PromptPoolConfig`, a `CodaConfig`, or None for no pool.
    layers: blocks that get the pool's prompts, as many as its `num_layers`.
    general: prompts without keys, beside the pool or in its place.
    head: what is averaged for the head, one of `HEADS`; `prompt` and
      `token+prompt` need prompts in the sequence.
    normalize, temperature, reweight_prompt: as in `Head`.
    query: `full`, the whole un-prompted model, or `first_layers`, only its
      first `query_layers` blocks (and the last LayerNorm): cheaper.
    query_layers: how many.
    query_fn: `images -> [B, C]` in place of the un-prompted model.
    embedding_key: what of the un-prompted model is the query: its [cls] row, or
      `mean`, `max` or `mean_max` (max + 2 mean) of the patch embeddings, which
      need no pass through the blocks.
  """

  backbone: nn.Module
  num_classes: int
  pool: pool_lib.PromptPoolConfig | coda_lib.CodaConfig | None = None
  layers: tuple[int, ...] = (0,)
  general: GeneralPromptConfig | None = None
  head: str = "prompt"
  normalize: bool = False
  temperature: float = 1.0
  reweight_prompt: bool = False
  query: str = "full"
  query_layers: int = 1
  query_fn: Callable[[jax.Array], jax.Array] | None = None
  embedding_key: str = "cls"

  @property
  def trainable(self) -> tuple[str, ...]:
    """Paths of all but the backbone, for `freezing.freeze`."""
    pool = () if self.pool is None else ("prompt_pool",)
    general = () if self.general is None else ("general_prompt",)
    return (*pool, *general, "head")

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    *,
    train: bool = False,
    query: jax.Array | None = None,
    selection_mode: str | None = None,
    frequency: ArrayLike | None = None,
    forced_ids: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    vote_groups: int = 1,
    axis_name: str | tuple[str, ...] | None = None,
    components: coda_lib.Components | None = None,
    eval_batchwise: bool = False,
    eval_forced_ids: ArrayLike | None = None,
  ) -> dict[str, Any]:
    """Logits of a batch.

    At test (`train=False`) every example chooses for itself, by eq. (3),
    whatever the training did.

    Args:
      images: `[B, height, width, channels]`.
      train: whether the options of training are in force.
      query: `[B, C]` queries computed before; None computes them.
      selection_mode: in training, in place of the pool's `selection`.
      frequency: in training, h of eq. (4); see `normalize_frequency`.
      forced_ids: in training with `forced`, `[N]` or `[B, N]`.
      mask: `[B]`, zero at padding, which has no vote.
      vote_groups, axis_name: of the vote, as in `select_prompts`.
      components: of CODA-Prompt, `(start, stop)`.
      eval_batchwise: at test, lets the batch vote as the released code does.
        It tells the model which task the batch is from; a warning says so.
      eval_forced_ids: at test, these prompts: an oracle that knows the task,
        with a warning.

    Returns:
      `logits` `[B, C]`, `pre_logits` `[B, E]` (float32), and `selection`, a
      `PromptSelection` or None.

    Raises:
      ValueError: settings or sizes that do not fit; options of training at
        test.
    """
    self._check()
    mode, forced = self._mode(
      train,
      selection_mode,
      {"frequency": frequency, "forced_ids": forced_ids},
      eval_batchwise,
      eval_forced_ids,
    )
    given, chosen, num = [], None, 0
    tokens = self.backbone.embed(images)
    if self.general is not None:
      prompts, num = self._general_prompts()
      given.append((self.general.layers, self.general.style, prompts))
    if self.pool is not None:
      query = self._query(images, tokens, query)
      if isinstance(self.pool, coda_lib.CodaConfig):
        prompts = self._coda(query, components)
        given.append((self.layers, "prefix", prompts))
      else:
        module = pool_lib.PromptPool(
          self.pool, **self._sizes(), name="prompt_pool"
        )
        prompts, chosen = module(
          query,
          selection_mode=mode,
          frequency=frequency,
          forced_ids=forced,
          mask=mask,
          vote_groups=vote_groups,
          axis_name=axis_name,
        )
        given.append((self.layers, self.pool.style, prompts))
        if self.pool.style == "prompt":
          num += self.pool.num_tokens * len(self.layers)
    logits, pooled = self._forward(tokens, given, num)
    return {"logits": logits, "pre_logits": pooled, "selection": chosen}

  def _sizes(self) -> dict[str, int]:
    return {"size": self.backbone.width, "num_heads": self.backbone.num_heads}

  def _general_prompts(self):
    """The prompts of every input, and how many rows of the sequence."""
    general = self.general
    prompts = pool_lib.GeneralPrompt(
      general.length,
      len(general.layers),
      style=general.style,
      prompt_init=general.prompt_init,
      **self._sizes(),
      name="general_prompt",
    )()
    rows = general.length * len(general.layers)
    return prompts, rows if general.style == "prompt" else 0

  def _coda(self, query, components):
    module = coda_lib.CodaPrompts(
      self.pool, **self._sizes(), name="prompt_pool"
    )
    return module(query, components=components)

  def _forward(self, tokens, given, num: int):
    """The prompted model and the head, of the tokens that it looks at."""
    extra, prefixes = arrange(given)
    rows = {"gap": None, "prompt": num}.get(self.head, num + 1)
    x = self.backbone(
      tokens=tokens,
      extra_tokens=extra or None,
      extra_key_values=prefixes or None,
      num_rows=rows,
    )
    return Head(
      self.num_classes,
      self.head,
      self.normalize,
      self.temperature,
      self.reweight_prompt,
      name="head",
    )(x, num)

  def _check(self) -> None:
    """Settings that do not fit each other."""
    checks.positive_int("num_classes", self.num_classes)
    checks.one_of("head", self.head, HEADS)
    checks.one_of("query", self.query, QUERIES)
    checks.one_of("embedding_key", self.embedding_key, EMBEDDING_KEYS)
    checks.positive("temperature", self.temperature)
    blocks = self.backbone.num_layers
    checks.int_in_range("query_layers", self.query_layers, 1, blocks)
    styles = []
    if self.pool is not None:
      check_layers("layers", self.layers, blocks)
      if len(self.layers) != self.pool.num_layers:
        checks.refuse(
          "layers", self.layers, f"num_layers={self.pool.num_layers} blocks"
        )
      styles.append(getattr(self.pool, "style", "prefix"))
    if self.general is not None:
      check_layers("layers of general", self.general.layers, blocks)
      styles.append(self.general.style)
    if "prompt" in self.head and "prompt" not in styles:
      checks.refuse(
        "head", self.head, "token or gap where no prompt is in the sequence"
      )
    if not self.backbone.use_cls:
      self._check_without_cls()
    if self.query == "first_layers" and self.backbone.scan:
      checks.refuse("query", self.query, "full for a backbone with scan=True")
    if self.reweight_prompt and self.head != "prompt":
      checks.refuse("reweight_prompt", True, "False unless head='prompt'")

  def _check_without_cls(self) -> None:
    """A backbone without [cls] has no row for the query or for the head."""
    if "token" in self.head:
      checks.refuse("head", self.head, "prompt or gap without a [cls] token")
    own = self.pool is not None and self.query_fn is None
    if own and self.embedding_key == "cls":
      checks.refuse("embedding_key", "cls", "another one without a [cls] token")

  def _mode(self, train, mode, training_only, batchwise, eval_ids):
    """How prompts are chosen, and the ids where they are forced."""
    default = getattr(self.pool, "selection", "instance")
    if train:
      if batchwise or eval_ids is not None:
        raise ValueError(
          "eval_batchwise and eval_forced_ids are not allowed with train=True."
        )
      return mode or default, training_only["forced_ids"]
    for name, value in training_only.items():
      if value is not None:
        raise ValueError(
          f"{name} is not allowed with train=False: it is an option of "
          "training; at test every example chooses for itself."
        )
    if mode not in (None, "instance"):
      checks.refuse(
        "selection_mode",
        mode,
        "instance with train=False (or see eval_batchwise, eval_forced_ids)",
      )
    if batchwise and eval_ids is not None:
      raise ValueError("eval_batchwise=True is not allowed: ids are forced.")
    if batchwise:
      warnings.warn(
        _LEAK.format("a vote of the test batch", "the rest of the batch"),
        stacklevel=2,
      )
      return "batch", None
    if eval_ids is not None:
      warnings.warn(
        _LEAK.format("the caller at test", "what the caller knows of its task"),
        stacklevel=2,
      )
      return "forced", eval_ids
    return "instance", None

  def _query(self, images, tokens, query) -> jax.Array:
    """`[B, C]`, gradient stopped."""
    if query is None:
      query = self._own_query(images, tokens)
    if query.ndim != 2 or query.shape[0] != images.shape[0]:
      raise ValueError(
        f"query has shape {query.shape}: it must be [{images.shape[0]}, size "
        "of a key]."
      )
    return jax.lax.stop_gradient(query)

  def _own_query(self, images, tokens) -> jax.Array:
    if self.query_fn is not None:
      return self.query_fn(images)
    if self.embedding_key != "cls":
      patches = tokens[:, 1:] if self.backbone.use_cls else tokens
      return pooled_embedding(patches, self.embedding_key)
    if self.query == "full":
      return self.backbone(tokens=tokens, num_rows=1)[:, 0]
    if self.is_initializing():
      self.backbone(tokens=tokens)
    short = self.backbone.clone(num_layers=self.query_layers, parent=None)
    return short.apply(self.backbone.variables, tokens=tokens, num_rows=1)[:, 0]


def pooled_embedding(patches: jax.Array, how: str) -> jax.Array:
  """`mean`, `max` or `mean_max` (max + 2 mean) of the patches' embeddings.

  Args:
    patches: `[B, L, E]`.
    how: which.

  Returns:
    `[B, E]`.
  """
  checks.one_of("how", how, EMBEDDING_KEYS[1:])
  mean, largest = patches.mean(axis=1), patches.max(axis=1)
  return {"mean": mean, "max": largest, "mean_max": largest + 2 * mean}[how]


def arrange(given):
  """Prompts by block: `{block: tokens}` and `{block: (keys, values)}`.

  Args:
    given: `(blocks, style, prompts)` of each kind, the first in front.
  """
  tokens: dict[int, jax.Array] = {}
  prefixes: dict[int, tuple[jax.Array, jax.Array]] = {}
  for blocks, style, prompts in given:
    for i, block in enumerate(blocks):
      if style == "prompt":
        tokens[block] = _behind(tokens.get(block), prompts[i])
        continue
      old = prefixes.get(block, (None, None))
      prefixes[block] = tuple(_behind(o, p[i]) for o, p in zip(old, prompts))
  return tokens, prefixes


def _behind(old: jax.Array | None, new: jax.Array) -> jax.Array:
  """Both along axis 1; one of them may be the same for all examples."""
  if old is None:
    return new
  batch = max(old.shape[0], new.shape[0])
  spread = lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:]))
  return jnp.concatenate([spread(old), spread(new)], axis=1)


def dual_prompt(
  backbone: nn.Module,
  *,
  num_classes: int,
  num_tasks: int,
  general_length: int = 5,
  general_layers: tuple[int, ...] = (0, 1),
  task_length: int = 5,
  task_layers: tuple[int, ...] = (2, 3, 4),
  key_loss_weight: float = 1.0,
  **settings: Any,
) -> PromptedViT:
  """DualPrompt (arXiv 2204.04799): G-prompts, and an E-prompt of each task.

  Both are prefixes. The E-prompt is that of the task in training and that of
  the nearest key at test; the head looks at [cls].

  Args:
    backbone: a `ViT`.
    num_classes: C.
    num_tasks: prompts of the pool.
    general_length, general_layers: of the G-prompt.
    task_length, task_layers: of the E-prompts (20 on ImageNet-R).
    key_loss_weight: lambda.
    **settings: of `PromptedViT`.
  """
  pool = pool_lib.PromptPoolConfig(
    pool_size=num_tasks,
    length=task_length,
    top_k=1,
    num_layers=len(task_layers),
    style="prefix",
    selection="forced",
    key_loss_weight=key_loss_weight,
  )
  general = GeneralPromptConfig(general_length, general_layers, "prefix")
  return PromptedViT(
    backbone,
    num_classes,
    **{
      "pool": pool,
      "layers": task_layers,
      "general": general,
      "head": "token",
      **settings,
    },
  )
