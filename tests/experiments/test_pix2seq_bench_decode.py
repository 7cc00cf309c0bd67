"""The benchmark of decoding: what it compares says the same, and is counted."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.pix2seq import bench_decode

SMALL = ["--batch=2", "--side=2", "--objects=2", "--layers=2", "--width=8"]


def _args(*more):
  return bench_decode._parser().parse_args(["--results=x.json", *more])


def test_the_official_way_says_the_same_tokens():
  """In chunks that do not divide the length."""
  programs = bench_decode.our_programs(_args(*SMALL, "--heads=2", "--chunk=4"))
  tokens = {name: np.asarray(run()) for name, run in programs.items()}
  assert tokens["cached"].shape == (2, 10)
  np.testing.assert_array_equal(tokens["cached"], tokens["official"])


def test_products_are_counted():
  """About 2.9 million millions at ViT-B, 640 pixels, in the official way."""
  args = _args()
  official = bench_decode.gigamacs(args, "official")
  assert official == pytest.approx(2.9e3, rel=0.02)
  assert 100 < official / bench_decode.gigamacs(args, "cached") < 200


def test_bad_sizes_are_named():
  with pytest.raises(ValueError, match="objects=0"):
    bench_decode.made(_args("--objects=0"))
