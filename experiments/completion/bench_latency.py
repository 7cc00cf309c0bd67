"""Latency of the server, end to end: from an editor's keystroke to its answer.

  python -m experiments.completion.bench_latency --workdir RUNS/line/seed_0 \\
    --results results/completion/bench_latency_cpu.json

A client in a process of its own speaks to the server over its standard streams,
with ty, in real files that the run was not trained on (`corpora.Corpus.test`).
At each of `--positions` places behind a `.` where a name stands, it deletes
that name, types its first character, and asks:

  list         the engine's list, which waits for nobody (`--wait_ms=0`)
  reranked     the same, waiting for the model (`--wait_ms`)
  line         the rest of the line, checked by the engine, no debounce
  along        the next request after a character of that line was typed
  stale        from the keystroke that makes a request stale to its refusal
  cancelled    from `$/cancelRequest` to the refusal

Milliseconds as the client sees them. Measure on a quiet machine.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import queue
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common import benches, commands, timing
from experiments.completion import corpora, places, restored
from experiments.completion.places import Place
from locojax import engines
from locojax.core import checks
from locojax.engines import rpc
from locojax.report import tables

SEED = 0
# Milliseconds, at most: of the median, and of 95 in 100.
TARGETS = {
  "list": (40, 100),
  "reranked": (40, 100),
  "line": (40, 100),
  "stale": (10, 10),
  "cancelled": (10, 10),
}
_PATIENCE = 600.0  # seconds for an answer; the first loads the model
_HEAD_START = 0.005  # seconds that a request has before it is given up


class Client:
  """An editor that writes one document after the other.

  Args:
    command: of the server.
    roots: the workspace folders.
  """

  def __init__(self, command: Sequence[str], roots: Sequence[str]):
    self._answers: dict[int, queue.SimpleQueue] = {}
    self._last, self._version = 0, 0
    self._ended = threading.Event()
    self._connection = rpc.Connection(
      command,
      cwd=pathlib.Path.cwd(),
      env={},
      on_message=lambda message: None,
      on_answer=self._take,
      on_end=lambda connection: self._ended.set(),
    )
    folders = [{"uri": engines.uri(r), "name": "root"} for r in roots]
    self.ask(
      "initialize",
      {"processId": None, "capabilities": {}, "workspaceFolders": folders},
    )
    self.tell("initialized", {})

  def _take(self, message: dict[str, Any]) -> None:
    found = self._answers.pop(message["id"], None)
    if found is not None:
      found.put((time.perf_counter(), message))

  def tell(self, method: str, params: Any) -> None:
    """Sends a notification."""
    self._connection.send({"method": method, "params": params})

  def begin(self, method: str, params: Any) -> tuple[int, queue.SimpleQueue]:
    """Sends a request; its number and where its answer will be."""
    self._last += 1
    waiting = self._answers[self._last] = queue.SimpleQueue()
    self._connection.send(
      {"id": self._last, "method": method, "params": params}
    )
    return self._last, waiting

  def ask(self, method: str, params: Any) -> tuple[float, Any]:
    """Time of the answer, and what it is.

    Raises:
      RuntimeError: the server refuses, or says nothing.
    """
    when, message = self.wait(self.begin(method, params)[1])
    if "error" in message:
      raise RuntimeError(f"{method}: {message['error']}")
    return when, message["result"]

  def wait(self, waiting: queue.SimpleQueue) -> tuple[float, dict[str, Any]]:
    """An answer with its time."""
    try:
      return waiting.get(timeout=_PATIENCE)
    except queue.Empty:
      raise RuntimeError(
        f"the server did not answer; it said:\n{self._connection.said()}"
      ) from None

  def open(self, uri: str, text: str) -> None:
    item = {"uri": uri, "languageId": "python", "version": 1, "text": text}
    self._version = 1
    self.tell("textDocument/didOpen", {"textDocument": item})

  def type(self, uri: str, place: dict[str, int], text: str) -> None:
    """Inserts a text."""
    self._version += 1
    item = {"uri": uri, "version": self._version}
    change = {"range": {"start": place, "end": place}, "text": text}
    self.tell(
      "textDocument/didChange",
      {"textDocument": item, "contentChanges": [change]},
    )

  def close(self, uri: str) -> None:
    self.tell("textDocument/didClose", {"textDocument": {"uri": uri}})

  def end(self) -> None:
    """Ends the server."""
    self.ask("shutdown", None)
    self.tell("exit", None)
    self._ended.wait(10)
    self._connection.end()


class _Place:
  """A document without a name, at which that name is typed."""

  def __init__(self, place: Place):
    e, self.name = place.example, place.name
    rest = e.target[len(self.name) :] + e.suffix
    self.text, self.start = e.prefix + rest, len(e.prefix)
    self.uri = engines.uri(place.file.place)
    self.lines = engines.Lines(self.text)

  def wire(self, typed: int = 0) -> dict[str, int]:
    """Where the cursor is once so many characters are typed."""
    found = self.lines.to_wire(self.lines.position(self.start))
    return {**found, "character": found["character"] + typed}

  def params(self, typed: int, **more: Any) -> dict[str, Any]:
    where = {"textDocument": {"uri": self.uri}, "position": self.wire(typed)}
    return {**where, **more}


_LIST, _LINE = "textDocument/completion", "textDocument/inlineCompletion"
_INVOKED = {"context": {"triggerKind": 1}}


def lists(client: Client, found: Sequence[_Place]) -> dict[str, Any]:
  """Milliseconds of lists, and how many were re-ranked and not empty."""
  ms, ranked, filled = [], 0, 0
  for place in found:
    client.open(place.uri, place.text)
    client.ask(_LIST, place.params(0))  # The engine has read the file.
    start = time.perf_counter()
    client.type(place.uri, place.wire(), place.name[0])
    when, answer = client.ask(_LIST, place.params(1))
    ms.append(1e3 * (when - start))
    items = answer["items"]
    filled += bool(items)
    ranked += bool(items) and items[0].get("preselect", False)
    client.close(place.uri)
  return {"ms": ms, "moved": ranked / max(1, filled), "filled": filled}


def lines(client: Client, found: Sequence[_Place]) -> dict[str, list[float]]:
  """Milliseconds of checked lines, and of requests along them."""
  out = collections.defaultdict(list)
  for place in found:
    client.open(place.uri, place.text)
    client.ask(_LIST, place.params(0))
    start = time.perf_counter()
    client.type(place.uri, place.wire(), place.name[0])
    when, answer = client.ask(_LINE, place.params(1, **_INVOKED))
    out["line"].append(1e3 * (when - start))
    items = answer["items"]
    out["shown"].append(bool(items))
    if items and len(items[0]["insertText"]) > 4:
      start = time.perf_counter()
      client.type(place.uri, place.wire(1), items[0]["insertText"][0])
      when, _ = client.ask(_LINE, place.params(2, **_INVOKED))
      out["along"].append(1e3 * (when - start))
    client.close(place.uri)
  return out


def given_up(client: Client, found: Sequence[_Place]) -> dict[str, list[float]]:
  """Milliseconds until requests that are stale or cancelled are refused."""
  out = collections.defaultdict(list)
  for i, place in enumerate(found):
    client.open(place.uri, place.text)
    client.type(place.uri, place.wire(), place.name[0])
    number, waiting = client.begin(_LINE, place.params(1, **_INVOKED))
    time.sleep(_HEAD_START)
    name = "stale" if i % 2 else "cancelled"
    start = time.perf_counter()
    if name == "stale":
      client.type(place.uri, place.wire(1), "x")
    else:
      client.tell("$/cancelRequest", {"id": number})
    when, message = client.wait(waiting)
    if "error" in message:  # Otherwise it was answered before.
      out[name].append(1e3 * (when - start))
    client.close(place.uri)
  return out


def row(name: str, ms: Sequence[float], **more: Any) -> dict[str, Any]:
  """Percentiles of a kind of request beside what they should be."""
  median, high = TARGETS.get(name, (None, None))
  at = lambda q: float(np.percentile(ms, q)) if len(ms) else None
  told = {"median_ms": at(50), "p95_ms": at(95), "max_ms": at(100)}
  aims = {"median_target": median, "p95_target": high}
  return {"name": name, "requests": len(ms), **told, **aims, **more}


def command(workdir: str, wait_ms: float) -> list[str]:
  """The server as an editor starts it."""
  module = ["-m", "experiments.completion.serve", "--workdir", workdir]
  flags = ["--debounce_ms=0", f"--wait_ms={wait_ms:g}", "--wait_for_model"]
  return [sys.executable, *module, *flags]


def measure(args: argparse.Namespace, found: Sequence[Place]) -> list[Any]:
  """Rows of all kinds of requests."""
  rows, made = [], [_Place(p) for p in found]
  roots = sorted({p.file.root for p in found})
  for name, wait_ms in (("list", 0.0), ("reranked", args.wait_ms)):
    client = Client(command(args.workdir, wait_ms), roots)
    lists(client, made[:5])  # Everything has been used once.
    told = lists(client, made)
    ms = told.pop("ms")
    rows.append(row(name, ms, wait_ms=wait_ms, **told))
    if name == "reranked":
      told = {**lines(client, made), **given_up(client, made)}
      shown = float(np.mean(told.pop("shown")))
      rows.append(row("line", told.pop("line"), shown=shown))
      rows += [row(kind, ms) for kind, ms in told.items()]
    client.end()
  return rows


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add("--workdir", required=True, help="folder of one run")
  add("--results", required=True, help="result file to write")
  add("--positions", type=int, default=500)
  add("--wait_ms", type=float, default=100.0, help="of reranked")
  return parser


def main(argv: list[str]) -> None:
  """Measures, prints the table and writes the result file."""
  args, start = _parser().parse_args(argv), time.perf_counter()
  checks.positive_int("positions", args.positions)
  config = restored.trained_config(args.workdir)
  test = corpora.of_language(corpora.load(config).test, "python")
  found = places.members(test, 2 * args.positions, SEED)
  found = [p for p in found if p.name and p.file.root][: args.positions]
  rows = measure(args, found)
  print(tables.render(rows))
  benches.save(
    args.results,
    "experiments.completion.bench_latency",
    argv,
    rows,
    start=start,
    device=timing.device_name(),
    seeds=[SEED],
    shown={args.workdir: "RUN"},
    notes=(
      f"{config.model.preset}, {config.model.max_inputs} tokens around the "
      f"cursor, {config.ask.beam_size} lines and {config.ask.name_beams} names "
      f"at once; ty; {len(found)} places in {len({p.file for p in found})} "
      "files; milliseconds from the keystroke to the answer, at the client."
    ),
  )


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
