"""The Cosmos policy itself: images and proprioception in, action chunks out. Needs torch."""
