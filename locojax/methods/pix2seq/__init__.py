"""Pix2Seq: object detection as a sequence of tokens.

Chen, Saxena, Li, Fleet, Hinton: "Pix2seq: A Language Modeling Framework for
Object Detection", arXiv 2109.10852.

    vocab = pix2seq.Vocabulary(num_classes=4, num_bins=64)
    objects = pix2seq.inject_noise_objects(key, boxes, labels, valid, 8)
    batch = pix2seq.build_sequences(*objects, vocab, key=key2)
    loss = pix2seq.token_loss(logits, batch.targets, batch.weights)
    found = pix2seq.sequences_to_boxes(tokens, class_logits, vocab)
    numbers = pix2seq.coco_ap(gts, dets)
"""

from locojax.methods.pix2seq.average_precision import (
  AREAS,
  RECALLS,
  THRESHOLDS,
  Evaluation,
  coco_ap,
  evaluate,
  iou_matrix,
  summarize,
)
from locojax.methods.pix2seq.boxes import (
  Detections,
  before_eos,
  cxcywh_to_yxyx,
  is_proper,
  rescale_boxes,
  sequences_to_boxes,
  xywh_to_xyxy,
  xywh_to_yxyx,
  xyxy_to_xywh,
  xyxy_to_yxyx,
  yxyx_to_cxcywh,
  yxyx_to_xywh,
  yxyx_to_xyxy,
)
from locojax.methods.pix2seq.loss import (
  token_loss,
  token_losses,
  token_metrics,
)
from locojax.methods.pix2seq.noise import Objects, inject_noise_objects
from locojax.methods.pix2seq.orders import ORDERS, Ordered, order_objects
from locojax.methods.pix2seq.quantization import dequantize, quantize
from locojax.methods.pix2seq.sequences import (
  CORRUPTIONS,
  PER_OBJECT,
  SequenceBatch,
  build_sequences,
  show,
  words,
)
from locojax.methods.pix2seq.vocabulary import TOKEN_TYPES, Vocabulary

__all__ = [
  "AREAS",
  "CORRUPTIONS",
  "Detections",
  "Evaluation",
  "ORDERS",
  "Objects",
  "Ordered",
  "PER_OBJECT",
  "RECALLS",
  "SequenceBatch",
  "THRESHOLDS",
  "TOKEN_TYPES",
  "Vocabulary",
  "before_eos",
  "build_sequences",
  "coco_ap",
  "cxcywh_to_yxyx",
  "dequantize",
  "evaluate",
  "inject_noise_objects",
  "iou_matrix",
  "is_proper",
  "order_objects",
  "quantize",
  "rescale_boxes",
  "sequences_to_boxes",
  "show",
  "summarize",
  "token_loss",
  "token_losses",
  "token_metrics",
  "words",
  "xywh_to_xyxy",
  "xywh_to_yxyx",
  "xyxy_to_xywh",
  "xyxy_to_yxyx",
  "yxyx_to_cxcywh",
  "yxyx_to_xywh",
  "yxyx_to_xyxy",
]
