"""The Cosmos policy itself: pictures and proprioception in, action chunks out. Needs torch."""
