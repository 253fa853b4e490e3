"""docs/networks.md: every title has its line, and what it says is there is there."""

from __future__ import annotations

import re

from mlpdeploy.zoo.recipe import recipes
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "networks.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]
TITLES = [row for row in ROWS if row[0] not in ("title", "no.") and not set(row[0]) <= {"-"}]
NUMBERED = [row for row in TITLES if len(row) == 4]


def families(row: list[str]) -> list[str]:
    """The families that a row names; none where it has a dash."""
    return re.findall(r"`(\w+)`", row[-2])


def test_every_family_named_has_recipes_and_every_family_is_named() -> None:
    assert {family for row in TITLES for family in families(row)} == {recipe.family for recipe in recipes().values()}


def test_every_title_has_recipes_or_a_dash_and_one_line_that_says_why() -> None:
    for row in TITLES:
        assert families(row) or row[-2] == "-", row
        assert row[-1], row
        assert bool(families(row)) != row[-1].startswith(("nothing: ", "no recipe: ")), row


def test_the_two_lists_are_complete() -> None:
    blog = [row[0] for row in TITLES if len(row) == 3][:7]
    assert blog == ["ViT", "MLP-Mixer", "RepMLP", "FF-only", "ResMLP", "gMLP", "Vision Permutator"]
    assert [int(row[0]) for row in NUMBERED] == list(range(1, 37))


def test_the_files_it_names_exist() -> None:
    for name in re.findall(r"`([\w/]+\.py)`", PAGE):
        assert (REPOSITORY / name).is_file(), name
