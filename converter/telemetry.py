"""What the program around us hears of the work: log records, and spans of OpenTelemetry where it uses that.

Records go to the logger `converter`, which is silent unless the program gives it a handler. Spans are made with the
tracer that the program has set up: it has imported OpenTelemetry then, and nothing is imported for it here.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from converter import __version__
from converter.events import Event

LOG = logging.getLogger("converter")
LOG.addHandler(logging.NullHandler())


def log_events(events: Iterable[Event]) -> None:
    """A record for each that says something new: losses as warnings, all else as information.

    `event` of a record is the event itself.
    """
    for event in {str(event): event for event in events}.values():
        LOG.log(logging.WARNING if event.loss else logging.INFO, "%s", event, extra={"event": event})


class _Untold:
    """A span that nobody looks at."""

    def set_attribute(self, name: str, value: object) -> None:
        pass


@contextmanager
def span(name: str, **attributes: Any) -> Iterator[Any]:
    """A span `converter.NAME` with attributes `converter.KEY`, those that are not None; an error in it is its status.

    Yields:
        What takes further attributes by `set_attribute`.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        yield _Untold()
        return
    named = {f"converter.{key}": value for key, value in attributes.items() if value is not None}
    with trace.get_tracer("converter", __version__).start_as_current_span(
        f"converter.{name}", attributes=named
    ) as made:
        yield made
