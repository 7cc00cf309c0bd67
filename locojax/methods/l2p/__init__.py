"""L2P: continual learning by prompting a frozen vision transformer.

Wang et al., "Learning to Prompt for Continual Learning", CVPR 2022, arXiv
2112.08654; and, of the same parts, DualPrompt (arXiv 2204.04799) and
CODA-Prompt (arXiv 2211.13218).

    model = l2p.PromptedViT(vit, num_classes, l2p.preset("paper"))
    trained, frozen = l2p.freeze(params, model.trainable)
    loss_fn = l2p.make_loss_fn(model)
"""

from locojax.core.class_masks import mask_logits, masked_cross_entropy
from locojax.methods.l2p.coda import (
  CodaConfig,
  CodaPrompts,
  component_weights,
  orthogonality,
  start_components,
)
from locojax.methods.l2p.freezing import (
  freeze,
  merge,
  merged,
  optimizer,
  trainable_mask,
  trainable_paths,
)
from locojax.methods.l2p.loss import (
  init_pool_state,
  make_loss_fn,
  make_losses_fn,
  start_task,
)
from locojax.methods.l2p.model import (
  GeneralPromptConfig,
  Head,
  PromptedViT,
  dual_prompt,
)
from locojax.methods.l2p.pool import (
  INITIALIZERS,
  PRESETS,
  GeneralPrompt,
  PromptPool,
  PromptPoolConfig,
  kmeans_keys,
  preset,
  share_prompts,
)
from locojax.methods.l2p.selection import (
  PromptSelection,
  key_surrogate_loss,
  normalize_frequency,
  orthogonality_penalty,
  reduced_similarity,
  select_prompts,
  task_prompt_ids,
  unit_rows,
  update_frequency,
)
from locojax.methods.l2p.usage import (
  num_alive,
  pool_usage,
  prompt_histogram,
  task_histograms,
  usage_entropy,
)
from locojax.nn.vit_weights import load_vit, save_vit_npz

__all__ = [
  "CodaConfig",
  "CodaPrompts",
  "GeneralPrompt",
  "GeneralPromptConfig",
  "Head",
  "INITIALIZERS",
  "PRESETS",
  "PromptPool",
  "PromptPoolConfig",
  "PromptSelection",
  "PromptedViT",
  "component_weights",
  "dual_prompt",
  "freeze",
  "init_pool_state",
  "key_surrogate_loss",
  "kmeans_keys",
  "load_vit",
  "make_loss_fn",
  "make_losses_fn",
  "mask_logits",
  "masked_cross_entropy",
  "merge",
  "merged",
  "normalize_frequency",
  "num_alive",
  "optimizer",
  "orthogonality",
  "orthogonality_penalty",
  "pool_usage",
  "preset",
  "prompt_histogram",
  "reduced_similarity",
  "save_vit_npz",
  "select_prompts",
  "share_prompts",
  "start_components",
  "start_task",
  "task_histograms",
  "task_prompt_ids",
  "trainable_mask",
  "trainable_paths",
  "unit_rows",
  "update_frequency",
  "usage_entropy",
]
