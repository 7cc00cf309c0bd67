"""Image files: one rule for depth, colours, alpha, rotation, hidden files."""

import logging

import numpy as np
import pytest
from PIL import Image

from locojax.data import captions, image_files, sources

BASE = np.array([[[200, 10, 30], [0, 0, 0]]], np.uint8)  # one row, two pixels


def _save(path, array, mode=None, **options):
  picture = Image.fromarray(array)
  picture = picture if mode is None else picture.convert(mode)
  picture.save(path, **options)
  return path


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_modes_of_8_bits_or_less_keep_their_colours(tmp_path, mode):
  gray = np.array([[[255] * 3, [0] * 3]], np.uint8)
  path = _save(tmp_path / "a.png", gray, mode)
  np.testing.assert_array_equal(image_files.read_image(path), gray)
  assert image_files.read_image(path, mode="L").tolist() == [[[255], [0]]]
  rgba = image_files.read_image(path, mode="RGBA")
  np.testing.assert_array_equal(rgba[..., 3], 255)


def test_cmyk_becomes_red_green_and_blue(tmp_path):
  big = np.broadcast_to(BASE[:, :1], (16, 16, 3)).copy()
  path = _save(tmp_path / "a.jpg", big, "CMYK", quality=100)
  found = image_files.read_image(path).astype(int)
  assert np.abs(found - BASE[0, 0]).max() < 8


def _deep(path, kind):
  if kind == "gray":
    values = np.array([[40_000, 255]], np.uint16)
    Image.fromarray(values).save(path)
  else:
    _png_of_16_bits(path)


def _png_of_16_bits(path):
  """A colour PNG of 16 bits a channel, which Pillow reads but cannot write."""
  import struct
  import zlib

  def part(name, data):
    crc = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

  head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
  row = b"\0" + struct.pack(">3H", 40_000, 255, 7)
  path.write_bytes(
    b"\x89PNG\r\n\x1a\n"
    + part(b"IHDR", head)
    + part(b"IDAT", zlib.compress(row))
    + part(b"IEND", b"")
  )


@pytest.mark.parametrize("kind", ["gray", "colour"])
def test_16_bits_are_refused_with_the_name(tmp_path, kind):
  _deep(tmp_path / "deep.png", kind)
  with pytest.raises(ValueError, match=r"deep\.png cannot be read: .* 8 bits"):
    image_files.read_image(tmp_path / "deep.png")


@pytest.mark.parametrize("kind", ["RGBA", "palette", "colour key"])
def test_what_is_transparent_lies_on_white(tmp_path, kind):
  path = tmp_path / "a.png"
  if kind == "RGBA":
    _save(path, np.array([[[0, 0, 0, 0], [9, 8, 7, 255]]], np.uint8))
  elif kind == "palette":
    picture = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    picture.putpalette([0, 0, 0, 9, 8, 7])
    picture.save(path, transparency=0)
  else:
    colours = np.array([[[0, 0, 0], [9, 8, 7]]], np.uint8)
    _save(path, colours, transparency=(0, 0, 0))
  wanted = [[[255, 255, 255], [9, 8, 7]]]
  assert image_files.read_image(path).tolist() == wanted
  assert image_files.read_image(path, mode="L")[0, 0, 0] == 255
  kept = image_files.read_image(path, mode="RGBA")
  assert kept[0, :, 3].tolist() == [0, 255]
  (tmp_path / "a.txt").write_text("dots")
  [example] = captions.from_caption_folder(tmp_path)
  assert example["image"].tolist() == wanted


def test_photographs_are_turned_upright(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # lies on its side: turn it by 90 degrees
  path = _save(tmp_path / "a.png", BASE, exif=exif)
  found = image_files.read_image(path)
  assert found.tolist() == [[[200, 10, 30]], [[0, 0, 0]]]


def test_animations_are_refused(tmp_path):
  first, second = (Image.new("L", (4, 4), v) for v in (0, 255))
  for name in ("a.gif", "a.png"):
    path = tmp_path / name
    first.save(path, save_all=True, append_images=[second])
    with pytest.raises(ValueError, match=f"{name} cannot be read: .*2 frames"):
      image_files.read_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.bmp", "a.webp"])
def test_damaged_files_are_named(tmp_path, name):
  rng = np.random.default_rng(0)
  path = _save(tmp_path / name, rng.integers(0, 256, (64, 64, 3), np.uint8))
  whole = path.read_bytes()
  for content in (whole[: len(whole) // 2], b"", b"no image", whole[:20]):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
      image_files.read_image(path)


def test_hidden_files_and_folders_are_no_classes(tmp_path, caplog):
  for name in ("cat", "dog", ".thumbs", "__MACOSX"):
    (tmp_path / name).mkdir()
    _save(tmp_path / name / "0.png", BASE)
  _save(tmp_path / "cat" / "._0.png", BASE)
  (tmp_path / "dog" / "notes.txt").write_text("no image")
  _save(tmp_path / "stray.png", BASE)
  with caplog.at_level(logging.WARNING):
    found = sources.from_image_folder(tmp_path)
  assert found.classes == ["cat", "dog"] and found.labels == [0, 1]
  said = caplog.text
  assert "2 hidden files and folders" in said and "1 hidden files" in said
  assert "2 files" in said and "stray.png" in said


def test_hidden_texts_are_no_captions(tmp_path):
  _save(tmp_path / "a.png", BASE)
  (tmp_path / "a.txt").write_text("\ufeffa dot\x0bhere\n")
  (tmp_path / ".cache").mkdir()
  _save(tmp_path / ".cache" / "b.png", BASE)
  (tmp_path / ".cache" / "b.txt").write_text("hidden")
  found = captions.from_caption_folder(tmp_path)
  assert found.captions == [["a dot\x0bhere"]]
