"""The data pipeline: each document has one fate, in any order of work."""

from __future__ import annotations

import ast
import gzip
import json
import pathlib
import random

import numpy as np
import pytest

from experiments.minerva import pipeline, pipeline_inputs, pipeline_work
from locojax.data import pieces, sources

pytest.importorskip("apache_beam")
from experiments.minerva import pipeline_stages

ROOT = pathlib.Path(__file__).parents[2]
_SETTINGS = pipeline_work.Settings(
  min_chars=40, docs_per_shard=3, num_files=2, seq_len=64, tokenizer="bytes"
)


def _page(words: str, formula: str = r"\(x^2\)") -> str:
  return f"<html><body><p>{words}</p><p>{formula} is it.</p></body></html>"


def _words(seed: int, num: int = 150) -> str:
  return " ".join(
    f"w{i}" for i in np.random.default_rng(seed).integers(999, size=num)
  )


_ASKED = (
  "Ann has nine red apples and gives four of them to Bob how many are left"
)
_SCRIPT = '<script type="math/tex">a < b</script>'
# A page for each fate.
PAGES = [
  ("kept", _page(_words(0))),
  ("kept", _page(_words(1), _SCRIPT)),
  ("no_formula", _page(_words(2), "nothing")),
  ("only_rendered", _page(_words(3), "<mjx-container>x</mjx-container>")),
  ("too_short", _page("w")),
  ("empty", "<html><script>x</script></html>"),
  ("exact_duplicate", _page("\n\n".join(_words(0).split()))),
  ("near_duplicate", _page(_words(1) + " more", _SCRIPT)),
  ("unreadable", None),
  ("contaminated", _page(f"{_words(4)} {_ASKED}?")),
]
PAPERS = {
  "a": ("kept", f"\\section{{A}}\n{_words(5)} $x$\n% gone\n\\appendix\nb"),
  "b": ("no_section", "a\nb"),
  "c": ("no_newline", "\\section{A}"),
  "d": ("empty", "% all"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
  """Files of all documents; what is given, and the questions."""
  root = tmp_path_factory.mktemp("inputs")
  with gzip.open(root / "pages.jsonl.gz", "wt") as file:
    for _, page in PAGES:
      file.write(json.dumps({"html": page}) + "\n" if page else "not JSON\n")
  for name, (_, text) in PAPERS.items():
    (root / "papers" / name).mkdir(parents=True)
    (root / "papers" / name / "ms.tex").write_text(text)
  (root / "papers" / "a" / "metadata.json").write_text('{"title": "On a"}')
  (root / "asked.jsonl").write_text(json.dumps({"question": _ASKED}))
  given = [
    ("html", str(root / "pages.jsonl.gz")),
    ("tex", str(root / "papers")),
  ]
  return given, str(root / "asked.jsonl")


def _with(inputs, **changes):
  import dataclasses

  changes = {"questions": (inputs[1],), "drop_contaminated": True, **changes}
  return dataclasses.replace(_SETTINGS, **changes)


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory):
  """A result and its report."""
  out = tmp_path_factory.mktemp("made")
  return out, pipeline.run(inputs[0], _with(inputs), str(out))


def _content(out: pathlib.Path) -> dict[str, bytes]:
  found = (p for p in out.rglob("*") if p.is_file() and p.name != "run.lock")
  return {str(p.relative_to(out)): p.read_bytes() for p in found}


def test_every_document_has_one_fate(made, inputs):
  out, report = made
  shards = pipeline_inputs.plan(inputs[0], docs_per_shard=3)
  assert [s.count for s in shards] == [3, 3, 3, 1, 3, 1]
  told = [
    reason or "kept"
    for shard in shards
    for _, reason in pipeline_work.fates(shard, _with(inputs), str(out))
  ]
  wanted = [f for f, _ in PAGES] + [f for f, _ in PAPERS.values()]
  assert told == wanted
  rows = {row["kind"]: row for row in report["documents"]}
  assert rows["html"]["documents"] == len(PAGES) and rows["html"]["kept"] == 2
  for row in rows.values():
    reasons = [v for k, v in row.items() if k in pipeline_work.REASONS]
    assert row["kept"] + sum(reasons) == row["documents"]
  assert [r for _, _, r in report["dropped"]] == [
    w for w in wanted if w != "kept"
  ]
  assert report["questions"][0]["whole"] == 1
  counts = {r["formulas"]: r for r in report["formulas"]}
  assert counts["script"] == {
    "formulas": "script",
    "in kept texts": 1,
    "in dropped": 1,
  }
  assert (out / "report.md").read_text().count("|") > 10


def test_rows_hold_the_texts_that_are_kept(made):
  out, report = made
  source = sources.from_token_records(out / "tokens")
  told = report["tokens"]
  assert len(source) == told["rows"] and told["texts"] == 3
  assert told["tokens"] == 64 * told["rows"]
  rows = sources.as_arrays(source)["tokens"]
  text = pieces.Bytes()
  stream = "".join(chr(t) if t != text.eod else "\0" for t in rows.reshape(-1))
  first = _words(0).split()[5:20]
  found = [part for part in stream.split("\0") if " ".join(first) in part]
  assert len(found) == 1


def test_a_finished_folder_is_left_alone(made, inputs, monkeypatch):
  out, report = made
  before = _content(out)
  monkeypatch.setattr(pipeline_stages, "_run", lambda *_: pytest.fail("ran"))
  again = pipeline.run(inputs[0], _with(inputs), str(out))
  assert again == report and _content(out) == before


def test_stopped_and_with_two_workers_it_is_the_same_to_the_byte(
  made, inputs, tmp_path, monkeypatch
):
  """Killed at the third shard, and in the middle of packing."""
  settings, done = _with(inputs), []
  clean = pipeline_work.clean

  def killed(shard, *rest):
    done.append(shard)
    if len(done) > 3:
      raise KeyboardInterrupt
    clean(shard, *rest)

  two = ["--direct_num_workers=2", "--direct_running_mode=multi_threading"]
  monkeypatch.setattr(pipeline_work, "clean", killed)
  with pytest.raises(BaseException):  # noqa: B017
    pipeline.run(inputs[0], settings, str(tmp_path))
  monkeypatch.undo()
  assert len(list((tmp_path / "clean").glob("*.gz"))) == 3
  pipeline.run(inputs[0], settings, str(tmp_path), two)
  assert _content(tmp_path) == _content(made[0])


def test_the_order_of_values_does_not_matter(made, inputs):
  """Beam gives the values of a key in any order."""
  out, settings = made[0], _with(inputs)
  shards = pipeline_inputs.plan(inputs[0], docs_per_shard=3)
  buckets: dict[bytes, list] = {}
  for shard in shards:
    for key, value in pipeline_work.keys_of(shard, settings, str(out)):
      buckets.setdefault(key, []).append(value)
  for seed in range(5):
    mix = random.Random(seed)
    for key, bucket in buckets.items():
      found = [
        sorted(pipeline_work.duplicates_in(key, b, settings.threshold))
        for b in (bucket, mix.sample(bucket, len(bucket)))
      ]
      assert found[0] == found[1]


def test_every_transform_has_a_label_of_its_own():
  """Beam names others after their line, and two of one line collide."""
  path = ROOT / "experiments" / "minerva" / "pipeline_stages.py"
  labels = []
  for node in ast.walk(ast.parse(path.read_text())):
    made = isinstance(node, ast.Call) and ast.unparse(node.func)
    if made in {
      f"beam.{n}" for n in ("Create", "ParDo", "GroupByKey", "Flatten")
    }:
      labels.append(node)
  shifts = [
    node
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift)
  ]
  assert len(shifts) >= len(labels)
  names = [ast.unparse(node.left) for node in shifts]
  assert len(set(names)) == len(names)


def test_no_program_is_looked_for_in_the_network():
  """`DirectRunner` would fetch one before it falls back."""
  from apache_beam.options import pipeline_options

  for flags in ([], ["--runner=DirectRunner"]):
    found = pipeline_stages.options_of(flags)
    standard = found.view_as(pipeline_options.StandardOptions)
    assert standard.runner == "FnApiRunner"
  other = pipeline_stages.options_of(["--runner", "FlinkRunner"])
  standard = other.view_as(pipeline_options.StandardOptions)
  assert standard.runner == "FlinkRunner"
  with pytest.raises(ValueError, match="--shingl=3"):
    pipeline_stages.options_of(["--shingl=3"])


BAD = [
  ({"seq_len": 0}, "--seq_len=0"),
  ({"threshold": 2.0}, "--threshold=2.0"),
  ({"bands": 5}, "--permutations=128"),
  ({"tokenizer": "no"}, "--tokenizer='no'"),
  ({"questions": ("no",)}, "--questions='no'"),
  ({"min_chars": -1}, "--min_chars=-1"),
]


@pytest.mark.parametrize(("changes", "words"), BAD)
def test_bad_settings_are_refused(inputs, tmp_path, changes, words):
  with pytest.raises(ValueError) as error:
    pipeline.run(inputs[0], _with(inputs, **changes), str(tmp_path / "a"))
  assert words in str(error.value)


def test_bad_inputs_and_other_folders_are_refused(made, inputs, tmp_path):
  out, settings = str(made[0]), _with(inputs)
  (tmp_path / "x.html").write_text("a")
  for given, words in (
    ([], "there is no input"),
    ([("html", str(tmp_path / "no"))], "that is there"),
    ([("html", str(tmp_path / "x.html"))], "JSON lines"),
    ([("tex", str(tmp_path))], "with documents"),
  ):
    with pytest.raises(ValueError, match=words):
      pipeline.run(given, settings, str(tmp_path / "a"))
  with pytest.raises(ValueError, match="made with seq_len 64, and this is 32"):
    pipeline.run(inputs[0], _with(inputs, seq_len=32), out)
  with pytest.raises(ValueError, match="made with inputs"):
    pipeline.run(inputs[0][:1], settings, out)


def test_a_trained_tokenizer_gives_back_every_text(tmp_path, inputs):
  """Blanks, line ends and signs it never saw."""
  texts = [f"{_words(i)}\n  $x_{{{i}}}$" for i in range(30)]
  made = pieces.train(texts, vocab_size=400, lower_case=False, exact=True)
  for text in (
    "a  b\n\n c\t$\\frac{1}{2}$ ",
    " \n",
    "\u00e9\U0001f600",
    texts[3],
  ):
    assert made.decode(made.ids(text)) == text
  path = tmp_path / "t.model"
  made.save(path)
  settings = _with(inputs, tokenizer=str(path))
  pipeline._tokenizer([], settings, str(tmp_path / "out"))
  assert (tmp_path / "out" / "pieces.model").read_bytes() == path.read_bytes()
