"""Other graders on pairs of answers, for `experiments.minerva.bench_grading`.

  python experiments/minerva/bench_grading_peer.py PAIRS.json

PAIRS.json is a list of pairs; it prints, as JSON, the verdicts of each grader
and the CPU seconds of all together:

  math-verify  `verify` of both parsed answers, the first as gold
  harness      `is_equiv` of lm-evaluation-harness on normalised answers
  sympy        `parse_latex(strict=True)` of both, simplified difference 0
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import pathlib
import sys
import time
import types
from importlib import metadata

import math_verify
import sympy
from sympy.parsing.latex import parse_latex

PACKAGES = ("math-verify", "lm-eval", "sympy", "antlr4-python3-runtime")


def _harness():
  """The harness' file alone: the rest of its package needs torch."""
  sys.modules["datasets"] = types.ModuleType("datasets")
  sys.modules["datasets"].Dataset = object
  file = metadata.distribution("lm-eval").locate_file(
    "lm_eval/tasks/minerva_math/utils.py"
  )
  spec = importlib.util.spec_from_file_location("harness", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


HARNESS = _harness()


def by_math_verify(a: str, b: str) -> bool:
  return math_verify.verify(*(math_verify.parse(f"${t}$") for t in (a, b)))


def by_harness(a: str, b: str) -> bool:
  return HARNESS.is_equiv(*(HARNESS.normalize_final_answer(t) for t in (a, b)))


def by_sympy(a: str, b: str) -> bool:
  try:
    with HARNESS.timeout(seconds=5):
      one, two = (parse_latex(t, strict=True) for t in (a, b))
      return bool(sympy.simplify(one - two) == 0)
  except Exception:  # whatever it is, the answers do not count as equal
    return False


GRADERS = {
  "math-verify": by_math_verify,
  "harness": by_harness,
  "sympy": by_sympy,
}


def run(pairs: list[list[str]]) -> dict[str, dict]:
  """Verdicts and CPU seconds of each grader."""
  out = {}
  for name, equal in GRADERS.items():
    equal("1", "2")
    start = time.process_time()
    verdicts = [bool(equal(a, b)) for a, b in pairs]
    seconds = time.process_time() - start
    out[name] = {"verdicts": verdicts, "cpu_seconds": seconds}
  versions = {name: metadata.version(name) for name in PACKAGES}
  return {"graders": out, "versions": versions}


if __name__ == "__main__":
  given = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
  with contextlib.redirect_stdout(sys.stderr):  # what libraries print
    found = run(json.loads(given))
  print(json.dumps(found))
