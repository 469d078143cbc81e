"""The site that `make docs` makes of docs/*.md, the files at the top and the docstrings (Sphinx, MyST, Furo).

Its root is the repository, so that pages link to any file as they do on a forge. Where a link of a page leads to no
page, heading or file, the build fails.
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

import converter

project = "converter"
version = release = converter.__version__
root_doc = "docs/README"
include_patterns = ["*.md", "docs/*.md", "docs/howto/*.md", "native/README.md"]
exclude_patterns = [".*", "build"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"
html_title = f"converter {version}"
html_show_sphinx = html_show_copyright = html_copy_source = False
highlight_language = "text"

myst_heading_anchors = 3
default_role = "code"  # docstrings have names in single backticks
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80

HOME = '<!DOCTYPE html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=docs/README.html">'
FETCHED = re.compile(
    r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//|url\(["']?(?:https?:)?//|@import"""
)


def navigation(text: str) -> str:
    """What the sidebar shows, as directives: each heading of docs/README.md is a part, each link below it a page."""
    parts = re.split(r"^## (.+)$", text, flags=re.M)[1:]
    made = ""
    for caption, below in zip(parts[::2], parts[1::2], strict=True):
        links = re.findall(r"^- \[(.+?)\]\(([\w./-]+)\.md\)", below, re.M)
        pages = "\n".join(f"{title.replace('`', '')} <{page}>" for title, page in links)
        made += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"
    return made


def add_navigation(app: Sphinx, page: str, text: list[str]) -> None:
    if page == app.config.root_doc:
        text[0] += navigation(text[0])


def leave_out_modules(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Docstrings of modules are for who reads the source; the page has words of its own."""
    if what == "module":
        lines.clear()


def finish(app: Sphinx, error: Exception | None) -> None:
    """A way in from the top; and a page that would fetch anything from elsewhere is an error."""
    if error is None:
        (app.outdir / "index.html").write_text(HOME, "utf-8")
        for path in [*app.outdir.rglob("*.html"), *app.outdir.rglob("*.css")]:
            if found := FETCHED.search(path.read_text("utf-8")):
                raise ExtensionError(f"{path}: fetches from elsewhere: {found[0]}")


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_navigation)
    app.connect("autodoc-process-docstring", leave_out_modules)
    app.connect("build-finished", finish)
