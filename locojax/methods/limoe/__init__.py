"""LIMoE: one sparse mixture of experts for images and text.

Mustafa, Riquelme, Puigcerver, Jenatton, Houlsby: "Multimodal Contrastive
Learning with LIMoE: the Language-Image Mixture of Experts", arXiv 2206.02770.

    y, info = limoe.MoeMlp(num_experts=8, hidden_size=2048)(x, train=True)
    loss = limoe.global_entropy_loss(info.logits, soft_min_experts=2, mask=text)
"""

from locojax.methods.limoe.auxiliary import (
  global_entropy_loss,
  gshard_loss,
  importance_loss,
  load_loss,
  local_entropy_loss,
  mean_gate_entropy,
  mutual_information,
  router_z_loss,
)
from locojax.methods.limoe.contrastive import (
  contrastive_sigmoid_loss,
  contrastive_softmax_loss,
  unit_norm,
)
from locojax.methods.limoe.dispatch import (
  DISPATCHERS,
  apply_expert_choice,
  apply_experts,
  apply_soft,
)
from locojax.methods.limoe.layers import (
  STACKED,
  scanned_layers,
  stack_layers,
  unstack_layers,
)
from locojax.methods.limoe.model import (
  PRESETS,
  OneTower,
  Outputs,
  TwoTower,
  count_params,
  limoe_model,
)
from locojax.methods.limoe.moe import ExpertMlp, MoeMlp, RoutingInfo, upcycle
from locojax.methods.limoe.ragged import RaggedExperts
from locojax.methods.limoe.reports import (
  MODALITIES,
  LimoeAux,
  auxiliary_loss,
  classic,
  expert_table,
  limoe_aux,
  routing_metrics,
)
from locojax.methods.limoe.routing import (
  Assignment,
  ExpertChoice,
  compute_capacity,
  route_expert_choice,
  route_top_k,
  soft_moe_weights,
  update_balance_bias,
)
from locojax.methods.limoe.zero_shot import (
  PHOTO,
  PLAIN,
  canonical,
  class_embeddings,
  classify,
  retrieval_recall,
)

__all__ = [
  "Assignment",
  "DISPATCHERS",
  "ExpertChoice",
  "ExpertMlp",
  "LimoeAux",
  "MODALITIES",
  "MoeMlp",
  "OneTower",
  "Outputs",
  "PHOTO",
  "PLAIN",
  "PRESETS",
  "RaggedExperts",
  "RoutingInfo",
  "STACKED",
  "TwoTower",
  "apply_expert_choice",
  "apply_experts",
  "apply_soft",
  "auxiliary_loss",
  "canonical",
  "class_embeddings",
  "classic",
  "classify",
  "compute_capacity",
  "contrastive_sigmoid_loss",
  "contrastive_softmax_loss",
  "count_params",
  "expert_table",
  "global_entropy_loss",
  "gshard_loss",
  "importance_loss",
  "limoe_aux",
  "limoe_model",
  "load_loss",
  "local_entropy_loss",
  "mean_gate_entropy",
  "mutual_information",
  "retrieval_recall",
  "route_expert_choice",
  "route_top_k",
  "router_z_loss",
  "routing_metrics",
  "scanned_layers",
  "soft_moe_weights",
  "stack_layers",
  "unit_norm",
  "unstack_layers",
  "upcycle",
  "update_balance_bias",
]
