"""The experiments of the paper: runs of methods on the same data, their statistics, and the page that shows them.

    method, seed, settings -> specs.RunSpec -> run.run_spec -> one JSON file (records) -> summary -> page and plots

Nothing here imports Ray: `mtop_batch.engine.reproduce` has runs go side by side on a cluster.
"""
