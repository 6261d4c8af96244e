"""Model servers that this machine runs itself: the embedded engine and how it is launched.

Nothing is imported here, because `launch` must stay free of torch while `embedded` needs it.
"""
