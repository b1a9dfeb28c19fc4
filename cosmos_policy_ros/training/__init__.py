"""Fine-tuning from bags: what a window of an episode teaches, and how."""
