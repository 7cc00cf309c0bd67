#!/usr/bin/env bash
# Package:  math-verify (verify)
# Version:  math-verify 0.9.0 with antlr4-python3-runtime 4.13.2
# Expected: equality of answers: if a passes for b, then b for a, and two
#           answers that pass for the same third pass for each other.
# Happens:  x>3 as gold accepts the interval (3, oo), but not the other way
#           round; the set {1,2} as gold accepts the pair (2,1), which as gold
#           refuses the set; 10% equals both 0.1 and 10.
# Matters:  majority voting groups samples by it, so the number of votes
#           depends on their order; and a score depends on which side a data
#           set calls the gold one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'math-verify==0.9.0' \
  'latex2sympy2_extended==1.11.0' \
  'sympy==1.14.0' \
  'antlr4-python3-runtime==4.13.2'
cd "$work"
"$work/venv/bin/python" -I - <<'END'
import sys
from importlib import metadata

from math_verify import parse
from math_verify import verify

# Two answers, and whether each passes when the other is the gold one.
CASES = [
  ("(1,2)", r"\{1,2\}", True, True),
  ("(2,1)", r"\{1,2\}", False, True),
  ("x>3", r"(3,\infty)", True, False),
  (r"10\%", "0.1", True, True),
  (r"10\%", "10", True, True),
  ("0.1", "10", False, False),
]


def passes(gold, answer):
  sides = [parse(f"${text}$", parsing_timeout=60) for text in (gold, answer)]
  return verify(*sides, timeout_seconds=60)  # Wall-clock; 5 s by default.


print(f"math-verify {metadata.version('math-verify')}")
changed = []
for a, b, forth, back in CASES:
  found = passes(a, b), passes(b, a)
  print(f"gold {a}, answer {b}: {found[0]}; the other way round: {found[1]}")
  if found != (forth, back):
    changed.append((a, b))
if changed:
  sys.exit(f"changed: {changed}")
print("so: the relation is neither symmetric nor transitive.")
END
