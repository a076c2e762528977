"""How good and how costly: scripts that people run."""
