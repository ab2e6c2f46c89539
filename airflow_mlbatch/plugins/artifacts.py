"""Files of records as untrusted bytes.

Law: what a file is called tells nothing. A browser shows it only where its first bytes are those of a
raster image; everything else, SVG and PDF too, is a download that no browser interprets.
"""

from __future__ import annotations

import re
from urllib.parse import quote

__all__ = ["MAX_BYTES", "file_headers", "picture_type"]

MAX_BYTES = 32 * 1024 * 1024

_PICTURES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
)


def picture_type(content: bytes) -> str | None:
    """The media type of a raster image, by its first bytes; ``None`` for anything else."""
    return next((kind for magic, kind in _PICTURES if magic.match(content)), None)


def file_headers(file_name: str, content: bytes) -> dict[str, str]:
    """The headers that a file is sent with."""
    picture = picture_type(content)
    how = "inline" if picture else "attachment"
    name = quote(file_name.replace("\\", "/").rpartition("/")[2] or "file", safe="")
    return {
        "Content-Type": picture or "application/octet-stream",
        "Content-Disposition": f"{how}; filename*=UTF-8''{name}",
        # Should a browser open it all the same, it may neither run nor load anything.
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "private, max-age=300",
    }
