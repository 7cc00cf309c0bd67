"""Answers of language servers as our own words, and back.

LSP 3.17: "Completion Request", "Signature Help Request", "Hover Request",
"Diagnostic".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from locojax.engines.positions import Lines, from_units
from locojax.engines.types import (
  SEVERITIES,
  CompletionList,
  Diagnostic,
  Item,
  Range,
  Signature,
)

# CompletionItemKind, from 1.
ITEM_KINDS = (
  "text",
  "method",
  "function",
  "constructor",
  "field",
  "variable",
  "class",
  "interface",
  "module",
  "property",
  "unit",
  "value",
  "enum",
  "keyword",
  "snippet",
  "color",
  "file",
  "reference",
  "folder",
  "enum_member",
  "constant",
  "struct",
  "event",
  "operator",
  "type_parameter",
)
_UNNECESSARY = 1
# What servers are told that we can do.
CAPABILITIES = {
  "general": {"positionEncodings": ["utf-16"]},
  "workspace": {"configuration": True, "workspaceFolders": True},
  "textDocument": {
    "synchronization": {"dynamicRegistration": False},
    "completion": {
      "completionItem": {"snippetSupport": False},
      "contextSupport": True,
      "completionList": {"itemDefaults": ["editRange"]},
    },
    "signatureHelp": {
      "signatureInformation": {
        "parameterInformation": {"labelOffsetSupport": True},
        "activeParameterSupport": True,
      }
    },
    "hover": {"contentFormat": ["plaintext", "markdown"]},
    "publishDiagnostics": {
      "versionSupport": True,
      "tagSupport": {"valueSet": [1, 2]},
    },
    "diagnostic": {"dynamicRegistration": True},
    "inactiveRegionsCapabilities": {"inactiveRegions": True},  # clangd
  },
}
Json = Mapping[str, Any]


def diagnostic(
  found: Json, lines: Lines, kind: Callable[[str, str], str]
) -> Diagnostic:
  """A `Diagnostic` of the protocol.

  Args:
    found: as it came.
    lines: of the text that it is about, as the server counts them.
    kind: of an error, by its code and message.
  """
  code, message = str(found.get("code") or ""), found["message"]
  return Diagnostic(
    range=lines.range_from_wire(found["range"]),
    message=message,
    severity=SEVERITIES[found.get("severity", 1) - 1],
    code=code,
    kind=kind(code, message),
    source=found.get("source") or "",
    unnecessary=_UNNECESSARY in (found.get("tags") or ()),
  )


def completions(found: Any, lines: Lines, version: int) -> CompletionList:
  """A `CompletionList`, or an array of items, or null.

  Entries are in the order of editors: by `sortText` or else label. An engine
  may give them in another order each time (buf). One without a name is left
  out: ty takes the attribute that is being typed for one.
  """
  whole = found if isinstance(found, dict) else {"items": found or ()}
  ordered = sorted(whole["items"], key=_rank)
  default = (whole.get("itemDefaults") or {}).get("editRange")
  places = _Places(lines)
  made = (_item(i, places, default) for i in ordered)
  return CompletionList(
    tuple(item for item in made if item.name),
    version,
    bool(whole.get("isIncomplete")),
  )


def _rank(item: Json) -> tuple[str, str, str]:
  label = item["label"]
  rank = item.get("sortText") or label
  return rank, label, item.get("detail") or ""


class _Places(dict):
  """Ranges as ours; the thousand entries of a list share one or two."""

  def __init__(self, lines: Lines):
    super().__init__()
    self._lines = lines

  def __missing__(self, key: tuple[int, int, int, int]) -> Range:
    start, end = (
      {"line": line, "character": unit} for line, unit in (key[:2], key[2:])
    )
    self[key] = self._lines.range_from_wire({"start": start, "end": end})
    return self[key]

  def of(self, found: Json) -> Range:
    start, end = found["start"], found["end"]
    return self[
      start["line"], start["character"], end["line"], end["character"]
    ]


def _item(item: Json, places: _Places, default: Json | None) -> Item:
  label = item["label"]
  edit = item.get("textEdit")
  place = None
  insert = item.get("insertText") or label.strip()
  if edit:
    place = edit.get("range") or edit.get("replace") or edit.get("insert")
    insert = edit["newText"]
  elif default is not None:
    place = default.get("replace", default)
    insert = item.get("textEditText") or label.strip()
  kind = item.get("kind") or 0
  return Item(
    # A label may be decorated: clangd's begin with a blank or a bullet.
    name=(item.get("filterText") or label).strip(" •"),
    insert=insert,
    label=label,
    kind=ITEM_KINDS[kind - 1] if 0 < kind <= len(ITEM_KINDS) else "",
    detail=item.get("detail") or "",
    range=places.of(place) if place else None,
    data=item,
  )


def signatures(found: Json | None) -> tuple[Signature, ...]:
  """A `SignatureHelp` or null."""
  if not found:
    return ()
  whole = found.get("activeParameter")
  return tuple(
    Signature(
      s["label"],
      tuple(
        _parameter(p["label"], s["label"]) for p in s.get("parameters") or ()
      ),
      s.get("activeParameter", whole),
    )
    for s in found.get("signatures") or ()
  )


def _parameter(label: str | Sequence[int], whole: str) -> str:
  """A parameter's label: a text, or two UTF-16 places in the whole."""
  if isinstance(label, str):
    return label
  start, end = (from_units(whole, place) for place in label)
  return whole[start:end]


def hover(found: Json | None) -> str:
  """A `Hover` or null: markup, a marked string, or several of those."""
  contents = (found or {}).get("contents") or ""
  if not isinstance(contents, list):
    contents = [contents]
  texts = (c if isinstance(c, str) else c.get("value", "") for c in contents)
  return "\n\n".join(t for t in texts if t)
