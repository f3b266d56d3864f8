"""An order's way through two services: HTTP, a queue, SQL, and one trace. ``python -m examples.orders`` runs it."""
