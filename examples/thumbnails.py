"""A function that makes thumbnails of images in the store, of any kind that Pillow reads and writes."""

from __future__ import annotations

import io
from pathlib import PurePosixPath

from PIL import Image

from taskworker.inside import worker


def thumbnail(name: str, width: int = 128) -> dict[str, object]:
    """Store a smaller version of image ``name`` beside it, of the same kind and shape."""
    small = io.BytesIO()
    with worker.storage.open(name) as file, Image.open(file) as image:
        kind = image.format
        image.thumbnail((width, image.height))
        image.save(small, kind)
        columns, lines = image.size
    path = PurePosixPath(name)
    stored = worker.storage.push(small.getvalue(), str(path.with_name(f"{path.stem}.thumbnail{path.suffix}")))
    return {"file_id": stored.file_id, "filename": stored.filename, "width": columns, "height": lines}
