"""A language server that behaves as it is told; imports nothing of ours.

It is told by `initializationOptions`:

  sync        1 or 2, kind of changes (2)
  crash       {method: how often}, counted in the file `crashes` of its folder
  mute        methods that it never answers
  reverse     answers to completion come in batches of this size, last first
  postpone    how often it puts off a pull of diagnostics
  push        what it publishes after a change: "old", "none" (no version),
              "new"; by default nothing
  stubborn    ignores shutdown, exit, SIGTERM and the end of its input
  child       starts a process and writes its number to `child`
  fail        ends at once, with this on stderr
  garbage     writes this after `initialized`

Where its folder has a file `slow`, it takes a second to start.
"""

import collections
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

IN, OUT = sys.stdin.buffer, sys.stdout.buffer
options, texts, versions = {}, {}, {}
held, seen = [], []
counts = collections.Counter()


def send(message):
  body = json.dumps({"jsonrpc": "2.0", **message}).encode("utf-8")
  OUT.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
  OUT.flush()


def receive():
  length = 0
  while (line := IN.readline()) not in (b"\r\n", b""):
    name, _, value = line.partition(b":")
    if name == b"Content-Length":
      length = int(value)
  return json.loads(IN.read(length)) if line else None


def offset(text, place):
  """Bytes of UTF-16 before a place; raises if there is no such place."""
  starts = [0, *(m.end() for m in re.finditer("\r\n|\n|\r", text))]
  start = starts[place["line"]]
  line = re.split("[\r\n]", text[start:], maxsplit=1)[0].encode("utf-16-le")
  assert 2 * place["character"] <= len(line), (place, text)
  line[: 2 * place["character"]].decode("utf-16-le")
  return len(text[:start].encode("utf-16-le")) + 2 * place["character"]


def applied(text, change):
  if "range" not in change:
    return change["text"]
  whole = text.encode("utf-16-le")
  start, end = (offset(text, change["range"][s]) for s in ("start", "end"))
  new = change["text"].encode("utf-16-le")
  return (whole[:start] + new + whole[end:]).decode("utf-16-le")


def crash(method):
  file = pathlib.Path("crashes")
  so_far = int(file.read_text()) if file.exists() else 0
  if so_far < options.get("crash", {}).get(method, 0):
    file.write_text(str(so_far + 1))
    print("it hurts", file=sys.stderr, flush=True)
    os._exit(3)


def problem(message):
  zero = {"line": 0, "character": 0}
  return {"range": {"start": zero, "end": zero}, "message": message}


def publish(uri):
  for what in options.get("push", ()):
    version = versions[uri] - {"old": 2}.get(what, 0)
    params = {"uri": uri, "version": version, "diagnostics": [problem(what)]}
    if what == "none":
      del params["version"]
    send({"method": "textDocument/publishDiagnostics", "params": params})


def complete(params):
  place = params["position"]
  text = texts[params["textDocument"]["uri"]]
  name = f"{place['line']}_{place['character']}_{len(text)}"
  return {"isIncomplete": True, "items": [{"label": name}]}


def pull(params):
  uri = params["textDocument"]["uri"]
  result = f"r{hash(texts[uri])}"
  if params.get("previousResultId") == result:
    return {"kind": "unchanged", "resultId": result}
  items = [problem(word) for word in texts[uri].split() if "bad" in word]
  return {"kind": "full", "resultId": result, "items": items}


def answer(method, params):
  uri = (params or {}).get("textDocument", {}).get("uri")
  if method == "initialize":
    options.update(params["initializationOptions"])
    if pathlib.Path("slow").exists():
      time.sleep(1)
    if options.get("fail"):
      sys.exit(options["fail"])
    if options.get("stubborn"):
      signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.get("child"):
      command = [sys.executable, "-c", "import time; time.sleep(600)"]
      started = subprocess.Popen(command, stdin=subprocess.DEVNULL)
      pathlib.Path("child").write_text(str(started.pid))
    return {
      "serverInfo": {"version": "1.2.3"},
      "capabilities": {"textDocumentSync": options.get("sync", 2)},
    }
  if method == "initialized" and options.get("garbage"):
    OUT.write(options["garbage"].encode())
    OUT.flush()
  if method == "textDocument/didOpen":
    assert uri not in texts
    texts[uri] = params["textDocument"]["text"]
    versions[uri] = params["textDocument"]["version"]
    publish(uri)
  if method == "textDocument/didChange":
    assert params["textDocument"]["version"] > versions[uri]
    versions[uri] = params["textDocument"]["version"]
    for change in params["contentChanges"]:
      texts[uri] = applied(texts[uri], change)
    publish(uri)
  if method == "textDocument/didClose":
    del texts[uri]
  if method == "textDocument/completion":
    return complete(params)
  if method == "textDocument/diagnostic":
    return pull(params)
  if method == "fake/texts":
    return texts
  if method == "fake/seen":
    return seen
  if method == "fake/deaf":
    time.sleep(600)
  return None


def reply(message):
  method = message["method"]
  if method == "textDocument/diagnostic":
    counts[method] += 1
    if counts[method] <= options.get("postpone", 0):
      words = {"code": -32802, "message": "later", "data": {}}
      return {"id": message["id"], "error": words}
  return {"id": message["id"], "result": answer(method, message.get("params"))}


def main():
  while (message := receive()) is not None:
    method = message.get("method")
    if method is None:
      continue
    crash(method)
    seen.append([method, message.get("id"), message.get("params")])
    del seen[:-50]
    stubborn = options.get("stubborn") and method in ("shutdown", "exit")
    if method in options.get("mute", ()) or stubborn:
      continue
    if method == "exit":
      return
    if "id" not in message:
      answer(method, message.get("params"))
    elif method == "textDocument/completion" and options.get("reverse"):
      held.append(reply(message))
      if len(held) == options["reverse"]:
        for found in reversed(held):
          send(found)
        held.clear()
    else:
      send(reply(message))


main()
while options.get("stubborn"):
  time.sleep(1)
