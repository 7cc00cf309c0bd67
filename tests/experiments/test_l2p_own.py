"""The user's own folder and weights: what is taken, and what is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.common import places, stages
from experiments.l2p import backbone, experiment, networks, settings, tasks
from experiments.l2p.configs import streams
from locojax.nn import vit, vit_weights


def _config(variant="tiny", methods=("l2p",), **data):
  config = stages.changed(streams.get_config(variant), methods=methods)
  with config.unlocked():
    config.data.update(data)
  return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Two tasks of two classes of three images."""
  root = tmp_path_factory.mktemp("own")
  rng = np.random.default_rng(0)
  for task in ("first", "second"):
    for name in ("a", "b"):
      where = root / task / f"{task} {name}"
      where.mkdir(parents=True)
      for i in range(3):
        image = rng.integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(image).save(where / f"{i}.png")
  return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """A file of drawn weights of three heads, patches of 7."""
  net = vit.ViT(7, 24, 2, 3, 48, image_size=28)
  init = jax.jit(net.init)
  params = init(jax.random.key(0), np.zeros((1, 28, 28, 3), np.float32))
  path = tmp_path_factory.mktemp("weights") / "vit.npz"
  vit_weights.save_vit_npz(path, params["params"], num_heads=3)
  return path


def _with_file(weights, folder, **data):
  return _config(
    "folder", path=str(folder), checkpoint=str(weights), image_size=28, **data
  )


def test_a_file_brings_its_sizes_and_wants_no_data(
  weights, folder, monkeypatch
):
  monkeypatch.setenv("TFDS_DATA_DIR", "/nowhere")
  monkeypatch.setenv("OWN", str(weights.parent))
  config = _with_file("$OWN/vit.npz", folder)
  settings.check(config)  # its patches do not divide 28, those of the file do
  found = backbone.load(config)
  assert (found.net.num_heads, found.net.patch_size) == (3, 7)


def test_a_file_in_one_scan_is_the_same(weights, folder):
  config = _with_file(weights, folder, format="original")
  images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
  plain = backbone.load(config)
  with config.unlocked():
    config.model.scan = True
  scanned = backbone.load(config)
  np.testing.assert_allclose(
    networks.features(scanned.net)(scanned.params, images),
    networks.features(plain.net)(plain.params, images),
    atol=1e-5,
  )


@pytest.mark.parametrize(
  "changes, said",
  [
    ({"num_heads": 4}, r"data\.checkpoint=.*num_heads=4 .*data\.num_heads"),
    ({"image_size": 30}, "image_size=30"),
    ({"channels": 1}, "data.channels=1 is not allowed.*3, of the file"),
  ],
)
def test_a_file_that_does_not_fit_is_refused(weights, folder, changes, said):
  config = _with_file(weights, folder)
  with config.unlocked():
    config.data.update(changes)
  with pytest.raises(ValueError, match=said):
    backbone.load(config)


def test_a_folder_by_any_path(folder, monkeypatch):
  monkeypatch.setenv("HOME", str(folder.parent))
  monkeypatch.setenv("OWN", str(folder))
  assert places.expanded("$OWN") == folder
  made = tasks.load(_config("folder", path=f"~/{folder.name}", image_size=8))
  assert made.names == ("first", "second")
  assert [len(t["label"]) for t in made.trains] == [4, 4]
  more = tasks.load(_config("folder", path="$OWN", test_share=0.5))
  assert [len(t["label"]) for t in more.tests] != [
    len(t["label"]) for t in made.tests
  ]


@pytest.mark.parametrize(
  "changes, said",
  [
    ({"has_test": True}, "data.has_test"),
    ({"train_per_class": 2}, "data.train_per_class of a folder=2"),
    ({"num_tasks": 7}, "data.num_tasks of a folder=7"),
  ],
)
def test_what_a_folder_cannot_is_refused_by_its_key(folder, changes, said):
  config = _config("folder", path=str(folder), backbone=(), checkpoint="")
  with config.unlocked():
    config.data.update(changes)
  with pytest.raises(ValueError, match=said):
    settings.check(config)
    tasks.load(config)


def test_bic_keeps_one_of_few_images_back(folder):
  config = _config("folder", path=str(folder), image_size=8)
  stream = tasks.load(config)
  base = backbone.Backbone(networks.backbone(config), None)
  made = experiment.Data(config, experiment.Queried(stream, base, 4))
  assert made._is_valid(0).sum() == 1
  assert len(made._valid(1)["label"]) == 2


def test_sizes_that_methods_need():
  config = _config(methods=("dualprompt",))
  with config.unlocked():
    config.model.num_layers = 1
  with pytest.raises(ValueError, match="model.num_layers=1.*dualprompt"):
    settings.check(config)
  config = _config()
  net = networks.backbone(config)
  with pytest.raises(ValueError, match="coda_prompt with 5 tasks"):
    networks.coda(config, net, 10, 5)


def test_tasks_have_the_classes_of_their_set():
  assert tasks.load(_config()).names == ("4-5", "6-7", "8-9")
