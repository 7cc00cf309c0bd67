"""A page on which an image is dropped, and boxes and their sequence appear.

  python -m experiments.pix2seq.demo --workdir RUNS/augmented/seed_0

The folder is that of one finished run; its data are not needed. With top-p at
its least the best token is taken everywhere; above it tokens are drawn, other
ones with another number of `draw`. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import html
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common import commands
from experiments.pix2seq import detectors, pictures, restored, scoring
from locojax.core import boxes as layouts
from locojax.core import checks
from locojax.data import image_files
from locojax.methods import pix2seq

HELP = (
  "the page needs gradio: install the extra `demo`, in a checkout by "
  "./scripts/install experiments,demo"
)
LEAST_TOP_P = 0.05
_NONE = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int32)}
_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}


class Answer(NamedTuple):
  """What a model says of one image, in the order in which it is said.

  Attributes:
    boxes: `[N, 4]` yxyx in pixels of the image.
    labels: `[N]` from 1.
    scores: `[N]`.
    said: `[N]` bool, false behind the end of the sequence.
    tokens: `[5 N]`.
  """

  boxes: np.ndarray
  labels: np.ndarray
  scores: np.ndarray
  said: np.ndarray
  tokens: np.ndarray


def answering(found: restored.Restored) -> Callable[..., Answer]:
  """`(image, asked, draw) -> Answer`, compiled once for all settings.

  Images are uint8 `[h, w, 3]`, `asked` is a `detectors.Asked`, and `draw` a
  number that says which tokens are drawn.

  Raises:
    ValueError: a run of set prediction, which says no sequence.
  """
  if found.detector.vocab is None:
    checks.refuse(
      "method of the run", found.config.method, "one that says a sequence"
    )
  asker = detectors.Asker(found.config, found.detector)
  size = found.config.data.image_size

  def answer(image, asked: detectors.Asked, draw: int) -> Answer:
    shape = np.array(image.shape[:2], np.int32)
    one = scoring.Numbered([{"image": image, "size": shape, **_NONE}], size)[0]
    batch = {"image": one["image"][None], "row": np.array([draw], np.int32)}
    said = asker.on(found.state, asked)(batch)
    boxes = pix2seq.rescale_boxes(
      said.boxes[0],
      canvas=np.array([size, size]),
      unpadded=one["unpadded"],
      original=shape,
    )
    rest = (x[0] for x in (said.classes, said.scores, said.said, said.tokens))
    return Answer(np.asarray(boxes), *rest)

  return answer


def marks(
  answer: Answer, classes: Sequence[str], least: float
) -> list[tuple[tuple[int, int, int, int], str]]:
  """Boxes to draw, `((left, top, right, bottom), class and score)`.

  Args:
    answer: of the model.
    classes: names.
    least: scores below it are left out, and so are boxes without area and
      classes that the data set of the run does not have.
  """
  keep = answer.said & (answer.scores >= least)
  keep &= layouts.is_proper(answer.boxes) & (answer.labels <= len(classes))
  corners = np.rint(answer.boxes[keep]).astype(int).tolist()
  names = [classes[k - 1] for k in answer.labels[keep]]
  return [
    ((left, top, right, bottom), f"{name} {score:.2f}")
    for (top, left, bottom, right), name, score in zip(
      corners, names, answer.scores[keep]
    )
  ]


def sequence(
  answer: Answer,
  vocab: pix2seq.Vocabulary,
  classes: Sequence[str],
  least: float,
) -> str:
  """The sequence as HTML, an object a line; believed ones are bold.

  Args:
    answer, classes, least: as of `marks`.
    vocab: the tokens.
  """
  lines = pictures.lines(answer.tokens, vocab, classes, answer.scores, least)
  lines = [line for line, said in zip(lines, answer.said) if said]
  tagged = [
    f"<b>{html.escape(text)}</b>" if believed else html.escape(text)
    for text, believed in lines
  ]
  head = html.escape("ymin xmin ymax xmax  class")
  return f"<pre>{chr(10).join([head, *tagged])}</pre>"


def _gradio():
  os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
  try:
    import gradio
  except ImportError as e:
    raise ImportError(HELP) from e
  return gradio


def page(found: restored.Restored) -> Any:
  """The page of a run, a `gradio.Blocks`.

  Raises:
    ImportError: gradio is not installed.
    ValueError: a run that says no sequence.
  """
  gradio = _gradio()
  answer, vocab = answering(found), found.detector.vocab
  default = detectors.Asker(found.config, found.detector).default()

  def show(path, top_p, eos_offset, least, draw):
    if not path:
      return None, ""
    temperature = 0.0 if top_p <= LEAST_TOP_P else 1.0
    asked = detectors.Asked(temperature, float(top_p), float(eos_offset))
    try:
      image = image_files.read_image(path)
      out = answer(image, asked, int(draw))
    except ValueError as e:
      raise gradio.Error(commands.message(e)) from e
    told = sequence(out, vocab, found.classes, least)
    return (image, marks(out, found.classes, least)), told

  with gradio.Blocks(title="Pix2Seq", analytics_enabled=False) as made:
    gradio.Markdown(
      f"# Pix2Seq\n{found.config.method}: {', '.join(found.classes[:20])}"
      f"{', ...' if len(found.classes) > 20 else ''}"
    )
    with gradio.Row():
      with gradio.Column():
        inputs = _inputs(gradio, default, found.detector.stops)
      with gradio.Column():
        boxes = gradio.AnnotatedImage(
          label="boxes", elem_id="boxes", format="png"
        )
        said = gradio.HTML(label="sequence", elem_id="sequence")
    gradio.on(
      [part.change for part in inputs],
      show,
      inputs,
      [boxes, said],
      trigger_mode="always_last",
      show_progress="minimal",
      api_name="detect",
    )
  return made


def _inputs(gradio, default: detectors.Asked, stops: bool) -> list[Any]:
  """Image and settings, in the order in which they are asked for."""
  slider = lambda low, high, value, **more: gradio.Slider(
    low, high, value=value, **more
  )
  return [
    gradio.Image(type="filepath", format="png", label="image", elem_id="image"),
    slider(
      *(LEAST_TOP_P, 1.0),
      LEAST_TOP_P if default.temperature == 0 else default.top_p,
      step=0.05,
      label="top-p",
      info="share of probability that tokens are drawn from; least: the best",
      elem_id="top_p",
    ),
    slider(
      *(-4.0, 8.0, default.eos_offset),
      step=0.5,
      label="offset of the end",
      info="more is said with a greater one",
      elem_id="eos_offset",
      visible=stops,
    ),
    slider(*(0.0, 1.0, 0.5), step=0.01, label="least score", elem_id="least"),
    slider(*(0, 99, 0), step=1, label="draw", elem_id="draw"),
  ]


def launch(made: Any, **settings: Any) -> tuple[Any, str, str]:
  """Serves a page, without a call to anywhere else; as `Blocks.launch`."""
  gradio = _gradio()
  return made.launch(
    theme=gradio.themes.Default(**_FONTS),
    share=False,
    footer_links=[],
    **settings,
  )


def main(argv: Sequence[str]) -> None:
  """Serves the page until it is stopped."""
  parser = argparse.ArgumentParser(
    prog="python -m experiments.pix2seq.demo",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--workdir", required=True, help="folder of one run")
  parser.add_argument("--host", default="127.0.0.1")
  parser.add_argument("--port", type=int, help="the first free one by default")
  args = parser.parse_args(argv)
  if args.port is not None:
    checks.int_in_range("--port", args.port, 1, 65535)
  _gradio()
  made = page(restored.load(args.workdir))
  launch(made, server_name=args.host, server_port=args.port)


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
