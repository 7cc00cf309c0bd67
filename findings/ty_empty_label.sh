#!/usr/bin/env bash
# Package:  ty (its language server's completion)
# Version:  ty 0.0.108
# Expected: the members of an object where a member is asked for; every item of
#           a list has a label, which is what an editor shows and inserts.
# Happens:  between the dot and the sign of an unfinished assignment,
#           `self. = 3`, the list begins with an item whose label is empty,
#           with the type and documentation of the value at the right.
# Matters:  an attribute whose name is still to be typed is an everyday place.
#           The empty item sorts first: whoever takes the first item inserts
#           nothing, and whoever scores labels by a model scores no token.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'ty==0.0.108'
cd "$work"
"$work/venv/bin/python" -I - <<'END'
import itertools
import json
import pathlib
import subprocess
import sys

HEAD = "class Tree:\n  def grow(self):\n    self."
program = pathlib.Path(sys.executable).parent / "ty"
numbers = itertools.count(1)
server = subprocess.Popen(
  [program, "server"],
  stdin=subprocess.PIPE,
  stdout=subprocess.PIPE,
  stderr=subprocess.DEVNULL,
)


def send(**message):
  body = json.dumps({"jsonrpc": "2.0", **message}).encode()
  server.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
  server.stdin.flush()


def receive():
  length = 0
  while line := server.stdout.readline().strip():
    if line.lower().startswith(b"content-length:"):
      length = int(line.split(b":")[1])
  return json.loads(server.stdout.read(length))


def ask(method, params):
  """The server's result; what it asks meanwhile is answered with nothing."""
  number = next(numbers)
  send(id=number, method=method, params=params)
  while True:
    message = receive()
    if "method" not in message and message.get("id") == number:
      return message["result"]
    if "method" in message and "id" in message:
      send(id=message["id"], result=None)


def labels(name, text):
  """Those behind the dot of `HEAD`, in the order of their sort texts."""
  path = pathlib.Path(name).absolute()
  path.write_text(text)
  opened = {"languageId": "python", "version": 1, "text": text}
  document = {"uri": path.as_uri()}
  told = {"textDocument": {**document, **opened}}
  send(method="textDocument/didOpen", params=told)
  place = {"line": 2, "character": len("    self.")}
  where = {"textDocument": document, "position": place}
  found = ask("textDocument/completion", where)
  items = found["items"] if isinstance(found, dict) else found
  return [i["label"] for i in sorted(items, key=lambda i: i["sortText"])]


root = pathlib.Path.cwd().as_uri()
folder = {"uri": root, "name": "work"}
ask(
  "initialize",
  {"processId": None, "rootUri": root, "capabilities": {}}
  | {"workspaceFolders": [folder]},
)
send(method="initialized", params={})
alone = labels("alone.py", HEAD + "\n")
assigned = labels("assigned.py", HEAD + " = 3\n")
server.kill()
print(f"alone: {alone[:2]}; assigned: {assigned[:2]}")
if "" in alone or assigned[:2] != ["", "grow"]:
  sys.exit("changed: no item with an empty label leads the list.")
print("so: the first item of the list inserts nothing.")
END
