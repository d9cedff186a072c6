"""For MkDocs: links that lead out of this folder, to code, become text on the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Keep the links to pages, also to missing ones: those fail the build."""
    here, docs = Path(page.file.abs_src_path).parent, Path(config.docs_dir).resolve()

    def keep(link: re.Match[str]) -> str:
        label, target = link.groups()
        path = (here / target.partition("#")[0]).resolve()
        is_ours = path.is_relative_to(docs) and not path.is_dir()
        return link[0] if "://" in target or target.startswith("#") or is_ours else label

    return _LINK.sub(keep, markdown)
