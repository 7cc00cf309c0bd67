"""The benchmark of sampling: what it compares is the same, and is counted."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.minerva import bench_sampling

SMALL = (
  *("--layers=1", "--width=8", "--heads=2", "--head_dim=4", "--hidden=16"),
  *("--vocab=11", "--prompt=5", "--tokens=3", "--samples=4"),
)


def _args(*more):
  return bench_sampling._parser().parse_args(["--results=x.json", *more])


def test_both_ways_give_as_many_tokens():
  for run in bench_sampling.our_programs(_args(*SMALL)).values():
    tokens = np.asarray(run())
    assert tokens.shape == (4, 3) and tokens.max() < 11
    assert len({tuple(row) for row in tokens}) > 1


def test_products_are_counted():
  """Alone a prompt of 512 tokens is read 64 times, shared once."""
  args = _args()
  shared, alone = (
    bench_sampling.gigamacs(args, name) for name in ("ours", "peer")
  )
  kernels = 8 * (2 * 512 * 512 + 2 * 512 * 64 + 3 * 512 * 2048)
  reading = 512 * kernels / 1e9
  assert alone - shared == pytest.approx(63 * reading, rel=0.1)
  assert alone / shared > 3


def test_bad_sizes_are_named():
  with pytest.raises(ValueError, match="samples=0"):
    bench_sampling.our_programs(_args("--samples=0"))
