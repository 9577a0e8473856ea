"""Functions over tables of sales (CSV with the columns city and amount): streamed, added up side by side, reported."""

from __future__ import annotations

import asyncio
import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from html import escape
from pathlib import Path

from taskworker.inside import StoredFile, worker


def rows(name: str, city: str) -> Iterator[dict[str, str]]:
    """Give the rows of one city as they are read, however large the table is."""
    with worker.storage.open(name) as file:
        for row in csv.DictReader(io.TextIOWrapper(file, "utf-8")):
            if row["city"] == city:
                yield row


def total(name: str) -> dict[str, float]:
    """Add one table up, by city."""
    sums: defaultdict[str, float] = defaultdict(float)
    with worker.storage.open(name) as file:
        for row in csv.DictReader(io.TextIOWrapper(file, "utf-8")):
            sums[row["city"]] += float(row["amount"])
    return dict(sums)


async def totals(names: list[str]) -> dict[str, float]:
    """Add many tables up at the same time, each by a call of ``total`` that any worker may run."""
    sums: defaultdict[str, float] = defaultdict(float)
    for one in await asyncio.gather(*(worker.acall("total", name) for name in names)):
        for city, amount in one.items():
            sums[city] += amount
    return dict(sums)


def report(names: list[str]) -> StoredFile:
    """Store a page of the totals, and return the file in place of its bytes."""
    lines = [
        f"<tr><td>{escape(city)}<td>{amount:.2f} {escape(worker.config['currency'])}"
        for city, amount in sorted(worker.call("totals", names).items())
    ]
    Path("sales.html").write_text(f"<!doctype html><title>Sales</title><table>{''.join(lines)}</table>")
    return worker.result_file("sales.html")
