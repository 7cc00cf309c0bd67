"""Prompts as arrays of few shapes."""

from __future__ import annotations

import numpy as np
import pytest

from locojax import decode

same = np.testing.assert_array_equal


def test_prompts_are_padded_to_a_bucket():
  prompts = [[1, 2, 3], [4]]
  tokens, valid = decode.pad_prompts(prompts, (8, 4), pad_token=9)
  same(tokens, [[9, 1, 2, 3], [9, 9, 9, 4]])
  same(valid, tokens != 9)
  tokens, valid = decode.pad_prompts(prompts, [3], side="right")
  same(tokens, [[1, 2, 3], [4, 0, 0]])
  same(valid, tokens != 0)
  assert tokens.dtype == np.int32 and valid.dtype == bool


def test_the_least_bucket_is_taken():
  got = [decode.bucket_length(n, (4, 16, 8)) for n in (0, 4, 5, 9)]
  assert got == [4, 4, 8, 16]


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: decode.bucket_length(9, (4, 8)), "length=9"),
    (lambda: decode.bucket_length(1, (0,)), "buckets="),
    (lambda: decode.bucket_length(1, ()), "length=1"),
    (lambda: decode.pad_prompts([], (4,)), "prompts="),
    (lambda: decode.pad_prompts([[1], []], (4,)), r"prompts\[1\]="),
    (lambda: decode.pad_prompts([[1], [2] * 5], (4,)), r"prompts\[1\]=5"),
    (lambda: decode.pad_prompts([[1.5]], (4,)), r"prompts\[0\] has dtype"),
    (lambda: decode.pad_prompts([[1]], (4,), side="top"), "side='top'"),
    (lambda: decode.pad_prompts([[1]], (4,), pad_token=-1), "pad_token=-1"),
  ],
)
def test_mistakes_are_named(call, words):
  with pytest.raises(ValueError, match=words):
    call()
