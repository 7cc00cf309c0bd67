"""Holds weights read by `vit_weights` against the programs they are from.

  python -m scripts.check_vit_weights --results results/l2p/vit_weights.json

In an environment of its own, which is removed afterwards (torch, timm and
transformers: some GB), random vision transformers of timm and Hugging Face are
saved as safetensors, and their tokens computed. Here the files are loaded, and
the tokens must be the same to 1e-5, for other image sizes as well. Then timm
reads what `save_vit_npz` wrote. With `--peer PYTHON` another Python that has
these packages is used.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.common import peers
from locojax.nn import vit, vit_positions, vit_weights
from locojax.report import results

PINS = peers.pins(
  *("torch", "torchvision", "timm", "transformers", "safetensors", "numpy")
)
TOLERANCE = 1e-5
_PEER = pathlib.Path(__file__).with_name("vit_weights_peer.py")
_NOTES = (
  "Largest absolute difference of the tokens after the final norm, two images, "
  "float32. tanh_gelu, eps_1e-6: with that setting, whatever the format's own. "
  "other_resize: with the nearer of the two other ways. saved: timm's reader "
  "on what save_vit_npz wrote, tanh GELU in both."
)


def _ask(python: str, what: str, folder: pathlib.Path) -> None:
  """Runs `vit_weights_peer.py`."""
  subprocess.run([python, str(_PEER), what, str(folder)], check=True)


@functools.partial(jax.jit, static_argnums=0)
def _tokens(model: vit.ViT, params, images):
  return model.apply({"params": params}, images)


def _difference(settings, params, images, tokens) -> float:
  with jax.default_matmul_precision("highest"):
    found = _tokens(vit.ViT(**settings), params, images)
  return float(np.max(np.abs(np.asarray(found) - tokens)))


def _row(name: str, case, folder: pathlib.Path) -> dict[str, Any]:
  """Loads a case and compares; a case of timm's own size is saved as well."""
  given = np.load(folder / f"{name}.npz")
  images, tokens = given["images"], given["tokens"]
  load = lambda way: vit_weights.load_vit(
    folder / f"{name}.safetensors",
    image_size=images.shape[1],
    patch_size=case["patch"],
    num_heads=case["heads"],
    resize=way,
  )
  compare = lambda loaded, **changes: _difference(
    {**loaded.settings, **changes}, loaded.params, images, tokens
  )
  way = case.get("resize", "official")
  others = [w for w in vit_positions.WAYS if "to" in case and w != way]
  loaded = load(way)
  if case["of"] == "timm" and "to" not in case:
    path = folder / f"{name}_ours.npz"
    vit_weights.save_vit_npz(path, loaded.params, num_heads=case["heads"])
  return {
    "case": name,
    "of": case["of"],
    "size": f"{case['depth']} x {case['width']}",
    "image": f"{case['img']} to {images.shape[1]}",
    "resize": case.get("resize"),
    "num_tokens": tokens.shape[1],
    "largest_token": float(np.abs(tokens).max()),
    "difference": compare(loaded),
    "tanh_gelu": compare(loaded, activation=vit.TANH_GELU),
    "eps_1e-6": compare(loaded, norm_eps=1e-6),
    "other_resize": min((compare(load(w)) for w in others), default=None),
    "saved": None,
  }


def _saved(name: str, case, folder: pathlib.Path) -> float | None:
  """How far timm's reading of our file is from ours; None if not saved."""
  if not (folder / f"{name}_tokens.npy").exists():
    return None
  loaded = vit_weights.load_vit(folder / f"{name}_ours.npz")
  images = np.load(folder / f"{name}.npz")["images"]
  tokens = np.load(folder / f"{name}_tokens.npy")
  return _difference(loaded.settings, loaded.params, images, tokens)


def rows(python: str, folder: pathlib.Path) -> tuple[list[dict], str]:
  """A row for each case, and the versions of the peers."""
  _ask(python, "make", folder)
  told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
  found = []
  for name, case in told["cases"].items():
    found.append(_row(name, case, folder))
    print(name, found[-1]["difference"], flush=True)
  _ask(python, "read", folder)
  for row in found:
    row["saved"] = _saved(row["case"], told["cases"][row["case"]], folder)
  versions = ", ".join(f"{n} {v}" for n, v in told["versions"].items())
  return found, versions


def main(argv: Sequence[str] | None = None) -> int:
  """Compares, and writes the result if all agrees; the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m scripts.check_vit_weights",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--results", type=pathlib.Path)
  parser.add_argument("--peer", metavar="PYTHON")
  args = parser.parse_args(argv)
  start = time.perf_counter()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    python = args.peer or peers.environment(folder / "venv", PINS)
    found, versions = rows(python, folder)
  far = [
    f"{row['case']}: {row[which]:.3g}"
    for row in found
    for which in ("difference", "saved")
    if row[which] is not None and not row[which] <= TOLERANCE
  ]
  if far:
    print(f"error: above {TOLERANCE}: {'; '.join(far)}", file=sys.stderr)
    return 1
  if args.results is not None:
    peer = " --peer PEER/bin/python" if args.peer else ""
    results.save(
      args.results,
      command=f"python -m scripts.check_vit_weights --results {args.results}"
      + peer,
      seeds=(),
      rows=found,
      time_seconds=time.perf_counter() - start,
      notes=f"{_NOTES} {versions}.",
    )
  return 0


if __name__ == "__main__":
  sys.exit(main())
