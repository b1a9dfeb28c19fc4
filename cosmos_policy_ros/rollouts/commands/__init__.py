"""What operators type: scripts/episodes, scripts/score and scripts/recover."""
