"""The model: backbones, prompts, heads, MTOP itself, and its bundles."""

from mtop_batch.model.backbone import load_backbone, load_tokenizer, locate_backbone
from mtop_batch.model.bundle import Bundle, bundle_name, load_bundle, save_bundle
from mtop_batch.model.fingerprints import task_fingerprints, tokenizer_digest
from mtop_batch.model.mtop import MTOPModel, MTOPOutput
from mtop_batch.model.mtop_config import MTOPConfig
from mtop_batch.model.prompts import random_prompts, token_prompts

__all__ = [
    "Bundle",
    "MTOPConfig",
    "MTOPModel",
    "MTOPOutput",
    "bundle_name",
    "load_backbone",
    "load_bundle",
    "load_tokenizer",
    "locate_backbone",
    "random_prompts",
    "save_bundle",
    "task_fingerprints",
    "token_prompts",
    "tokenizer_digest",
]
