"""From the probabilities that a model puts out to labels: temperature, thresholds, abstention, rules between tasks."""
