"""What an array means: its axes, intensity range, noise and tiles. Imports no torch."""
