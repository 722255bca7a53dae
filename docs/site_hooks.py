"""What the site makes while it is built: the notebooks as pages, and links where docstrings name a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

INDEX = "notebooks.md"
"""The page behind which the notebooks come in the navigation."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def notebooks(config: MkDocsConfig) -> list[Path]:
    """The notebooks beside docs/, by name; none where there is no such folder."""
    return sorted((Path(config.docs_dir).parent / "notebooks").glob("*.ipynb"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the notebooks into the navigation, behind the page that lists them."""
    for section in config.nav or []:
        for pages in section.values() if isinstance(section, dict) else ():
            if isinstance(pages, list) and INDEX in pages:
                pages.extend(f"notebooks/{path.stem}.md" for path in notebooks(config))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook."""
    for path in notebooks(config):
        content = _markdown(json.loads(path.read_text(encoding="utf-8")))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links to notebooks lead to their pages here; in the repository they lead to the files."""
    return re.sub(r"\]\(\.\./notebooks/([^)]+)\.ipynb\)", r"](notebooks/\1.md)", markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links of the pages that docstrings name as ``docs/page.md``."""
    if page.file.src_uri != "api.md":
        return html
    return re.sub(r"\bdocs/(\w+)\.md\b", r'<a href="\1.html">docs/\1.md</a>', html)


def _markdown(notebook: dict[str, Any]) -> str:
    """The cells of `notebook` and their results, which are in the file."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = re.sub(r"\]\(\.\./docs/", "](../", source)
            parts.append(re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", source))
        elif source.strip():
            parts += [f"```python\n{source}\n```", *map(_result, cell["outputs"])]
    return "\n\n".join(parts) + "\n"


def _result(output: dict[str, Any]) -> str:
    """One result of a cell: a picture, a table, or text."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        return f"![result](data:image/png;base64,{''.join(data['image/png']).strip()})"
    if "text/html" in data:
        return f"<div>{''.join(data['text/html'])}</div>".replace("\n\n", "\n")
    text = COLOURS.sub("", "".join(data.get("text/plain", ""))).rstrip()
    return f"```text\n{text}\n```" if text else ""
