"""What grades say: accuracy, votes and reranking of k samples, intervals.

All estimators are exact expectations over subsets of k of a question's samples
(`locojax.methods.minerva.estimators`), then means over questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from locojax.core import checks
from locojax.methods import minerva

Row = Mapping[str, Any]
_RESAMPLES = 2000
VOTE, PASS, RERANK = "maj1", "pass", "rerank"


def powers(num: int) -> tuple[int, ...]:
  """1, 2, 4, ... up to `num`, and `num` itself."""
  found = [2**i for i in range(num.bit_length()) if 2**i <= num]
  return (*found, num) if found[-1] < num else tuple(found)


def split(row: Row) -> tuple[list[int], int | None, int]:
  """Sizes of the classes, the right ones as one; which it is; invalid ones."""
  right = sum(c["count"] for c in row["classes"] if c["right"])
  wrong = [c["count"] for c in row["classes"] if not c["right"]]
  invalid = len(row["outcomes"]) - right - sum(wrong)
  return ([right, *wrong], 0, invalid) if right else (wrong, None, invalid)


def vote_at(row: Row, k: int) -> float:
  """Probability that the majority of k samples is right."""
  counts, correct, invalid = split(row)
  if not counts:
    return 0.0
  return minerva.maj_at_k(counts, correct, invalid, k)


def pass_at(row: Row, k: int) -> float:
  """Probability that one of k samples is right."""
  right = sum(o == "equal" for o in row["outcomes"])
  return minerva.pass_at_k(len(row["outcomes"]), right, k)


def rerank_at(row: Row, k: int) -> float:
  """Probability that the likeliest of k samples is right."""
  return minerva.rerank_at_k(
    [o == "equal" for o in row["outcomes"]],
    row["log_probs"],
    k,
    valid=[a is not None for a in row["answers"]],
  )


def has_log_probs(rows: Sequence[Row]) -> bool:
  """Whether all samples have the model's log-probabilities."""
  return all(p is not None for row in rows for p in row["log_probs"])


def mode_is_right(row: Row) -> bool:
  """Whether voting ends up right with ever more samples."""
  counts, correct, _ = split(row)
  return bool(counts) and minerva.maj_limit(counts, correct) >= 0.5


def curves(rows: Sequence[Row], ks: Sequence[int]) -> dict[str, list[float]]:
  """Means over questions at each k: `maj1`, `pass` and, if known, `rerank`.

  Raises:
    ValueError: a k above the number of samples of a question.
  """
  fewest = min(len(row["outcomes"]) for row in rows)
  for k in ks:
    checks.int_in_range("k", k, 1, fewest)
  kinds = {VOTE: vote_at, PASS: pass_at}
  if has_log_probs(rows):
    kinds[RERANK] = rerank_at
  mean = lambda of, k: float(np.mean([of(row, k) for row in rows]))
  return {name: [mean(of, k) for k in ks] for name, of in kinds.items()}


def _interval(values: Sequence[float], seed: int) -> tuple[float, float]:
  rng = np.random.default_rng(seed)
  return minerva.bootstrap_ci(values, rng=rng, num=_RESAMPLES)


def summary(
  rows: Sequence[Row], ks: Sequence[int] = (), *, seed: int = 0
) -> dict[str, Any]:
  """What a table says of grades, in one flat row.

  Args:
    rows: of a file of grades.
    ks: for the estimators; none takes the powers of two there are samples for.
    seed: of the intervals.

  Returns:
    Counts of questions and samples; shares of samples that are right, right as
    text after the paper's normalisation, without an answer, not known or timed
    out; `maj1@k`, `pass@k` and `rerank@k`; 95 % intervals over questions of the
    first and last vote.
  """
  if not rows:
    raise ValueError("there are no grades to sum up.")
  fewest = min(len(row["outcomes"]) for row in rows)
  ks = tuple(ks) or powers(fewest)
  outcomes = [o for row in rows for o in row["outcomes"]]
  share = lambda name: outcomes.count(name) / len(outcomes)
  found = curves(rows, ks)
  out: dict[str, Any] = {
    "questions": len(rows),
    "samples": len(outcomes),
    "right": float(np.mean([pass_at(row, 1) for row in rows])),
    "strict": float(np.mean([np.mean(row["strict"]) for row in rows])),
    "invalid": share("invalid"),
    "unknown": share("unknown"),
    "timed_out": share("timed out"),
    "mode_right": float(np.mean([mode_is_right(row) for row in rows])),
  }
  for name, values in found.items():
    out |= {f"{name}@{k}": v for k, v in zip(ks, values, strict=True)}
  for k in dict.fromkeys((ks[0], ks[-1])):
    low, high = _interval([vote_at(row, k) for row in rows], seed)
    out |= {f"maj1@{k}_low": low, f"maj1@{k}_high": high}
  return out


def over_k(rows: Sequence[Row], ks: Sequence[int] = ()) -> list[dict[str, Any]]:
  """A row for each k: its estimators, the vote with its interval."""
  ks = tuple(ks) or powers(min(len(row["outcomes"]) for row in rows))
  found, out = curves(rows, ks), []
  for i, k in enumerate(ks):
    low, high = _interval([vote_at(row, k) for row in rows], 0)
    interval = {f"{VOTE} low": low, f"{VOTE} high": high}
    out.append({"k": k, **{n: v[i] for n, v in found.items()}, **interval})
  return out


def by(
  rows: Sequence[Row], key: str, ks: Sequence[int] = ()
) -> list[dict[str, Any]]:
  """Shares for each subject or level, in order; nothing if there is one."""
  groups: dict[Any, list[Row]] = {}
  for row in rows:
    groups.setdefault(row.get(key), []).append(row)
  if len(groups) < 2:
    return []
  out = []
  for name in sorted(groups, key=lambda n: (n is None, n)):
    found = summary(groups[name], ks)
    last = [n for n in found if n.startswith(f"{VOTE}@")][-1]
    last = last.partition("_")[0]
    shown = ("questions", "right", "invalid", "mode_right", last)
    out.append({key: name, **{n: found[n] for n in shown}})
  return out


def bent(rows: Sequence[Row], k: int) -> dict[str, float]:
  """Votes at 1 and at k of the problems whose mode is wrong.

  Returns:
    `wrong_mode_maj1@1` and `wrong_mode_maj1@k`, as shares of all problems; the
    rest of `maj1@k` is that of problems whose mode is right.
  """
  lost = [0.0 if mode_is_right(row) else 1.0 for row in rows]
  at = lambda n: [w and w * vote_at(row, n) for w, row in zip(lost, rows)]
  return {f"wrong_mode_maj1@{n}": float(np.mean(at(n))) for n in (1, k)}
