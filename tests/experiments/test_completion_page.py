"""Monaco in a real browser, speaking to the server over a websocket."""

from __future__ import annotations

import asyncio
import json
import pathlib
import sys
import threading
import urllib.error
import urllib.request

import pytest

pytest.importorskip("pygls")
pytest.importorskip("websockets")
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import serving_fake

from experiments.completion.serving import page

PLAN = {
  "names": ["append", "zip", "apply"],
  "lines": ["append(value)", "total = sum(items)"],
  "engine": "static",
  "engine_names": ["abs", "append", "apply"],
  "wait_ms": 5000,
}
SHOTS = "SERVING_SHOTS"


class _Served:
  """A page served from a thread of its own."""

  def __init__(self, root, plan):
    self._made = serving_fake.assistant(plan)
    self._made.loading.result()
    self._loop = asyncio.new_event_loop()
    self._begun, self._end = threading.Event(), asyncio.Event()
    work = lambda: self._loop.run_until_complete(self._serve(root))
    self._thread = threading.Thread(target=work)

  async def _serve(self, root):
    async with page.opened(self._made, root, "127.0.0.1", 0) as self.address:
      self._begun.set()
      await self._end.wait()

  def __enter__(self):
    self._thread.start()
    assert self._begun.wait(30)
    return self

  def __exit__(self, *_):
    self._loop.call_soon_threadsafe(self._end.set)
    self._thread.join(30)
    self._made.shutdown()


@pytest.fixture
def served(tmp_path):
  with _Served(tmp_path, PLAN) as made:
    yield made


def _get(address):
  try:
    with urllib.request.urlopen(address, timeout=30) as found:
      return found.status, found.read()
  except urllib.error.HTTPError as error:
    return error.code, b""


@pytest.mark.monaco
def test_only_the_page_and_who_has_its_token_are_served(served, tmp_path):
  base, _, token = served.address.partition("?")
  assert _get(base)[0] == 200 and b"Code completion" in _get(base)[1]
  assert _get(base + "settings.json")[0] == 403
  assert _get(base + "settings.json?token=no")[0] == 403
  told = json.loads(_get(f"{base}settings.json?{token}")[1])
  assert told == {"root": tmp_path.resolve().as_uri()}
  assert _get(base + "vs/loader.js")[0] == 200
  for path in ("../../server.py", "server.py", "vs/../../package.json", "no"):
    assert _get(base + path)[0] == 404

  async def no_token():
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidStatus

    with pytest.raises(InvalidStatus, match="403"):
      await connect(base.replace("http", "ws"))

  asyncio.run(no_token())


@pytest.mark.monaco
@pytest.mark.browser("websockets", "pygls")
def test_ghost_text_is_accepted_and_the_list_is_ranked(served, browser_page):
  view = browser_page
  # A page on a busy machine: what it puts off until it is idle never comes.
  view.add_init_script("window.requestIdleCallback = () => 0")
  view.goto(served.address)
  view.wait_for_function("window.codeEditor?.hasTextFocus()")
  value = lambda: view.evaluate("window.codeEditor.getValue()")
  view.keyboard.type("items = [1, 2]\n")
  view.keyboard.type("t")
  ghost = view.locator(".ghost-text-decoration, .ghost-text").first
  ghost.wait_for()
  view.wait_for_function(
    "[...document.querySelectorAll('.view-line')].some("
    "l => l.textContent.replaceAll('\\u00a0', ' ') === 'total = sum(items)')"
  )
  shot(view, "ghost")
  view.keyboard.press("Tab")
  assert value().splitlines() == ["items = [1, 2]", "total = sum(items)"]
  view.keyboard.type("\nitems.")
  view.locator(".suggest-widget.visible .monaco-list-row").nth(2).wait_for()
  rows = view.locator(".suggest-widget.visible .monaco-list-row .label-name")
  assert rows.all_inner_texts() == ["append", "apply", "abs"]
  # The focused item goes on as ghost text: `append(value)`, if that was known
  # before the list was open, otherwise `append(value, 1)`.
  view.wait_for_function(
    "[...document.querySelectorAll('.view-line')].some("
    "l => l.textContent.includes('items.append(value'))"
  )
  shot(view, "list")
  view.keyboard.press("Enter")
  view.wait_for_function(
    "window.codeEditor.getValue().split('\\n').pop() === 'items.append'"
  )
  # The server has the same text: what is typed along the line goes on.
  view.keyboard.type("(v")
  view.keyboard.press("Escape")


def shot(view, name):
  """Keeps a picture where SERVING_SHOTS names a folder."""
  import os

  if folder := os.environ.get(SHOTS):
    view.screenshot(path=str(pathlib.Path(folder) / f"{name}.png"))
