"""Image files as arrays, by one rule for all readers.

* Depth: 8 bits a channel. Files of 1 bit become 0 and 255, those of a palette
  its colours; what has more than 8 bits is refused, for what its values mean
  only its owner can say.
* Colour: CMYK and the like become red, green and blue; colour profiles are not
  applied. Grey is the ITU-R 601-2 luma.
* Transparency: kept if RGBA is asked for, else laid on white.
* Rotation: photographs are turned upright as their EXIF data say.
* Hidden files and folders are passed over, see `folders`.
* Animated, damaged and unknown files are refused. The message names the file.
"""

from __future__ import annotations

import os
import pathlib
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from locojax.core import checks
from locojax.data import folders, image, tfds_dirs

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
MODES = ("L", "RGB", "RGBA")
# Of Pillow, with 8 bits a channel or fewer.
_KNOWN = (
  *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"),
  *("CMYK", "YCbCr", "HSV"),
)
# What Pillow calls channels of 16 bits in a file, of which it keeps 8.
_DEEP = re.compile(r"\b(I|L|LA|RGB|RGBA|RGBX|CMYK);16")
_ORIENTATION = 0x0112  # the tag of EXIF
_FAULTS = (
  *(OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError),
  *(struct.error, zlib.error, OverflowError),
)


def _pillow():
  try:
    from PIL import Image
  except ImportError as e:
    raise ImportError(tfds_dirs.PILLOW_HELP) from e
  return Image


def _check_kept(opened) -> None:
  """Refuses what 8 bits a channel and one frame cannot hold."""
  deep = any(_DEEP.search(str(part[3])) for part in opened.tile)
  if opened.mode not in _KNOWN or deep:
    raise ValueError(
      f"it has more than 8 bits a channel or unknown colours (mode "
      f"{opened.mode}): bring its values to 8 bits first"
    )
  # Cameras put a preview behind a picture in MPO files; the first one counts.
  frames = getattr(opened, "n_frames", 1)
  if frames > 1 and opened.format != "MPO":
    raise ValueError(f"it is animated, with {frames} frames: take one of them")


def _opaque(picture, mode: str):
  """The picture in the mode; what is transparent lies on white."""
  if not picture.has_transparency_data:
    return picture.convert("RGB").convert(mode)
  colours = picture.convert("RGBA")
  if mode == "RGBA":
    return colours
  on_white = image.opaque(np.asarray(colours))
  return _pillow().fromarray(on_white).convert(mode)


def read_image(
  path: str | os.PathLike,
  *,
  mode: str = "RGB",
  size: tuple[int, int] | None = None,
) -> np.ndarray:
  """An image file as uint8 `[height, width, channels]`.

  Args:
    path: a file that Pillow reads; see the head of this file.
    mode: `L` (1 channel), `RGB` or `RGBA`.
    size: resize to (height, width), bilinear; None keeps the size.

  Raises:
    ValueError: the file is no image, is damaged, animated or of more than 8
      bits a channel; it is named.
    ImportError: Pillow is not installed.
  """
  checks.one_of("mode", mode, MODES)
  pillow = _pillow()
  from PIL import ImageOps

  try:
    with pillow.open(path) as opened:
      _check_kept(opened)
      opened.load()
      found = _opaque(ImageOps.exif_transpose(opened), mode)
  except (*_FAULTS, pillow.DecompressionBombError) as e:
    raise ValueError(f"the image file {path} cannot be read: {e}") from e
  if size is not None:
    found = found.resize((size[1], size[0]), pillow.Resampling.BILINEAR)
  array = np.asarray(found, dtype=np.uint8)
  return array[:, :, None] if array.ndim == 2 else array


class Header(NamedTuple):
  """What a file tells before its pixels are read.

  Attributes:
    height, width: of the image as `read_image` returns it, upright.
    orientation: of EXIF, 1 to 8; from 5 on, the stored sides are swapped.
  """

  height: int
  width: int
  orientation: int


def read_header(path: str | os.PathLike) -> Header:
  """Size and orientation of an image file; its pixels are not read.

  Raises:
    ValueError: the file is no image; it is named.
    ImportError: Pillow is not installed.
  """
  pillow = _pillow()
  try:
    with pillow.open(path) as opened:
      width, height = opened.size
      orientation = opened.getexif().get(_ORIENTATION, 1)
  except (*_FAULTS, pillow.DecompressionBombError) as e:
    raise ValueError(f"the image file {path} cannot be read: {e}") from e
  if orientation not in range(1, 9):
    orientation = 1
  if orientation >= 5:
    height, width = width, height
  return Header(height, width, orientation)


class ImageFolderSource:
  """Images in a folder per class; see `from_image_folder`."""

  def __init__(self, files, labels, classes, mode, size):
    self.files, self.labels, self.classes = files, labels, classes
    self._mode, self._size = mode, size

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> dict[str, Any]:
    found = read_image(self.files[index], mode=self._mode, size=self._size)
    return {"image": found, "label": np.int32(self.labels[index])}

  def subset(self, indices: Iterable[int]) -> ImageFolderSource:
    """The images at these places; none is read."""
    rows = [int(i) for i in indices]
    files, labels = ([x[i] for i in rows] for x in (self.files, self.labels))
    return ImageFolderSource(
      files, labels, self.classes, self._mode, self._size
    )

  def with_labels(
    self, labels: Iterable[int], classes: Sequence[str]
  ) -> ImageFolderSource:
    """The same images with other labels, which `classes` names."""
    return ImageFolderSource(
      self.files, list(labels), list(classes), self._mode, self._size
    )


def is_image(path: pathlib.Path) -> bool:
  """Whether a file has the name of an image."""
  return path.suffix.lower() in SUFFIXES and path.is_file()


def _inside(folder: pathlib.Path) -> tuple[list, list]:
  """Images of a class folder, and what else is in it."""
  found = folders.visible(folder, deep=False)
  images = [p for p in found if is_image(p)]
  return images, [p for p in found if not is_image(p)]


def from_image_folder(
  root: str | os.PathLike,
  *,
  mode: str = "RGB",
  size: tuple[int, int] | None = None,
) -> ImageFolderSource:
  """Images from `root/<class>/<anything>.png`, one sub-folder a class.

  Args:
    root: the folder. Classes are its sub-folders in sorted order, images
      their files with a suffix of `SUFFIXES`, in sorted order. What is hidden
      is left out; that and files which are not read are counted in the log.
    mode: `L`, `RGB` or `RGBA`.
    size: (height, width) to resize to; None keeps each image's own.

  Returns:
    A source of `image` uint8 `[height, width, channels]` and `label` int32;
    its attribute `classes` lists the names.

  Raises:
    FileNotFoundError: no such folder.
    ValueError: no sub-folders, or one without images.
  """
  checks.one_of("mode", mode, MODES)
  files, labels, classes = folders.of_classes(
    root,
    _inside,
    kind=f"image ({', '.join(SUFFIXES)})",
    rule="an image is <class>/<name> with an ending of an image",
  )
  return ImageFolderSource(files, labels, classes, mode, size)
