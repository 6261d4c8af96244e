"""Code tasks with hidden tests."""
