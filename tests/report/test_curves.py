import json
import sys

import numpy as np
import pytest
from PIL import Image

from locojax.report import curves, runs


def test_average_over_equal_x():
  x = [0, 1, 2]
  c = curves.average([(x, [1, 2, 3]), (x, [3, 2, 5])], band="range")
  assert c.mean.tolist() == [2, 2, 4]
  assert c.low.tolist() == [1, 2, 3] and c.high.tolist() == [3, 2, 5]
  c = curves.average([(x, [1, 2, 3]), (x, [3, 2, 5])], band="std")
  np.testing.assert_allclose(c.high - c.mean, [2**0.5, 0, 2**0.5])


def test_average_interpolates_over_the_common_span():
  a, b = np.linspace(0, 10, 11), np.linspace(1, 8, 5)
  c = curves.average([(a, 2 * a), (b, 2 * b)])
  assert c.x[0] == 1 and c.x[-1] == 8 and len(c.x) == 11
  np.testing.assert_allclose(c.mean, 2 * c.x)
  np.testing.assert_allclose(c.low, c.high)


@pytest.mark.parametrize(
  "pairs, band, message",
  [
    ([], "std", "at least one"),
    ([([], [])], "std", "none of them empty"),
    ([([0, 1], [0, 1]), ([2, 3], [0, 1])], "std", "share no x"),
    ([([0], [1])], "sd", "band='sd'"),
  ],
)
def test_bad_curves(pairs, band, message):
  with pytest.raises(ValueError, match=message):
    curves.average(pairs, band=band)


def test_colours_are_distinct_and_do_not_depend_on_the_figure():
  names = [f"m{i}" for i in range(30)]
  table = curves.colour_map(names)
  assert len(set(map(str, table.values()))) == 30
  assert curves.colour_map(names[:5])["m4"] == table["m4"]


@pytest.fixture
def groups(tmp_path):
  for name in ("adam", "sgd"):
    for seed in range(2):
      folder = tmp_path / name / str(seed)
      folder.mkdir(parents=True)
      (folder / "config.json").write_text(json.dumps({"method": name}))
      lines = [
        {"step": s, "seconds": s * (1 + seed / 9), "train/loss": 9 / (s + 1)}
        for s in range(5)
      ]
      text = "".join(json.dumps(line) + "\n" for line in lines)
      (folder / "metrics.jsonl").write_text(text)
  return runs.group(runs.load_all(tmp_path), "method")


def test_plot_writes_a_png(groups, tmp_path):
  panels = [
    curves.Panel("train/loss", x="epoch", y_log=True, title="epochs"),
    curves.Panel("train/loss", x="seconds", x_limits=(0, 3)),
  ]
  path = curves.plot(
    groups, panels, tmp_path / "f" / "a.png", steps_per_epoch=2, title="t"
  )
  with Image.open(path) as image:
    assert image.format == "PNG" and image.width > image.height > 300
    pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)

  def count(colour):
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (pixels == rgb).all(axis=1).sum()

  # Two labels are drawn, in the first two colours.
  assert [count(c) > 0 for c in curves.COLOURS[:4]] == [True] * 2 + [False] * 2


def test_plot_errors(groups, tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="at least one group"):
    curves.plot({}, [curves.Panel("train/loss")], tmp_path / "a.png")
  with pytest.raises(ValueError, match="key='loss'"):
    curves.plot(groups, [curves.Panel("loss")], tmp_path / "a.png")
  with pytest.raises(ValueError, match="label='sgd'"):
    curves.plot(
      groups,
      [curves.Panel("train/loss")],
      tmp_path / "a.png",
      colours=curves.colour_map(["adam"]),
    )
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  with pytest.raises(ImportError, match=r"locojax\[plots\]"):
    curves.plot(groups, [curves.Panel("train/loss")], tmp_path / "a.png")


def _flat(value):
  x = np.arange(3.0)
  return curves.Curve(x, *(np.full(3, value),) * 3)


def test_a_crowded_figure_emphasises_ours_and_the_best(tmp_path):
  labels = [f"m{i}" for i in range(10)]
  data = {(name, 0): _flat(float(i)) for i, name in enumerate(labels)}
  del data["m8", 0]
  standing = curves.standing_out(data, labels, ("m2", "absent"))
  assert standing == ["m2", "m7", "m9"]
  least = curves.standing_out(data, labels, ("m2",), mode="min", num_peers=1)
  assert least == ["m0", "m2"]
  assert curves.standing_out(data, labels[:8], ("m2",)) == []
  assert curves.by_last_value(data, labels)[::9] == ["m9", "m8"]
  panel = curves.Panel(key="accuracy")
  path = tmp_path / "a.png"
  assert curves.draw(data, labels, [panel], path, emphasis=standing) == path
  with pytest.raises(ValueError, match="emphasis"):
    curves.draw(data, labels, [panel], path, emphasis=["m10"])
