"""The anatomy of forgetting: back to a finished run, to ask what it lost again with one thing put back at a time."""
