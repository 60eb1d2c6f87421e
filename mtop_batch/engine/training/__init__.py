"""What trains on Ray: phases, single tasks, teachers, and what runs on its workers."""
