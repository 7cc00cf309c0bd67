"""Bad settings of `experiments/limoe/configs/pairs.py`."""

from __future__ import annotations

NAN = float("nan")

ROWS = [
  ("tiny", {"conditions": ()}, "conditions", "1 or more"),
  ("tiny", {"conditions": ("limo",)}, "conditions", "mean 'limoe'"),
  ("tiny", {"condition": "clasic"}, "condition", "mean 'classic'"),
  ("tiny", {"data.names": ()}, "data.names", "1 or more"),
  ("tiny", {"data.names": ("scene",)}, "data.names", "mean 'scenes'"),
  ("emoji", {"data.names": ("emoji",)}, "data.names", "tensorflow_datasets"),
  ("folder", {"data.path": ""}, "data.path", "images with captions"),
  ("tiny", {"data.tokenizer": "absent.model"}, "data.tokenizer", "is none"),
  ("tiny", {"data.vocab_size": 0}, "data.vocab_size", "1 or more"),
  ("tiny", {"data.text_length": 0}, "data.text_length", "1 or more"),
  ("tiny", {"data.image_size": 4}, "data.image_size", "in [8, 4096]"),
  ("tiny", {"data.num_train": 0}, "data.num_train", "1 or more"),
  ("tiny", {"data.held_out_share": 0.8}, "data.held_out_share", "0.5]"),
  ("tiny", {"data.held_out_classes": ("cat",)}, "held_out_classes", "one of"),
  ("tiny", {"data.noise": -1.0}, "data.noise", "0 or more"),
  ("tiny", {"model.preset": "B/17"}, "model.preset", "mean 'B/16'"),
  ("paper", {"data.image_size": 225}, "data.image_size", "a multiple of"),
  ("tiny", {"model.width": 0}, "model.width", "1 or more"),
  ("tiny", {"model.num_heads": 3}, "model.width", "model.num_heads=3"),
  ("tiny", {"model.patch_size": 5}, "model.patch_size", "a divisor of 16"),
  ("tiny", {"model.moe_layers": (2,)}, "model.moe_layers", "num_layers=2"),
  ("tiny", {"model.moe_layers": ()}, "model.moe_layers", "one or more layers"),
  ("tiny", {"model.embed_dim": -1}, "model.embed_dim", "0 or more"),
  ("tiny", {"model.dtype": "bf16"}, "model.dtype", "'bfloat16'"),
  ("tiny", {"experts.num_experts": 2}, "experts.num_experts", "3 or more"),
  ("tiny", {"experts.capacity_factor": 0.0}, "capacity_factor", "above 0"),
  ("tiny", {"experts.noise_std": NAN}, "experts.noise_std", "0 or more"),
  ("tiny", {"experts.dispatcher": "gater"}, "dispatcher", "mean 'gather'"),
  ("tiny", {"experts.slots_per_expert": 0}, "slots_per_expert", "1 or more"),
  ("tiny", {"balance_rate": -0.1}, "balance_rate", "0 or more"),
  ("tiny", {"group_examples": 5}, "group_examples", "of batch_size=32"),
  ("tiny", {"order": "image_first"}, "order", "mean 'images_first'"),
  ("tiny", {"aux_weight": -1.0}, "aux_weight", "0 or more"),
  ("tiny", {"loss": "softmin"}, "loss", "mean 'softmax'"),
  ("tiny", {"optimizer.name": "adm"}, "optimizer.name", "mean 'adam'"),
  ("tiny", {"optimizer.b7": 0.9}, "setting of optimizer", "'b1'"),
  ("tiny", {"optimizer.clip_norm": 0.0}, "optimizer.clip_norm", "above 0"),
  ("tiny", {"learning_rate": NAN}, "learning_rate", "above 0"),
  ("tiny", {"warmup_steps": 7}, "warmup_steps", "at most 6"),
  ("paper", {"num_steps": 15_000}, "warmup_steps", "at most 7500"),
  ("tiny", {"batch_size": 512}, "batch_size", "at most 256"),
  ("tiny", {"num_evals": 0}, "num_evals", "1 or more"),
  ("tiny", {"log_every": 0}, "log_every", "1 or more"),
  ("tiny", {"num_probe": 0}, "num_probe", "1 or more"),
  ("tiny", {"crop_pad": -1}, "crop_pad", "0 or more"),
  (
    "tiny",
    {"mesh.data": 3, "mesh.expert": 2},
    "batch_size",
    "multiple of mesh.data * mesh.expert",
  ),
]
FLAGS = [
  (["--config.conditions=('limo',)"], "conditions", "('limo',)", "'limoe'"),
  (["--config.num_evals=0"], "num_evals", "0", "1 or more"),
]
LEGAL: dict[str, str] = {
  "data.held_out_vendor": "it is looked up among the vendors of the data",
}
