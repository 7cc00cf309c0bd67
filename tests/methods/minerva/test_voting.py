"""Votes: classes of equal answers, ties, and the likeliest sample."""

from __future__ import annotations

import math

import pytest

from locojax.methods import minerva

ANSWERS = [r"\frac12", "3", None, "0.5", "3.0", "1/2", minerva.INVALID, "4"]


def test_equal_answers_are_one_class_in_order_of_arrival():
  found = minerva.group(ANSWERS)
  assert found.representatives == (r"\frac12", "3", "4")
  assert found.counts.tolist() == [3, 2, 1]
  assert found.labels.tolist() == [0, 1, -1, 0, 1, 0, -1, 2]
  assert found.invalid == 2
  assert minerva.majority(found) == r"\frac12"


def test_texts_alone_count_too_few():
  found = minerva.group(ANSWERS, lambda a, b: a == b)
  assert found.counts.max() == 1


def test_classes_are_those_without_keys():
  texts = ["1", "1.0", "x+1", "1+x", r"5\text{ cm}", "5", "(1,2)", "2/2"]
  slow = minerva.group(
    texts, lambda a, b: minerva.compare(a, b, units="ignored")
  )
  fast = minerva.group(texts)
  assert slow.labels.tolist() == fast.labels.tolist()


def test_nothing_valid_has_no_majority():
  found = minerva.group([None, minerva.INVALID])
  assert minerva.majority(found) is None and found.invalid == 2
  assert minerva.weighted_majority(found, [0.0, 0.0]) is None
  assert minerva.rerank([None], [0.0]) is None


def test_ties_go_to_the_first_or_the_likelier():
  found = minerva.group(["1", "2", "2", "1"])
  assert minerva.majority(found) == "1"
  logs = [-5.0, -1.0, -1.0, -5.0]
  assert minerva.majority(found, ties="log_probs", log_probs=logs) == "2"


def test_weights_can_overrule_numbers():
  found = minerva.group(["1", "1", "2"])
  logs = [math.log(p) for p in (0.1, 0.1, 0.3)]
  assert minerva.majority(found) == "1"
  assert minerva.weighted_majority(found, logs) == "2"


def test_reranking_takes_sums_or_means():
  answers, logs = ["1", None, "3"], [-4.0, -1.0, -6.0]
  assert minerva.rerank(answers, logs) == "1"
  assert minerva.rerank(answers, logs, lengths=[2, 1, 6]) == "3"


@pytest.mark.parametrize(
  "call",
  [
    lambda: minerva.rerank(["1"], [0.0, 1.0]),
    lambda: minerva.rerank(["1"], [math.nan]),
    lambda: minerva.rerank(["1"], [0.0], lengths=[0]),
    lambda: minerva.majority(minerva.group(["1"]), ties="random"),
    lambda: minerva.majority(minerva.group(["1"]), ties="log_probs"),
  ],
)
def test_bad_arguments_are_refused(call):
  with pytest.raises(ValueError, match="log_probs|lengths|ties"):
    call()
