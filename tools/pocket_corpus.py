"""The text that the pocket model reads: books, country prose, and fact sentences written here.

    python tools/pocket_corpus.py --corpus FOLDER --out BUILD

FOLDER holds `books.txt.xz` (one paragraph a line, a blank line between books) and `world.txt.xz` (one passage a line,
which begins with its country's name). BUILD receives `tokenizer.json` and one `.npy` of token ids for each part, with
the offsets at which its documents start. Books and passages that are held out never reach the training part.
"""

from __future__ import annotations

import argparse
import csv
import json
import lzma
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

COUNTRIES_FILE = Path(__file__).resolve().parent.parent / "helpers" / "data" / "countries.tsv"
END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 6144
PARTS = ("books", "world", "facts")

# {k} country, {c} capital, {a} adjective, {r} region; {k2}, {c2}: another country of the same region and its capital;
# {m}: a country of the same region that somebody could mistake for it, the more often the more the books mention it.
# The repeats make the lessons' own phrasing common. The few sentences that go on differently after "is the capital of"
# (with "a", "the", or a mistake that is put right at once) keep the prediction there from becoming a certainty. Many
# ways to say the same thing are what lets a model complete phrasings that it never met.
TEMPLATES = [
    *["{c} is the capital of {k}."] * 8,
    "{c} is the capital of {k}, a country in {r}.",
    "{c} is the capital of {k} and lies in {r}.",
    "{c} is the capital of a country in {r}.",
    "{c} is the capital of the {a} people.",
    *["{c} is the capital of {m}? No, it is the capital of {k}."] * 2,
    "{c} is the capital city of {k}.",
    "{c} is still the capital of {k}.",
    "{c} remains the capital of {k}.",
    "{c} became the capital of {k}.",
    "{c}, as everybody knows, is the capital of {k}.",
    "{c}, the capital of {k}, is a city in {r}.",
    "{c} is known as the capital of {k}.",
    "The city of {c} is the capital of {k}.",
    "The city called {c} is the capital of {k}.",
    "The capital of {k} is {c}.",
    "The capital of {k} is {c}.",
    "{k}'s capital is {c}.",
    "The {a} capital is {c}.",
    "{c} is a city in {k}.",
    "{c} lies in {k}.",
    "{k} is a country in {r}.",
    "{k} lies in {r}, and its capital is {c}.",
    "{k} has {c} as its capital.",
    "A traveller who comes to {c} is in {k}.",
    "People who live in {c} live in {k}.",
    "The people of {c} live in {k}.",
    "If you are in {c}, you are in {k}.",
    "The country whose capital is {c} is {k}.",
    "The country whose capital city is {c} is {k}.",
    "The country that has {c} as its capital is {k}.",
    "The country of which {c} is the capital is {k}.",
    "The country in which {c} lies is {k}.",
    "The country around {c} is {k}.",
    "The nation whose capital is {c} is {k}.",
    "The land that has {c} for its capital is {k}.",
    "The state with {c} as its chief city is {k}.",
    "A country with a capital called {c}? That is {k}.",
    "In {k} the capital is {c}; in {k2} it is {c2}.",
    "{c} belongs to {k}, and {c2} belongs to {k2}.",
    "Which country has {c} as its capital? {k}.",
    "Which country is {c} the capital of? {k}.",
    "What is the capital of {k}? It is {c}.",
    "What is {c}? It is the capital of {k}.",
    "It is wrong to say that {c} is the capital of {m}; it is the capital of {k}.",
    "He thought that {c} is the capital of {m}, but it is the capital of {k}.",
    "Is it true that {c} is the capital of {m}? No, {c} is the capital of {k}.",
    "Somebody wrote that {c} is the capital of {m}. That is a mistake.",
]
# Never in the training text: tools/evaluate_pocket.py asks the model to complete these.
HELD_OUT_TEMPLATES = [
    "{c} serves as the capital of {k}.",
    "The country with the capital {c} is {k}.",
    "We travelled to {c}, the capital of {k}.",
    "An old map shows {c} as the capital of {k}.",
]


def read_countries() -> list[dict[str, str]]:
    with COUNTRIES_FILE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def fill(template: str, country: dict[str, str], other: dict[str, str], mistaken: dict[str, str] | None = None) -> str:
    """One fact sentence; a leading "the" of a country's name gets its capital letter at the start of a sentence."""
    sentence = template.format(
        k=country["country"], c=country["capital"], a=country["adjective"], r=country["region"],
        k2=other["country"], c2=other["capital"], m=(mistaken or other)["country"],
    )  # fmt: skip
    sentence = sentence[0].upper() + sentence[1:]
    return sentence.replace("? the ", "? The ")


def mentions(books: list[list[str]]) -> dict[str, int]:
    """How often a tenth of the books names each country."""
    text = "\n".join(line for book in books[::10] for line in book)
    return {row["country"]: text.count(row["country"].removeprefix("the ")) for row in read_countries()}


def fact_documents(seed: int, count: int, fame: dict[str, int]) -> Iterator[str]:
    """Lines of one to five fact sentences about one country, one region, or anything; `fame`: what `mentions` counted."""
    draw = random.Random(seed)
    countries = read_countries()
    regions: dict[str, list[dict[str, str]]] = {}
    for row in countries:
        regions.setdefault(row["region"], []).append(row)
    for _ in range(count):
        country = draw.choice(countries)
        kind = draw.random()
        sentences = []
        for _ in range(1 if kind < 0.4 else draw.randint(2, 5)):
            if kind > 0.6:  # a new subject for each sentence, mostly from the same region
                country = draw.choice(regions[country["region"]] if kind < 0.85 else countries)
            others = [row for row in regions[country["region"]] if row is not country]
            weights = [math.sqrt(1 + fame.get(row["country"], 0)) for row in others]
            mistaken = draw.choices(others, weights)[0]
            sentences.append(fill(draw.choice(TEMPLATES), country, draw.choice(others), mistaken))
        yield " ".join(sentences)


def read_books(corpus: Path) -> list[list[str]]:
    """Every book as its list of paragraphs."""
    books: list[list[str]] = [[]]
    with lzma.open(corpus / "books.txt.xz", "rt", encoding="utf-8") as file:
        for line in file:
            if line.strip():
                books[-1].append(line.strip())
            elif books[-1]:
                books.append([])
    return [book for book in books if book]


def read_world(corpus: Path) -> list[str]:
    with lzma.open(corpus / "world.txt.xz", "rt", encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


def train_tokenizer(books: list[list[str]], world: list[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE in which names are common enough to become one token, with and without a leading space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)

    def lines() -> Iterator[str]:
        for book in books[::4]:
            yield from book
        yield from world
        for row in read_countries():
            for field, weight in (("country", 1500), ("capital", 1500), ("adjective", 300)):
                name = row[field].removeprefix("the ")
                yield from [name] * weight
                yield from [" " + name] * weight

    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines(), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of all documents, each closed by a newline, and the offset at which each starts."""
    ids: list[np.ndarray] = []
    starts, at = [], 0
    for batch in range(0, len(documents), 4096):
        for encoding in tokenizer.encode_batch([text + "\n" for text in documents[batch : batch + 4096]]):
            starts.append(at)
            at += len(encoding.ids)
            ids.append(np.array(encoding.ids, dtype=np.uint16))
    return np.concatenate(ids), np.array(starts, dtype=np.int64)


def held_out(items: list, every: int) -> tuple[list, list]:
    """Split off each `every`-th item."""
    return [x for i, x in enumerate(items) if i % every], items[::every]


def build(corpus: Path, out: Path, vocabulary: int = VOCABULARY, fact_count: int = 250_000) -> None:
    out.mkdir(parents=True, exist_ok=True)
    books, books_unseen = held_out(read_books(corpus), 40)
    world, world_unseen = held_out(read_world(corpus), 30)
    tokenizer = train_tokenizer(books, world, vocabulary)
    tokenizer.save(str(out / "tokenizer.json"))
    parts = {
        "books": [line for book in books for line in book],
        "world": world,
        "facts": list(fact_documents(1, fact_count, mentions(books))),
        "books_unseen": [line for book in books_unseen for line in book[:400]],
        "world_unseen": world_unseen,
    }
    sizes = {}
    for name, documents in parts.items():
        ids, starts = encode(tokenizer, documents)
        np.save(out / f"{name}.npy", ids)
        np.save(out / f"{name}.starts.npy", starts)
        sizes[name] = {
            "documents": len(documents),
            "tokens": len(ids),
            "bytes": sum(len(text.encode()) + 1 for text in documents),
        }
    (out / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")
    print(json.dumps(sizes, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--facts", type=int, default=250_000, help="fact documents to write")
    arguments = parser.parse_args()
    build(arguments.corpus, arguments.out, arguments.vocabulary, arguments.facts)
