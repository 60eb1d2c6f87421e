"""Keeps the labels of a corpus up to date: labels are a materialised view of the articles."""
