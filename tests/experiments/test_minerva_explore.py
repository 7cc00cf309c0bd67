"""The page of samples: what it holds, and what it does in a real browser."""

from __future__ import annotations

import json
import pathlib

import pytest

from experiments.minerva import explore, grading, katex_files, records

# What a model must not be able to do with its text.
_EVIL = (
  '<img src=x onerror="window.hacked = 1"> </script><script>window.hacked = 2'
  "</script> $\\href{javascript:window.hacked=3}{x}$ "
  "$\\htmlData{a=b}{y}$ \\(\\includegraphics{http://a.invalid/b.png}\\) "
  "\u2028 \u2029 \U0001f600 $\\def\\a{\\a\\a}\\a$ [javascript:x](y) &lt;b&gt;"
)
_TEX = "Then $\\frac{1}{2}$ and \\[x^2\\]"


def _question(number: int, **changes) -> records.Question:
  samples = [f"{_TEX} The answer is {number}.", _EVIL, "no idea"]
  return records.Question(
    **{
      "id": f"q/{number}",
      "gold": str(number),
      "samples": tuple(records.Sample(t, -1.5, 7) for t in samples),
      "task": "math",
      "question": f"What is $x_{{{number}}}$?",
      "subject": "algebra" if number % 2 else "geometry",
      "level": number % 3 + 1,
      **changes,
    }
  )


def _grades(one: records.Question) -> dict:
  answers = [one.gold, "<b>\\frac{1}{3}</b>", None]
  more = len(one.samples) - 3
  return {
    "id": one.id,
    "task": one.task,
    "subject": one.subject,
    "level": one.level,
    "gold": one.gold,
    "answers": answers + [one.gold] * more,
    "outcomes": ["equal", "unequal", "invalid"] + ["equal"] * more,
    "classes": [
      {"answer": answers[0], "count": 1 + more, "right": True},
      {"answer": answers[1], "count": 1, "right": False},
    ],
    "labels": [0, 1, -1] + [0] * more,
    "majority": one.gold,
    "right": True,
  }


def _write(folder: pathlib.Path, questions, name="samples.jsonl") -> None:
  folder.mkdir(parents=True, exist_ok=True)
  lines = lambda rows: "".join(json.dumps(row) + "\n" for row in rows)
  (folder / name).write_text(lines(q.row() for q in questions))
  graded = lines(_grades(q) for q in reversed(questions))
  (folder / grading.GRADES).write_text(graded)


@pytest.fixture(scope="module")
def katex():
  """The npm package of KaTeX, if it is here or can be fetched."""
  try:
    katex_files.package()
  except FileNotFoundError as error:
    pytest.skip(str(error))


def _value(path: pathlib.Path):
  """What a script gives to the page, read as JavaScript would."""
  text = path.read_text("ascii")
  assert not set(text) & set("<>&")
  return json.loads(json.loads(text[text.index('"') : text.rindex(")")]))


@pytest.fixture(scope="module")
def page(katex, tmp_path_factory):
  """A page of eight questions."""
  run = tmp_path_factory.mktemp("run")
  _write(run, [_question(i) for i in range(8)])
  out = tmp_path_factory.mktemp("page")
  assert explore.build(run, out) == 8
  return out


def test_the_page_holds_everything(page):
  rows = _value(page / "data" / "index.js")["rows"]
  assert [row["id"] for row in rows] == [f"q/{i}" for i in range(8)]
  part = _value(page / "data" / "part-00000.js")
  for row in rows:
    found = part[row["place"]]
    assert row["part"] == 0 and row["vote"] == "right"
    assert row["counts"] == [1, 1, 0, 1] and sum(row["counts"]) == 3
    assert [s["kind"] for s in found["samples"]] == ["right", "wrong", "none"]
    assert found["samples"][1]["text"] == _EVIL
    assert [c["kind"] for c in found["classes"]] == ["right", "wrong"]
  style = (page / "katex" / "katex.css").read_text()
  assert "url(fonts" not in style and "font/woff2;base64," in style
  html = (page / "index.html").read_text()
  assert "http:" not in html and "https:" not in html


def test_runs_of_a_study_and_samples_of_others(katex, tmp_path):
  for name in ("preserved/seed_0", "stripped/seed_0"):
    _write(tmp_path / "study" / name, [_question(1)])
  explore.build(tmp_path / "study", tmp_path / "a")
  rows = _value(tmp_path / "a" / "data" / "index.js")["rows"]
  assert [r["run"] for r in rows] == ["preserved/seed_0", "stripped/seed_0"]
  graded = tmp_path / "graded"
  _write(graded, [_question(1)], "mine.jsonl")
  mine = str(graded / "mine.jsonl")
  settings = {"task": "math", "samples": {mine: "digest"}}
  (graded / "grading.json").write_text(json.dumps(settings))
  assert explore.build(graded, tmp_path / "b") == 1


def test_what_does_not_fit_is_refused(katex, tmp_path, monkeypatch):
  run, out = tmp_path / "run", tmp_path / "out"
  _write(run, [_question(1)])
  with pytest.raises(ValueError, match="grades.jsonl"):
    explore.build(tmp_path / "run2", out)
  (run / "samples.jsonl").rename(run / "other.jsonl")
  with pytest.raises(ValueError, match="--samples"):
    explore.build(run, out)
  _write(tmp_path / "two", [_question(2)])
  given = [str(tmp_path / "two" / "samples.jsonl")]
  with pytest.raises(ValueError, match="grades of 'q/1'"):
    explore.build(run, out, given=given)
  short = _question(1, samples=(records.Sample("a"),))
  (run / "samples.jsonl").write_text(json.dumps(short.row()))
  with pytest.raises(ValueError, match="1 samples and 3 grades"):
    explore.build(run, out)
  (tmp_path / "no.tgz").write_bytes(b"no")
  with pytest.raises(ValueError, match="no npm package"):
    explore.build(run, out, katex=str(tmp_path / "no.tgz"))
  monkeypatch.setenv("LOCOJAX_KATEX", str(tmp_path / "none"))
  with pytest.raises(FileNotFoundError, match="npm pack katex"):
    katex_files.package()


def _until(page, expression):
  """Waits for it; the page forbids the `eval` of Playwright's own wait."""
  for _ in range(600):
    if page.evaluate(expression):
      return
    page.wait_for_timeout(100)
  raise AssertionError(f"not so within a minute: {expression}")


def _opened(browser_page, folder):
  """Opens a page from its file, and lets nothing else through."""
  outside = []

  def inside(route):
    if route.request.url.startswith(folder.as_uri()):
      return route.continue_()
    outside.append(route.request.url)
    return route.abort()

  browser_page.unroute("**/*")
  browser_page.route("**/*", inside)
  browser_page.goto((folder / "index.html").as_uri())
  browser_page.wait_for_selector(".row")
  return outside


@pytest.mark.browser
def test_in_a_browser(browser_page, page):
  """Questions, votes, samples, filters; formulas are typeset."""
  outside, find = _opened(browser_page, page), browser_page.locator
  assert find(".row").count() == 8
  assert (
    "8 of 8 questions, 24 samples: 33.3 % right"
    in find("#summary").inner_text()
  )
  _until(browser_page, "document.querySelectorAll('.row .katex').length === 8")
  assert not find("label:has(#task)").is_visible()  # there is one
  find("#subject").select_option("algebra")
  find("#level").select_option("2")
  assert find(".row").count() == 2
  assert "2 of 8" in find("#summary").inner_text()
  find("#level").select_option("")
  find("#find").fill("x_{3}")
  find(".row").click()
  browser_page.wait_for_selector(".sample")
  assert find(".sample").count() == 3
  assert (
    find(".sample.is-right").count() == find(".sample.is-wrong").count() == 1
  )
  assert find(".sample .katex-display").count() == 1
  bars = find(".votes .bar i").evaluate_all("all => all.map(i => i.className)")
  assert bars == ["is-right", "is-wrong", "is-none"]
  find(".tools button", has_text="wrong").click()
  assert find(".sample").count() == 1
  find(".votes button").first.click()
  assert find(".sample.is-right").count() == find(".sample").count() == 1
  find("#typeset").uncheck()
  browser_page.wait_for_selector(".katex", state="detached")
  assert "\\frac{1}{2}" in find(".sample .body").inner_text()
  assert outside == []


@pytest.mark.browser
def test_what_a_model_wrote_stays_text(browser_page, page):
  outside = _opened(browser_page, page)
  browser_page.locator(".row").nth(2).click()
  browser_page.wait_for_selector(".sample.is-wrong")
  told = browser_page.evaluate(
    "[window.hacked ?? null, document.querySelectorAll('#detail img, #detail "
    "script, #detail b, #detail a, #detail [onerror]').length]"
  )
  assert told == [None, 0]
  shown = browser_page.locator(".sample.is-wrong .body").inner_text()
  assert "<img src=x onerror=" in shown and "&lt;b&gt;" in shown
  answer = browser_page.locator(".votes .answer").nth(1)
  assert answer.get_attribute("title") == "<b>\\frac{1}{3}</b>"
  assert outside == []


@pytest.mark.browser
def test_what_exists_is_what_is_in_sight(browser_page, katex, tmp_path):
  """Of three thousand questions."""
  few = _question(0).samples
  _write(tmp_path / "run", [_question(i, samples=few) for i in range(3000)])
  explore.build(tmp_path / "run", tmp_path / "page")
  assert len(list((tmp_path / "page" / "data").iterdir())) > 1
  outside = _opened(browser_page, tmp_path / "page")
  for change in (
    "byId('subject').value = 'algebra'; filter()",
    "byId('find').value = 'x_{29'; filter()",
    "byId('find').value = ''; byId('order').value = 'share'; filter()",
  ):
    browser_page.evaluate(f"() => {{ {change}; }}")
    rows = "document.querySelectorAll('.row').length"
    assert 0 < browser_page.evaluate(rows) < 40
  browser_page.evaluate("byId('list').scrollTop = 70 * 1000")
  _until(browser_page, "byId('rows').style.top !== '0px'")
  assert browser_page.evaluate(rows) < 40
  browser_page.locator(".row").nth(5).click()
  browser_page.wait_for_selector(".sample")
  place = browser_page.evaluate("shown.indexOf(chosen)")
  browser_page.locator("#list").press("ArrowDown")
  _until(browser_page, f"shown.indexOf(chosen) === {place + 1}")
  assert outside == []
