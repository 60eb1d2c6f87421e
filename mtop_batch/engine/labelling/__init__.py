"""What labels on Ray: the job, its pipeline, attempts, and the gate."""
