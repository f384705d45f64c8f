"""README as a package index shows it: without pictures and links into this repository.

An index does not have the repository's files, so relative links lead nowhere there. The build
calls :func:`get_metadata_hook`. Once ``[project.urls]`` has a real address, they lead to it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
PICTURE = re.compile(r"^(?:<picture>.*</picture>|!\[.*\]\(.*\))\n\n", re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\((?!\w+:)([^)]+)\)")
ASIDE = re.compile(rf" \({LINK.pattern}\)")
SOURCE = re.compile(r'(src(?:set)?=")(?!\w+:)')


def for_index(text: str, address: str) -> str:
    """The text of README with absolute links, or with none into a repository without address."""
    if ".invalid/" in address:
        text = PICTURE.sub("", text).replace(", as in the picture above", "")
        return LINK.sub(r"\1", ASIDE.sub("", text))
    text = SOURCE.sub(rf"\g<1>{address}/raw/HEAD/", text)
    text = re.sub(r"(!\[[^\]]*\]\()(?!\w+:)", rf"\g<1>{address}/raw/HEAD/", text)
    return LINK.sub(rf"[\1]({address}/blob/HEAD/\2)", text)


def get_metadata_hook() -> Any:
    """Called by hatchling, which only a build has."""
    from hatchling.metadata.plugin.interface import MetadataHookInterface

    class Readme(MetadataHookInterface):
        def update(self, metadata: dict[str, Any]) -> None:
            text = for_index(README.read_text("utf-8"), metadata["urls"]["Repository"])
            metadata["readme"] = {"content-type": "text/markdown", "text": text}

    return Readme
