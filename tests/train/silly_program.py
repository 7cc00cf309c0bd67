"""A program for `test_workers`: it says, sleeps, spins, fails and dies."""

from __future__ import annotations

import os
import sys
import time


def start(missing: str = "") -> dict[str, object]:
  """Loads nothing; says what it has."""
  if missing:
    raise ImportError(f"pip install {missing}")
  return {"jax": "jax" in sys.modules, "main": sys.argv[0]}


def _noted(path: str, what: str) -> None:
  number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
  os.write(number, f"{what}\n".encode())
  os.close(number)


def answer(request: dict) -> object:
  """Does what is asked."""
  print("this is no answer")
  if "note" in request:
    _noted(*request["note"])
  if "sleep" in request:
    time.sleep(request["sleep"])
  while request.get("spin"):
    pass
  if request.get("die"):
    os._exit(7)
  if request.get("allocate"):
    return len(bytearray(request["allocate"]))
  return request["value"] ** 2
