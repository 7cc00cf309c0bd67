#!/usr/bin/env bash
# Package:  pyrefly (its check of returns)
# Version:  pyrefly 1.5.0
# Expected: a function whose every path ends in a return of the right type has
#           no error, whether or not a statement stands after the last return.
# Happens:  with an assignment after the return it reports bad-return: "one or
#           more paths are missing an explicit `return`", though none is.
# Matters:  a line that a model adds after a return, which changes nothing, is
#           counted as an error of the function's head, far above the line.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'pyrefly==1.5.0'
cd "$work"
"$work/venv/bin/python" -I - <<'END'
import json
import pathlib
import subprocess
import sys

PLAIN = "def f() -> int:\n  return 3\n"
program = pathlib.Path(sys.executable).parent / "pyrefly"
pathlib.Path("pyrefly.toml").touch()


def errors(text):
  """Names of the errors that pyrefly finds in a file."""
  pathlib.Path("m.py").write_text(text)
  command = [program, "check", "m.py", "--output-format", "json"]
  found = subprocess.run(command, capture_output=True, text=True)
  return [e["name"] for e in json.loads(found.stdout)["errors"]]


version = subprocess.run([program, "--version"], capture_output=True, text=True)
print(version.stdout.strip())
before, after = errors(PLAIN), errors(PLAIN + "  unused = 1\n")
print(f"return alone: {before}; a statement after it: {after}")
if before or "bad-return" not in after:
  sys.exit("changed: code after a return makes no bad-return.")
print("so: code that is never reached brings an error of the function's head.")
END
