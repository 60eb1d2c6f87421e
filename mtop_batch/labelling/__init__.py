"""Keeping the labels of a corpus true: labels are a materialised view of the articles."""
