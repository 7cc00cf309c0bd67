"""Pascal VOC's annotation of an image, an XML file, read without surprises.

Document types, and with them entities, are refused: they are the ways in which
XML reads other files or grows without bound. Messages name file and object.
"""

from __future__ import annotations

import math
import os
import pathlib
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

_EDGES = ("ymin", "xmin", "ymax", "xmax")


class Annotation(NamedTuple):
  """Objects of an image as the file has them.

  Attributes:
    filename: of the image, or None.
    size: (height, width), or None if not told.
    names: `[n]` of the classes.
    boxes: `[n, 4]` float64 yxyx, in the pixels of the file.
    difficult: `[n]` bool.
  """

  filename: str | None
  size: tuple[int, int] | None
  names: tuple[str, ...]
  boxes: np.ndarray
  difficult: np.ndarray


def _refuse_type(*unused) -> None:
  raise ValueError("it declares a document type, which is not read")


def _parsed(content: bytes) -> ElementTree.Element:
  """The tree of a document without document type."""
  builder = ElementTree.TreeBuilder()
  parser = expat.ParserCreate()
  parser.StartElementHandler = builder.start
  parser.EndElementHandler = builder.end
  parser.CharacterDataHandler = builder.data
  parser.StartDoctypeDeclHandler = _refuse_type
  parser.Parse(content, True)
  return builder.close()


def _text(node: ElementTree.Element, name: str) -> str | None:
  """The text of a child, if there is one that is not blank."""
  text = node.findtext(name)
  return text.strip() if text and text.strip() else None


def _number(node, name: str, where: str) -> float:
  text = _text(node, name)
  try:
    value = float(text)
  except (TypeError, ValueError):
    value = math.nan
  if not math.isfinite(value):
    raise ValueError(f"{where}: {name}={text!r} must be a finite number.")
  return value


def _size(root, where: str) -> tuple[int, int] | None:
  node = root.find("size")
  if node is None or _text(node, "height") is None:
    return None
  sides = [int(_number(node, k, where)) for k in ("height", "width")]
  # Some tools write 0 for what they do not know.
  return (sides[0], sides[1]) if min(sides) > 0 else None


def read(path: str | os.PathLike) -> Annotation:
  """The objects of an annotation file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: not XML, with a document type, not of VOC's form, or a box that
      ends before it begins; the file is named.
  """
  path = pathlib.Path(path)
  try:
    root = _parsed(path.read_bytes())
  except (expat.ExpatError, ValueError) as e:
    raise ValueError(f"the XML file {path} cannot be read: {e}") from e
  if root.tag != "annotation":
    raise ValueError(f"{path} is a <{root.tag}>: it must be an <annotation>.")
  names, boxes, difficult = [], [], []
  for i, node in enumerate(root.findall("object")):
    where = f"{path}, object {i}"
    box, name = node.find("bndbox"), _text(node, "name")
    if box is None or name is None:
      raise ValueError(f"{where} must have a <name> and a <bndbox>.")
    edges = [_number(box, k, where) for k in _EDGES]
    if edges[0] > edges[2] or edges[1] > edges[3]:
      told = dict(zip(_EDGES, edges))
      raise ValueError(f"{where}: the box {told} ends before it begins.")
    names.append(name)
    boxes.append(edges)
    difficult.append(_text(node, "difficult") == "1")
  return Annotation(
    _text(root, "filename"),
    _size(root, str(path)),
    tuple(names),
    np.array(boxes, np.float64).reshape(-1, 4),
    np.array(difficult, bool),
  )
