"""Answering clients with a workflow's champion: who answers, what is kept, how a canary ends."""
