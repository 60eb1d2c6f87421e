"""How much faster are long articles tokenised when no more of them is read than is needed?

Articles of `--words` words each, put together from real texts one after the other, one thread:

* `whole`  the tokenizer on whole texts, which then truncates: `tokenizer(texts, truncation=True, max_length=...)`
* `ours`   `TextTokenizer.encode`, whose ids are compared with those, and must be the same

They take turns; `ratio` is of the same round, its median over the rounds.

    python benchmarks/tokenising.py --articles articles.parquet --column body [--words 1500] [--max-tokens 128 512]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from bundles import BACKBONE
from results_file import write_result
from transformers import PreTrainedTokenizerBase

from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.model.encoder.backbone import load_tokenizer


def articles_of(path: Path, column: str, num_words: int, count: int) -> list[str]:
    """So many articles of so many words; from the beginning again where there is not enough text."""
    texts = pq.read_table(path, columns=[column])[column].drop_null().to_pylist()
    words = [word for text in texts for word in text.split()]
    words *= -(-num_words * count // len(words))
    return [" ".join(words[start : start + num_words]) for start in range(0, num_words * count, num_words)]


def measure(
    tokenizer: PreTrainedTokenizerBase, articles: list[str], max_tokens: int, num_rounds: int
) -> dict[str, Any]:
    """Articles per second of both."""
    ours = TextTokenizer(tokenizer, max_tokens)
    rates: dict[str, list[float]] = {"whole": [], "ours": []}
    for _ in range(num_rounds):
        started = time.perf_counter()
        whole = tokenizer(articles, truncation=True, max_length=max_tokens)["input_ids"]
        rates["whole"].append(len(articles) / (time.perf_counter() - started))
        started = time.perf_counter()
        tokens = ours.encode(articles)
        rates["ours"].append(len(articles) / (time.perf_counter() - started))
        if [tokens.row(row).tolist() for row in range(len(tokens))] != whole:
            raise SystemExit("the ids differ")
    return {
        "max_tokens": max_tokens,
        "articles_per_s": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "rounds": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "ratio": round(statistics.median(a / b for a, b in zip(rates["ours"], rates["whole"], strict=True)), 2),
    }


def main() -> None:
    """Measure and write `results/tokenising.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--articles", type=Path, required=True, help="Parquet file or directory")
    parser.add_argument("--column", default="body")
    parser.add_argument("--words", type=int, default=1_500)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="tokenising")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = load_tokenizer(BACKBONE)
    articles = articles_of(arguments.articles, arguments.column, arguments.words, arguments.count)
    found = [measure(tokenizer, articles, length, arguments.rounds) for length in arguments.max_tokens]
    for entry in found:
        rates = entry["articles_per_s"]
        print(
            f"{arguments.words} words cut at {entry['max_tokens']} tokens: {rates['ours']:,.0f} articles/s, "
            f"{entry['ratio']:.1f} times whole texts ({rates['whole']:,.0f})"
        )
    print(f"wrote {write_result(arguments.name, {'words': arguments.words, 'lengths': found})}")


if __name__ == "__main__":
    main()
