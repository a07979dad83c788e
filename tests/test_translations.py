"""The translations say what the English pages say: their commands, numbers, pictures and links are the same."""
import re
from collections import Counter

import pytest

from tests.doc_commands import ROOT

LANGUAGES = ("zh", "ko", "ru", "it")
PAGES = ("README.md", "docs/how-it-works.md")
FIRST_PAGE_ENDS = "\n## Official weights"  # of the README its first page is translated
CLOSING = "\n---\n"                        # after it a translation says where to read on
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")


def english(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.partition(FIRST_PAGE_ENDS)[0] if page == "README.md" else text


def translated(page, language):
    """A page in the language, without what it says at its end of other pages."""
    return (ROOT / "docs" / name_of(page, language)).read_text(encoding="utf-8").partition(CLOSING)[0]


def name_of(page, language):
    ending = ".md" if language == "en" else f".{language}.md"
    return page.removeprefix("docs/").replace(".md", ending)


def body(text):
    """The page below its title and the line of languages."""
    return text.split("\n", 4)[4]


def commands(text):
    """The blocks of a page, fenced and indented; what stands behind a # is for people, and is translated."""
    blocks = [*FENCE.findall(text), *re.findall(r"(?:^    \S.*\n)+", text, re.M)]
    return [re.sub(r" +# .*", "", block) for block in blocks]


def prose(text):
    return LINK.sub(lambda link: link[0].replace(link[2], ""), FENCE.sub("", text))


def numbers(text):
    """{number: how often}; 90.92, 90,92 and 32 000 are written otherwise elsewhere: separators are left out."""
    joined = re.sub(r"(?<=\d)[.,\u00a0](?=\d)", "", prose(text))
    return Counter(re.findall(r"\d+", joined))


def inline_code(text):
    return Counter(re.findall(r"`[^`]+`", prose(text)))


def links(text, folder):
    """Pictures and pages that it links to, by their places in the project."""
    found = []
    for mark, target in LINK.findall(text):
        if "://" not in target:
            target = str((ROOT / folder / target).resolve().relative_to(ROOT))
        found.append(mark + target)
    return Counter(found)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("page", PAGES)
def test_a_translation_has_the_figures_and_commands_of_the_english_page(page, language):
    here, there = body(english(page)), body(translated(page, language))
    folder = "docs" if page.startswith("docs/") else ""

    for what, of_english, of_translation in (
            ("headings", re.findall(r"^#+", here, re.M), re.findall(r"^#+", there, re.M)),
            ("pictures and links", links(here, folder), links(there, "docs")),
            ("inline code", inline_code(here), inline_code(there)),
            ("numbers", numbers(here), numbers(there))):
        message = f"{what} differ in the {language} of {page}: "
        assert of_english == of_translation, message + difference(of_english, of_translation)
    for ours, theirs in zip(commands(here), commands(there), strict=True):
        assert ours == theirs, f"a block of {page} differs in {language}: " + difference(ours.split("\n"), theirs.split("\n"))


def difference(a, b):
    """What is missing from the second, and what is too much there."""
    a, b = Counter(a), Counter(b)
    return f"English alone {dict(a - b)}, translation alone {dict(b - a)}"


@pytest.mark.parametrize("page", PAGES)
def test_each_language_links_to_the_others(page):
    pages = {"en": english(page), **{language: translated(page, language) for language in LANGUAGES}}
    for language, text in pages.items():
        line = text.split("\n")[2]
        for other in pages:
            assert (name_of(page, other) in line) == (other != language), f"line 3 of the {language} of {page}: {other}"
