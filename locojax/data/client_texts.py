"""Client data sets from text: speaking roles, user columns, folders of files.

With internet and tfds, `texts_by_key(sources.from_tfds("reddit", ...),
key="author", text="body")` gives the texts of real users, and
`texts_of_script` cuts the text of tfds `tiny_shakespeare` by role. JSON lines
with a row for each role go through `shakespeare_by_role`.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from locojax.core import checks
from locojax.data import clients as clients_lib
from locojax.data import folders, sources, words

Texts = dict[str, list[str]]
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".tex", ".py", ".html")
UNITS = ("file", "folder", "top")


def texts_by_key(
  source: sources.Source,
  *,
  key: str | Sequence[str],
  text: str,
) -> Texts:
  """Texts of each user from any source: JSON lines, tfds, your own.

  Args:
    source: examples with a user and a text.
    key: field of the user, or several that name him together (play and role).
    text: field of the text, a string (or bytes) or a list of them.

  Returns:
    User -> texts, in the order of the source.

  Raises:
    ValueError: a field that is missing.
  """
  fields = (key,) if isinstance(key, str) else tuple(key)
  out: Texts = {}
  for i in range(len(source)):
    row = dict(source[i])
    name = "/".join(_text(checks.lookup("key", f, row)) for f in fields)
    found = checks.lookup("text", text, row)
    found = [found] if isinstance(found, str | bytes) else list(found)
    out.setdefault(name, []).extend(map(_text, found))
  return out


def _text(value: Any) -> str:
  return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def shakespeare_by_role(path: str | os.PathLike) -> Texts:
  """Speeches of each role of each play, from JSON lines (`.gz` is unpacked).

  Args:
    path: rows with `play`, `role` and `speeches`, a list of strings.

  Returns:
    `play/role` -> speeches.
  """
  source = sources.from_jsonl(path)
  return texts_by_key(source, key=("play", "role"), text="speeches")


def texts_of_script(script: str) -> Texts:
  """Speeches of each role of a script such as tfds `tiny_shakespeare`.

  Speeches are parted by blank lines, and begin with a line `Role:`; what has no
  such line goes on with the speech before.

  >>> texts_of_script("LORD:\\nGo.\\n\\nKING:\\nI go.\\n\\nLORD:\\nOh.")
  {'LORD': ['Go.', 'Oh.'], 'KING': ['I go.']}
  """
  out: Texts = {}
  role = None
  for part in re.split(r"\n\s*\n", script):
    head, _, speech = part.strip().partition("\n")
    if head.endswith(":") and len(head) > 1:
      role = head[:-1].strip()
    elif role is not None:
      speech = part.strip()
    if role is not None and speech.strip():
      out.setdefault(role, []).append(speech)
  return out


def texts_of_folder(
  root: str | os.PathLike,
  *,
  suffixes: Sequence[str] = TEXT_SUFFIXES,
  clients: str = "file",
) -> Texts:
  """Texts from any folder of text files, sub-folders included.

  Args:
    root: the folder; what is hidden in it is left out, see `folders`.
    suffixes: of the files to read; `.gz` after them is unpacked.
    clients: `file`: each file is a client. `folder`: each folder with files in
      it is one. `top`: each file or folder right below `root`.

  Returns:
    Path below `root` -> the files' texts, in sorted order.

  Raises:
    FileNotFoundError: no such folder.
    ValueError: no such files in it, or one that is no UTF-8 text.
  """
  checks.one_of("clients", clients, UNITS)
  root = pathlib.Path(root)
  if not root.is_dir():
    raise FileNotFoundError(f"root={str(root)!r} is not a folder.")
  endings = tuple(e for s in suffixes for e in (s, s + ".gz"))
  inside = folders.visible(root, deep=True)
  files = [p for p in inside if p.name.endswith(endings)]
  unused = [p.relative_to(root) for p in inside if not p.name.endswith(endings)]
  folders.report_unused(root, unused, f"texts end in {', '.join(suffixes)}")
  if not files:
    raise ValueError(f"root={str(root)!r} has no files that end in {endings}.")
  out: Texts = {}
  read = sources.from_text(files, unit="file")
  for example in (read[i] for i in range(len(read))):
    path = pathlib.Path(example["path"]).relative_to(root)
    name = {"file": path, "folder": path.parent, "top": path.parts[0]}[clients]
    out.setdefault(str(name), []).append(example["text"])
  return out


def from_texts(
  texts: Mapping[str, Iterable[str]],
  vocabulary: words.Vocabulary,
  *,
  length: int = 20,
  max_sentences: int = 256,
  min_sentences: int = 1,
) -> clients_lib.ClientData:
  """Sentences as numbers, for next-word models.

  Args:
    texts: client -> texts.
    vocabulary: from public text.
    length: tokens that a model sees; see `Vocabulary.encode`.
    max_sentences: of a client, the first ones.
    min_sentences: clients with fewer are left out.

  Returns:
    A client data set of `tokens` `[n, length + 1]` int32.

  Raises:
    ValueError: a bad setting, or no client with enough sentences.
  """
  checks.positive_int("max_sentences", max_sentences)
  checks.positive_int("min_sentences", min_sentences)
  tokens, rows, names = [], [], []
  for name, pieces in texts.items():
    found = [s for piece in pieces for s in words.split_sentences(piece)]
    if len(found) < min_sentences:
      continue
    found = found[:max_sentences]
    rows.append(np.arange(len(tokens), len(tokens) + len(found)))
    tokens += [vocabulary.encode(s, length=length) for s in found]
    names.append(name)
  if not rows:
    raise ValueError(
      f"none of {len(texts)} clients has min_sentences={min_sentences}."
    )
  return clients_lib.ClientData({"tokens": np.stack(tokens)}, rows, names=names)
