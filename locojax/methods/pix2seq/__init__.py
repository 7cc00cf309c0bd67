"""Pix2Seq: object detection as a sequence of tokens.

Chen, Saxena, Li, Fleet, Hinton: "Pix2seq: A Language Modeling Framework for
Object Detection", arXiv 2109.10852.

Most users need the model with its training and detection. Boxes are
`(ymin, xmin, ymax, xmax)` as shares of the image, labels count from 1, and
`valid` says which slots have an object; images are bytes, or floats in [0, 1]:

    model = pix2seq.preset("vit_b", vocab.size)
    loss_fn = pix2seq.make_loss_fn(model, vocab, max_objects=100)
    tx = pix2seq.pix2seq_adamw(3e-5, total_steps, warmup_steps)
    found = pix2seq.generate(
      model, params, images, vocab, key=key, max_objects=100)

The parts, from boxes to tokens and back:

    vocab = pix2seq.Vocabulary(num_classes=4, num_bins=64)
    objects = pix2seq.inject_noise_objects(key, boxes, labels, valid, 8)
    batch = pix2seq.build_sequences(*objects, vocab, key=key2)
    logits = model.apply({"params": params}, images, batch.inputs)
    loss = pix2seq.token_loss(logits, batch.targets, batch.weights)
    found = pix2seq.sequences_to_boxes(tokens, class_logits, vocab)
    numbers = pix2seq.coco_ap(gts, dets)  # COCO's dict, and list of results
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
from locojax.methods.pix2seq.encoders import (
  STEMS,
  ResNetEncoder,
  ViTEncoder,
)
from locojax.methods.pix2seq.generation import (
  CONSTRAINTS,
  ProperBoxes,
  generate,
  proper_boxes,
  slot_constraint,
)
from locojax.methods.pix2seq.loss import (
  token_loss,
  token_losses,
  token_metrics,
)
from locojax.methods.pix2seq.model import (
  BRIDGES,
  PRESETS,
  Bridge,
  Pix2Seq,
  SequenceDecoder,
  preset,
)
from locojax.methods.pix2seq.noise import Objects, inject_noise_objects
from locojax.methods.pix2seq.optimizer import (
  DECAY_MASKS,
  DECAYS,
  pix2seq_adamw,
  pix2seq_schedule,
)
from locojax.methods.pix2seq.orders import ORDERS, Ordered, order_objects
from locojax.methods.pix2seq.positions import (
  position_code,
)
from locojax.methods.pix2seq.quantization import dequantize, quantize
from locojax.methods.pix2seq.sequences import (
  CORRUPTIONS,
  PER_OBJECT,
  SequenceBatch,
  build_sequences,
  show,
  words,
)
from locojax.methods.pix2seq.training import (
  make_loss_fn,
  make_losses_fn,
  sequences_of,
)
from locojax.methods.pix2seq.vocabulary import TOKEN_TYPES, Vocabulary

__all__ = [
  "AREAS",
  "BRIDGES",
  "Bridge",
  "CONSTRAINTS",
  "CORRUPTIONS",
  "DECAYS",
  "DECAY_MASKS",
  "Detections",
  "Evaluation",
  "ORDERS",
  "Objects",
  "Ordered",
  "PER_OBJECT",
  "PRESETS",
  "Pix2Seq",
  "ProperBoxes",
  "RECALLS",
  "ResNetEncoder",
  "STEMS",
  "SequenceBatch",
  "SequenceDecoder",
  "THRESHOLDS",
  "TOKEN_TYPES",
  "ViTEncoder",
  "Vocabulary",
  "before_eos",
  "build_sequences",
  "coco_ap",
  "cxcywh_to_yxyx",
  "dequantize",
  "evaluate",
  "generate",
  "inject_noise_objects",
  "iou_matrix",
  "is_proper",
  "make_loss_fn",
  "make_losses_fn",
  "order_objects",
  "pix2seq_adamw",
  "pix2seq_schedule",
  "position_code",
  "preset",
  "proper_boxes",
  "quantize",
  "rescale_boxes",
  "sequences_of",
  "sequences_to_boxes",
  "show",
  "slot_constraint",
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
