"""Best-of-N: the search, its scheduling over workers, and recorded decisions made again."""
