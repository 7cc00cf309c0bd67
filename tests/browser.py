"""Chromium for the tests of pages: where it is, and a page of it.

A test of a page is marked `browser`, with the modules that it needs besides
(`@pytest.mark.browser("gradio")`), and takes the fixture `browser_page`, a page
of Playwright in headless Chromium. `scripts/install_browser` installs it;
LOCOJAX_BROWSER names another program. Without it these tests are left out and
counted (`conftest.py`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
from collections.abc import Iterator
from typing import Any

VARIABLE = "LOCOJAX_BROWSER"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# In a container there is no sandbox, and little shared memory.
_ARGUMENTS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
TIMEOUT = 180_000  # milliseconds: machines of tests are busy
_HERE = ("http://127.0.0.1:", "http://localhost:", "data:", "blob:")


def find() -> str | None:
  """The program, or None."""
  names = (os.environ.get(VARIABLE), *_NAMES)
  return next(filter(None, (shutil.which(n) for n in names if n)), None)


@functools.cache
def is_installed(*modules: str) -> bool:
  """Whether there are a browser, what drives it, and these modules."""
  specs = map(importlib.util.find_spec, ("playwright", *modules))
  return find() is not None and all(specs)


@contextlib.contextmanager
def opened(**settings: Any) -> Iterator[Any]:
  """A page of headless Chromium that keeps what goes wrong in it.

  Errors of scripts end in `page.errors`, addresses of what was asked for and
  is not on this machine in `page.outside`: neither is let through.

  Args:
    **settings: of the page, such as `viewport`.
  """
  from playwright import sync_api

  with sync_api.sync_playwright() as driver:
    chromium = driver.chromium.launch(
      executable_path=find(), args=list(_ARGUMENTS)
    )
    page = chromium.new_page(**settings)
    page.set_default_timeout(TIMEOUT)
    page.errors, page.outside = [], []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.route("**/*", functools.partial(_stay_inside, page))
    try:
      yield page
    finally:
      chromium.close()


def _stay_inside(page: Any, route: Any) -> None:
  url = route.request.url
  if url.startswith(
    ("http://127.0.0.1:", "http://localhost:", "data:", "blob:")
  ):
    return route.continue_()
  page.outside.append(url)
  return route.abort()
