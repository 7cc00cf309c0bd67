"""The script that holds weights against their programs, and its result.

The programs are not here: a stub in their place gives files and tokens.
"""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import pytest

from locojax.nn import vit, vit_weights
from locojax.report import results
from scripts import check_vit_weights

ROOT = pathlib.Path(__file__).parents[1]
CASE = dict(of="timm", img=8, patch=4, width=8, depth=1, heads=2, hidden=8)


@pytest.fixture
def peer(monkeypatch):
  """Answers with tokens that are `far` off."""
  model = vit.ViT(4, 8, 1, 2, 8)
  images = np.asarray(jax.random.normal(jax.random.key(0), (2, 8, 8, 3)))
  params = jax.jit(model.init)(jax.random.key(1), images)["params"]
  tokens = np.asarray(jax.jit(model.apply)({"params": params}, images))
  far = {"make": 0.0, "read": 0.0}

  def ask(python, what, folder):
    assert python == "PYTHON"
    if what == "read":
      assert vit_weights.load_vit(folder / "a_ours.npz").settings["width"] == 8
      np.save(folder / "a_tokens.npy", tokens + far["read"])
      return
    path = folder / "a.safetensors"  # the content says what it is
    vit_weights.save_vit_npz(path, params, num_heads=2)
    np.savez(folder / "a.npz", images=images, tokens=tokens + far["make"])
    told = {"cases": {"a": CASE}, "versions": {"timm": "1.2.3"}}
    (folder / "told.json").write_text(json.dumps(told))

  monkeypatch.setattr(check_vit_weights, "_ask", ask)
  return far


def test_equal_tokens_are_written_and_others_are_not(peer, tmp_path, capsys):
  path = tmp_path / "r.json"
  argv = ["--peer", "PYTHON", "--results", str(path)]
  assert check_vit_weights.main(argv) == 0
  found = results.load(path)
  assert found["command"].endswith("--peer PEER/bin/python")
  assert "timm 1.2.3" in found["notes"]
  (row,) = found["rows"]
  assert row["difference"] <= 1e-5 and row["saved"] <= 1e-5
  assert row["size"] == "1 x 8" and row["num_tokens"] == 5
  path.unlink()
  for part in ("make", "read"):
    peer.update({"make": 0.0, "read": 0.0, part: 2e-5})
    assert check_vit_weights.main(argv) == 1
    assert "error: above 1e-05: a: 2" in capsys.readouterr().err
    assert not path.exists()


def test_the_committed_result_shows_what_it_must():
  found = results.load(ROOT / "results" / "l2p" / "vit_weights.json")
  rows = {row["case"]: row for row in found["rows"]}
  for row in rows.values():
    assert row["difference"] <= 1e-5
    assert row["saved"] is None or row["saved"] <= 1e-5
  for of in ("timm", "huggingface"):
    kinds = [row for row in rows.values() if row["of"] == of]
    assert any(row["size"] == "12 x 768" for row in kinds)
    assert any(row["other_resize"] is not None for row in kinds)
  # What differs between the programs shows.
  assert all(rows[n]["tanh_gelu"] > 1e-4 for n in ("timm_tiny", "hf_tiny"))
  assert rows["hf_small_weights"]["eps_1e-6"] > 1e-4
  resized = [r for r in rows.values() if r["other_resize"] is not None]
  assert all(row["other_resize"] > 1e-3 for row in resized)
  pins = [pin.split("==") for pin in check_vit_weights.PINS[2:4]]
  assert all(f"{name} {version}" in found["notes"] for name, version in pins)
