"""Grading of samples: formats, verdicts, votes, errors, killed programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from experiments.minerva import grade, grading, measures, records, tasks
from locojax.core import files
from locojax.methods import minerva

SAID = "Thus.\nFinal Answer: The final answer is ${}$. I hope it is correct."
MATH = (
  (r"\frac{1}{2}", ("0.5", r"\frac12", "2", "2", "2")),
  ("[2,5)", ("[2,5)", "[2, 5)", "(2,5)", "[2,5]", "[2,5)")),
  (r"3\sqrt{2}", (r"\sqrt{18}", "4.24", r"3 \sqrt 2", "x", r"\sqrt{18}")),
)


def _lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def _harness(path, *, filters=("none",), cut=True):
  """As lm-evaluation-harness writes repeats of MATH, a row for each filter."""
  rows = []
  for i, (gold, answers) in enumerate(MATH):
    texts = [SAID.format(a) for a in answers]
    if cut:  # generation stops at the phrase, which is not in the text
      texts = [t.removesuffix("I hope it is correct.") for t in texts]
    solution = rf"It is $\boxed{{{gold}}}$."
    doc = {"problem": f"What {i}?", "solution": solution, "level": "Level 3"}
    for name in filters:
      row = {"doc_id": i, "doc": {**doc, "type": "Algebra"}, "target": gold}
      rows.append({**row, "resps": [texts], "filter": name})
  return _lines(path, rows)


def _ours(path):
  return _lines(
    path,
    [
      {
        "id": f"q{i}",
        "gold": gold,
        "samples": [
          {"text": SAID.format(a), "log_prob": -1.0 * k, "num_tokens": 3}
          for k, a in enumerate(answers)
        ],
      }
      for i, (gold, answers) in enumerate(MATH)
    ],
  )


def _run(*args):
  return grade.run(grade._parser().parse_args([*args, "--engine", "none"]))


def test_files_of_the_harness_and_ours_are_graded_alike(tmp_path, capsys):
  name = tmp_path / "samples_minerva_math_algebra_2024-05-01T10-20-30.1.jsonl"
  theirs = _harness(name, filters=("strict", "flexible"))
  found = _run(theirs, "--task", "math", "--out", str(tmp_path / "a"))
  ours = _ours(tmp_path / "ours.jsonl")
  again = _run(ours, "--task", "math", "--out", str(tmp_path / "b"))
  assert [r["id"] for r in found] == [
    f"samples_minerva_math_algebra/{i}" for i in range(3)
  ]
  for one, two in zip(found, again, strict=True):
    for key in ("answers", "outcomes", "classes", "labels", "majority"):
      assert one[key] == two[key], key
  assert found[0]["subject"] == "Algebra" and found[0]["level"] == 3
  right = [[o == "equal" for o in r["outcomes"]] for r in found]
  assert right[0] == [True, True, False, False, False]
  assert right[1] == [True, True, False, False, True]
  assert right[2] == [True, False, True, False, True]
  assert [r["right"] for r in found] == [False, True, True]
  assert found[1]["strict"] == [True, True, False, False, True]
  table = (tmp_path / "b" / "table.md").read_text()
  assert "rerank" in table and table in capsys.readouterr().out


def test_sums_are_their_estimators(tmp_path):
  rows = _run(_ours(tmp_path / "s.jsonl"), "--task", "math")
  found = measures.summary(rows, (1, 3, 5))
  assert found["right"] == pytest.approx(8 / 15)
  assert found["maj1@1"] == pytest.approx(found["pass@1"])
  assert found["rerank@1"] == pytest.approx(8 / 15)
  assert found["maj1@5"] == pytest.approx(2 / 3) and found["pass@5"] == 1.0
  assert found["rerank@5"] == 1.0 and found["mode_right"] == 2 / 3
  assert found["maj1@3"] == pytest.approx(
    sum(measures.vote_at(row, 3) for row in rows) / 3
  )
  bent = measures.bent(rows, 5)
  assert bent["wrong_mode_maj1@1"] == pytest.approx(0.4 / 3)
  assert bent["wrong_mode_maj1@5"] == 0.0
  with pytest.raises(ValueError, match=r"k=6 .*\[1, 5\]"):
    measures.curves(rows, (6,))


@pytest.mark.parametrize(
  "task, gold, texts, right",
  [
    ("gsm8k", "1000", ["so #### 1,000", "The answer is $1000.", "1e9"], 2),
    ("mmlu_stem", "B", ["The answer is (B).", "answer is B", "is (C)"], 2),
    (
      "ocw_courses",
      "-10",
      [
        "Final answer: The final answer is -10. I hope it is correct.",
        r"It is \boxed{-10.05}",
        r"\boxed{10}",
      ],
      2,
    ),
    (
      "problems",
      r"\frac{2}{7}",
      [r"$=$" + "\n" + r"Answer: $\frac{4}{14}$", "Answer: 2/7", "2/7"],
      2,
    ),
  ],
)
def test_every_task_reads_its_answers(task, gold, texts, right):
  samples = tuple(map(records.Sample, texts))
  one = records.Question(id="a", gold=gold, samples=samples)
  row = grading.Grader().grade(one, task)
  assert row["outcomes"].count("equal") == right
  assert row["right"]


@pytest.mark.parametrize(
  "row, words",
  [
    ({"gold": "1"}, "line 2: it has neither 'samples' nor 'resps'"),
    ({"samples": ["a"]}, "line 2: it has no 'gold'"),
    ({"gold": "1", "samples": []}, "line 2: .* has no samples"),
    ({"gold": "1", "samples": "a"}, "line 2: 'samples' is 'a'"),
    ({"gold": "1", "samples": [{"txt": "a"}]}, "an object with 'text'"),
    ({"gold": [1], "samples": ["a"]}, r"line 2: 'gold' is \[1\]"),
    ({"id": "q", "gold": "1", "samples": ["a"]}, "'q' was there before"),
    ({"resps": [["a"]]}, "line 2: it has no 'doc'"),
    (
      {"doc": {"answer": "1"}, "target": "1", "resps": [[[-1.5, False]]]},
      "not log-likelihoods",
    ),
    ({"doc": {}, "resps": [["a"]]}, "has a right answer"),
    ([1], "line 2: it is a list"),
  ],
)
def test_a_bad_row_is_named(tmp_path, row, words):
  good = {"id": "q", "gold": "1", "samples": ["a"]}
  path = _lines(tmp_path / "s.jsonl", [good, row])
  with pytest.raises(ValueError, match=words) as error:
    records.read([path], task="math")
  assert "s.jsonl" in str(error.value)


@pytest.mark.parametrize(
  "args, words",
  [
    (["--task", "maths"], "--task='maths'.*mean 'math'"),
    (["--task", "math", "--workers", "0"], "--workers=0"),
    (["--task", "math", "--k", "6"], r"--k=6 .*\[1, 5\]"),
  ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
  tmp_path, args, words
):
  path = _ours(tmp_path / "s.jsonl")
  with pytest.raises(ValueError, match=words):
    _run(path, *args)
  with pytest.raises(ValueError, match="absent.jsonl.*a file of JSON lines"):
    _run(str(tmp_path / "absent.jsonl"), "--task", "math")
  assert [p.name for p in tmp_path.iterdir()] == ["s.jsonl"]


def test_a_folder_belongs_to_one_set_of_samples(tmp_path):
  path = tmp_path / "s.jsonl"
  _run(_ours(path), "--task", "math", "--out", str(tmp_path / "out"))
  with pytest.raises(ValueError, match="made with task 'math'"):
    _run(str(path), "--task", "problems", "--out", str(tmp_path / "out"))
  path.write_text(path.read_text().replace("q0", "q9"))
  with pytest.raises(ValueError, match="made with samples"):
    _run(str(path), "--task", "math", "--out", str(tmp_path / "out"))


def test_what_was_graded_is_graded_once(tmp_path, monkeypatch):
  path, out = _ours(tmp_path / "s.jsonl"), tmp_path / "out"
  args = (path, "--task", "math", "--out", str(out), "--workers", "1")
  whole = _run(path, "--task", "math", "--out", str(tmp_path / "whole"))
  asked, real = [], grading.Grader.grade

  def dies(self, question, task):
    if len(asked) == 2:
      raise RuntimeError("killed")
    asked.append(question.id)
    return real(self, question, task)

  monkeypatch.setattr(grading.Grader, "grade", dies)
  with pytest.raises(RuntimeError, match="killed"):
    _run(*args)
  file = out / grading.GRADES
  file.write_bytes(file.read_bytes() + b'{"id": "q2", "ta')  # and cut off
  monkeypatch.setattr(
    grading.Grader,
    "grade",
    lambda self, q, t: (asked.append(q.id), real(self, q, t))[1],
  )
  assert _run(*args) == whole
  assert asked == ["q0", "q1", "q2"]
  assert len(files.read_lines(file)) == 3
  assert _run(*args) == whole and len(asked) == 3


@pytest.mark.slow
def test_a_killed_program_goes_on_where_it_was(tmp_path):
  """SIGKILL at some moment, with SymPy in processes of its own."""
  rows = [
    {
      "id": f"q{i}",
      "gold": rf"\sin^2 {i} + \cos^2 {i}",
      "samples": [rf"\boxed{{{a}}}" for a in ("1", "x", f"{i}", "y + 1 - y")],
    }
    for i in range(1, 60)
  ]
  path, out = _lines(tmp_path / "s.jsonl", rows), tmp_path / "out"
  command = [sys.executable, "-m", "experiments.minerva.grade", path]
  command += ["--task", "math", "--out", str(out), "--workers", "1"]
  grades = out / grading.GRADES
  running = subprocess.Popen(command, start_new_session=True)
  end = time.monotonic() + 120
  while time.monotonic() < end:
    if grades.exists() and grades.read_bytes().count(b"\n") > 5:
      break
    time.sleep(0.05)
  os.killpg(running.pid, signal.SIGKILL)
  running.wait()
  before = grades.read_bytes()
  assert 5 < before.count(b"\n") < 59
  subprocess.run(command, check=True)
  after = grades.read_bytes()
  assert after.startswith(before[: before.rfind(b"\n") + 1])
  found = [row["id"] for _, row in files.read_lines(grades)]
  assert sorted(found) == sorted(row["id"] for row in rows)


@pytest.mark.real_data
def test_the_real_sets_have_prompts_and_gold_answers(data_dir):
  counts = {"gsm8k": 1319, "mmlu_stem": 3018, "ocw_courses": 272}
  for task, count in counts.items():
    found = tasks.load(task, data_dir=str(data_dir))
    assert len(found) == len({q.id for q in found}) == count
    made = tasks.TASKS[task]
    for one in found[:: count // 20]:
      assert one.question in one.prompt and one.prompt.endswith(
        ("Solution:", "A:")
      )
      verdict = made.verdict(one.gold, one.gold, minerva.compare)
      assert verdict.equal, one.gold
  own = tasks.load("gsm8k", data_dir=str(data_dir), split="train")
  assert len(own) == 7473 and own[0].gold == "72"


def test_own_questions_of_math(tmp_path):
  path = _lines(
    tmp_path / "own.jsonl",
    [{"problem": "What?", "solution": r"$\boxed{7}$", "level": 2}],
  )
  found = tasks.load("math", path=path)
  assert found[0].gold == "7" and found[0].level == 2
  assert found[0].prompt == minerva.math_4shot("What?")
  _lines(tmp_path / "own.jsonl", [{"problem": "What?"}])
  with pytest.raises(ValueError, match="line 1: a question needs"):
    tasks.load("math", path=path)
  with pytest.raises(ValueError, match="task='math'.*one of your own"):
    tasks.load("math")
  with pytest.raises(FileNotFoundError, match="gsm8k_test.*data_dir"):
    tasks.load("gsm8k", data_dir=str(tmp_path))
