"""SmeLU and reproducibility: smooth activations, prediction differences.

Shamir, Lin, Coviello: "Smooth activations and reproducibility in deep
networks", arXiv 2010.09931; Shamir, Lin: "Real World Large Scale Recommendation
Systems Reproducibility and Smooth Activations", arXiv 2202.06499.
"""

from locojax.methods.smelu.accumulator import PDAccumulator, pd_report
from locojax.methods.smelu.activations import (
  activation_names,
  gelu,
  get_activation,
  gsmelu,
  mish,
  register_activation,
  rescu,
  smelu,
  softplus,
  squareplus,
  swish,
  tanhexp,
)
from locojax.methods.smelu.intervals import (
  bootstrap_examples,
  bootstrap_models,
  jackknife_models,
)
from locojax.methods.smelu.modules import GSmeLU, SmeLU
from locojax.methods.smelu.ranking import (
  HistogramAUC,
  auc,
  log_loss,
  query_auc,
  ranking_loss,
  swap_rate,
)
from locojax.methods.smelu.recommender import (
  CTRModel,
  EmbeddingTower,
  hash_ids,
)
from locojax.methods.smelu.reproducibility import (
  disagreement,
  ensemble,
  hellinger_prediction_difference,
  label_prediction_difference,
  logit_difference,
  pairwise_prediction_difference,
  prediction_difference,
  relative_label_prediction_difference,
  relative_prediction_difference,
  signed_prediction_difference,
)
from locojax.methods.smelu.synthetic import make_teacher, synthetic_ctr

__all__ = [
  "CTRModel",
  "EmbeddingTower",
  "GSmeLU",
  "HistogramAUC",
  "PDAccumulator",
  "SmeLU",
  "activation_names",
  "auc",
  "bootstrap_examples",
  "bootstrap_models",
  "disagreement",
  "ensemble",
  "gelu",
  "get_activation",
  "gsmelu",
  "hash_ids",
  "hellinger_prediction_difference",
  "jackknife_models",
  "label_prediction_difference",
  "log_loss",
  "logit_difference",
  "make_teacher",
  "mish",
  "pairwise_prediction_difference",
  "pd_report",
  "prediction_difference",
  "query_auc",
  "ranking_loss",
  "register_activation",
  "relative_label_prediction_difference",
  "relative_prediction_difference",
  "rescu",
  "signed_prediction_difference",
  "smelu",
  "softplus",
  "squareplus",
  "swap_rate",
  "swish",
  "synthetic_ctr",
  "tanhexp",
]
