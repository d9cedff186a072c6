"""For MkDocs: draws the diagrams, and makes text of the links that lead out of this folder."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from pathlib import Path
from typing import Any

import mermaidx

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
_WIDTH = re.compile(r'viewBox="\S+ \S+ (\S+) ')
# The reader's font may be wider than the one that the boxes were measured with.
_WHOLE_WORDS = "<style>foreignObject{overflow:visible}"
_DIAGRAM = re.compile(r'<pre><code class="language-mermaid">(.*?)</code></pre>', re.DOTALL)


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Keep the links to pages, also to missing ones: those fail the build."""
    here, docs = Path(page.file.abs_src_path).parent, Path(config.docs_dir).resolve()

    def keep(link: re.Match[str]) -> str:
        label, target = link.groups()
        path = (here / target.partition("#")[0]).resolve()
        is_ours = path.is_relative_to(docs) and not path.is_dir()
        return link[0] if "://" in target or target.startswith("#") or is_ours else label

    return _LINK.sub(keep, markdown)


def on_page_content(content: str, config: Any, **_: Any) -> str:
    """Draw each diagram into the page, which then needs neither script nor network.

    One that Mermaid cannot read fails the build.
    """
    cache = Path(config.site_dir).parent / "diagrams"
    cache.mkdir(parents=True, exist_ok=True)

    def draw(found: re.Match[str]) -> str:
        source = html.unescape(found[1])
        # Drawing takes seconds.
        file = cache / f"{hashlib.sha256(source.encode()).hexdigest()}.svg"
        if not file.exists():
            drawing = mermaidx.render(source).svg().replace("<style>", _WHOLE_WORDS, 1)
            file.write_text(drawing, encoding="utf-8")
        # An image of its own: the styles and ids of two drawings in one page would mix.
        image = base64.b64encode(file.read_bytes()).decode()
        described = html.escape("; ".join(source.split("\n")))
        width = _WIDTH.search(file.read_text(encoding="utf-8"))
        size = f' width="{float(width[1]):.0f}"' if width else ""
        return f'<p><img alt="{described}"{size} src="data:image/svg+xml;base64,{image}"></p>'

    return _DIAGRAM.sub(draw, content)
