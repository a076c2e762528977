"""Quality and cost, measured: scripts that people run."""
