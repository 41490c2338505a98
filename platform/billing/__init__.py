"""What it costs: rate cards, the ledger, usage, reports. Imports ``common``, ``accounts``, ``fleet``; never ``renderjobs``.

Rows here name jobs and images by plain ids, so that the book outlives what it charged for.
"""
