"""The page: one file with its style and script inside, and the policy that lets nothing else in."""

import base64
import hashlib
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from report2impression.reporting.pages import TEMPLATES

PAGE = Path(__file__).with_name("page.html")


def page(facts: Mapping[str, Any]) -> str:
    """The look is that of the evaluation page. The facts of the model stand in it: if the page had
    to ask for them, a report sent before they came would be shown without the base."""
    css = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    shown = PAGE.read_text(encoding="utf-8").replace("/* page.css */", css)
    for name, told in facts.items():
        shown = shown.replace(f"{{{{ {name} }}}}", html.escape(str(told)))
    return shown


def policy(page: str) -> str:
    """A browser runs and shows what stands in the page, by hash, and asks this service only."""

    def hashes(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        sums = (hashlib.sha256(part.encode()).digest() for part in parts)
        return " ".join(f"'sha256-{base64.b64encode(found).decode()}'" for found in sums)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
