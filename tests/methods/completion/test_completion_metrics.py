"""Metrics of completion, simulated users and A/B tests: worked numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from locojax.methods import completion
from locojax.methods.completion import Event, Offer

EVENTS = [
  Event(900, True, 21, 1),
  Event(400, False, 10, 1),
  Event(751, False, 30, 1),
  Event(750, False, 12, 1),
  Event(2000, True, 80, 4),
  Event(500, True, 5, 1),
  Event(3000, False, 50, 3),
  Event(1000, False, 9, 1),
]
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9)


def test_edit_similarity():
  similar = completion.edit_similarity
  close(similar("return x + 1", "return x+1"), 0.8333333333333334)
  close(similar("foo(bar, baz)", "foo(baz)"), 0.6153846153846154)
  assert similar("", "") == 1.0 and similar("a", "") == 0.0
  rng = np.random.default_rng(0)
  for _ in range(100):
    a, b = ("".join(rng.choice(list("abc"), rng.integers(9))) for _ in "ab")
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[0], table[:, 0] = range(len(b) + 1), range(len(a) + 1)
    for i in range(len(a)):
      for j in range(len(b)):
        table[i + 1, j + 1] = min(
          table[i, j + 1] + 1,
          table[i + 1, j] + 1,
          table[i, j] + (a[i] != b[j]),
        )
    assert completion.levenshtein(a, b) == table[-1, -1]
  assert completion.exact_match("x = 1  ", "x = 1")


def test_what_users_did():
  for which, want in (
    ("all", (0.4, 35.333333333333336, 0.106)),
    ("single_line", (0.3333333333333333, 13, 0.026)),
    ("multi_line", (0.5, 80, 0.08)),
  ):
    close(completion.acceptance_rate(EVENTS, which), want[0])
    close(completion.chars_per_accept(EVENTS, which), want[1])
    close(completion.fraction_added(EVENTS, 894, which), want[2])
  assert completion.acceptance_rate(EVENTS, count_early=True) == 0.5
  assert math.isnan(completion.acceptance_rate([]))


def test_compile_rates():
  bad = [True] * 8 + [False] * 92
  dropped = [True] * 6 + [False] * 2 + [True] * 2 + [False] * 90
  rates = completion.compile_rates(bad, dropped)
  close(rates, (0.08, 0.75, 2 / 92, 2 / 92))
  # 8 % bad of which 80 % are dropped, and no others.
  rates = completion.compile_rates(
    [True] * 80 + [False] * 920, [True] * 64 + [False] * 936
  )
  close(rates.after, 0.016 / 0.936)


def test_ranks():
  assert completion.reciprocal_rank(["a", None, "b"], "b") == 1 / 3
  assert completion.reciprocal_rank(["a"], "b") == 0.0
  assert completion.in_first(["a", "b"], "b", 2)
  assert not completion.in_first(["a", "b"], "b", 1)
  close(completion.rank_changes([3, 0, 2, 1], [0, 1, 2, 0]), (0.5, 0.25, 0.25))
  items = ["abs", "add", "all", "any", "append"]
  typed = completion.typed_before_accept
  assert typed("append", items) == 2 and typed("append", items, ["append"]) == 0
  assert typed("append", items, visible=5) == 0
  assert typed("zip", items) is None and typed("abs", items) == 0


def test_a_user_takes_what_is_right_and_worth_it():
  user = completion.SimulatedUser(min_chars=3, reading_cost=0.5)
  text = "x = foo(bar)"
  alone = user.write(text, lambda n: Offer())
  assert alone.typed == alone.keystrokes == len(text) == alone.cost
  assert alone.saved == 1.0 and not alone.events
  at = {4: Offer("foo(bar)")}
  helped = user.write(text, lambda n: at.get(n, Offer()))
  assert helped.events == (Event(1000.0, True, 8, 1),)
  assert helped.typed == 4 and helped.cost == 5.5
  wrong = user.write(text, lambda n: {0: Offer("y = 2")}.get(n, Offer()))
  assert wrong.typed == len(text) and wrong.cost == len(text) + 0.5
  assert not wrong.events[0].accepted
  listed = {4: Offer(items=("foa", "foo"), typed="")}
  found = user.write(text, lambda n: listed.get(n, Offer()))
  assert found.typed == len(text) - 3 and found.keystrokes == found.typed + 2
  short = {4: Offer(items=("fo",), typed="")}
  assert user.write(text, lambda n: short.get(n, Offer())).typed == len(text)
  both = completion.merge([alone, helped])
  assert both.typed == alone.typed + 4 and len(both.events) == 1


def test_arms_are_compared_position_by_position():
  rng = np.random.default_rng(1)
  hard = rng.normal(size=300) * 10
  arms = {"without": hard, "with": hard + rng.normal(0.5, 0.1, size=300)}
  found = completion.ab_test(arms, seed=0)
  assert found["without"].difference == found["without"].high == 0
  a = found["with"]
  assert a.low < a.difference < a.high and a.low > 0.45 and a.high < 0.55
  assert found == completion.ab_test(arms, seed=0)
  # 95 % intervals of nothing hold nothing 95 times in 100, or nearly.
  inside = 0
  for i in range(100):
    x = rng.normal(size=(2, 60))
    c = completion.ab_test({"a": x[0], "b": x[1]}, seed=i, num_resamples=400)[
      "b"
    ]
    inside += c.low <= 0 <= c.high
  assert 87 <= inside <= 100
  with pytest.raises(ValueError, match="baseline='c'"):
    completion.ab_test(arms, seed=0, baseline="c")
  with pytest.raises(ValueError, match="arm b"):
    completion.ab_test({"a": [1.0], "b": [1.0, 2.0]}, seed=0)
