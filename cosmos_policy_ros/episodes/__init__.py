"""Episodes as bags: the store, recording, labels and rubric, quality, verification."""
