"""A function that makes thumbnails of PNG images in the store, with packages of pure Python alone."""

from __future__ import annotations

import io

import png

from taskworker.inside import worker


def thumbnail(name: str, width: int = 128) -> dict[str, object]:
    """Store a smaller version of image ``name`` beside it; each of its pixels is the mean of those it stands for."""
    with worker.storage.open(name) as file:
        columns, lines, pixels, _ = png.Reader(file=file).asRGB8()
        rows = [bytes(row) for row in pixels]
    width = max(1, min(width, columns))
    height = max(1, lines * width // columns)
    small = [
        [
            mean(rows, span(column, width, columns), span(line, height, lines), channel)
            for column in range(width)
            for channel in range(3)
        ]
        for line in range(height)
    ]
    out = io.BytesIO()
    png.Writer(width, height, greyscale=False).write(out, small)
    stored = worker.storage.push(out.getvalue(), f"{name.removesuffix('.png')}.thumbnail.png")
    return {"file_id": stored.file_id, "filename": stored.filename, "width": width, "height": height}


def span(position: int, parts: int, whole: int) -> range:
    """The part of a whole that one of so many equal parts stands for."""
    start = position * whole // parts
    return range(start, max(start + 1, (position + 1) * whole // parts))


def mean(rows: list[bytes], columns: range, lines: range, channel: int) -> int:
    """Of one channel over a rectangle."""
    values = [rows[line][3 * column + channel] for line in lines for column in columns]
    return sum(values) // len(values)
