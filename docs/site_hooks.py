"""Hooks of the documentation site: pages of the repository's root join it, and no page loads anything remote.

Links work on both sides: ``../LOG.md`` in docs/ and ``docs/labels.md`` in the root, as the repository shows them,
become links between pages of the site.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ROOT_PAGES = ("LOG.md", "CONTRIBUTING.md", "CHANGELOG.md")

REMOTE = re.compile(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^\s\">]+", re.IGNORECASE)
"""Elements that a browser fetches by itself; links that a reader clicks are no such elements."""


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages of the root to those of docs/."""
    for name in ROOT_PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Point links at pages of the site; the argument names are those that MkDocs calls hooks with."""
    name = page.file.src_uri
    if name in ROOT_PAGES:
        return re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(rf"\]\(\.\./({'|'.join(map(re.escape, ROOT_PAGES))})", r"](\1", markdown)


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Refuse a page that would load something from the network. Raises PluginError."""
    found = REMOTE.search(output)
    if found:
        raise PluginError(f"{page.file.src_uri} loads from the network: {found.group()}")
    return output
