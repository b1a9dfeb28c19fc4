"""Who answers a query: engines, worker processes, actors of a Ray cluster."""
