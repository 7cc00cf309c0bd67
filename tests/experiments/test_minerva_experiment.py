"""Texts, runs and answers of the experiment at its smallest."""

from __future__ import annotations

import functools
import json

import jax
import numpy as np
import pytest

from experiments.common import stages
from experiments.minerva import (
  answer,
  answering,
  experiment,
  grading,
  measures,
  texts,
)
from experiments.minerva.configs import reasoning
from locojax.core import files, trees
from locojax.data import pieces
from tests.experiments import tiny_runs

config = functools.partial(tiny_runs.config, reasoning.get_config)
ONE = texts.Solved("Find $2^{2}-7$.", "$4-7=-3$", "-3", "powers")
GSM = {
  "question": "How many eggs?",
  "answer": "16 - 3 = <<16-3=13>>13 eggs.\nShe sells 13.\n#### 1,013",
}


@pytest.mark.parametrize(
  "name, text, gold",
  [
    (
      "preserved",
      "Q: Find $2^{2}-7$.\nA: $4-7=-3$\nAnswer: $-3$",
      "-3",
    ),
    ("stripped", "Q: Find 2 2 7 .\nA: 4 7 3\nAnswer: 3", "3"),
    ("answer_only", "Q: Find $2^{2}-7$.\nAnswer: $-3$", "-3"),
  ],
)
def test_conditions_change_texts_and_nothing_else(name, text, gold):
  condition = texts.CONDITIONS[name]
  assert texts.text_of(ONE, condition) == text
  asked = texts.question_of(ONE, condition, "a")
  assert asked.gold == gold and text.startswith(asked.prompt)
  # What a model that has learnt its texts writes is right.
  sample = answering.records.Sample(text.removeprefix(asked.prompt))
  told = asked.prompt.endswith("Answer:")
  said = "Answer:" + sample.text if told else sample.text
  solved = answering.records.with_samples(
    asked, [answering.records.Sample(said)]
  )
  assert grading.Grader().grade(solved, "problems")["right"]


def test_windows_are_the_texts_one_behind_the_other():
  condition, tokens = texts.CONDITIONS["preserved"], pieces.Bytes()
  found = texts.windows([ONE, ONE], condition, tokens, 16)
  row = [256, *texts.text_of(ONE, condition).encode()] * 2
  assert found.shape == ((len(row) - 1) // 16, 17)
  assert found[0].tolist() == row[:17] and found[1].tolist() == row[16:33]
  with pytest.raises(ValueError, match="model.max_len=900 .* 8[0-9] tokens"):
    texts.windows([ONE, ONE], condition, tokens, 900)


def test_problems_of_the_test_are_not_trained_on():
  found = texts.load("problems", num_train=3000, num_test=60, size=4)
  asked = {one.question for one in found.test}
  assert not asked & {one.question for one in found.train}
  assert len(found.train) == 3000


def test_own_files_and_gsm8k_are_read_alike(tmp_path):
  path = tmp_path / "own.jsonl"
  own = {"problem": "What?", "solution": "So\n it is $\\boxed{7}$."}
  path.write_text("".join(json.dumps(row) + "\n" for row in (GSM, own)))
  first, second = texts.read(path)
  assert first.answer == "1013"
  assert first.steps == "16 - 3 = 13 eggs. She sells 13."
  assert second == texts.Solved("What?", "So it is $\\boxed{7}$.", "7")
  found = texts.load("file", path=str(path), num_test=1)
  assert len(found.train) == len(found.test) == 1
  with pytest.raises(ValueError, match=r"data.num_test=2 .* 2 rows"):
    texts.load("file", path=str(path), num_test=2)
  path.write_text(json.dumps({"question": "What?"}) + "\n")
  with pytest.raises(ValueError, match="own.jsonl, line 1: a row needs"):
    texts.read(path)


@pytest.mark.real_data
def test_gsm8k_in_pieces_comes_back(data_dir):
  found = texts.load(
    "gsm8k",
    data_dir=str(data_dir),
    num_train=600,
    num_test=5,
    tokenizer="pieces",
    vocab_size=800,
  )
  condition = texts.CONDITIONS["preserved"]
  for one in found.test:
    text = texts.text_of(one, condition)
    ids = found.tokenizer.ids(text)
    assert found.tokenizer.decode(ids) == text
    assert found.tokenizer.eod not in ids and max(ids) < 800
  assert len(found.drawn) == 600


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """The tiny study, with one condition and one seed."""
  made = config(conditions=("preserved",), seeds=(0,))
  folder = tmp_path_factory.mktemp("study")
  return made, folder, experiment.run(made, str(folder))


def test_a_study_has_table_figure_samples_and_grades(study):
  made, folder, out = study
  (row,) = out["rows"]
  assert len(row["maj1@4"]) == len(row["test_nll"]) == 1
  assert row["maj1@1"] == pytest.approx(row["pass@1"])
  run = folder / "preserved" / "seed_0"
  samples = [r for _, r in files.read_lines(run / answering.SAMPLES)]
  grades = [r for _, r in files.read_lines(run / grading.GRADES)]
  assert [r["id"] for r in samples] == [f"problems/test/{i}" for i in range(4)]
  assert {r["id"] for r in grades} == {r["id"] for r in samples}
  assert all(
    len(r["samples"]) == len(g["answers"]) == 4 for r, g in zip(samples, grades)
  )
  assert measures.has_log_probs(grades)
  assert (folder / "figure.png").stat().st_size > 1000


def test_what_is_done_is_not_done_again(study, monkeypatch):
  made, folder, out = study
  monkeypatch.setattr(stages, "fit", None)
  again = experiment.run(made, str(folder))
  assert again["rows"] == out["rows"]


def test_a_run_killed_while_it_samples_writes_the_same(study, monkeypatch):
  made, folder, _ = study
  run = folder / "preserved" / "seed_0"
  path = run / answering.SAMPLES
  whole, grades = path.read_bytes(), (run / grading.GRADES).read_bytes()
  one = stages.changed(made, condition="preserved", seed=0)
  lines = whole.splitlines(keepends=True)
  for kept in (0, 3):
    path.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
    (run / grading.GRADES).write_bytes(grades.splitlines(keepends=True)[0][:9])
    experiment.fit(one, run)
    assert path.read_bytes() == whole
    found = (run / grading.GRADES).read_bytes()
    assert sorted(found.splitlines()) == sorted(grades.splitlines())


def test_a_trained_model_is_asked_by_a_command(study, tmp_path):
  _, folder, _ = study
  own = tmp_path / "own.jsonl"
  own.write_text(json.dumps({"question": "What?", "answer": "4"}) + "\n")
  args = ["--run", str(folder / "preserved" / "seed_0"), "--path", str(own)]
  args += ["--out", str(tmp_path / "samples.jsonl"), "--num_samples", "3"]
  parsed = answer._parser().parse_args(args)
  (one,) = answer.run(parsed)
  assert len(one.samples) == 3 and one.prompt == "Q: What?\nA:"
  assert answer.run(parsed) == [one]
  told = [*args[:2], "--out", args[5], "--task", "math", "--path", str(own)]
  with pytest.raises(ValueError, match="has answers to 'own/0'"):
    answer.run(answer._parser().parse_args(told))
  args[1] = str(tmp_path)
  with pytest.raises(ValueError, match="run=.* has no config.json"):
    answer.run(answer._parser().parse_args(args))


def test_texts_that_stop_a_solution_and_prompts_that_are_too_long():
  made = config()
  net, tokens = experiment.model(made), pieces.Bytes()
  params = jax.jit(net.init)(jax.random.key(0), np.zeros((1, 4), np.int32))
  asked = answering.Answerer(
    net,
    params["params"],
    tokens,
    seed=0,
    num_samples=4,
    max_new_tokens=8,
    batch=1,
    stop="e",
  )
  assert asked.tokens("x" * 100).tolist() == [ord("x")] * 40
  question = texts.question_of(ONE, texts.CONDITIONS["preserved"], "a")
  (one,) = asked([question], [0])
  assert not any("e" in sample.text for sample in one.samples)
  assert {s.num_tokens for s in one.samples} <= set(range(1, 9))
  with pytest.raises(ValueError, match="max_new_tokens=48 .*below 48"):
    answering.Answerer(
      net, params, tokens, seed=0, num_samples=1, max_new_tokens=48
    )


def test_a_run_resumes_in_the_same_bits(tmp_path):
  made = config()
  whole = tiny_runs.fit(experiment, made, tmp_path / "a", data=1)
  with pytest.raises(tiny_runs.Stop):
    tiny_runs.fit(experiment, made, tmp_path / "b", data=1, until=4)
  again = tiny_runs.fit(experiment, made, tmp_path / "b", data=1)
  for one, two in zip(
    jax.tree.leaves(whole.params), jax.tree.leaves(again.params), strict=True
  ):
    np.testing.assert_array_equal(one, two)


def test_sharded_is_unsharded(tmp_path):
  """Over data and model, stacked layers and all."""
  stacked = {"model__scan_layers": True, "model__fused": False}
  made = config(num_steps=3, model__d_model=64, model__d_ff=512, **stacked)
  one = tiny_runs.fit(experiment, made, tmp_path / "a", data=1)
  spread = config(
    num_steps=3, model__d_model=64, model__d_ff=512, layout="fsdp", **stacked
  )
  two = tiny_runs.fit(experiment, spread, tmp_path / "b", data=2, model=2)
  layouts = {
    path: x.sharding.spec for path, x in trees.flatten(two.params).items()
  }
  up = layouts["decoder/blocks/feed_forward/up/kernel"]
  assert "model" in up and layouts["embed/embedding"][0] == "model"
  for path, x in trees.flatten(one.params).items():
    other = trees.flatten(two.params)[path]
    np.testing.assert_allclose(x, other, rtol=1e-4, atol=1e-5, err_msg=path)


def test_drawn_problems_come_first_where_the_condition_says_so(
  tmp_path, monkeypatch
):
  path = tmp_path / "own.jsonl"
  rows = [{"question": "Z" * 40, "answer": "4"}] * 40
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  made = config(
    data__name="file",
    data__path=str(path),
    data__num_test=2,
    condition="pretrained",
    conditions=("pretrained",),
    num_steps=4,
  )
  found = [b["tokens"] for _, b in zip(range(4), experiment._batches(made, 0))]
  share = [np.mean(b == ord("Z")) for b in found]
  assert max(share[:2]) == 0.0 and min(share[2:]) > 0.5
  late = next(iter(experiment._batches(made, 3)))
  np.testing.assert_array_equal(late["tokens"], found[3])
