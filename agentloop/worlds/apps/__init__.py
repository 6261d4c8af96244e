"""A multi-app tool world: files, notes, a shop, a calendar, messages and contacts."""
