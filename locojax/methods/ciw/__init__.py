"""CIW: constrained instance and class reweighting for noisy labels.

Kumar, Amid: "Constrained Instance and Class Reweighting for Robust Learning
under Label Noise", arXiv 2111.05428.
"""

from locojax.methods.ciw.classes import class_weights, inner_losses
from locojax.methods.ciw.diagnostics import (
  detection_scores,
  effective_sample_size,
  noise_detection_auc,
  suspects,
  weight_histograms,
)
from locojax.methods.ciw.instance import (
  divergence_from_uniform,
  instance_weights,
  lambda_for_radius,
  uniform_weights,
)
from locojax.methods.ciw.loss import (
  ClassConfig,
  InstanceConfig,
  ciw_binary_loss,
  ciw_loss,
  lambda_schedule,
  reweight,
  reweight_logits,
  reweight_per_example_grads,
  weights_at,
  with_counter,
)
from locojax.methods.ciw.mixup import Mixed, ciw_mixup

__all__ = [
  "ClassConfig",
  "InstanceConfig",
  "Mixed",
  "ciw_binary_loss",
  "ciw_loss",
  "ciw_mixup",
  "class_weights",
  "detection_scores",
  "divergence_from_uniform",
  "effective_sample_size",
  "inner_losses",
  "instance_weights",
  "lambda_for_radius",
  "lambda_schedule",
  "noise_detection_auc",
  "reweight",
  "reweight_logits",
  "reweight_per_example_grads",
  "suspects",
  "uniform_weights",
  "weight_histograms",
  "weights_at",
  "with_counter",
]
