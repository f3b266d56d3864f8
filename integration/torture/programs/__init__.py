"""Producers and workers of each library, as users write them: what the torture runs and breaks.

``python -m integration.torture.programs LIBRARY publish|consume URL QUEUE [WHAT]``; ``ledger`` says what they tell.
Each module beside it has ``connect`` (a context manager that gives the publish call, which returns once a message is
confirmed), ``consume`` (works until it is asked to end) and ``counts`` (what is left of the messages afterwards).
"""
