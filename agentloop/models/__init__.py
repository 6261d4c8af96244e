"""Chat models behind `ports.Model`: transports, and the wrappers that retry, meter and journal.

A call goes through `Journaled(Metered(Retrying(transport)))`, in this order: an answer that the
journal knows costs nothing, and what the meter counts includes every attempt.
"""
