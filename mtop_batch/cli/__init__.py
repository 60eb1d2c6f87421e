"""The `mtop` command."""
