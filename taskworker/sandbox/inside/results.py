"""From what a function returned to JSON."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class ResultRefused(Exception):
    """A function returned what JSON cannot hold; the text names it."""


def json_of(value: Any) -> str:
    """``value`` as JSON: models and dataclasses as objects, times in ISO 8601, bytes in base64.

    Raises:
        ResultRefused: it, or something in it, has no JSON form.
    """
    try:
        plain = to_jsonable_python(value, bytes_mode="base64", inf_nan_mode="constants")
        text = _encode(plain)
        text.encode()
    except PydanticSerializationError as error:
        raise ResultRefused(f"the result cannot be sent as JSON: {error}; return plain values") from None
    except RecursionError:
        raise ResultRefused("the result cannot be sent as JSON: it is nested too deeply, or contains itself") from None
    except UnicodeEncodeError:
        raise ResultRefused("the result cannot be sent as JSON: a text has lone surrogates") from None
    except ValueError as error:
        if "Circular reference" in str(error):
            raise ResultRefused("the result cannot be sent as JSON: it contains itself") from None
        raise ResultRefused(
            "the result cannot be sent as JSON: it holds a number that is not finite (nan or inf); return None instead"
        ) from None
    return text
