"""Tiny random backbones and texts shared by the tests; nothing here touches the network."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

# Tests run side by side with Ray workers on small machines: one thread each is faster than two that fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import hypothesis
import pytest
import torch

# Before transformers imports Triton: without a GPU its kernels are run line by line on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from transformers import BertTokenizer, ElectraConfig, ElectraModel

from tests.s3 import S3Server, s3_server

# Generated examples may take long on a machine that is busy with other tests.
hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.load_profile("default")

WORDS = (
    "bank market profit shares economy match goal team player cup film music star album show vote party minister "
    "law budget phone software game network chip the a of in on wins loses says new"
).split()


def make_tokenizer() -> BertTokenizer:
    """A lower-casing word-piece tokenizer whose vocabulary is `WORDS`, single letters and the special tokens."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    pieces += [letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter not in WORDS]
    pieces += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    return BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)})


def make_backbone(seed: int = 0, max_tokens: int = 64, width: int = 32) -> ElectraModel:
    """A random two-layer ELECTRA encoder, whose input embeddings are 16 wide; dropout off."""
    torch.manual_seed(seed)
    config = ElectraConfig(
        vocab_size=len(make_tokenizer()),
        embedding_size=16,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=max_tokens,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ElectraModel(config).eval()


@pytest.fixture
def tokenizer() -> BertTokenizer:
    return make_tokenizer()


@pytest.fixture
def backbone() -> ElectraModel:
    return make_backbone()


@pytest.fixture(scope="session")
def backbone_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local directory with the tiny backbone and its tokenizer, as `backbone.name` of a configuration."""
    path = tmp_path_factory.mktemp("backbone")
    make_backbone().save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def make_texts() -> Callable[[int, int], list[str]]:
    """`make_texts(n, seed)`: n texts of 1 to 30 words of the tiny vocabulary."""

    def make(count: int, seed: int = 0) -> list[str]:
        rng = random.Random(seed)
        return [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(count)]

    return make


@pytest.fixture(scope="session")
def s3_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS for the whole test session, with an empty bucket `test`."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_service: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 service, with the AWS variables of this test leading to it."""
    for name, value in s3_service.environment.items():
        monkeypatch.setenv(name, value)
    return s3_service
