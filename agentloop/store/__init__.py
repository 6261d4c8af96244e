"""Keep it: the log (SQLite, the truth), the index (Chroma, rebuildable), and the archive over both.

Everything outside this package talks to `store.archive.Archive`.
"""
