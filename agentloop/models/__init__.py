"""Chat models behind `ports.Model`: transports, and the wrappers that retry, meter and journal.

A call goes through `Journaled(Fallbacks(Cached(chain)))`, where `chain` is
`Retrying(Limited(Metered(transport)))`, in this order: an answer that the journal or the cache
knows costs nothing, every attempt waits its turn and is checked against the budget, and every
attempt is in the ledger, whether it brought a reply, failed or was cancelled.
"""
