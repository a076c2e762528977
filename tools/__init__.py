"""Scripts for releases and documentation."""
