"""Keeping the labels of a corpus true: labels are a materialised view of the articles.

gather -> cells (slices, paths) -> plan      which cells are not current, as units of work
units (sources) -> stages (predictor)        read a unit, label it, write it; from stored vectors: probes
label_files (footer, definition)             one label file and its record
table (view, resolve), overview              the table as one: its rows, its numbers
runs, report                                 what runs wanted and what came of them
"""
