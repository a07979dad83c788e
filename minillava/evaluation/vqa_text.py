"""A short answer as VQA's scorers compare it: EvalAI's normalisation, oddities included.

VQAv2, VizWiz and TextVQA are scored on it; their servers want the answers of an upload normalised
too (MMF's EvalAIAnswerProcessor, as LLaVA-1.5's converters use it).

    normalize("The two dogs, isnt it?")  ->  "2 dogs isn't it"
"""
import re

NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
           "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
ARTICLES = ("a", "an", "the")
PUNCTUATION = ";/[]\"{}()=+\\_-><@`!"  # commas and question marks are gone by then
# written with one of their apostrophes missing, they get it back: dont, couldnt've, couldn'tve
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def misspellings(words):
    """Each word without one of its apostrophes -> the word."""
    table = {}
    for word in words:
        for at, character in enumerate(word):
            if character == "'":
                table[word[:at] + word[at + 1 :]] = word
    return table


MISSPELLINGS = misspellings(CONTRACTIONS.split())
# two oddities of the list: an apostrophe is taken away, a word is spelled with a letter missing
MISSPELLINGS |= {"somebody'd": "somebodyd", "someonell": "someone'll"}


def normalize(text):
    text = text.lower()
    text = text.replace(",", "").replace("?", "")
    text = text.replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    text = without_punctuation(text)

    words = [NUMBERS.get(word, word) for word in text.split()]
    words = [word for word in words if word not in ARTICLES]
    return " ".join(MISSPELLINGS.get(word, word) for word in words)


def without_punctuation(text):
    """Punctuation goes, or becomes a space between words: "black-white" -> "black white"."""
    cleaned = text
    for mark in PUNCTUATION:
        # sic: one mark beside a space decides for all of its kind in the text
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space else " ")
    # sic: a full stop goes unless a digit follows, but only the first 32 of a text
    return re.sub(r"\.(?!\d)", "", cleaned, count=32)
