"""Vision transformers of timm and Hugging Face: files, and what they compute.

  python scripts/vit_weights_peer.py make FOLDER
  python scripts/vit_weights_peer.py read FOLDER

For `scripts.check_vit_weights` alone, which starts it with a Python that has
torch, timm and transformers. `make` draws weights and writes for each case
`NAME.safetensors`, and `NAME.npz` with images and tokens. `read` has timm load
each `NAME_ours.npz` that is there, and adds `NAME_tokens.npy`.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import safetensors.torch
import timm
import torch
import transformers
from timm.layers import resample_abs_pos_embed
from timm.models import vision_transformer

TINY = dict(img=32, patch=8, width=24, depth=3, heads=3, hidden=60)
BASE = dict(img=224, patch=16, width=768, depth=12, heads=12, hidden=3072)
# `noise`: what is added to every weight, so that none is 0 or 1.
CASES = {
  "timm_tiny": dict(of="timm", noise=0.3, **TINY),
  "timm_small_weights": dict(of="timm", noise=0.02, **TINY),
  "timm_larger": dict(of="timm", noise=0.3, to=56, resize="timm", **TINY),
  "timm_smaller": dict(of="timm", noise=0.3, to=24, resize="timm", **TINY),
  "timm_corners": dict(of="timm", noise=0.3, to=56, resize="official", **TINY),
  "timm_base": dict(of="timm", noise=0.02, **BASE),
  "hf_tiny": dict(of="huggingface", noise=0.3, **TINY),
  "hf_small_weights": dict(of="huggingface", noise=0.02, **TINY),
  "hf_classifier": dict(of="huggingface", noise=0.3, classes=5, **TINY),
  "hf_bfloat16": dict(of="huggingface", noise=0.3, half=True, **TINY),
  "hf_larger": dict(of="huggingface", noise=0.3, to=56, resize="torch", **TINY),
  "hf_smaller": dict(
    of="huggingface", noise=0.3, to=24, resize="torch", **TINY
  ),
  "hf_base": dict(of="huggingface", noise=0.02, **BASE),
}


def _timm(case, img, **changes):
  return vision_transformer.VisionTransformer(
    img_size=img,
    patch_size=case["patch"],
    embed_dim=case["width"],
    depth=case["depth"],
    num_heads=case["heads"],
    mlp_ratio=case["hidden"] / case["width"],
    num_classes=0,
    **changes,
  ).eval()


def _huggingface(case):
  config = transformers.ViTConfig(
    hidden_size=case["width"],
    num_hidden_layers=case["depth"],
    num_attention_heads=case["heads"],
    intermediate_size=case["hidden"],
    image_size=case["img"],
    patch_size=case["patch"],
    num_labels=case.get("classes", 2),
  )
  classify = "classes" in case
  kind = transformers.ViTForImageClassification if classify else None
  return (kind or transformers.ViTModel)(config).eval()


def _noisy(model, size):
  for parameter in model.parameters():
    parameter.add_(size * torch.randn_like(parameter))
  return model


def _resized_timm(model, case):
  """The same model for images of `to` pixels, positions resized by torch."""
  larger, state = _timm(case, case["to"]), model.state_dict()
  side = case["to"] // case["patch"]
  corners = case["resize"] == "official"
  how = dict(interpolation="bilinear", antialias=False, align_corners=True)
  state["pos_embed"] = resample_abs_pos_embed(
    state["pos_embed"], [side, side], **(how if corners else {})
  )
  larger.load_state_dict(state)
  return larger


def _save_huggingface(model, path):
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    shutil.copy(pathlib.Path(folder) / "model.safetensors", path)


def _make(name, case, folder):
  torch.manual_seed(len(name))
  path, side = folder / f"{name}.safetensors", case.get("to", case["img"])
  images = torch.randn(2, 3, side, side)
  if case["of"] == "timm":
    model = _noisy(_timm(case, case["img"]), case["noise"])
    safetensors.torch.save_file(model.state_dict(), path)
    model = _resized_timm(model, case) if "to" in case else model
    tokens = model.forward_features(images)
  else:
    model = _noisy(_huggingface(case), case["noise"])
    model = model.to(torch.bfloat16) if case.get("half") else model
    _save_huggingface(model, path)
    model = getattr(model, "vit", model).float()
    out = model(images, interpolate_pos_encoding="to" in case)
    tokens = out.last_hidden_state
  np.savez(
    folder / f"{name}.npz",
    images=images.permute(0, 2, 3, 1).numpy(),
    tokens=tokens.numpy(),
  )


def _read(name, case, folder):
  """Tokens of timm's model with what we saved, in the original's form."""
  model = _timm(case, case["img"], act_layer="gelu_tanh")
  model.load_pretrained(str(folder / f"{name}_ours.npz"))
  images = np.load(folder / f"{name}.npz")["images"]
  tokens = model.forward_features(torch.tensor(images).permute(0, 3, 1, 2))
  np.save(folder / f"{name}_tokens.npy", tokens.numpy())


def main(command: str, folder: str) -> None:
  """Writes what the head of this file says."""
  folder = pathlib.Path(folder)
  with torch.no_grad():
    for name, case in CASES.items():
      if command == "make":
        _make(name, case, folder)
      elif (folder / f"{name}_ours.npz").exists():
        _read(name, case, folder)
  versions = {m.__name__: m.__version__ for m in (torch, timm, transformers)}
  told = {"cases": CASES, "versions": versions}
  (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
  main(*sys.argv[1:])
