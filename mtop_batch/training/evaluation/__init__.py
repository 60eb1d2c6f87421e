"""How good a model is at each task, and what a person needs to make it better."""
