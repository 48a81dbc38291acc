"""What people write into a page that a script writes: the part between two marks stays."""

import re
import sys
from pathlib import Path

BEGIN, END = "<!-- what we read from it, by hand -->", "<!-- end of it -->"


def kept(page: Path) -> str:
    """That part of a page with its marks; the marks alone where there is no page yet."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if text.count(BEGIN) != text.count(END):
        sys.exit(f'error: {page}: of the marks "{BEGIN}" and "{END}" one is missing; what was written by hand would be lost, so put it back')
    if text and not text.count(BEGIN):
        sys.exit(f'error: {page}: is there, and not a page of this script, for it lacks the marks "{BEGIN}" and "{END}"; put them back, or move it away')
    found = re.search(f"{re.escape(BEGIN)}.*{re.escape(END)}", text, re.DOTALL)
    return found[0] if found else f"{BEGIN}\n{END}"
