"""A digest in a JSON file over the rest of it, by which an edit shows."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY = "digest"


def with_digest(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``content`` with the digest of itself; what JSON does not know is text, as the file must have it."""
    return {**content, KEY: digest(content)}


def digest(content: Mapping[str, Any]) -> str:
    """Return sixteen digits over everything in ``content`` but its digest; a file's content has that of what was written."""
    rest = {key: value for key, value in content.items() if key != KEY}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, default=str).encode()).hexdigest()[:16]
