"""The page of detection: what it answers, and in a real browser."""

from __future__ import annotations

import base64
import functools
import html
import pathlib
import re
import sys

import jax
import numpy as np
import optax
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import browser
import tiny_runs

from experiments.pix2seq import demo, detectors, restored
from experiments.pix2seq.configs import detection
from locojax.methods import pix2seq
from locojax.train import steps

CLASSES = ("square", "disc", "triangle", "<i>cross</i>")


@functools.cache
def _run(method="augmented"):
  """A run that has not learnt anything, as it comes from its folder."""
  config = tiny_runs.config(
    detection.get_config, method=method, needs_data=False, pretrain__num_steps=0
  )
  detector = detectors.make(config, len(CLASSES))
  params, model_state = jax.jit(detector.begin)(jax.random.key(0))
  state = steps.init_state(
    params, optax.identity(), key=jax.random.key(0), model_state=model_state
  )
  return restored.Restored(config, detector, state, CLASSES, np.arange(1, 5))


@functools.cache
def _answer():
  return demo.answering(_run())


def _image(height=40, width=60):
  pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3))
  return pixels.astype(np.uint8)


def test_an_image_is_answered_in_its_own_pixels():
  found = _run()
  best = _answer()(_image(), detectors.Asked(0.0, 1.0), 0)
  num = found.config.sequence.max_objects
  assert best.boxes.shape == (num, 4) and best.tokens.shape == (5 * num,)
  assert np.all(best.boxes >= 0)
  assert np.all(best.boxes <= np.array([40, 60, 40, 60]))
  # The wider side, of 60 pixels, fills the canvas: bins are shares of it, and
  # the height of 21 of 32 pixels stands for all 40.
  bins = best.tokens.reshape(num, 5)[:, :4] - found.detector.vocab.coord_start
  shares = np.asarray(pix2seq.dequantize(bins, found.detector.vocab.num_bins))
  want = np.minimum(shares[:, ::2] * 32 / 21, 1) * 40
  np.testing.assert_allclose(best.boxes[:, ::2], want, rtol=1e-5)
  np.testing.assert_allclose(
    best.boxes[:, 1::2], shares[:, 1::2] * 60, rtol=1e-5
  )


def test_draws_differ_and_the_best_token_does_not():
  ask = lambda temperature, draw: (
    _answer()(_image(), detectors.Asked(temperature, 1.0), draw).tokens
  )
  np.testing.assert_array_equal(ask(0.0, 0), ask(0.0, 1))
  np.testing.assert_array_equal(ask(1.0, 0), ask(1.0, 0))
  assert np.any(ask(1.0, 0) != ask(1.0, 1))


def test_what_is_drawn_is_believed_and_names_are_escaped():
  answer = demo.Answer(
    boxes=np.array([[1, 2, 5, 9], [0, 0, 8, 8], [4, 4, 4, 9], [0, 0, 1, 1.0]]),
    labels=np.array([1, 4, 2, 1]),
    scores=np.array([0.9, 0.5, 0.8, 0.7]),
    said=np.array([True, True, True, False]),
    tokens=np.tile([20, 21, 22, 23, 3], 4),
  )
  assert demo.marks(answer, CLASSES, 0.6) == [((2, 1, 9, 5), "square 0.90")]
  vocab = _run().detector.vocab
  tokens = np.tile([*vocab.coord_start + np.arange(4), 0], (4, 1))
  tokens[:, 4] = vocab.class_start + answer.labels - 1
  answer = answer._replace(tokens=tokens.ravel())
  told = demo.sequence(answer, vocab, CLASSES, 0.6)
  assert "&lt;i&gt;cross" in told and "<i>" not in told
  rows = told.split("\n")[1:]
  assert [row.startswith("<b>") for row in rows] == [True, False, True]


def test_set_prediction_says_no_sequence():
  with pytest.raises(ValueError, match="detr"):
    demo.answering(_run("detr"))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
  with pytest.raises((ValueError, ImportError), match=r"classes.json|demo"):
    demo.main(["--workdir", str(tmp_path)])


@pytest.mark.browser("gradio")
def test_an_image_dropped_on_the_page_shows_boxes_and_their_sequence(
  browser_page, tmp_path
):
  from playwright.sync_api import expect

  expect.set_options(timeout=browser.TIMEOUT)
  Image.fromarray(_image()).save(tmp_path / "image.png")
  drawn = detectors.Asked(1.0, 1.0)
  asked = {n: _answer()(_image(), drawn, n) for n in range(1, 9)}
  marked = {n: demo.marks(a, CLASSES, 0.0) for n, a in asked.items()}
  draw = max(marked, key=lambda n: len(marked[n]))
  told = lambda answer, least: _words(
    demo.sequence(answer, _run().detector.vocab, CLASSES, least)
  )
  made, page = demo.page(_run()), browser_page
  _, url, _ = demo.launch(made, prevent_thread_lock=True, quiet=True)
  try:
    page.goto(url)
    _drop(page, tmp_path / "image.png")
    said = page.locator("#sequence pre")
    said.wait_for()
    best = _answer()(_image(), detectors.Asked(0.0, 1.0), 0)
    assert said.inner_text().split() == told(best, 0.5)
    for name, value in (("least", 0), ("top_p", 1), ("draw", draw)):
      page.locator(f"#{name} input[type=number]").fill(str(value))
    expect(said).to_have_text(re.compile(r"\s+".join(told(asked[draw], 0.0))))
    expect(page.locator("#boxes button.legend-item")).to_have_count(
      len({name for _, name in marked[draw]})
    )
  finally:
    made.close()


def _words(told):
  return html.unescape(re.sub(r"</?(pre|b)>", "", told)).split()


def _drop(page, path):
  """Drops a file on the image, as from a folder."""
  data = base64.b64encode(path.read_bytes()).decode()
  handle = page.evaluate_handle(
    """([data, name]) => {
      const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
      const moved = new DataTransfer();
      moved.items.add(new File([bytes], name, {type: "image/png"}));
      return moved;
    }""",
    [data, path.name],
  )
  target = page.locator("#image button").first
  target.wait_for()
  for event in ("dragenter", "dragover", "drop"):
    target.dispatch_event(event, {"dataTransfer": handle})
