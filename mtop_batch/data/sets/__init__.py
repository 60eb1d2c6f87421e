"""Data sets that commands build from texts at hand."""
