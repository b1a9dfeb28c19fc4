"""Episodes as bags: store, recording, labels and rubric, quality, verification, compaction."""
