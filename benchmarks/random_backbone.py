"""A backbone with random weights and texts of random words, to measure speed where nothing can be downloaded.

    python benchmarks/random_backbone.py --tokenizer DIR --output DIR [--size base] [--texts 8192] [--words 110]

Writes DIR (a backbone with the tokenizer given) and DIR/articles.parquet with the column `title`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from gpu import SIZES
from transformers import AutoTokenizer, BertConfig, BertModel


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--texts", type=int, default=8_192)
    parser.add_argument("--words", type=int, default=110)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **SIZES[arguments.size])
    BertModel(config, add_pooling_layer=False).save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    words = np.array([word for word in tokenizer.get_vocab() if word.isalpha() and len(word) > 2])
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(arguments.words), 0.5, arguments.texts), 8, 400).astype(int)
    texts = [" ".join(rng.choice(words, length)) for length in lengths]
    pq.write_table(pa.table({"id": np.arange(len(texts)), "title": texts}), arguments.output / "articles.parquet")


if __name__ == "__main__":
    main()
