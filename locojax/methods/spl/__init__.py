"""SPL: sub-pseudo labels for weakly labelled clips.

Li, Zhang, Wu, Xiong, Lee, Lu, Fu, Pfister: "Learning from Weakly-Labeled Web
Videos via Exploring Sub-Concepts", arXiv 2101.03713. A clip has the label of
the query that found its video, and the prediction of a teacher; the pair of
both is the class of a student, which is then fine-tuned on the target set.
"""

from locojax.methods.spl.building import build_label_space
from locojax.methods.spl.counts import (
  confusion_matrix,
  entropy,
  lift,
  mutual_information,
  top_pairs,
)
from locojax.methods.spl.explain import pair_grad_cam
from locojax.methods.spl.finetune import finetune_from
from locojax.methods.spl.label_space import LabelSpace
from locojax.methods.spl.losses import (
  data_parameter_loss,
  data_parameter_optimizer,
  distillation_loss,
  init_data_parameters,
  two_head_loss,
)
from locojax.methods.spl.relabel import (
  agreement_mask,
  marginal_matrix,
  marginal_probs,
  relabel,
  shuffled_teacher,
)
from locojax.methods.spl.teacher import (
  Predictions,
  batch_probabilities,
  predict_teacher,
  teacher_probs,
)
from locojax.nn.grad_cam import grad_cam
from locojax.nn.inflation import inflate_resnet2d
from locojax.nn.resnet_3d import ResNet3D, ResNet3DTiny, SelfGating

__all__ = [
  "LabelSpace",
  "Predictions",
  "ResNet3D",
  "ResNet3DTiny",
  "SelfGating",
  "agreement_mask",
  "batch_probabilities",
  "build_label_space",
  "confusion_matrix",
  "data_parameter_loss",
  "data_parameter_optimizer",
  "distillation_loss",
  "entropy",
  "finetune_from",
  "grad_cam",
  "inflate_resnet2d",
  "init_data_parameters",
  "lift",
  "marginal_matrix",
  "marginal_probs",
  "mutual_information",
  "pair_grad_cam",
  "predict_teacher",
  "relabel",
  "shuffled_teacher",
  "teacher_probs",
  "top_pairs",
  "two_head_loss",
]
