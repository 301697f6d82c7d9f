"""Prometheus' text format: families as generators of finished lines, and the few shapes that most families have.

Lines are made here, not by prometheus_client: a scrape of 50,000 backends is some hundred thousand samples, and an
object for each would hold the event loop for seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from maglev._probe import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family. ``rows`` makes its lines, each with its line break; a family without lines is left out.

    Empty rows print nothing; they are yield points. The exposition looks at the clock between two rows only, so a
    generator that walks over many things without a line for them yields an empty row now and then.
    """

    name: str
    kind: str
    help: str
    rows: Callable[[], Iterable[str]]


def escape_label(value: str) -> str:
    """A label's value between its quotes. Configured names and addresses need no escaping, other texts do."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def single(name: str, kind: str, text: str, value: Callable[[], float | int | None]) -> Family:
    """A family with one sample and no label; absent while ``value`` gives None."""

    def rows() -> Iterator[str]:
        number = value()
        if number is not None:
            yield f"{name} {number}\n"

    return Family(name, kind, text, rows)


def labelled(name: str, kind: str, text: str, label: str, values: Callable[[], Mapping[str, float | int]]) -> Family:
    """A family with one label."""

    def rows() -> Iterator[str]:
        for key, number in values().items():
            yield f'{name}{{{label}="{escape_label(key)}"}} {number}\n'

    return Family(name, kind, text, rows)


def histogram_rows(name: str, labels: str, view: Histogram) -> Iterator[str]:
    """The lines of one histogram; ``labels`` like ``type="http"``, or empty."""
    comma = "," if labels else ""
    total = 0
    for bound, count in zip(view.bounds, view.counts, strict=False):
        total += count
        yield f'{name}_bucket{{{labels}{comma}le="{bound!r}"}} {total}\n'
    total += view.counts[len(view.bounds)]
    yield f'{name}_bucket{{{labels}{comma}le="+Inf"}} {total}\n'
    braces = f"{{{labels}}}" if labels else ""
    yield f"{name}_sum{braces} {view.sum_seconds!r}\n"
    yield f"{name}_count{braces} {total}\n"
