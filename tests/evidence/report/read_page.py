"""A page of a report as a reader has it: its elements and its text, and how it stands out."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}
SMALLEST = """
Math.min(...[...document.querySelectorAll("main *")]
  .filter(one => one.getClientRects().length && [...one.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
  .map(one => {
    const picture = one.closest("svg");
    return parseFloat(getComputedStyle(one).fontSize) * (picture ? picture.getScreenCTM().a : 1);
  }))
"""
"""The size of the smallest text in pixels, that of pictures scaled as they are."""


class Page(HTMLParser):
    """A page's elements, ids, links and cells; raises AssertionError where its tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.cells: list[str] = []
        self.numeric = False
        self.text: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        found = dict(attrs)
        self.ids += [found["id"]] if found.get("id") else []
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href") and value]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.numeric = "number" in (found.get("class") or "")
            self.cells += [""] * self.numeric

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag
        self.numeric = self.numeric and tag != "td"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)
        if self.numeric:
            self.cells[-1] += data


def visible(text: str) -> str:
    return " ".join(" ".join(Page(text).text).split())


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours `rgb(r, g, b)`, from 1 to 21, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
