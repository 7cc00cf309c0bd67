#!/usr/bin/env bash
# Package:  sympy (parsing.latex.parse_latex)
# Version:  sympy 1.14.0 with antlr4-python3-runtime 4.11.1
# Expected: an expression, or a LaTeXParsingError where the text is not
#           understood.
# Happens:  the longest beginning that is an expression is returned and the
#           rest dropped: the list "-2, 2" is -2, the thousands of "10{,}000"
#           are 10, the base-6 number "2215_6" is 2215.
# Matters:  273 of the 12,500 gold answers of the MATH benchmark are cut in this
#           way: wrong answers are then graded right, with no exception to
#           notice it by. Pass strict=True.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'sympy==1.14.0' \
  'antlr4-python3-runtime==4.11.1'
cd "$work"
"$work/venv/bin/python" -I - <<'END'
import sys

import sympy
from sympy.parsing.latex import LaTeXParsingError
from sympy.parsing.latex import parse_latex

CASES = {"-2, 2": -2, "10{,}000": 10, "2215_6": 2215, r"10\sqrt3": 10}


def strictly(text):
  try:
    return parse_latex(text, strict=True)
  except LaTeXParsingError:
    return "refused"


print(f"sympy {sympy.__version__}, antlr backend")
found = {text: (parse_latex(text), strictly(text)) for text in CASES}
for text, (loose, strict) in found.items():
  print(f"{text}: read as {loose}; with strict=True {strict}")
if found != {text: (value, "refused") for text, value in CASES.items()}:
  sys.exit("changed: what follows the first expression is no longer dropped.")
print("so: without strict=True the rest of the text is dropped.")
END
