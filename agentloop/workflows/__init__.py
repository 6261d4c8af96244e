"""Workflow files: their schema, how one is read, how its parts become a running kit."""
