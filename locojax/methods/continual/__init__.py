"""Continual learning for any model: metrics, masks, buffers, baselines.

Not one of the ten systems but what they are compared by: pure functions and
losses (`LossFn`, for any step builder) that take a model as an `ApplyFn` and
keep what they remember in the model state, so that one compiled step serves all
tasks and a checkpoint has everything:

    loss_fn = continual.er(continual.cross_entropy(apply_fn))
    buffer = continual.reservoir(example, capacity=500)
    model_state = continual.with_replay({}, buffer, key)
    step = steps.from_loss(loss_fn, tx)

Fine-tuning, the joint upper bound and a frozen backbone are `cross_entropy` of
other data or parameters. Scenarios, with task boundaries or without, are in
`locojax/data/continual.py` and the files beside it.
"""

from locojax.methods.continual.bias_correction import (
  Correction,
  bic,
  bic_begin,
  bic_end,
  bic_fit,
  with_bic,
)
from locojax.methods.continual.buffers import (
  ReplayBuffer,
  balanced,
  contents,
  insert,
  per_class_ring,
  reservoir,
  sample,
)
from locojax.methods.continual.consolidation import (
  Fisher,
  diagonal_fisher,
  ewc,
  ewc_online,
  ewc_penalty,
  ewc_state,
  ewc_summed,
  with_ewc,
)
from locojax.methods.continual.contrast import (
  asymmetric_contrast,
  co2l,
  relation_distillation,
)
from locojax.methods.continual.losses import (
  ApplyFn,
  cross_entropy,
  distillation,
)
from locojax.methods.continual.masks import (
  class_mask,
  classes_seen,
  eval_mask,
  mask_logits,
  masked_cross_entropy,
  masked_losses,
  replay_no_mask,
  replay_reverse_mask,
  seen_in,
  with_class_mask,
)
from locojax.methods.continual.metrics import (
  AccuracyMatrix,
  forgetting_chaudhry,
)
from locojax.methods.continual.probes import (
  NearestClassMean,
  linear_probe,
  ncm,
)
from locojax.methods.continual.replay import (
  derpp,
  er,
  gdumb,
  joined,
  offer,
  with_replay,
)
from locojax.methods.continual.teachers import (
  Teacher,
  lwf,
  remember,
  with_teacher,
)

__all__ = [
  "AccuracyMatrix",
  "ApplyFn",
  "Correction",
  "Fisher",
  "NearestClassMean",
  "ReplayBuffer",
  "Teacher",
  "asymmetric_contrast",
  "balanced",
  "bic",
  "bic_begin",
  "bic_end",
  "bic_fit",
  "class_mask",
  "classes_seen",
  "co2l",
  "contents",
  "cross_entropy",
  "derpp",
  "diagonal_fisher",
  "distillation",
  "er",
  "eval_mask",
  "ewc",
  "ewc_online",
  "ewc_penalty",
  "ewc_state",
  "ewc_summed",
  "forgetting_chaudhry",
  "gdumb",
  "insert",
  "joined",
  "linear_probe",
  "lwf",
  "mask_logits",
  "masked_cross_entropy",
  "masked_losses",
  "ncm",
  "offer",
  "per_class_ring",
  "relation_distillation",
  "remember",
  "replay_no_mask",
  "replay_reverse_mask",
  "reservoir",
  "sample",
  "seen_in",
  "with_bic",
  "with_class_mask",
  "with_ewc",
  "with_replay",
  "with_teacher",
]
