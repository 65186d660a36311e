"""Text out of markup, and text in one form: pure functions from a string to a string."""

from __future__ import annotations

import re
import unicodedata
import warnings
from typing import Literal

from tasks.errors import TaskError

Form = Literal["NFC", "NFKC"]
FORMS = ("NFC", "NFKC")

# What a reader of a page does not read as its text.
_DROPPED = ("script", "style", "noscript", "template", "svg", "iframe", "head", "nav", "aside", "footer", "form")
_BLOCKS = (
    *("p", "div", "section", "article", "main", "header", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "dl"),
    *("dt", "dd", "table", "tr", "blockquote", "pre", "figure", "figcaption", "hr"),
)
_HAN = re.compile("[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")  # soft hyphen, zero-width space, word joiner, byte order mark
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
_SPACES = re.compile(r"[^\S\n]+")


def normalise(text: str, form: Form = "NFC") -> str:
    """A text in one Unicode form, its lines ended by "\\n" and trimmed, at most one of them empty in a row.

    Control characters, soft hyphens and zero-width spaces go (the joiners that scripts need stay); every other white
    space becomes one space. Doing it twice changes nothing. Raises TaskError for another form."""
    if form not in FORMS:
        raise TaskError(f"unknown Unicode form {form!r}; known: {', '.join(FORMS)}")
    text = _CONTROLS.sub("", _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text)))
    text = _SPACES.sub(" ", unicodedata.normalize(form, text))  # first the form: NFKC makes spaces
    lines = "\n".join(line.strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


def html_text(html: str) -> str:
    """The text of a page as it reads: no scripts, styles and navigation, entities resolved, blocks on lines of their
    own. Broken HTML gives what a browser would make of it. Raises TaskError where the parser is not installed."""
    try:
        import lxml.etree  # noqa: F401 (the parser, which bs4 looks for later and with an error of its own)
        from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning, XMLParsedAsHTMLWarning
    except ImportError:
        raise TaskError("HTML needs beautifulsoup4 and lxml; pip install beautifulsoup4 lxml") from None
    with warnings.catch_warnings():  # a text may look like a file's name, and a page may begin as XML
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)
        page = BeautifulSoup(_CONTROLS.sub("", html), "lxml")
    for tag in page.select(", ".join((*_DROPPED, "[role=navigation]", "[hidden]"))):
        tag.extract()
    for string in page.find_all(string=True):
        if type(string).__name__ == "NavigableString" and not string.find_parent("pre"):
            string.replace_with(re.sub(r"\s+", " ", string))
    for tag in page.find_all(_BLOCKS):
        tag.insert_before("\n")
        tag.insert_after("\n")
    for tag in page.find_all("br"):
        tag.replace_with("\n")
    for tag in page.find_all(("td", "th")):
        tag.insert_after(" ")
    lines = (line.strip() for line in page.get_text().split("\n"))
    return "\n".join(line for line in lines if line)


_MARKDOWN = (
    (re.compile(r"^(?:```|~~~).*$", re.M), ""),  # the fence, not the code
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),  # pictures
    (re.compile(r"\[([^\]]*)\]\([^)]*\)"), r"\1"),  # links
    (re.compile(r"^ {0,3}#{1,6}\s+(.*?)#*\s*$", re.M), r"\1"),
    (re.compile(r"^ {0,3}(?:[-*_] ?){3,}$", re.M), ""),  # rules
    (re.compile(r"^\s*>\s?", re.M), ""),
    (re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\w*])"), r"\1"),
    (re.compile(r"`([^`\n]+)`"), r"\1"),
)


def markdown_text(text: str) -> str:
    """A Markdown text without headings' marks, emphasis, fences, pictures and the targets of links."""
    for pattern, kept in _MARKDOWN:
        text = pattern.sub(kept, text)
    return text


def text_share(text: str) -> float | None:
    """Letters and digits among the visible characters, 0 to 1; None where none is visible."""
    visible = [char for char in text if not char.isspace()]
    return sum(unicodedata.category(char)[0] in "LMN" for char in visible) / len(visible) if visible else None


def han_share(text: str) -> float | None:
    """Chinese characters among the letters, 0 to 1; None where there is no letter."""
    letters = sum(char.isalpha() for char in text)
    return len(_HAN.findall(text)) / letters if letters else None
