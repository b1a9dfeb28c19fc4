"""Who answers a query: engines, the worker process, and the search to come."""
