"""Questions under way: futures that tell the engine when they are cancelled."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable
from typing import Any

from locojax.engines.documents import Document
from locojax.engines.types import EngineTimeout


class Call(concurrent.futures.Future):
  """One question to an engine.

  Attributes:
    method: of the protocol; '' for one that is only waited for.
    params: what is asked.
    document: the version that it is asked of, or None.
    take: makes the result from the answer.
    on_cancel: called with it when it was cancelled.
    id: of the request.
    tries: how often the server has put it off.
  """

  def __init__(
    self,
    method: str,
    params: Any,
    *,
    document: Document | None = None,
    take: Callable[[Any], Any] = lambda found: found,
    on_cancel: Callable[[Call], None] = lambda call: None,
  ):
    super().__init__()
    self.method, self.params, self.document = method, params, document
    self.take, self.on_cancel = take, on_cancel
    self.id, self.tries = 0, 0

  def cancel(self) -> bool:
    """Gives it up, and tells the engine; False if it has ended already."""
    was, now = self.cancelled(), super().cancel()
    if now and not was:
      self.on_cancel(self)
    return now

  def answer(self, found: Any) -> None:
    """Ends it with what `take` makes of an answer, unless it has ended."""
    try:
      result = self.take(found)
    except (KeyError, TypeError, ValueError, IndexError) as error:
      self.fail(error)
      return
    with contextlib.suppress(concurrent.futures.InvalidStateError):
      self.set_result(result)

  def fail(self, error: BaseException) -> None:
    """Ends it with an error, unless it has ended."""
    with contextlib.suppress(concurrent.futures.InvalidStateError):
      self.set_exception(error)


def wait(call: concurrent.futures.Future, name: str, seconds: float) -> Any:
  """The result of a call, which is cancelled if it comes too late.

  Raises:
    EngineTimeout: after that many seconds.
  """
  try:
    return call.result(seconds)
  except TimeoutError:
    if not call.cancel() and call.done():
      return call.result()  # It came at the last moment, or failed itself.
    what = getattr(call, "method", "") or "its diagnostics"
    raise EngineTimeout(
      f"{name} did not answer in {seconds:g} s ({what})."
    ) from None
