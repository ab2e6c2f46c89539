"""Services for the pages: steady ones, and some whose words are meant to break a page."""

from __future__ import annotations

import os
import struct
import time
import zlib
from pathlib import Path

from airflow_mlbatch.server import service

# Runs where any of it gets into a page as markup; each leaves a trace that a test looks for.
MARKUP = (
    '"><img src=x onerror="window.hacked=1"><script>window.hacked=2</script>'
    "</script></title></textarea><svg onload=window.hacked=3>{{7*7}}${7*7}"
)


# The server allows no quotes in the name of an output.
NAME = "<img src=x onerror=window.hacked=4><b>"


def png(width: int = 8, height: int = 8) -> bytes:
    """A picture that a browser can draw."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = (b"\0" + b"\x20\x80\xd0" * width) * height
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@service(
    "cars",
    version="1",
    inputs={"x": float},
    outputs={"y": float, "isLarge": bool, "kind": str},
    artifacts=["plot.png", "note.txt"],
)
def cars(x: float) -> dict[str, object]:
    """Fails on negative numbers; draws the first few."""
    print(f"looking at {x}")
    if x < 0:
        raise ValueError(f"x is negative: {x}")
    if x < 5:
        Path("plot.png").write_bytes(png(64, 48))
        Path("note.txt").write_text(f"x was {x}", encoding="utf-8")
    return {"y": x**0.5, "isLarge": x > 10, "kind": "even" if x % 2 == 0 else "odd"}


@service("held", version="1", inputs={"gate": str, "x": float}, outputs={"y": float})
def held(gate: str | None, x: float) -> float:
    """Waits until the file of its gate is there, if it has one."""
    while gate is not None and not Path(os.environ["MLBATCH_TEST_GATES"], gate).exists():
        time.sleep(0.02)
    return x


@service("hostile-error", version=MARKUP[:60], inputs={"x": float}, outputs={"y": float})
def hostile_error(x: float) -> float:
    raise ValueError(MARKUP)


@service("hostile-output", version="1", inputs={"x": float}, outputs={NAME: str})
def hostile_output(x: float) -> str:
    return MARKUP


@service("hostile-console", version="1", inputs={"x": float}, outputs={"y": float})
def hostile_console(x: float) -> float:
    print(MARKUP)
    print("long " * 20_000)
    return x


@service(
    "hostile-files",
    version="1",
    inputs={"x": float},
    outputs={"y": float},
    artifacts=["page.html", "drawing.svg", "fake.png", "real.png"],
)
def hostile_files(x: float) -> float:
    for name in ("page.html", "drawing.svg", "fake.png"):
        text = f'<svg xmlns="http://www.w3.org/2000/svg"><script>{MARKUP}</script></svg>'
        Path(name).write_text(text, encoding="utf-8")
    Path("real.png").write_bytes(png())
    return x


@service(MARKUP[:80], version="1", inputs={"x": float}, outputs={"y": float})
def hostile_name(x: float) -> float:
    return x


@service("hostile-length", version="1", inputs={"x": float}, outputs={"y": str})
def hostile_length(x: float) -> str:
    return "w" * 300_000 if x else "‮" + "‏" * 1000 + "\x00\ufffe"
