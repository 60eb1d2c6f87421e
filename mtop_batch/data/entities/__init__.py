"""Entities of texts: tags and spans, words, and what label columns say of them."""
