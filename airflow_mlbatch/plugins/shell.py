"""The HTML around the scripts.

Law: a page is the same for everybody: it holds no data, only the path that the API server is mounted
on and which script to run. What the scripts show they ask for, and put into the page as text.
"""

from __future__ import annotations

from functools import cache
from html import escape
from importlib import resources

__all__ = ["CONTENT_SECURITY_POLICY", "MEDIA_TYPES", "asset", "message_page", "page"]

# Nothing from another origin, no inline scripts, no forms, framed by Airflow's own pages only.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'self'",
        "frame-ancestors 'self'",
    )
)

MEDIA_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<base href="{base}/">
<link rel="stylesheet" href="static/style.css">
<script src="static/theme.js"></script>
{script}</head>
<body>
<main id="page">{body}</main>
</body>
</html>
"""


def page(title: str, script: str, base: str) -> str:
    """A page that a script fills.

    :param base: the path that the application is mounted on, without a closing slash
    """
    module = f'<script type="module" src="static/{escape(script)}"></script>\n'
    loading = '<p role="status">Loading…</p>\n<noscript>This page needs JavaScript.</noscript>'
    return _PAGE.format(title=escape(title), base=escape(base), script=module, body=loading)


def message_page(title: str, text: str, base: str, link: tuple[str, str] | None = None) -> str:
    """A page that says one thing.

    :param link: its text and its address
    """
    body = f"<h1>{escape(title)}</h1>\n<p>{escape(text)}</p>"
    if link is not None:
        body += f'\n<p><a href="{escape(link[1])}">{escape(link[0])}</a></p>'
    return _PAGE.format(title=escape(title), base=escape(base), script="", body=body)


@cache
def assets() -> dict[str, bytes]:
    """The scripts and styles of the package, by name."""
    folder = resources.files("airflow_mlbatch.plugins") / "static"
    return {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.name.endswith(tuple(MEDIA_TYPES))
    }


def asset(name: str) -> tuple[bytes, str] | None:
    """The content and the media type of one of them; ``None`` where there is none of the name."""
    content = assets().get(name)
    if content is None:
        return None
    return content, MEDIA_TYPES[name[name.rindex(".") :]]
